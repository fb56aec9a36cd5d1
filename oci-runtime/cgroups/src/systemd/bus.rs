//! A connection to systemd's manager, with a deadline for everything.
//!
//! As root first through the manager's own socket, which needs no message bus and tells of every removed job unasked;
//! otherwise over the system bus, where one has to subscribe. The connection lives for a few calls and closes at exec.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::message::{self, FIXED, Heard, Method, Property, Writer};
use crate::CgroupError;

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// For a call, or a job, of a manager that may be busy starting hundreds of units.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Jobs and units of others that end while we wait.
const MOST_REMOVED: usize = 4096;

/// A refusal's name, as systemd gives it.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// An open connection.
#[derive(Debug)]
pub(super) struct Systemd {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    /// Jobs that ended, with how.
    removed: Vec<(String, String)>,
    /// Units that were forgotten.
    forgotten: Vec<String>,
}

/// Why a call was in vain.
#[derive(Debug)]
pub(super) enum CallFailure {
    Io(io::Error),
    Refused {
        name: String,
        text: String,
    },
    /// The job ended with something else than `done`.
    Job(String),
}

impl CallFailure {
    pub(super) fn is_no_such_unit(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == NO_SUCH_UNIT)
    }

    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::TimedOut)
    }

    pub(super) fn is_unit_exists(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == UNIT_EXISTS)
    }

    /// The error with the unit's name.
    pub(super) fn at(self, action: &'static str, unit: &str) -> CgroupError {
        let unit = unit.to_owned();
        match self {
            Self::Io(source) => CgroupError::SystemdCall { action, unit, source },
            Self::Refused { name, text } => CgroupError::SystemdRefused {
                action,
                unit,
                name,
                text,
            },
            Self::Job(result) => CgroupError::SystemdJob { action, unit, result },
        }
    }
}

impl From<io::Error> for CallFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Systemd {
    /// Connects; everything done with the connection has to be done within that time.
    pub(super) fn connect(patience: Duration) -> Result<Self, CgroupError> {
        let deadline = Instant::now() + patience;
        let private = Self::open(PRIVATE, deadline);
        private
            .or_else(|first| {
                let mut bus = Self::open(SYSTEM_BUS, deadline).map_err(|_| first)?;
                bus.subscribe()?;
                Ok(bus)
            })
            .map_err(|source| CgroupError::NoSystemd { source })
    }

    fn open(path: &str, deadline: Instant) -> io::Result<Self> {
        let fd = socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // Connecting waits as long as sending does: for room among those that wait to be accepted.
        socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(5))?;
        socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let mut systemd = Self {
            stream: UnixStream::from(fd),
            serial: 0,
            deadline,
            removed: Vec::new(),
            forgotten: Vec::new(),
        };
        systemd.authenticate()?;
        Ok(systemd)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let user = nix::unistd::geteuid().to_string();
        let hex: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 512 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.send(b"BEGIN\r\n")
    }

    fn subscribe(&mut self) -> io::Result<()> {
        const BUS: Method = Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            signature: "",
        };
        // Anybody on the bus can send a signal of that name; only systemd's are believed.
        const MATCH: &str =
            "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager'";
        let mut rule = Writer::default();
        rule.text(MATCH);
        let add_match = Method {
            member: "AddMatch",
            signature: "s",
            ..BUS
        };
        let calls = [
            (BUS, Writer::default()),
            (add_match, rule),
            (manager("Subscribe", ""), Writer::default()),
        ];
        for (method, body) in calls {
            match self.call(&method, body) {
                Ok(_) => {}
                Err(CallFailure::Io(error)) => return Err(error),
                Err(other) => return Err(io::Error::other(format!("{}: {other:?}", method.member))),
            }
        }
        Ok(())
    }

    /// Makes a unit that goes with its processes, and waits until it's there.
    pub(super) fn start(&mut self, unit: &str, properties: &[Property]) -> Result<(), CallFailure> {
        let mut body = Writer::default();
        body.text(unit);
        body.text("replace");
        body.properties(properties);
        body.no_units();
        let job = self.call(&manager("StartTransientUnit", "ssa(sv)a(sa(sv))"), body)?;
        self.wait_for(job, None)?;
        self.settle(unit)
    }

    /// systemd writes a cgroup's files a moment after it has answered, before it takes the next call: one that changes
    /// nothing is waited for, so that what is written to the files afterwards stays.
    fn settle(&mut self, unit: &str) -> Result<(), CallFailure> {
        let mut body = Writer::default();
        body.text(unit);
        match self.call(&manager("GetUnit", "s"), body) {
            Err(failure) if failure.is_no_such_unit() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Changes properties of a unit until it goes.
    pub(super) fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), CallFailure> {
        let mut body = Writer::default();
        body.text(unit);
        body.bool(true);
        body.properties(properties);
        self.call(&manager("SetUnitProperties", "sba(sv)"), body)?;
        self.settle(unit)
    }

    /// Stops a unit, and waits until it has. One that has just ended by itself may be forgotten with its job, whose
    /// end nobody is told of then.
    pub(super) fn stop(&mut self, unit: &str, patience: Duration) -> Result<(), CallFailure> {
        self.deadline = Instant::now() + patience;
        let mut body = Writer::default();
        body.text(unit);
        body.text("replace");
        self.forgotten.clear();
        let job = self.call(&manager("StopUnit", "ss"), body)?;
        self.wait_for(job, Some(unit))
    }

    /// The answer's object path.
    fn call(&mut self, method: &Method, body: Writer) -> Result<Option<String>, CallFailure> {
        self.serial += 1;
        let serial = self.serial;
        let bytes = message::call(serial, method, body);
        self.send(&bytes)?;
        loop {
            match self.hear()? {
                Heard::Answer { to, path } if to == serial => return Ok(path),
                Heard::Refusal { to, name, text } if to == serial => {
                    return Err(CallFailure::Refused { name, text });
                }
                _ => {}
            }
        }
    }

    /// Waits for the end of a job, or until systemd forgets the unit that goes with it.
    fn wait_for(&mut self, job: Option<String>, goes: Option<&str>) -> Result<(), CallFailure> {
        let Some(job) = job else {
            return Err(CallFailure::Io(io::ErrorKind::InvalidData.into()));
        };
        loop {
            if let Some((_, result)) = self.removed.iter().find(|(path, _)| *path == job) {
                return match result.as_str() {
                    "done" => Ok(()),
                    other => Err(CallFailure::Job(other.to_owned())),
                };
            }
            if goes.is_some_and(|unit| self.forgotten.iter().any(|known| known == unit)) {
                return Ok(());
            }
            self.hear()?;
        }
    }

    fn hear(&mut self) -> io::Result<Heard> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut fixed = [0; FIXED];
        self.receive(&mut fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(message::length(&fixed).ok_or_else(invalid)?, 0);
        self.receive(&mut bytes[FIXED..])?;
        let heard = message::read(&bytes).ok_or_else(invalid)?;
        match &heard {
            Heard::JobRemoved { path, result } if self.removed.len() < MOST_REMOVED => {
                self.removed.push((path.clone(), result.clone()));
            }
            Heard::UnitRemoved { unit } if self.forgotten.len() < MOST_REMOVED => {
                self.forgotten.push(unit.clone());
            }
            _ => {}
        }
        Ok(heard)
    }

    /// What is left of the patience.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write_all(bytes).map_err(timed_out)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            self.stream.set_read_timeout(self.left()?)?;
            match self.stream.read(&mut into[done..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(timed_out(e)),
            }
        }
        Ok(())
    }
}

fn manager(member: &'static str, signature: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
        signature,
    }
}

fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}
