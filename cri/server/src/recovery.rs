//! What a new daemon does with what an old one left, however that one ended.
//!
//! Each record is held against what its shim says (or that there is none), and a pure function ([`plan_sandbox`],
//! [`plan_container`]) decides: half-made things are undone, half-removed ones are removed, the rest is observed.
//! Then whatever belongs to no record is removed: pods' folders with their pins, mounts and shims, bundles, snapshots,
//! runtime state, network attachments. All of it side by side, so that twenty pods take as long as one; and with a
//! deadline, after which the rest goes on in the background while the daemon already serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri_api::PodSandboxId;
use cri_shim_protocol::Status;
use futures_util::future::join_all;

use crate::cgroup_names;
use crate::errors::CallError;
use crate::lifecycle::{Operation, Step, remove_tree, unmount, unmount_tree};
use crate::node::{Node, blocking};
use crate::shim::Shim;
use crate::store::{Container, ContainerPhase, Sandbox, SandboxPhase, ShimLink, Torn, record};

/// How long serving waits for what takes long: a plugin that hangs, say.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often, and how long apart, a start that was under way is looked after: in all, longer than one may take.
const START_LOOKS: u32 = 130;
const START_PAUSE: Duration = Duration::from_secs(1);

/// What to do with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxVerdict {
    /// It is as it should be.
    Keep,
    /// Its shim is dead.
    Lose(&'static str),
    /// A stop was under way.
    Stop,
    /// It was half made, or half removed.
    Remove,
}

/// Decides about a sandbox. Nobody was told of one whose creation was under way, so it goes, even when it was complete.
pub fn plan_sandbox(
    phase: SandboxPhase,
    step: Option<Step>,
    shim_lives: bool,
    same_boot: bool,
) -> SandboxVerdict {
    match (phase, step.map(Step::operation)) {
        (SandboxPhase::Creating, _) | (_, Some(Operation::Create | Operation::Remove)) => {
            SandboxVerdict::Remove
        }
        (_, Some(Operation::Stop)) => SandboxVerdict::Stop,
        (SandboxPhase::Ready, _) if !shim_lives => SandboxVerdict::Lose(lost(same_boot)),
        (SandboxPhase::Ready | SandboxPhase::Lost | SandboxPhase::Stopped, _) => SandboxVerdict::Keep,
    }
}

fn lost(same_boot: bool) -> &'static str {
    if same_boot {
        "shim died"
    } else {
        "the machine was restarted"
    }
}

/// What to do with a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerVerdict {
    /// It is as it should be.
    Keep,
    /// It is in this phase now.
    Observe(ContainerPhase),
    /// It ended.
    Exit(i64, cri_shim_protocol::Exit),
    /// Its shim doesn't know it.
    Lose(&'static str),
    /// It was half made, or half removed.
    Remove,
}

/// Decides about a container in a sandbox whose shim lives and says `seen` of it.
pub fn plan_container(phase: &ContainerPhase, step: Option<Step>, seen: Option<&Status>) -> ContainerVerdict {
    if matches!(
        step.map(Step::operation),
        Some(Operation::Create | Operation::Remove)
    ) {
        return ContainerVerdict::Remove;
    }
    match (phase, seen) {
        (ContainerPhase::Creating, _) => ContainerVerdict::Remove,
        (ContainerPhase::Exited(_), _) => ContainerVerdict::Keep,
        (_, None) => ContainerVerdict::Lose("the shim does not know the container"),
        (_, Some(Status::Exited { started_at, exit })) => ContainerVerdict::Exit(*started_at, *exit),
        (ContainerPhase::Created { .. }, Some(Status::Running { pid, started_at })) => {
            ContainerVerdict::Observe(ContainerPhase::Running {
                pid: *pid,
                started_at: *started_at,
            })
        }
        (_, Some(Status::Created { .. } | Status::Running { .. })) => ContainerVerdict::Keep,
    }
}

impl Node {
    /// Brings records and reality together. What can't be done is logged: the daemon serves anyway.
    pub(crate) async fn recover(self: &Arc<Self>, torn: Vec<Torn>) {
        let began = Instant::now();
        // Not dead until that is known: calls may come before each has been looked for.
        for sandbox in self.store.sandboxes() {
            sandbox.set_link(ShimLink::Unreached);
        }
        let node = self.clone();
        let work = tokio::spawn(async move { node.recover_all(torn).await });
        if tokio::time::timeout(PATIENCE, work).await.is_err() {
            tracing::warn!("recovery takes long and goes on in the background");
        }
        let (sandboxes, containers) = (self.store.sandboxes().len(), self.store.containers().len());
        let millis = began.elapsed().as_millis();
        tracing::info!(sandboxes, containers, millis, "recovered");
    }

