//! Whether a process that was seen before is still the same one, and lives.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_runtime_sys::{open, process};

/// A process, for certain: by pid and start time, through a pidfd.
#[derive(Debug)]
pub(crate) struct Alive {
    pub(crate) pidfd: OwnedFd,
}

/// The start time of a process, in clock ticks after boot.
pub(crate) fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// The process if it lives: a zombie doesn't.
pub(crate) fn alive(pid: i32, start: u64) -> Option<Alive> {
    let pidfd = process::pidfd_open(pid).ok()?;
    // After opening: from here on the pid can't go to another process unseen.
    lives(pid, start).then_some(Alive { pidfd })
}

/// The same, only looking.
pub(crate) fn lives(pid: i32, start: u64) -> bool {
    stat(pid).is_some_and(|(state, started)| started == start && state != 'Z' && state != 'X')
}

fn stat(pid: i32) -> Option<(char, u64)> {
    let path = format!("/proc/{pid}/stat");
    // A line of some 300 bytes.
    let line = open::read_lines(Path::new(&path), 4096, 4096).ok()?;
    parse_stat(&String::from_utf8_lossy(&line))
}

/// State and start time. The name in parentheses may hold anything, so fields are counted from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_do_not_confuse() {
        let stat = "7 (a) Z (b)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 5 6";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
    }

    #[test]
    fn this_process_lives_and_another_start_time_is_another_process() {
        let pid = std::process::id() as i32;
        let start = started(pid).unwrap();
        assert!(alive(pid, start).is_some());
        assert!(alive(pid, start + 1).is_none());
    }
}
