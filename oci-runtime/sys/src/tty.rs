//! Terminals: unlocking a new one, opening its other side without a path, making it the controlling one.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use crate::{check, owned};

/// Unlocks the terminal whose main side this is, and opens its other side.
///
/// # Errors
/// The kernel's.
pub fn peer(main: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which lives through the call.
    check(unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as a number and returns a new descriptor.
    owned(unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// A new session, with this terminal in control.
///
/// # Errors
/// The kernel's.
pub fn take_control(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Sets the size in characters.
///
/// # Errors
/// The kernel's.
pub fn resize(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// The size in characters, columns first.
///
/// # Errors
/// The kernel's: `ENOTTY` when it's no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok((size.ws_col, size.ws_row))
}
