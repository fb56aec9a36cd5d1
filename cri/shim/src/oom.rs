//! Whether a container's end was the OOM killer's doing.
//!
//! The container's own cgroup counts the kills in it: read at its end, that decides. But systemd removes a scope as soon
//! as its last process has ended, often before anybody can look. So the count is watched: the kernel says when it
//! changes, before the killed process has ended. That can still come too late; then the pod's cgroup tells, which stays,
//! and counts all kills below it. Those that are another container's, or were accounted for at an earlier end, are
//! no reason ([`Account`]).

use nix::sys::signal::Signal;
use oci_runtime_cgroups::{Cgroup, OomEvents};
use rustix::io::Errno;

use crate::poll::{Interest, Poll, Token, Watch};

/// How often the pod's count is read until it stands still while the containers' are.
const TRIES: usize = 3;

/// A container's cgroup and what is known of the kills in it.
#[derive(Debug, Default)]
pub(crate) struct Oom {
    events: Option<OomEvents>,
    /// The pod's, if the container's own can vanish.
    above: Option<OomEvents>,
    watch: Watch,
    noted: u64,
}

impl Oom {
    /// Opens the counts of a cgroup, and waits for changes if it can vanish.
    pub(crate) fn open(cgroup: &str, poll: &Poll, number: u32) -> Self {
        let Ok(cgroup) = Cgroup::named(cgroup) else {
            return Self::default();
        };
        let mut found = Self {
            events: cgroup.oom_events(),
            ..Self::default()
        };
        if cgroup.needs_process() {
            found.above = cgroup.parent().and_then(|above| above.oom_events());
            found.look();
            let changes = Some(Interest::PRI);
            if let Some(events) = found.events.as_ref().filter(|events| events.notifies()) {
                // Without it, the pod's count decides.
                let _ = found.watch.want(poll, events, Token::Kills(number), changes);
            }
        }
        found
    }

    /// Reads the count; `None` when the cgroup is gone.
    fn look(&mut self) -> Option<u64> {
        let now = self.events.as_ref()?.kills()?;
        self.noted = self.noted.max(now);
        Some(now)
    }

    /// The count has changed, or the cgroup is gone, which is said for ever.
    pub(crate) fn changed(&mut self, poll: &Poll, number: u32) -> Result<(), Errno> {
        match self.look() {
            Some(_) => Ok(()),
            None => self.close(poll, number),
        }
    }

    /// Waits for nothing any more.
    pub(crate) fn close(&mut self, poll: &Poll, number: u32) -> Result<(), Errno> {
        match &self.events {
            Some(events) => self.watch.want(poll, events, Token::Kills(number), None),
            None => Ok(()),
        }
    }

    /// The count now.
    pub(crate) fn count(&mut self) -> Count {
        let now = self.look();
        Count {
            now,
            noted: self.noted,
        }
    }

    fn kills_above(&self) -> Option<u64> {
        self.above.as_ref()?.kills()
    }
}

/// A container's count of kills.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// `None` when the cgroup is gone.
    now: Option<u64>,
    /// When it was last read.
    noted: u64,
}

impl Count {
    fn known(self) -> u64 {
        self.now.unwrap_or(self.noted)
    }

    /// Whether there was any.
    pub(crate) fn is_any(self) -> bool {
        self.known() > 0
    }
}

/// What is known of the kills that the pod's cgroup counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// So many were containers' that have ended, or nobody's here.
    settled: u64,
}

impl Account {
    /// A container has come. What no living container's count explains has nothing to do with later ends.
    fn begin(&mut self, above: u64, living: &[Count]) {
        if living.iter().all(|count| count.now.is_some()) {
            self.settled = above.saturating_sub(living.iter().map(|count| count.known()).sum());
        }
    }

    /// Whether a container whose init ended by that signal was killed for memory.
    fn end(&mut self, signal: Option<i32>, own: Count, above: Option<u64>, others: &[Count]) -> bool {
        if own.now.is_some() {
            self.settled += own.known();
            return own.is_any();
        }
        let theirs: u64 = others.iter().map(|count| count.known()).sum();
        let left = above.unwrap_or(0).saturating_sub(self.settled + theirs);
        let killed = own.noted > 0 || (signal == Some(Signal::SIGKILL as i32) && left > 0);
        if killed {
            // Where another one is gone, too, some of what is left may be its own.
            let alone = others.iter().all(|count| count.now.is_some());
            self.settled += if alone { left } else { own.noted.max(1) };
        }
        killed
    }

