//! What follows when a stage child has reported, or has died.

use cri_shim_protocol::{ErrorKind, Reply, ShimError};

use crate::clients::ReplyTo;
use crate::container::{Container, Phase};
use crate::log::now;
use crate::oom::Oom;
use crate::reap;
use crate::shim::Shim;
use crate::stage::{self, Outcome, Report, failed, refuse};
use crate::stages::Job;

impl Shim {
    /// What follows a stage child's report.
    pub(crate) fn finish(&mut self, job: Job, reply: Option<ReplyTo>, result: Result<Outcome, ShimError>) {
        match job {
            Job::Pin => {
                let result = result.map(|outcome| {
                    let Report::Pinned { init_pid } = outcome.report else {
                        return Reply::Done;
                    };
                    self.init = init_pid;
                    Reply::Pinned { init_pid }
                });
                self.answer(reply, result);
                if let Some(pid) = self.init {
                    let early = self.early_end(pid);
                    self.ended_early(early);
                }
            }
            Job::Create { container } => self.created(&container, reply, result),
            Job::Start { container } => {
                let mut rewrite = None;
                if let Some(found) = self.find(&container).and_then(|n| self.containers.at_mut(n)) {
                    found.busy = false;
                    if let (Phase::Created { pid }, Ok(_)) = (&found.phase, &result) {
                        found.phase = Phase::Running {
                            pid: *pid,
                            started_at: now(),
                        };
                    } else if let (Phase::Exited { started_at, exit }, Ok(_)) = (&mut found.phase, &result) {
                        // It ended before its stage child had said that it started.
                        *started_at = exit.at;
                        rewrite = found.state();
                    }
                }
                if let Some(Err(error)) = rewrite.map(|state| self.exits.write(&state)) {
                    self.diary.note(format_args!(
                        "failed to write the exit file of container {container}: {error}"
                    ));
                }
                self.answer(reply, result.map(|_| Reply::Done));
            }
            Job::Exec { container, exec } => self.execed(&container, &exec, reply, result),
            Job::Delete { container } => self.deleted(&container, reply, result),
            Job::Abandon { container, error } => {
                if let Err(left) = result {
                    self.diary.note(format_args!(
                        "failed to delete what creating container {container} left: {left}"
                    ));
                }
                self.answer(reply, Err(error));
                self.give_up(&container);
            }
            Job::Other => {
                if let (None, Err(error)) = (reply, &result) {
                    self.diary.note(format_args!("{error}"));
                }
                self.answer(reply, result.map(|_| Reply::Done));
            }
        }
    }

    fn created(&mut self, container: &str, reply: Option<ReplyTo>, result: Result<Outcome, ShimError>) {
        let Some(number) = self.find(container) else {
            return;
        };
        let Some(found) = self.containers.at_mut(number) else {
            return;
        };
        let handle = found.handle.clone();
        let made = result.and_then(|outcome| {
            let Report::Created { pid, cgroup } = outcome.report else {
                return Err(refuse(
                    ErrorKind::Failed,
                    format_args!("a stage child misreported"),
                ));
            };
            if let Some(cgroup) = &cgroup {
                found.oom = Oom::open(cgroup, &self.poll, number);
            }
            found.cgroup = cgroup;
            if let Some(console) = outcome.console {
                let taken = found.stdio.take_console(console);
                taken.map_err(|error| failed(format_args!("take the terminal"), error))?;
            }
            let watched = found.stdio.watch(&self.poll, number);
            watched.map_err(|error| failed(format_args!("wait for output"), error))?;
            Ok(pid)
        });
        match (made, &mut found.phase) {
            (Ok(pid), Phase::Creating { given_up, .. }) if given_up.is_empty() => {
                found.phase = Phase::Created { pid };
                self.explain(number, |account, oom, others| account.began(oom, others));
                self.answer(reply, Ok(Reply::Created { pid }));
                let early = self.early_end(pid);
                self.ended_early(early);
            }
            (made, _) => {
                let container = container.to_owned();
                let error = made.err().unwrap_or_else(|| {
                    refuse(
                        ErrorKind::Failed,
                        format_args!("container `{container}` was deleted while being created"),
                    )
                });
                // From here on a delete waits: killed, the deletion would leave what it was to delete.
                self.set_stage(number, None);
                let job = Job::Abandon { container, error };
                self.begin(job, reply, &[], move || stage::delete(&handle));
            }
        }
    }

    /// A container that never came to be is gone.
    fn give_up(&mut self, container: &str) {
        let Some(number) = self.find(container) else {
            return;
        };
        let phase = self.containers.at_mut(number).map(|c| &mut c.phase);
        let given_up = match phase {
            Some(Phase::Creating { given_up, .. }) => std::mem::take(given_up),
            _ => Vec::new(),
        };
        self.forget(number);
        for reply in given_up {
            self.answer(Some(reply), Ok(Reply::Done));
        }
    }

    fn execed(
        &mut self,
        container: &str,
        exec: &str,
        reply: Option<ReplyTo>,
        result: Result<Outcome, ShimError>,
    ) {
        let found = self.find(container).and_then(|n| self.containers.at_mut(n));
        match result {
            Ok(Outcome {
                report: Report::ExecStarted { pid },
                console,
                ..
            }) => {
                if let Some(execed) = found.and_then(|c| c.exec(exec)) {
                    execed.pid = Some(pid);
                    if let Some(signal) = execed.pending.take() {
                        // It may have ended.
                        let _ = reap::signal(pid, signal);
                    }
                }
                let started = Reply::ExecStarted {
                    pid,
                    console: console.is_some(),
                };
                self.answer_with(reply, Ok(started), console);
                let early = self.early_end(pid);
                self.ended_early(early);
            }
            other => {
                if let Some(found) = found {
                    found.execs.retain(|e| e.name != exec);
                }
                let error = other
                    .err()
                    .unwrap_or_else(|| refuse(ErrorKind::Failed, format_args!("a stage child misreported")));
                self.answer(reply, Err(error));
            }
        }
    }

    fn deleted(&mut self, container: &str, reply: Option<ReplyTo>, result: Result<Outcome, ShimError>) {
        self.reap_now();
        let found = self.find(container);
        if let Some(found) = found.and_then(|n| self.containers.at_mut(n)) {
            found.busy = false;
        }
        let lives = found.and_then(|n| self.containers.at(n)).and_then(Container::pid);
        let result = match (result, lives) {
            (Ok(_), Some(pid)) => Err(refuse(
                ErrorKind::Busy,
                format_args!("init of container `{container}`, process {pid}, was killed but has not ended"),
            )),
            (Ok(_), None) => {
                if let Some(number) = found {
                    self.forget(number);
                }
                Ok(Reply::Done)
            }
            (Err(error), _) => Err(error),
        };
        self.answer(reply, result);
    }
}