    async fn recover_all(self: Arc<Self>, torn: Vec<Torn>) {
        for torn in &torn {
            if let Err(error) = self.store.forget_torn(torn) {
                tracing::warn!(?torn, %error, "failed to remove a record without content");
            }
        }
        let sandboxes = self.store.sandboxes();
        let tasks = sandboxes.into_iter().map(|sandbox| {
            let node = self.clone();
            tokio::spawn(async move { node.recover_sandbox(sandbox).await })
        });
        join_all(tasks).await;
        for container in self.store.containers() {
            if self.store.sandbox_by_id(&container.sandbox).is_none() {
                self.remove_left(&container).await;
            }
        }
        let (swept, reclaimed) = tokio::join!(self.sweep(), self.reclaim_network());
        for error in [swept, reclaimed].into_iter().filter_map(Result::err) {
            let error = error.chain();
            tracing::warn!(error, "failed to remove what belongs to no record");
        }
    }

    async fn reclaim_network(self: &Arc<Self>) -> Result<(), CallError> {
        let node = self.clone();
        let valid = move || {
            let sandboxes = node.store.sandboxes();
            let attached = sandboxes
                .iter()
                .filter(|s| s.record().phase != SandboxPhase::Stopped);
            attached.map(|s| s.id.clone()).collect()
        };
        Ok(self.network.reclaim(Box::new(valid)).await?)
    }

    async fn recover_sandbox(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let sandbox_id = &sandbox.id;
        match self.runtime.find_shim(sandbox_id).await {
            Ok(found) if self.reached(&sandbox, found.clone()).await => {}
            failed => {
                let error = failed.err().map(|error| error.to_string());
                tracing::warn!(%sandbox_id, error, "failed to reach a shim; trying again in the background");
                tokio::spawn(self.clone().seek(sandbox.clone()));
            }
        }
        // With the shim unreached, only these don't need its word.
        let lives = !matches!(sandbox.link(), ShimLink::None);
        match self.verdict(&sandbox, lives) {
            SandboxVerdict::Keep | SandboxVerdict::Lose(_) => {}
            SandboxVerdict::Stop => {
                if let Err(error) = self.stop_sandbox(&sandbox).await {
                    let error = error.chain();
                    tracing::warn!(%sandbox_id, error, "failed to finish stopping a sandbox");
                }
            }
            SandboxVerdict::Remove => self.undo_sandbox(&sandbox).await,
        }
    }

    fn verdict(&self, sandbox: &Sandbox, lives: bool) -> SandboxVerdict {
        let record = sandbox.record();
        let same_boot = record.boot_id == self.boot_id;
        plan_sandbox(record.phase, sandbox.entry.step(), lives, same_boot)
    }

    /// Takes a sandbox's shim up, or its death, and brings the sandbox and its containers up to that. What is to be
    /// stopped or removed is left for who does that. Returns false when the shim doesn't say what it holds.
    pub(crate) async fn take_up(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        shim: Option<Arc<dyn Shim>>,
    ) -> bool {
        let lives = shim.is_some();
        sandbox.set_link(shim.map_or(ShimLink::None, ShimLink::Live));
        let verdict = self.verdict(sandbox, lives);
        tracing::debug!(sandbox_id = %sandbox.id, ?verdict, step = ?sandbox.entry.step(), "recovering");
        if verdict == SandboxVerdict::Remove {
            return true;
        }
        if lives {
            let said = self.recover_containers(sandbox).await;
            if !said {
                sandbox.set_link(ShimLink::Unreached);
            }
            self.tidy_exited(sandbox);
            return said;
        }
        let why = lost(sandbox.record().boot_id == self.boot_id);
        self.lose_containers(sandbox, why).await;
        if let SandboxVerdict::Lose(_) = verdict {
            sandbox.entry.note(|r| r.phase = SandboxPhase::Lost);
        }
        self.remove_half_made(sandbox).await;
        self.tidy_exited(sandbox);
        true
    }

    /// With the shim dead, only records say which containers were half made or half removed.
    async fn remove_half_made(self: &Arc<Self>, sandbox: &Sandbox) {
        for container in self.store.containers_in(&sandbox.id) {
            let seen = Status::Created { pid: 0 };
            let verdict = plan_container(&container.record().phase, container.entry.step(), Some(&seen));
            if verdict == ContainerVerdict::Remove {
                self.remove_left(&container).await;
            }
        }
    }

