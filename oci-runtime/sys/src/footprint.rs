//! Staying small: for processes of which there is one per pod.
//!
//! What a static program maps of its own file are clean pages that the kernel can find again at once. A process that
//! waits for days needs hardly any of them mapped, but each one that it touched once stays in its page tables, with
//! the fifteen around it, and counts as its memory. [`ProgramText::release`] unmaps them; the first instructions
//! after it fault the few that they need back in, from memory.

use std::fs;
use std::io;

/// Tells the allocator to keep little: freed memory goes back to the kernel early, large blocks always.
/// To be called while the process has one thread.
pub fn keep_heap_small() {
    // SAFETY: mallopt only changes the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 10);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Has threads share so many heaps at most. To be called while the process has one thread.
pub fn limit_arenas(most: i32) {
    // SAFETY: mallopt only changes the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, most);
    }
}

/// Gives freed memory back to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim only releases memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The parts of this program's memory that are its file's, byte for byte.
#[derive(Debug, Default)]
pub struct ProgramText {
    ranges: Vec<(usize, usize)>,
}

impl ProgramText {
    /// Looks them up. To be called when the program has started, and before anything else is mapped from files.
    ///
    /// # Errors
    /// When `/proc/self/smaps` can't be read.
    pub fn find() -> io::Result<Self> {
        Ok(Self {
            ranges: unchanged_ranges(&fs::read_to_string("/proc/self/smaps")?),
        })
    }

    /// Unmaps their pages; the kernel maps them again as they are needed.
    pub fn release(&self) {
        for (start, end) in &self.ranges {
            let address = std::ptr::without_provenance_mut::<libc::c_void>(*start);
            // SAFETY: the range is a private mapping of a file that was neither writable nor changed when it was
            // looked up, and nothing in this workspace changes protections of the program's own segments. So
            // every page of it reads the same after it has been dropped and is read from the file again.
            unsafe {
                libc::madvise(address, end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Mappings of files that can't be written and of which no page has been replaced by a changed one (relocated
/// segments are such: read-only, but not what the file says).
fn unchanged_ranges(smaps: &str) -> Vec<(usize, usize)> {
    let (mut ranges, mut candidate) = (Vec::new(), None);
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            candidate = range;
        } else if line
            .strip_prefix("Anonymous:")
            .is_some_and(|a| a.trim() == "0 kB")
        {
            ranges.extend(candidate.take());
        }
    }
    ranges
}

/// The first line of a mapping: its range if it's a file's and can't be written, else `Some(None)`.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let (mode, _offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let fixed = mode.starts_with('r') && mode.as_bytes().get(1) == Some(&b'-') && mode.ends_with('p');
    Some((fixed && inode != "0").then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_file_mappings_are_released() {
        let smaps = "\
00200000-00300000 r--p 00000000 fe:00 77   /bin/x
Anonymous:             0 kB
00300000-00400000 r-xp 00100000 fe:00 77   /bin/x
Size:               1024 kB
Anonymous:             0 kB
VmFlags: rd ex
00400000-00410000 r--p 00200000 fe:00 77   /bin/x
Anonymous:             8 kB
00410000-00420000 rw-p 00210000 fe:00 77   /bin/x
Anonymous:             0 kB
00500000-00600000 r--p 00000000 00:00 0    [vvar]
Anonymous:             0 kB
";
        assert_eq!(
            unchanged_ranges(smaps),
            [(0x0020_0000, 0x0030_0000), (0x0030_0000, 0x0040_0000)]
        );
    }

    #[test]
    fn a_program_works_on_after_its_text_was_released() {
        let text = ProgramText::find().unwrap();
        assert!(!text.ranges.is_empty());
        for _ in 0..10 {
            text.release();
            assert_eq!(format!("{}", 6 * 7), "42");
        }
    }
}
