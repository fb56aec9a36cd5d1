//! logind over the system bus: the inhibitor, its longest delay, and the announcement of a shutdown.
//!
//! Two connections: one for calls, each with a deadline, and one that waits for the signal without one, on a thread of
//! its own ([`Logind::wait`] blocks). Whoever waits connects again, after a while, when the bus goes away.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::dbus::{Body, Message, Reader, call};

/// The system bus.
pub const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

const LOGIND: (&str, &str) = ("org.freedesktop.login1", "/org/freedesktop/login1");
const LOGIND_MANAGER: &str = "org.freedesktop.login1.Manager";
const SYSTEMD: (&str, &str) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
const BUS: (&str, &str) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
const SIGHUP: i32 = 1;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of others between a call and its answer.
const MOST_OTHERS: usize = 1000;
/// Largest message that is read.
const LARGEST: usize = 1 << 20;

/// A connection to the bus.
#[derive(Debug)]
pub struct Logind {
    stream: UnixStream,
    serial: u32,
    held: Vec<OwnedFd>,
}

impl Logind {
    /// Connects.
    ///
    /// # Errors
    /// When there is no bus, or it refuses.
    pub fn connect(bus: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(bus)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            stream,
            serial: 0,
            held: Vec::new(),
        };
        connection.authenticate()?;
        connection.call(BUS, BUS.0, "Hello", &Body::default())?;
        Ok(connection)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid: String = nix::unistd::geteuid()
            .to_string()
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect();
        self.stream
            .write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        self.expect("OK ")?;
        self.stream.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
        self.expect("AGREE_UNIX_FD")?;
        self.stream.write_all(b"BEGIN\r\n")
    }

    fn expect(&mut self, beginning: &str) -> io::Result<()> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(io::Error::other("the bus talks without end"));
            }
        }
        let line = String::from_utf8_lossy(&line);
        match line.starts_with(beginning) {
            true => Ok(()),
            false => Err(io::Error::other(format!("the bus refuses: {}", line.trim()))),
        }
    }

    fn call(&mut self, to: (&str, &str), interface: &str, member: &str, body: &Body) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream
            .write_all(&call(serial, to, interface, member, body))?;
        for _ in 0..MOST_OTHERS {
            let message = self.receive()?;
            if message.reply_to == Some(serial) {
                return match &message.error {
                    Some(name) => Err(io::Error::other(format!("{member}: {name}"))),
                    None => Ok(message),
                };
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer among 1000 messages",
        ))
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut header = vec![0; Reader::FIXED];
        self.fill(&mut header)?;
        let rest = Reader::rest(&header).filter(|rest| *rest <= LARGEST);
        let rest = rest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no message of D-Bus"))?;
        let mut whole = header;
        whole.resize(Reader::FIXED + rest, 0);
        let mut tail = vec![0; rest];
        self.fill(&mut tail)?;
        whole[Reader::FIXED..].copy_from_slice(&tail);
        Message::read(&whole).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no message of D-Bus"))
    }

    /// Fills the buffer, and keeps the descriptors that come along.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer[filled..])];
            let got = match recvmsg(&self.stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.held.extend(fds);
                }
            }
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += got;
        }
        Ok(())
    }

    /// The longest that logind lets a shutdown be delayed.
    ///
    /// # Errors
    /// What the bus says.
    pub fn longest_delay(&mut self) -> io::Result<Duration> {
        let mut body = Body::default();
        body.text(LOGIND_MANAGER).text("InhibitDelayMaxUSec");
        let answer = self.call(LOGIND, "org.freedesktop.DBus.Properties", "Get", &body)?;
        let micros = answer.variant_u64();
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no number");
        micros.map(Duration::from_micros).ok_or_else(wrong)
    }

    /// Takes the inhibitor; shutdowns are delayed until the descriptor is closed.
    ///
    /// # Errors
    /// What the bus says.
    pub fn inhibit(&mut self) -> io::Result<OwnedFd> {
        let mut body = Body::default();
        body.text("shutdown").text("kubelet");
        body.text("Kubelet needs time to handle node shutdown")
            .text("delay");
        self.held.clear();
        self.call(LOGIND, LOGIND_MANAGER, "Inhibit", &body)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no descriptor came along");
        self.held.pop().ok_or_else(wrong)
    }

    /// Has logind read its configuration again.
    ///
    /// # Errors
    /// What the bus says.
    pub fn reload(&mut self) -> io::Result<()> {
        let mut body = Body::default();
        body.text("systemd-logind.service").text("all").i32(SIGHUP);
        self.call(SYSTEMD, "org.freedesktop.systemd1.Manager", "KillUnit", &body)?;
        Ok(())
    }

    /// Turns the connection into one that hears of shutdowns.
    ///
    /// # Errors
    /// What the bus says.
    pub fn watch(mut self) -> io::Result<Self> {
        let mut body = Body::default();
        body.text(&format!(
            "type='signal',sender='{}',interface='{LOGIND_MANAGER}',member='PrepareForShutdown',path='{}'",
            LOGIND.0, LOGIND.1
        ));
        self.call(BUS, BUS.0, "AddMatch", &body)?;
        self.stream.set_read_timeout(None)?;
        Ok(self)
    }

    /// Waits for the next word of logind's: `true` when a shutdown begins, `false` when one was called off.
    ///
    /// # Errors
    /// When the bus goes away.
    pub fn wait(&mut self) -> io::Result<bool> {
        loop {
            let message = self.receive()?;
            self.held.clear();
            if message.member.as_deref() == Some("PrepareForShutdown")
                && let Some(begins) = message.bool()
            {
                return Ok(begins);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixListener;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::node::dbus::{answer, signal};

    /// A bus that answers each call with what it is told, the last one with a descriptor.
    fn bus(listener: UnixListener, answers: Vec<(Body, bool)>) -> std::thread::JoinHandle<Vec<String>> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let line = |stream: &mut UnixStream, reply: &[u8]| {
                let mut byte = [0];
                let mut text = Vec::new();
                while !text.ends_with(b"\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    text.push(byte[0]);
                }
                stream.write_all(reply).unwrap();
            };
            line(&mut stream, b"OK 0123\r\n");
            line(&mut stream, b"AGREE_UNIX_FD\r\n");
            line(&mut stream, b"");
            let mut asked = Vec::new();
            for (body, with_fd) in answers {
                let mut header = vec![0; Reader::FIXED];
                stream.read_exact(&mut header).unwrap();
                let mut rest = vec![0; Reader::rest(&header).unwrap()];
                stream.read_exact(&mut rest).unwrap();
                let message = Message::read(&[header, rest].concat()).unwrap();
                asked.push(message.member.clone().unwrap());
                // Something that nobody asked for comes first.
                stream
                    .write_all(&signal("NameAcquired", &Body::default()))
                    .unwrap();
                let reply = answer(message.serial, &body);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let file = tempfile::tempfile().unwrap();
                let fds = [file.as_fd()];
                if with_fd {
                    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
                }
                sendmsg(&stream, &[IoSlice::new(&reply)], &mut control, SendFlags::empty()).unwrap();
            }
            let mut body = Body::default();
            body.bool(true);
            stream.write_all(&signal("PrepareForShutdown", &body)).unwrap();
            asked
        })
    }

    #[test]
    fn the_inhibitor_is_taken_and_shutdowns_are_heard_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let mut delay = Body::default();
        delay.variant_u64(5_000_000);
        let nothing = Body::default;
        let answers = vec![
            (nothing(), false),
            (delay, false),
            (nothing(), true),
            (nothing(), false),
            (nothing(), false),
        ];
        let bus = bus(listener, answers);
        let mut logind = Logind::connect(&path).unwrap();
        assert_eq!(logind.longest_delay().unwrap(), Duration::from_secs(5));
        let inhibitor = logind.inhibit().unwrap();
        logind.reload().unwrap();
        let mut watching = logind.watch().unwrap();
        assert!(watching.wait().unwrap());
        assert_eq!(
            bus.join().unwrap(),
            ["Hello", "Get", "Inhibit", "KillUnit", "AddMatch"]
        );
        assert!(watching.wait().is_err(), "the bus is gone");
        drop(inhibitor);
    }

    #[test]
    fn without_a_bus_there_is_an_error() {
        assert!(Logind::connect(Path::new("/nowhere/bus")).is_err());
    }
}