    async fn recover_containers(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> bool {
        let Some(shim) = sandbox.shim() else { return true };
        let mut seen: BTreeMap<_, _> = match shim.state().await {
            Ok(state) => state
                .containers
                .into_iter()
                .map(|c| (c.container, c.status))
                .collect(),
            Err(error) => {
                tracing::warn!(sandbox_id = %sandbox.id, %error, "failed to ask a shim for its state");
                return false;
            }
        };
        for container in self.store.containers_in(&sandbox.id) {
            let status = seen.remove(container.id.as_str());
            self.recover_container(&container, status.as_ref()).await;
        }
        for unknown in seen.into_keys() {
            tracing::warn!(sandbox_id = %sandbox.id, container_id = unknown, "removing a container without record");
            if let Err(error) = shim.delete(&unknown, true).await {
                tracing::warn!(%error, "failed to remove a container without record");
            }
        }
        true
    }

    async fn recover_container(self: &Arc<Self>, container: &Arc<Container>, seen: Option<&Status>) {
        let verdict = plan_container(&container.record().phase, container.entry.step(), seen);
        if verdict == ContainerVerdict::Remove {
            return self.remove_left(container).await;
        }
        let was_starting = container.entry.step() == Some(Step::ContainerStart);
        if let Err(error) = self.observe(container, seen).await {
            let error = error.chain();
            tracing::warn!(container_id = %container.id, error, "failed to kill a lost container");
        }
        if was_starting && matches!(container.record().phase, ContainerPhase::Created { .. }) {
            tokio::spawn(self.clone().watch_start(container.clone()));
        }
    }

    /// The shim may still be at a start that the last daemon asked for, for as long as it allows a stage child.
    async fn watch_start(self: Arc<Self>, container: Arc<Container>) {
        for _ in 0..START_LOOKS {
            tokio::time::sleep(START_PAUSE).await;
            if !matches!(container.record().phase, ContainerPhase::Created { .. })
                || self.store.container_by_id(container.id.as_str()).is_none()
            {
                return;
            }
            // What fails now is tried again.
            let _ = self.ask_about(&container).await;
        }
    }

    async fn remove_left(self: &Arc<Self>, container: &Arc<Container>) {
        if let Err(error) = self.remove_container(container).await {
            let error = error.chain();
            tracing::warn!(container_id = %container.id, error, "failed to remove what was left of a container");
            self.store.free_name(container.id.as_str());
        }
    }

    /// Removes what belongs to no record.
    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<(), CallError> {
        // While this goes on, pods and containers are made: each has its record before anything else, so what has none
        // at the moment when it was listed already is nobody's.
        for name in record::folders(&self.paths.pods())? {
            let id = name.parse::<PodSandboxId>().ok();
            if id.is_none_or(|id| self.store.sandbox_by_id(&id).is_none())
                && let Err(error) = self.sweep_pod(&name).await
            {
                let error = error.chain();
                tracing::warn!(name, error, "failed to remove a pod's folder without record");
            }
        }
        let stranger = |id: &str| self.store.container_by_id(id).is_none();
        for name in record::folders(&self.paths.bundles())? {
            if !stranger(&name) {
                continue;
            }
            tracing::info!(name, "removing a bundle without record");
            let (bundle, rootfs) = (self.paths.bundle(&name), self.paths.rootfs(&name));
            let images = self.paths.image_mounts(&name);
            blocking(move || {
                unmount(&rootfs)?;
                unmount_tree(&images)?;
                remove_tree(&bundle)
            })
            .await?;
        }
        for name in record::folders(&self.paths.oci())? {
            if !stranger(&name) {
                continue;
            }
            tracing::info!(name, "removing runtime state without record");
            let state = self.paths.oci().join(&name);
            blocking(move || remove_tree(&state)).await?;
        }
        for key in self.images.snapshots() {
            // `<container>` or `<container>-<volume>`
            let owner = key.split('-').next().unwrap_or_default();
            if stranger(owner) {
                tracing::info!(key, "removing a snapshot without record");
                self.images.remove_snapshot(&key).await?;
            }
        }
        Ok(())
    }

    async fn sweep_pod(&self, name: &str) -> Result<(), CallError> {
        tracing::info!(name, "removing a pod's folder without record");
        let (pod, namespaces, shm) = (
            self.paths.pod(name),
            self.paths.namespaces(name),
            self.paths.shm(name),
        );
        if let Ok(id) = name.parse::<PodSandboxId>() {
            let ended = match self.runtime.find_shim(&id).await {
                Ok(None) => true,
                Ok(Some(shim)) => shim.shutdown(true).await.is_ok(),
                Err(_) => false,
            };
            if !ended {
                let killed = self.runtime.kill_shim(&id).await;
                killed.map_err(CallError::shim("end a shim without record"))?;
            }
            let traces = self.runtime.remove_traces(&id).await;
            traces.map_err(CallError::shim("remove a shim's traces"))?;
            // Where a pod's cgroup is when nobody gave it a parent; whoever gave one removes it.
            let cgroup = cgroup_names::pod(self.config().cgroup.root(), name);
            self.drop_cgroup(cgroup).await?;
        }
        blocking(move || {
            unmount_tree(&namespaces)?;
            unmount(&shm)?;
            remove_tree(&pod)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use cri_shim_protocol::Exit;

    use super::*;
    use crate::store::{Cause, Ended};

    const PHASES: [SandboxPhase; 4] = [
        SandboxPhase::Creating,
        SandboxPhase::Ready,
        SandboxPhase::Lost,
        SandboxPhase::Stopped,
    ];

    fn sandbox_steps() -> impl Iterator<Item = Step> {
        Step::ALL
            .iter()
            .copied()
            .filter(|s| s.name().starts_with("Sandbox"))
    }

    #[test]
    fn a_sandbox_under_way_is_undone_or_finished_whatever_else_is_true() {
        for phase in PHASES {
            for lives in [false, true] {
                for same_boot in [false, true] {
                    for step in sandbox_steps() {
                        let verdict = plan_sandbox(phase, Some(step), lives, same_boot);
                        let expected = match step.operation() {
                            Operation::Stop if phase != SandboxPhase::Creating => SandboxVerdict::Stop,
                            _ => SandboxVerdict::Remove,
                        };
                        assert_eq!(verdict, expected, "{phase:?} {step} {lives}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_settled_sandbox_is_kept_or_lost() {
        use SandboxPhase::{Creating, Lost, Ready, Stopped};
        let plan = |phase, lives, boot| plan_sandbox(phase, None, lives, boot);
        assert_eq!(plan(Ready, true, true), SandboxVerdict::Keep);
        assert_eq!(plan(Ready, false, true), SandboxVerdict::Lose("shim died"));
        assert_eq!(
            plan(Ready, false, false),
            SandboxVerdict::Lose("the machine was restarted")
        );
        assert_eq!(plan(Stopped, false, true), SandboxVerdict::Keep);
        assert_eq!(plan(Lost, false, true), SandboxVerdict::Keep);
        assert_eq!(plan(Creating, true, true), SandboxVerdict::Remove);
    }

    #[test]
    fn containers_are_what_their_shim_says() {
        let created = ContainerPhase::Created { pid: 5 };
        let running = ContainerPhase::Running {
            pid: 5,
            started_at: 6,
        };
        let exit = Exit {
            code: 3,
            oom_killed: false,
            at: 9,
        };
        let says_exited = Status::Exited { started_at: 6, exit };
        let says_running = Status::Running {
            pid: 5,
            started_at: 6,
        };
        let exited = ContainerPhase::Exited(Ended {
            started_at: 6,
            finished_at: 9,
            code: 3,
            cause: Cause::Exit,
        });
        let start = Some(Step::ContainerStart);
        assert_eq!(
            plan_container(&created, start, Some(&says_running)),
            ContainerVerdict::Observe(running.clone())
        );
        assert_eq!(
            plan_container(&created, start, Some(&Status::Created { pid: 5 })),
            ContainerVerdict::Keep
        );
        for phase in [&created, &running] {
            assert_eq!(
                plan_container(phase, None, Some(&says_exited)),
                ContainerVerdict::Exit(6, exit)
            );
            assert!(matches!(
                plan_container(phase, None, None),
                ContainerVerdict::Lose(_)
            ));
        }
        assert_eq!(
            plan_container(&running, None, Some(&says_running)),
            ContainerVerdict::Keep
        );
        assert_eq!(
            plan_container(&running, Some(Step::ContainerKill), Some(&says_running)),
            ContainerVerdict::Keep
        );
        assert_eq!(plan_container(&exited, None, None), ContainerVerdict::Keep);
        for phase in [&created, &running, &exited] {
            for step in [
                Step::ContainerCreated,
                Step::ContainerRemove,
                Step::ContainerForget,
            ] {
                assert_eq!(
                    plan_container(phase, Some(step), Some(&says_running)),
                    ContainerVerdict::Remove
                );
            }
        }
    }
}
