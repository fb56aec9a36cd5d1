//! What a container's processes hold open.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// How many processes and how many descriptors of a container are looked at; a container with more is counted so far.
const MAX_PROCESSES: usize = 4096;
const MAX_DESCRIPTORS: u64 = 1 << 16;

/// Processes and their open descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// Processes.
    pub count: u64,
    /// Their open file descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
}

impl Processes {
    /// Counts, with `proc` as the process file system. A process that ends meanwhile holds nothing. Blocks.
    pub fn count(proc: &Path, pids: &[i32]) -> Self {
        let mut sum = Self {
            count: pids.len() as u64,
            ..Self::default()
        };
        for pid in pids.iter().take(MAX_PROCESSES) {
            let Ok(descriptors) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
                continue;
            };
            for descriptor in descriptors.flatten() {
                if sum.descriptors == MAX_DESCRIPTORS {
                    return sum;
                }
                sum.descriptors += 1;
                let socket = fs::read_link(descriptor.path())
                    .is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"socket:"));
                sum.sockets += u64::from(socket);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn descriptors_and_sockets_of_all_processes_are_counted() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, descriptors) in [(7, &["/dev/null", "socket:[1]"][..]), (8, &["socket:[2]"])] {
            let folder = proc.path().join(format!("{pid}/fd"));
            fs::create_dir_all(&folder).unwrap();
            for (n, target) in descriptors.iter().enumerate() {
                symlink(target, folder.join(n.to_string())).unwrap();
            }
        }
        let counted = Processes::count(proc.path(), &[7, 8, 9]);
        let expected = Processes {
            count: 3,
            descriptors: 3,
            sockets: 2,
        };
        assert_eq!(counted, expected);
    }
}