    /// [`Account::begin`] for a container among all that live.
    pub(crate) fn began(&mut self, newcomer: &mut Oom, others: &mut [&mut Oom]) {
        if newcomer.above.is_some() {
            let (above, mut living) = steady(|| newcomer.kills_above(), others);
            living.push(newcomer.count());
            self.begin(above.unwrap_or(0), &living);
        }
    }

    /// Whether a container whose init ended by that signal was killed for memory; `others` live.
    pub(crate) fn explains(&mut self, signal: Option<i32>, ended: &mut Oom, others: &mut [&mut Oom]) -> bool {
        let own = ended.count();
        if ended.above.is_none() {
            // One that Orlop makes stays until it's removed.
            return own.is_any();
        }
        if own.now.is_some() {
            return self.end(signal, own, None, &[]);
        }
        let (above, others) = steady(|| ended.kills_above(), others);
        self.end(signal, own, above, &others)
    }
}

/// The pod's count and its containers', of one moment if that can be had.
fn steady(above: impl Fn() -> Option<u64>, others: &mut [&mut Oom]) -> (Option<u64>, Vec<Count>) {
    let mut before = above();
    let mut counts = Vec::new();
    for _ in 0..TRIES {
        counts = others.iter_mut().map(|other| other.count()).collect();
        let after = above();
        if after == before {
            break;
        }
        before = after;
    }
    (before, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL: Option<i32> = Some(Signal::SIGKILL as i32);

    fn there(kills: u64) -> Count {
        Count {
            now: Some(kills),
            noted: kills,
        }
    }

    fn gone(noted: u64) -> Count {
        Count { now: None, noted }
    }

    #[test]
    fn the_container_s_own_count_decides() {
        let mut account = Account::default();
        assert!(
            account.end(None, there(1), None, &[]),
            "a child was killed, and init ended by itself"
        );
        assert!(!account.end(KILL, there(0), Some(9), &[]), "somebody else's kill");
        assert!(
            account.end(None, gone(1), Some(1), &[]),
            "seen while it was there"
        );
    }

    #[test]
    fn where_it_is_gone_the_pod_s_count_decides_less_what_is_others() {
        let ends =
            |settled, above, others: &[Count]| Account { settled }.end(KILL, gone(0), Some(above), others);
        assert!(ends(3, 4, &[]));
        assert!(!ends(3, 3, &[]), "killed by a person");
        assert!(!ends(3, 4, &[there(1)]), "the other one's child was killed");
        assert!(ends(3, 5, &[there(1), there(0)]));
        assert!(
            !Account::default().end(None, gone(0), Some(4), &[]),
            "it ended by itself"
        );
        assert!(!Account::default().end(KILL, gone(0), None, &[]));
    }

    #[test]
    fn two_at_once_have_a_kill_each() {
        let mut account = Account { settled: 2 };
        assert!(account.end(KILL, gone(0), Some(4), &[gone(0)]));
        assert!(account.end(KILL, gone(0), Some(4), &[]));
        assert!(!account.end(KILL, gone(0), Some(4), &[]), "and no third one");
        // One was seen, so the other was killed by a person.
        let mut account = Account::default();
        assert!(!account.end(KILL, gone(0), Some(1), &[gone(1)]));
        assert!(account.end(KILL, gone(1), Some(1), &[]));
    }

    #[test]
    fn all_processes_of_a_container_are_one_end_and_a_newcomer_owes_nothing() {
        let mut account = Account::default();
        assert!(account.end(KILL, gone(0), Some(5), &[there(0)]));
        assert!(!account.end(KILL, gone(0), Some(5), &[]));
        let mut account = Account::default();
        account.begin(7, &[there(2), there(0)]);
        assert_eq!(account, Account { settled: 5 });
        account.begin(9, &[gone(0), there(0)]);
        assert_eq!(
            account,
            Account { settled: 5 },
            "what is gone may still have to be explained"
        );
    }

    #[test]
    fn a_count_that_moves_is_read_again() {
        let values = std::cell::RefCell::new(vec![3, 3, 2, 1]);
        let (above, counts) = steady(|| values.borrow_mut().pop(), &mut []);
        assert_eq!((above, counts.len(), values.borrow().len()), (Some(3), 0, 0));
    }
}
