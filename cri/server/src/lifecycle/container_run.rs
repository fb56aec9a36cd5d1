//! StartContainer and StopContainer.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::ContainerEventType;
use cri_nri::v1alpha1::Event;
use cri_shim_protocol::ErrorKind;

use super::{Operation, Step};
use crate::errors::CallError;
use crate::node::{Node, log_record};
use crate::shim::{Shim, ShimCallError};
use crate::store::{Cause, Container, ContainerPhase, Ended};

const SIGKILL: i32 = 9;
/// After SIGKILL; a process that survives it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// The exit code of what could not be started.
const NOT_STARTED: i32 = 128;
/// No grace period is longer: a day.
const MAX_GRACE: i64 = 24 * 60 * 60;

impl Node {
    /// Lets a created container's init go.
    pub(crate) async fn start_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), CallError> {
        let _alone = container.gate.lock().await;
        let ContainerPhase::Created { pid } = container.record().phase else {
            let state = phase_name(&container.record().phase);
            let text = format!(
                "container {} is {state}; only a created one can be started",
                container.id
            );
            return Err(CallError::State(text));
        };
        let shim = self.shim_of(container)?;
        let told = match self.plugins_start(container).await {
            Ok(told) => told,
            Err(error) => {
                // The end that follows is heard only after why it came is recorded.
                let _starting = container.starting.lock().await;
                let _ = shim.kill(container.id.as_str(), SIGKILL, false).await;
                self.record_start_error(container, &error);
                return Err(error);
            }
        };
        let starting = container.starting.lock().await;
        let started_at = self.clock.now();
        let started = self
            .step(&container.entry, Step::ContainerStart, async {
                shim.start(container.id.as_str())
                    .await
                    .map_err(CallError::shim("start the container"))
            })
            .await;
        if let Err(error) = started {
            self.start_failed(container, &*shim, &error).await;
            if !matches!(container.record().phase, ContainerPhase::Running { .. }) {
                return Err(error);
            }
        }
        let written = self.quick_step(&container.entry, Step::ContainerRunning, || {
            Ok(container.entry.note(|r| {
                if matches!(r.phase, ContainerPhase::Created { .. }) {
                    r.phase = ContainerPhase::Running { pid, started_at };
                }
            }))
        })?;
        if written {
            log_record(container.entry.settle(Operation::Start));
        }
        self.announce_container(container, ContainerEventType::ContainerStartedEvent);
        drop(starting);
        // Also who has joined since they were asked.
        self.plugins_hear(container, Event::PostStartContainer).await;
        drop(told);
        Ok(())
    }

    /// Finds out what a failed start means for the container. Only the shim's own word makes it an end.
    async fn start_failed(&self, container: &Container, shim: &dyn Shim, error: &CallError) {
        let refused = match error {
            CallError::Shim {
                source: ShimCallError::Refused(refused),
                ..
            } => Some(refused.kind),
            _ => None,
        };
        match refused {
            // It isn't waiting for a start, then; or nobody knows.
            None | Some(ErrorKind::WrongState | ErrorKind::Busy | ErrorKind::NotFound) => {
                if let Err(doubt) = self.ask_about(container).await {
                    let (doubt, container_id) = (doubt.chain(), &container.id);
                    tracing::warn!(%container_id, doubt, "whether a container was started is not known");
                }
            }
            Some(_) => {
                // Whatever is left of it must not run under a record that says otherwise.
                let _ = shim.kill(container.id.as_str(), SIGKILL, false).await;
                self.record_start_error(container, error);
                log_record(container.entry.settle(Operation::Start));
            }
        }
    }

    fn record_start_error(&self, container: &Container, error: &CallError) {
        let now = self.clock.now();
        let message = error.chain();
        let mut news = false;
        container.entry.note(|r| {
            if matches!(r.phase, ContainerPhase::Created { .. }) {
                news = true;
                r.phase = ContainerPhase::Exited(Ended {
                    started_at: 0,
                    finished_at: now,
                    code: NOT_STARTED,
                    cause: Cause::StartError(message),
                });
            }
        });
        if news {
            self.announce_container(container, ContainerEventType::ContainerStoppedEvent);
            self.plugins_hear_end(container);
        }
    }

    /// Asks a running container to stop, and kills it when it hasn't after `grace` seconds. Several callers may wait
    /// at once, each with a grace period of its own.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: i64,
    ) -> Result<(), CallError> {
        if let ContainerPhase::Created { .. } = container.record().phase {
            // A start whose answer was lost.
            let asked = self.ask_about(container).await;
            tracing::debug!(container_id = %container.id, ok = asked.is_ok(), "asked whether it runs");
        }
        if !matches!(container.record().phase, ContainerPhase::Running { .. }) {
            return Ok(());
        }
        let grace = Duration::from_secs(u64::try_from(grace.clamp(0, MAX_GRACE)).unwrap_or(0));
        let stop_signal = container.record().stop_signal;
        if !grace.is_zero() && stop_signal != SIGKILL {
            // Without a shim, or out of its reach, see below.
            if let Ok(shim) = self.shim_of(container) {
                self.step(
                    &container.entry,
                    Step::ContainerSignal,
                    signal(container, &*shim, stop_signal, false),
                )
                .await?;
                let _ = tokio::time::timeout(grace, container.exited()).await;
            }
        }
        self.kill_container(container).await?;
        self.plugins_stopped(container).await;
        Ok(())
    }

    /// Kills a container that hasn't exited, be it running or waiting for its start, and waits for its end.
    pub(crate) async fn kill_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), CallError> {
        let record = container.record();
        if matches!(record.phase, ContainerPhase::Exited(_) | ContainerPhase::Creating) {
            return self.settle_signals(container);
        }
        // With a PID namespace of its own, all of it ends with init.
        let all = !record.own_pid_namespace;
        let shim = match self.shim_of(container) {
            Ok(shim) => shim,
            Err(error @ CallError::Unavailable(_)) => return Err(error),
            Err(_) => {
                self.lose_container(container, "shim died").await?;
                return self.settle_signals(container);
            }
        };
        let sent = self
            .step(
                &container.entry,
                Step::ContainerKill,
                signal(container, &*shim, SIGKILL, all),
            )
            .await?;
        if !sent {
            // Its end is on its way, or was lost on it.
            if let Err(error) = self.ask_about(container).await {
                let (error, container_id) = (error.chain(), &container.id);
                tracing::warn!(%container_id, error, "failed to ask for the end of a container");
            }
        }
        let ended = tokio::time::timeout(KILL_PATIENCE, container.exited()).await;
        if ended.is_err() {
            // Its end may wait for its start to be recorded, which hangs.
            let asked = self.ask_about(container).await;
            tracing::debug!(container_id = %container.id, ok = asked.is_ok(), "asked for a late end");
        }
        if !matches!(container.record().phase, ContainerPhase::Exited(_)) {
            return Err(CallError::Deadline(format!(
                "container {} has not ended {} s after SIGKILL",
                container.id,
                KILL_PATIENCE.as_secs()
            )));
        }
        self.settle_signals(container)
    }

    fn settle_signals(&self, container: &Container) -> Result<(), CallError> {
        log_record(container.entry.settle(Operation::Signal));
        Ok(())
    }
}

/// Signals a container; false: it has ended, as far as the shim knows.
async fn signal(container: &Container, shim: &dyn Shim, signal: i32, all: bool) -> Result<bool, CallError> {
    match shim.kill(container.id.as_str(), signal, all).await {
        Ok(()) => Ok(true),
        // Whoever buries the shim ends it, too.
        Err(ShimCallError::Died) => Ok(true),
        Err(error) if matches!(error.kind(), Some(ErrorKind::NotFound | ErrorKind::WrongState)) => Ok(false),
        Err(error) => Err(CallError::shim("signal the container")(error)),
    }
}

/// A phase in a sentence.
pub(crate) fn phase_name(phase: &ContainerPhase) -> &'static str {
    match phase {
        ContainerPhase::Creating => "being created",
        ContainerPhase::Created { .. } => "created",
        ContainerPhase::Running { .. } => "running",
        ContainerPhase::Exited(_) => "exited",
    }
}
