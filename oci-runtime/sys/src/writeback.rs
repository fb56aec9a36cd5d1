//! Telling the kernel to begin writing a file to its disk.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::check;

/// Begins to write a file's dirty pages, without waiting for them and without any promise: the fsync that must follow
/// then finds most of its work done. Begun for many files before the first is waited for, it saves a journal commit
/// for each.
///
/// # Errors
/// The kernel's: `ESPIPE` for what isn't a regular file.
pub fn begin_writeback(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only; 0 bytes means "to the end".
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    check(result.into()).map(drop)
}
