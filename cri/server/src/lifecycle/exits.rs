//! What shims say unasked: containers end, shims die.

use std::collections::BTreeMap;
use std::sync::Arc;

use cri_api::PodSandboxId;
use cri_api::v1::ContainerEventType;
use cri_shim_protocol::{Event, Exit, Status};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::errors::CallError;
use crate::node::{Node, blocking};
use crate::shim::ShimEvent;
use crate::store::{Cause, Container, ContainerPhase, Ended, Sandbox, SandboxPhase, ShimLink};

/// The exit code of a container that was lost: as if killed by SIGKILL, which it was.
const LOST: i32 = 137;

impl Node {
    /// Hears what shims say, for as long as anything can be said.
    pub(crate) async fn hear(self: Arc<Self>, mut events: mpsc::Receiver<(PodSandboxId, ShimEvent)>) {
        while let Some((sandbox_id, event)) = events.recv().await {
            match event {
                ShimEvent::Event(Event::ContainerExited { container, exit }) => {
                    if let Some(container) = self.store.container_by_id(&container) {
                        self.hear_exit(container, exit);
                    }
                }
                ShimEvent::Event(Event::ExecExited { .. }) => {}
                ShimEvent::Event(Event::InitExited) => {
                    // It ends with every stop of a sandbox; while one is ready, something killed it.
                    let sandbox = self.store.sandbox_by_id(&sandbox_id);
                    if sandbox
                        .is_some_and(|s| s.record().phase == SandboxPhase::Ready && s.entry.step().is_none())
                    {
                        tracing::warn!(%sandbox_id, "the pod's own init was killed, and with it all its processes");
                    }
                }
                ShimEvent::Died => {
                    if let Some(sandbox) = self.store.sandbox_by_id(&sandbox_id) {
                        let span = tracing::info_span!("shim died", %sandbox_id);
                        tokio::spawn(self.clone().bury(sandbox).instrument(span));
                    }
                }
            }
        }
    }

    /// Records an end: at once, or if the start isn't recorded yet, right after it.
    fn hear_exit(self: &Arc<Self>, container: Arc<Container>, exit: Exit) {
        let recorded = container.starting.try_lock().is_ok();
        if recorded {
            self.record_exit(&container, None, exit);
        }
        let node = self.clone();
        tokio::spawn(async move {
            if !recorded {
                let started = container.starting.clone();
                let _started = started.lock().await;
                node.record_exit(&container, None, exit);
            }
            node.tidy(container).await;
        });
    }

    /// Records an end, unless one is recorded. `started_at` is the shim's word, where it has a say.
    pub(crate) fn record_exit(&self, container: &Container, started_at: Option<i64>, exit: Exit) {
        let mut news = false;
        container.entry.note(|r| {
            let known = match r.phase {
                ContainerPhase::Exited(_) | ContainerPhase::Creating => return,
                ContainerPhase::Created { .. } => 0,
                ContainerPhase::Running { started_at, .. } => started_at,
            };
            news = true;
            r.phase = ContainerPhase::Exited(Ended {
                started_at: if known == 0 {
                    started_at.unwrap_or(0)
                } else {
                    known
                },
                finished_at: exit.at,
                code: exit.code,
                cause: if exit.oom_killed {
                    Cause::OomKilled
                } else {
                    Cause::Exit
                },
            });
        });
        if news {
            let container_id = &container.id;
            tracing::info!(%container_id, code = exit.code, oom_killed = exit.oom_killed, "container exited");
            self.announce_container(container, ContainerEventType::ContainerStoppedEvent);
            self.plugins_hear_end(container);
        }
    }

    /// Frees what a sandbox's exited containers need no more, in the background: ends that nobody heard of live.
    pub(crate) fn tidy_exited(self: &Arc<Self>, sandbox: &Sandbox) {
        for container in self.store.containers_in(&sandbox.id) {
            if matches!(container.record().phase, ContainerPhase::Exited(_)) {
                tokio::spawn(self.clone().tidy(container).in_current_span());
            }
        }
    }

    /// A shim is dead: what it wrote down of ends is taken over, and all other containers are killed.
    pub(crate) async fn bury(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        sandbox.set_link(ShimLink::None);
        tracing::warn!(sandbox_id = %sandbox.id, "the shim died; its containers are killed");
        self.lose_containers(&sandbox, "shim died").await;
        self.tidy_exited(&sandbox);
        if sandbox.record().phase != SandboxPhase::Ready || self.store.sandbox_by_id(&sandbox.id).is_none() {
            return;
        }
        sandbox.entry.note(|r| {
            if r.phase == SandboxPhase::Ready {
                r.phase = SandboxPhase::Lost;
            }
        });
        let id = sandbox.id.as_str();
        self.announce(id, ContainerEventType::ContainerStoppedEvent, &sandbox);
    }

    /// Takes over the ends that a dead shim wrote down, and gives up all containers without one.
    pub(crate) async fn lose_containers(&self, sandbox: &Sandbox, why: &str) {
        let recorded = self
            .runtime
            .recorded_exits(&sandbox.id)
            .await
            .inspect_err(
                |error| tracing::warn!(%error, "failed to read the exits that a dead shim wrote down"),
            )
            .unwrap_or_default();
        let recorded: BTreeMap<_, _> = recorded.into_iter().map(|c| (c.container, c.status)).collect();
        for container in self.store.containers_in(&sandbox.id) {
            if let Some(Status::Exited { started_at, exit }) = recorded.get(container.id.as_str()) {
                self.record_exit(&container, Some(*started_at), *exit);
            }
            if let Err(error) = self.lose_container(&container, why).await {
                let (error, container_id) = (error.chain(), &container.id);
                tracing::warn!(%container_id, error, "failed to kill a container whose shim is dead");
            }
        }
    }

    /// Kills a container without a shim through its cgroup, and records that it is lost. Of one that has exited, what
    /// it left running is killed.
    pub(crate) async fn lose_container(&self, container: &Container, why: &str) -> Result<(), CallError> {
        let record = container.record();
        if record.phase == ContainerPhase::Creating {
            return Ok(());
        }
        let path = record.cgroup.clone();
        let killed = blocking(move || {
            let cgroup = oci_runtime_cgroups::Cgroup::named(&path)?;
            if cgroup.exists() {
                cgroup.kill_all()?;
            }
            Ok(())
        })
        .await;
        let now = self.clock.now();
        let mut news = false;
        container.entry.note(|r| {
            let started_at = match r.phase {
                ContainerPhase::Exited(_) | ContainerPhase::Creating => return,
                ContainerPhase::Created { .. } => 0,
                ContainerPhase::Running { started_at, .. } => started_at,
            };
            news = true;
            r.phase = ContainerPhase::Exited(Ended {
                started_at,
                finished_at: now,
                code: LOST,
                cause: Cause::Lost(why.to_owned()),
            });
        });
        if news {
            self.announce_container(container, ContainerEventType::ContainerStoppedEvent);
            self.plugins_hear_end(container);
        }
        killed
    }
}
