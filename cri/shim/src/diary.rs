//! The shim's own log, for whoever wonders afterwards: `shim.log` in its folder, bounded.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::log::{now, stamp};

/// When it has grown to this, it starts anew.
const MAX_BYTES: u64 = 64 << 10;

/// Where the shim says what nobody asked for.
#[derive(Debug)]
pub(crate) struct Diary {
    file: Option<File>,
    len: u64,
}

impl Diary {
    /// Opens the file; a shim without one works all the same.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.open(state_dir.join("shim.log")).ok();
        let len = file
            .as_ref()
            .and_then(|f| f.metadata().ok())
            .map_or(0, |m| m.len());
        Self { file, len }
    }

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        let Some(file) = &mut self.file else { return };
        if self.len >= MAX_BYTES && file.set_len(0).is_ok() {
            self.len = 0;
        }
        let mut line = stamp(now()).to_vec();
        // Writing to memory can't fail; failing to write the file leaves the diary with a gap.
        let _ = writeln!(line, " {what}");
        if file.write_all(&line).is_ok() {
            self.len += line.len() as u64;
        }
    }
}
