//! Stage children at work, as the loop sees them: begun, reporting or dying, done.

use std::os::fd::OwnedFd;
use std::time::Instant;

use cri_shim_protocol::{ErrorKind, ShimError};

use crate::clients::ReplyTo;
use crate::poll::{Interest, Token, Watch};
use crate::reap::{self, Ended};
use crate::shim::Shim;
use crate::stage::{self, Outcome};

/// How many stage children may work at once.
const MAX_STAGES: usize = 64;

/// What a stage child works on.
#[derive(Debug)]
pub(crate) enum Job {
    Pin,
    Create {
        container: String,
    },
    Start {
        container: String,
    },
    Exec {
        container: String,
        exec: String,
    },
    Delete {
        container: String,
    },
    /// Deletes what a failed creation left; the failure is the answer.
    Abandon {
        container: String,
        error: ShimError,
    },
    /// Changes nothing that the shim holds.
    Other,
}

/// A stage child at work.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) pid: i32,
    socket: OwnedFd,
    watch: Watch,
    pub(crate) deadline: Instant,
    pub(crate) overdue: bool,
    job: Job,
    reply: Option<ReplyTo>,
}

impl Shim {
    /// Gives work to a stage child. When there can't be one, `job` ends as if it had failed.
    pub(crate) fn begin(
        &mut self,
        job: Job,
        reply: Option<ReplyTo>,
        keep: &[i32],
        work: impl FnOnce() -> Result<Outcome, ShimError>,
    ) -> Option<i32> {
        let full = self.stages.len() >= MAX_STAGES;
        let spawned = if full {
            let message = format_args!("{MAX_STAGES} requests are under way");
            Err(stage::refuse(ErrorKind::Busy, message))
        } else {
            stage::spawn(keep, work)
                .map_err(|error| stage::failed(format_args!("start a stage child"), error))
        };
        let (pid, socket) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                self.finish(job, reply, Err(error));
                return None;
            }
        };
        let place = self.stages.insert(Stage {
            pid,
            socket,
            watch: Watch::default(),
            deadline: Instant::now() + stage::DEADLINE,
            overdue: false,
            job,
            reply,
        });
        if let Some(stage) = self.stages.at_mut(place) {
            let token = Token::Stage(place);
            let watched = stage
                .watch
                .want(&self.poll, &stage.socket, token, Some(Interest::IN));
            if watched.is_err() {
                // Its end is noticed by its exit, and its report read then.
                self.diary
                    .note(format_args!("can't wait for the report of stage {pid}"));
            }
        }
        Some(pid)
    }

    pub(crate) fn stage_reports(&mut self, place: u32) {
        let Some(stage) = self.stages.at_mut(place) else {
            return;
        };
        match stage::receive(&stage.socket) {
            Some(result) => self.stage_done(place, result),
            // Closed without a report: how it ended says why.
            None => {
                let _ = stage
                    .watch
                    .want(&self.poll, &stage.socket, Token::Stage(place), None);
            }
        }
    }

    pub(crate) fn stage_ended(&mut self, place: u32, ended: Ended) {
        let Some(stage) = self.stages.at_mut(place) else {
            return;
        };
        let overdue = stage.overdue;
        let result = stage::receive(&stage.socket).unwrap_or_else(|| {
            let error = match (overdue, ended.signal) {
                (true, _) => format!("not done within {:?}, and killed", stage::DEADLINE),
                (_, Some(signal)) => format!("killed by signal {signal}"),
                (_, None) => format!("exited with code {}", ended.code),
            };
            Err(stage::failed(format_args!("run a stage child"), error))
        });
        self.stage_done(place, result);
    }

    fn stage_done(&mut self, place: u32, result: Result<Outcome, ShimError>) {
        let Some(mut stage) = self.stages.remove(place) else {
            return;
        };
        // Fails only when it's no longer waited for.
        let _ = stage
            .watch
            .want(&self.poll, &stage.socket, Token::Stage(place), None);
        if let Ok(outcome) = &result {
            for warning in &outcome.warnings {
                self.diary.note(format_args!("{:?}: {warning}", stage.job));
            }
        }
        self.finish(stage.job, stage.reply, result);
        if self.stages.len() == 0 {
            self.orphans.forget();
        }
    }

    /// A child that a stage child has just named: its end, if it came first.
    pub(crate) fn early_end(&mut self, pid: i32) -> Option<Ended> {
        if let Some(ended) = self.orphans.take(pid) {
            return Some(ended);
        }
        // Neither collected nor to be collected: it never became our child. Its end can't be known.
        (!reap::is_ours(pid)).then(|| {
            self.diary
                .note(format_args!("process {pid} is not a child of the shim"));
            Ended {
                pid,
                code: 255,
                signal: None,
                at: crate::log::now(),
            }
        })
    }

    /// Deals with an end that came before its process was known.
    pub(crate) fn ended_early(&mut self, ended: Option<Ended>) {
        if let Some(ended) = ended {
            self.ended(ended);
        }
    }

    /// Kills a stage child.
    pub(crate) fn kill_stage(&self, pid: i32) {
        if self.stages.find(|s| s.pid == pid).is_some() {
            reap::kill_group(pid);
        }
    }
}
