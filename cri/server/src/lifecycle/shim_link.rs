//! Shims that can't be reached, or hang.
//!
//! A shim is dead when its socket refuses; nothing else counts. One that can't be reached when the daemon starts is
//! sought in the background, its containers left alone. Only who stops or removes the pod doesn't wait for it: then a
//! shim that doesn't answer soon is killed.

use std::sync::Arc;
use std::time::Duration;

use cri_shim_protocol::Status;

use super::Operation;
use crate::errors::CallError;
use crate::node::{Node, log_record};
use crate::recovery::{ContainerVerdict, plan_container};
use crate::shim::{Shim, ShimCallError};
use crate::store::{Container, ContainerPhase, Sandbox, ShimLink};

/// How long the shim of a pod that is being stopped may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach a shim: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);

impl Node {
    /// The shim of a sandbox, to ask something of it.
    pub(crate) fn live_shim(&self, sandbox: &Sandbox) -> Result<Arc<dyn Shim>, CallError> {
        match sandbox.link() {
            ShimLink::Live(shim) => Ok(shim),
            ShimLink::None => Err(CallError::State(format!(
                "the shim of sandbox {} is dead, and its containers with it",
                sandbox.id
            ))),
            ShimLink::Unreached => Err(CallError::Unavailable(format!(
                "the shim of sandbox {} has not been reached since the daemon was started; try again, or stop the \
                 sandbox",
                sandbox.id
            ))),
        }
    }

    /// The shim of a container's sandbox.
    pub(crate) fn shim_of(&self, container: &Container) -> Result<Arc<dyn Shim>, CallError> {
        match self.store.sandbox_by_id(&container.sandbox) {
            Some(sandbox) => self.live_shim(&sandbox),
            None => Err(CallError::State(format!(
                "the sandbox of container {} is gone",
                container.id
            ))),
        }
    }

    /// Makes sure of a shim before its pod is taken down: afterwards it answers, or it is dead. The caller holds the
    /// sandbox's gate, or nobody else knows the sandbox.
    pub(crate) async fn rouse(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let why = match sandbox.link() {
            ShimLink::None => return Ok(()),
            ShimLink::Live(shim) => match tokio::time::timeout(PATIENCE, answers(&*shim)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            },
            ShimLink::Unreached => {
                match tokio::time::timeout(PATIENCE, self.runtime.find_shim(&sandbox.id)).await {
                    Ok(Ok(found)) if self.take_up(sandbox, found.clone()).await => return Ok(()),
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer".to_owned(),
                }
            }
        };
        tracing::warn!(sandbox_id = %sandbox.id, why, "a shim does not answer, and its pod is to go: killing it");
        // Its end is no surprise to anybody from here on.
        sandbox.set_link(ShimLink::Unreached);
        let killed = self.runtime.kill_shim(&sandbox.id).await;
        // Even if it can't be ended, the containers can.
        self.lose_containers(sandbox, "shim died").await;
        killed.map_err(CallError::shim("kill a shim that doesn't answer"))?;
        sandbox.set_link(ShimLink::None);
        Ok(())
    }

    /// Tries to reach a shim until it is reached, found dead, or of no interest any more.
    pub(crate) async fn seek(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            if !is_unreached(&sandbox) || self.store.sandbox_by_id(&sandbox.id).is_none() {
                return;
            }
            match self.runtime.find_shim(&sandbox.id).await {
                Ok(found) => {
                    if self.reached(&sandbox, found).await {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(sandbox_id = %sandbox.id, %error, "failed to reach a shim; trying again");
                }
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Takes up a shim that was looked for, or its death. Returns false when it must be looked for again.
    pub(crate) async fn reached(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        found: Option<Arc<dyn Shim>>,
    ) -> bool {
        let _alone = sandbox.gate.write().await;
        // Whoever stopped the pod meanwhile has reached or killed it.
        !is_unreached(sandbox) || self.take_up(sandbox, found).await
    }

    /// Brings a container whose state is in doubt up to what its shim says; an error leaves the doubt.
    pub(crate) async fn ask_about(&self, container: &Container) -> Result<(), CallError> {
        let state = self.shim_of(container)?.state().await;
        let state = state.map_err(CallError::shim("ask for the container's state"))?;
        let seen = state.containers.into_iter();
        let seen = seen.map(|c| (c.container, c.status));
        let seen = seen
            .filter(|(id, _)| id == container.id.as_str())
            .map(|(_, status)| status);
        self.observe(container, seen.last().as_ref()).await
    }

    /// Brings a container that is neither half made nor half removed up to what was seen of it.
    pub(crate) async fn observe(
        &self,
        container: &Container,
        seen: Option<&Status>,
    ) -> Result<(), CallError> {
        match plan_container(&container.record().phase, None, seen) {
            // A half-made one is its maker's.
            ContainerVerdict::Keep | ContainerVerdict::Remove => {}
            ContainerVerdict::Observe(phase) => {
                container.entry.note(|r| {
                    if matches!(r.phase, ContainerPhase::Created { .. }) {
                        r.phase = phase;
                    }
                });
            }
            ContainerVerdict::Exit(started_at, exit) => self.record_exit(container, Some(started_at), exit),
            ContainerVerdict::Lose(why) => self.lose_container(container, why).await?,
        }
        log_record(container.entry.settle(Operation::Start));
        log_record(container.entry.settle(Operation::Signal));
        Ok(())
    }
}

/// Asks a shim for a sign of life, again if the connection breaks.
async fn answers(shim: &dyn Shim) -> Result<(), ShimCallError> {
    loop {
        match shim.state().await {
            Ok(_) => return Ok(()),
            Err(ShimCallError::Disconnected { .. }) => tokio::time::sleep(FIRST_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

fn is_unreached(sandbox: &Sandbox) -> bool {
    matches!(sandbox.link(), ShimLink::Unreached)
}
