//! Telling the service manager how the daemon is, by sd_notify(3)'s protocol: datagrams to `$NOTIFY_SOCKET`.
//!
//! A unit with `Type=notify` counts as started when the daemon says that it is ready, so that what comes after it (the
//! kubelet) finds its socket. With `WatchdogSec=` it is restarted when it stops saying that it is alive. Without a
//! service manager nothing is said to nobody.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long to wait for room in the manager's queue, which is short and everybody's.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whom to tell.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// Another connection, for signs of life: one that is lost is followed by the next, so none is waited for.
    heart: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    /// The manager has been told that the daemon serves.
    is_ready: AtomicBool,
}

impl Supervisor {
    /// The one in this process's environment.
    ///
    /// # Errors
    /// When there is one, and its socket can't be connected to.
    pub fn of_this_process() -> io::Result<Self> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::default());
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // The watchdog may be meant for a process that started this one.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&micros| is_ours && micros > 0);
        Self::at(&path, watchdog.map(Duration::from_micros))
    }

    fn at(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            match path.as_bytes().strip_prefix(b"@") {
                Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                None => socket.connect(path)?,
            }
            Ok::<_, io::Error>(socket)
        };
        // A manager that doesn't listen must not hold the daemon up; one that is busy must hear that it is ready.
        let (socket, heart) = (connect()?, connect()?);
        socket.set_write_timeout(Some(PATIENCE))?;
        heart.set_nonblocking(true)?;
        Ok(Self {
            socket: Some(socket),
            heart: Some(heart),
            watchdog,
            is_ready: AtomicBool::new(false),
        })
    }

    /// The daemon serves.
    pub fn ready(&self) {
        self.tell("READY=1");
        self.is_ready.store(true, Ordering::SeqCst);
    }

    /// The daemon reads its configuration again. Before it serves, that is part of its start, and nothing is said.
    pub fn reloading(&self) {
        self.tell_if_ready("RELOADING=1");
    }

    /// The daemon has read its configuration again; before it serves, that says nothing of whether it does.
    pub fn reloaded(&self) {
        self.tell_if_ready("READY=1");
    }

    fn tell_if_ready(&self, state: &str) {
        if self.is_ready.load(Ordering::SeqCst) {
            self.tell(state);
        }
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Says now and then that the daemon is alive, for as long as it is polled; ends at once if nobody wants to know.
    pub async fn keep_alive(&self) {
        let Some(limit) = self.watchdog else { return };
        let mut ticks = tokio::time::interval(limit / 3);
        loop {
            ticks.tick().await;
            send(self.heart.as_ref(), "WATCHDOG=1");
        }
    }

    fn tell(&self, state: &str) {
        send(self.socket.as_ref(), state);
    }
}

fn send(socket: Option<&UnixDatagram>, state: &str) {
    if let Some(Err(error)) = socket.map(|socket| socket.send(state.as_bytes())) {
        tracing::warn!(%error, state, "failed to tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_arrive_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("orlop-notify-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (listener, path) in [
            (by_path, path.into_os_string()),
            (by_name, format!("@{name}").into()),
        ] {
            let supervisor = Supervisor::at(&path, None).unwrap();
            supervisor.ready();
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }

    #[test]
    fn a_reload_before_the_start_is_over_doesn_t_say_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::at(path.as_os_str(), None).unwrap();
        supervisor.reloading();
        supervisor.reloaded();
        supervisor.ready();
        supervisor.reloading();
        supervisor.reloaded();
        let mut buffer = [0; 64];
        for wanted in ["READY=1", "RELOADING=1", "READY=1"] {
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], wanted.as_bytes());
        }
    }

    #[test]
    fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let others = UnixDatagram::unbound().unwrap();
        others.connect(&path).unwrap();
        others.set_nonblocking(true).unwrap();
        let filled = (0..100_000).take_while(|_| others.send(b"X").is_ok()).count();
        let supervisor = Supervisor::at(path.as_os_str(), None).unwrap();
        let teller = std::thread::spawn(move || supervisor.ready());
        let mut buffer = [0; 64];
        for _ in 0..filled {
            listener.recv(&mut buffer).unwrap();
        }
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        teller.join().unwrap();
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let nobody = Supervisor::default();
        nobody.ready();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(nobody.keep_alive());
    }
}
