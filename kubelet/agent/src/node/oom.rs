//! What the kernel's log says about its OOM killer.
//!
//! The kernel tells of each victim in a few lines: who asked for memory, a line that starts with `oom-kill:` with the
//! cgroups, and which process was killed. A [`Reader`] is fed records of `/dev/kmsg` and puts them together. One whose
//! memory cgroup had reached its limit is the container's own affair, and its status says so; one of the whole machine
//! is an event of the node, as upstream's.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Most records that one look takes, so that a flood of them holds nobody up.
const MOST_RECORDS: usize = 1000;
/// Longest record of the kernel's, with its header.
const LONGEST: usize = 8192;

/// A process that the OOM killer ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Victim {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its memory cgroup, if the kernel told.
    pub cgroup: Option<String>,
    /// The cgroup whose limit was reached; `None`: the machine's memory was.
    pub limited: Option<String>,
}

impl Victim {
    /// Reason and message of the node's warning event; `None` when it is none of the node's.
    #[must_use]
    pub fn event(&self) -> Option<(&'static str, String)> {
        if self.limited.is_some() {
            return None;
        }
        let (name, pid) = (&self.name, self.pid);
        let message = match pid == 0 || name.is_empty() {
            true => "System OOM encountered".to_owned(),
            false => format!("System OOM encountered, victim process: {name}, pid: {pid}"),
        };
        Some(("SystemOOM", message))
    }
}

/// Puts the lines together.
#[derive(Debug, Default)]
pub struct Reader {
    begun: Option<Victim>,
}

impl Reader {
    /// Takes one record of `/dev/kmsg`: a header, a semicolon, the line, and perhaps lines with properties.
    pub fn record(&mut self, record: &str) -> Option<Victim> {
        let (header, rest) = record.split_once(';')?;
        let priority: u32 = header.split(',').next()?.parse().ok()?;
        if priority >> 3 != 0 {
            // Written by a program, which could tell anything.
            return None;
        }
        self.line(rest.lines().next()?)
    }

    fn line(&mut self, line: &str) -> Option<Victim> {
        if line.contains("invoked oom-killer:") {
            self.begun = Some(Victim::default());
            return None;
        }
        if let Some(fields) = line.strip_prefix("oom-kill:") {
            let victim = self.begun.get_or_insert_default();
            for field in fields.split(',') {
                match field.split_once('=') {
                    Some(("oom_memcg", cgroup)) => victim.limited = Some(cgroup.to_owned()),
                    Some(("task_memcg", cgroup)) => victim.cgroup = Some(cgroup.to_owned()),
                    _ => {}
                }
            }
            return None;
        }
        let at = line.find("Killed process ")?;
        let (pid, rest) = line[at + "Killed process ".len()..].split_once(' ')?;
        let mut victim = self.begun.take()?;
        victim.pid = pid.trim_end_matches(',').parse().ok()?;
        // The name may have parentheses itself.
        let end = rest.find(") ").or_else(|| rest.rfind(')'))?;
        rest.strip_prefix('(')?;
        victim.name = rest[1..end].to_owned();
        Some(victim)
    }
}

/// The kernel's log from now on.
#[derive(Debug)]
pub struct Watcher {
    log: File,
    reader: Reader,
}

impl Watcher {
    /// Opens the log, `/dev/kmsg` but for tests, behind what is in it.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut log = File::options().read(true).custom_flags(flags).open(path)?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self {
            log,
            reader: Reader::default(),
        })
    }

    /// The descriptor to wait on: readable when [`Watcher::poll`] has something to read.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.log
    }

    /// Reads what came since, at most a thousand records; never waits.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn poll(&mut self) -> io::Result<Vec<Victim>> {
        let mut victims = Vec::new();
        let mut buffer = vec![0; LONGEST];
        for _ in 0..MOST_RECORDS {
            match self.log.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    let record = String::from_utf8_lossy(&buffer[..length]);
                    victims.extend(self.reader.record(&record));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Records were overwritten before they were read, or the call was interrupted.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(victims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: &[&str] = &[
        "4,1,100,-;stress invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0",
        "6,2,100,-;Mem-Info:",
        "6,3,101,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/user.slice,task=stress (x),pid=77,uid=0",
        "3,4,102,-;Out of memory: Killed process 77 (stress (x)) total-vm:1kB, anon-rss:1kB\n SUBSYSTEM=x",
    ];
    const CONTAINER: &[&str] = &[
        "4,5,200,-;python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000",
        "6,6,200,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/kubepods/poda,task_memcg=/kubepods/poda/c,task=python,pid=9,uid=1",
        "3,7,200,-;Memory cgroup out of memory: Killed process 9 (python) total-vm:1kB",
    ];

    fn read(records: &[&str]) -> Vec<Victim> {
        let mut reader = Reader::default();
        records
            .iter()
            .filter_map(|record| reader.record(record))
            .collect()
    }

    #[test]
    fn the_machines_victims_are_events_and_containers_are_not() {
        let both = read(&[GLOBAL, CONTAINER].concat());
        let (reason, message) = both[0].event().unwrap();
        assert_eq!(reason, "SystemOOM");
        assert_eq!(
            message,
            "System OOM encountered, victim process: stress (x), pid: 77"
        );
        assert_eq!(both[1].limited.as_deref(), Some("/kubepods/poda"));
        assert_eq!(both[1].cgroup.as_deref(), Some("/kubepods/poda/c"));
        assert_eq!((both[1].event(), both.len()), (None, 2));
    }

    #[test]
    fn programs_can_t_make_victims_up_and_half_a_story_is_none() {
        let forged: Vec<String> = GLOBAL.iter().map(|record| format!("1{record}")).collect();
        assert!(read(&forged.iter().map(String::as_str).collect::<Vec<_>>()).is_empty());
        assert!(read(&GLOBAL[3..]).is_empty());
        assert!(
            read(&[
                "",
                ";",
                "4",
                "4,1;Killed process",
                "4,1;x invoked oom-killer:",
                "4,1;Killed process x (y"
            ])
            .is_empty()
        );
    }

    #[test]
    fn only_what_comes_after_the_start_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        std::fs::write(&path, GLOBAL[3]).unwrap();
        let mut watcher = Watcher::open(&path).unwrap();
        assert!(watcher.poll().unwrap().is_empty());
        let mut log = std::fs::File::options().append(true).open(&path).unwrap();
        let mut found = Vec::new();
        for record in CONTAINER {
            std::io::Write::write_all(&mut log, record.as_bytes()).unwrap();
            found.extend(watcher.poll().unwrap());
        }
        assert_eq!(found.len(), 1);
        assert!(watcher.file().metadata().unwrap().is_file());
        assert!(Watcher::open(&dir.path().join("none")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_record_brings_the_reader_down(records in proptest::collection::vec("[0-9]{0,2}[,;][ -~]{0,30}(oom-kill:|Killed process |invoked oom-killer:)?[ -~é]{0,30}", 0..8)) {
            let _ = read(&records.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}
