//! Standard streams: the caller's, given ones, or a terminal made inside the container.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::unistd;
use oci_runtime_sys::{mount, open, process, socket, tty};

use crate::StepError;
use crate::context::Context as _;
use crate::handshake::Child;
use crate::inside::Inside;
use crate::plan::ProcessPlan;

/// Where the process's streams go.
#[derive(Debug)]
pub(crate) enum Streams {
    Inherit,
    Given([OwnedFd; 3]),
    /// A terminal; its main side goes to this connected socket.
    ToSocket(OwnedFd),
    /// A terminal; its main side goes to the runtime.
    ToRuntime,
}

impl Streams {
    /// Puts 0, 1 and 2 in place. A terminal is made in the devpts of `root` (the current root if none).
    pub(crate) fn install(
        &self,
        plan: &ProcessPlan,
        root: Option<BorrowedFd<'_>>,
        channel: &Child,
    ) -> Result<(), StepError> {
        match self {
            Self::Inherit => {}
            Self::Given(fds) => replace([fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()])?,
            Self::ToSocket(_) | Self::ToRuntime => {
                let opened = match root {
                    Some(_) => None,
                    None => Some(open::place(Path::new("/")).to(|| "open the root")?),
                };
                if let Some(root) = root.or(opened.as_ref().map(OwnedFd::as_fd)) {
                    self.make_terminal(plan, root, channel)?;
                }
            }
        }
        hand_over(plan.credentials.uid)
    }

    /// Whether a terminal is made.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::ToSocket(_) | Self::ToRuntime)
    }

    fn make_terminal(
        &self,
        plan: &ProcessPlan,
        root: BorrowedFd<'_>,
        channel: &Child,
    ) -> Result<(), StepError> {
        let main = open_main(root)?;
        let peer = tty::peer(main.as_fd()).to(|| "open the new terminal")?;
        if let Some((columns, rows)) = plan.terminal
            && (columns, rows) != (0, 0)
        {
            tty::resize(main.as_fd(), columns, rows).to(|| "set the terminal's size")?;
        }
        match self {
            Self::ToSocket(socket) => {
                socket::send(socket.as_fd(), b"/dev/ptmx", &[main.as_fd()])
                    .to(|| "send the terminal to the console socket")?;
            }
            _ => channel.console(main.as_fd())?,
        }
        replace([peer.as_fd(); 3])?;
        tty::take_control(peer.as_fd()).to(|| "take control of the terminal")
    }
}

/// A new terminal's main side, from the container's devpts: the real device on a real devpts, wherever the path led.
fn open_main(root: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    let what = || "open a terminal: /dev/pts/ptmx in the container";
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let main = Inside(root).open(Path::new("dev/pts/ptmx"), flags).to(what)?;
    let magic = open::magic(main.as_fd()).to(what)?;
    let facts = open::facts(main.as_fd()).to(what)?;
    if magic != open::DEVPTS_MAGIC || !facts.is_char_device(5, 2) {
        return Err(StepError::other(
            "/dev/pts/ptmx in the container is not on a devpts; is there a mount for /dev/pts?",
        ));
    }
    Ok(main)
}

/// Binds the terminal (standard input, by now) to `/dev/console` below a `dev` that belongs to the container.
pub(crate) fn bind_console(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "bind the terminal to /dev/console";
    let inside = Inside(root);
    let target = inside.make_file(Path::new("dev/console")).to(what)?;
    let stdin = std::io::stdin();
    let terminal = mount::clone_tree(stdin.as_fd(), false).to(what)?;
    mount::move_to(terminal.as_fd(), target.as_fd()).to(what)
}

fn replace(fds: [BorrowedFd<'_>; 3]) -> Result<(), StepError> {
    // A given descriptor may have one of the numbers itself: then it would be overwritten before it's used.
    let mut moved = Vec::with_capacity(3);
    for fd in fds {
        moved.push(fd.try_clone_to_owned().to(|| "copy a standard stream")?);
    }
    for (fd, number) in moved.iter().zip(0..) {
        process::become_number(fd.as_fd(), number).to(|| "put a standard stream in place")?;
    }
    Ok(())
}

/// The streams belong to the user who will run, so that /dev/stdout can be opened again. /dev/null stays root's.
fn hand_over(uid: u32) -> Result<(), StepError> {
    if uid == 0 {
        return Ok(());
    }
    for number in 0..3 {
        let Ok(stat) = nix::sys::stat::fstat(number) else {
            continue;
        };
        if stat.st_uid == uid || stat.st_rdev == libc::makedev(1, 3) {
            continue;
        }
        match nix::unistd::fchown(number, Some(unistd::Uid::from_raw(uid)), None) {
            // Not mapped, not ours, read-only: the process has the stream all the same.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EROFS | nix::Error::ENOSYS) => {
            }
            Err(e) => return Err(StepError::io("give the standard streams to the user", e)),
        }
    }
    Ok(())
}
