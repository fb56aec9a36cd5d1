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
use std::time::Duration;

/// Whom to tell.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
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
        let socket = UnixDatagram::unbound()?;
        match path.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(path)?,
        }
        // A manager that doesn't listen must not hold the daemon up.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Some(socket),
            watchdog,
        })
    }

    /// The daemon serves, at first or after reading its configuration again.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The daemon reads its configuration again.
    pub fn reloading(&self) {
        self.tell("RELOADING=1");
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
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, state: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::warn!(%error, state, "failed to tell the service manager");
        }
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
    fn without_a_service_manager_nothing_happens() {
        let nobody = Supervisor::default();
        nobody.ready();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(nobody.keep_alive());
    }
}
