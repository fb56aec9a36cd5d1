//! RunPodSandbox, step by step.
//!
//! The shim comes before the network: it makes the namespaces. The name is free again as soon as creation has failed,
//! even where a part can't be undone at once (a CNI plugin that hangs, say): the rest is tried again in the background
//! and after a restart.

use std::sync::Arc;
use std::time::Duration;

use cri_api::PodSandboxId;
use cri_api::v1::{ContainerEventType, PodSandboxConfig};
use cri_shim_protocol::{NamespaceKind, PinNamespaces};
use oci_runtime_cgroups::Cgroup;

use super::files;
use super::plan::{self, SandboxPlan};
use super::{Operation, Side, Step, sandbox_name};
use crate::cgroup_names;
use crate::errors::CallError;
use crate::network;
use crate::node::{Node, blocking};
use crate::shim::ShimCallError;
use crate::spec::linux_resources;
use crate::store::{CgroupParent, PodLimits, Sandbox, SandboxPhase, SandboxRecord, ShimLink};

/// Between two tries to clean up what could not be undone.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

impl Node {
    /// Makes a sandbox; returns its ID once it is ready.
    pub(crate) async fn run_sandbox(
        self: Arc<Self>,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<Arc<Sandbox>, CallError> {
        let settings = self.config();
        if settings.runtime(&runtime_handler).is_none() {
            let known = settings.runtime_names().join(", ");
            return Err(CallError::Invalid(format!(
                "there is no runtime handler `{runtime_handler}`; the configuration has: {}",
                known.trim_start_matches(", ")
            )));
        }
        let bytes = self
            .clock
            .draw()
            .map_err(CallError::file("read", "/dev/urandom".as_ref()))?;
        let id = PodSandboxId::from_bytes(bytes);
        let plan = plan::sandbox(&config, &settings.cgroup, id.as_str())
            .and_then(|plan| plan::resolv_conf(config.dns_config.as_ref()).map(|_| plan))
            .map_err(|e| CallError::Invalid(e.to_string()))?;
        let sandbox = self
            .store
            .create_sandbox(self.new_record(id, config, runtime_handler, &plan))?;
        self.kill.reach(Step::SandboxRecord, Side::Before);
        self.kill.reach(Step::SandboxRecord, Side::After);
        match self.build(&sandbox, &plan).await {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                self.undo_sandbox(&sandbox).await;
                Err(error)
            }
        }
    }

    fn new_record(
        &self,
        id: PodSandboxId,
        config: PodSandboxConfig,
        runtime_handler: String,
        plan: &SandboxPlan,
    ) -> SandboxRecord {
        let linux = config.linux.as_ref();
        SandboxRecord {
            id,
            name: sandbox_name(&config.metadata.clone().unwrap_or_default()),
            limits: PodLimits {
                resources: linux.and_then(|l| l.resources.clone()),
                overhead: linux.and_then(|l| l.overhead.clone()),
            },
            config: Arc::new(config),
            runtime_handler,
            created_at: self.clock.now(),
            boot_id: self.boot_id.clone(),
            namespaces: plan.owned,
            cgroup_parent: plan.cgroup_parent.clone(),
            ips: Vec::new(),
            phase: SandboxPhase::Creating,
        }
    }

    async fn build(self: &Arc<Self>, sandbox: &Arc<Sandbox>, plan: &SandboxPlan) -> Result<(), CallError> {
        let entry = &sandbox.entry;
        self.quick_step(entry, Step::SandboxFiles, || {
            files::make(&self.paths, sandbox, plan)
        })?;
        if plan.owned.ipc {
            self.quick_step(entry, Step::SandboxShm, || files::mount_shm(&self.paths, sandbox))?;
        }
        self.step(entry, Step::SandboxCgroup, self.make_pod_cgroup(sandbox))
            .await?;
        self.step(entry, Step::SandboxShim, self.start_shim(sandbox))
            .await?;
        self.step(entry, Step::SandboxNamespaces, self.pin(sandbox, plan))
            .await?;
        let mut ips = Vec::new();
        if plan.owned.network {
            ips = self
                .step(entry, Step::SandboxNetwork, self.attach(sandbox, plan))
                .await?;
        }
        self.plugins_run(sandbox, &ips).await?;
        self.quick_step(entry, Step::SandboxReady, || {
            entry.update(|r| {
                r.ips = ips;
                r.phase = SandboxPhase::Ready;
            })?;
            Ok(())
        })?;
        // A shim that died meanwhile was heard of before there was a ready sandbox to bury.
        if sandbox.shim().is_none() {
            return Err(CallError::shim("keep the sandbox's shim")(ShimCallError::Died));
        }
        files::write_hosts(&self.paths, sandbox, &files::hostname(plan)?)?;
        // Unsettled, it would be undone at the next start although its caller was told of it.
        entry.settle(Operation::Create)?;
        let id = sandbox.id.as_str();
        self.announce(id, ContainerEventType::ContainerCreatedEvent, sandbox);
        self.announce(id, ContainerEventType::ContainerStartedEvent, sandbox);
        Ok(())
    }

    /// The pod's own cgroup with its limits. The kubelet's it makes itself, with limits of its own.
    async fn make_pod_cgroup(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        let record = sandbox.record();
        let CgroupParent::Ours(path) = record.cgroup_parent.clone() else {
            return Ok(());
        };
        let limits = pod_limits(&record.limits);
        let resources = limits
            .map(|limits| linux_resources(&limits, &self.host))
            .transpose()?;
        blocking(move || {
            let cgroup = Cgroup::named(&path)?;
            cgroup.create()?;
            if let Some(resources) = resources {
                cgroup.apply(&resources)?;
            }
            Ok(())
        })
        .await
    }

    async fn start_shim(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        let shim = self.runtime.start_shim(&sandbox.id).await;
        let shim = shim.map_err(CallError::shim("start the sandbox's shim"))?;
        sandbox.set_link(ShimLink::Live(shim));
        Ok(())
    }

    async fn pin(&self, sandbox: &Sandbox, plan: &SandboxPlan) -> Result<(), CallError> {
        let kinds = plan.kinds();
        if kinds.is_empty() {
            return Ok(());
        }
        let id = sandbox.id.as_str();
        let shim = self.live_shim(sandbox)?;
        let record = sandbox.record();
        let request = PinNamespaces {
            namespaces: kinds
                .into_iter()
                .map(|kind| (kind, self.paths.namespace(id, kind)))
                .collect(),
            hostname: plan.hostname.clone(),
            sysctls: plan.sysctls.clone(),
            uid_mappings: plan.uid_mappings.clone(),
            gid_mappings: plan.gid_mappings.clone(),
            init_cgroup: plan.owned.pid.then(|| init_cgroup(&record)),
        };
        shim.pin_namespaces(request)
            .await
            .map(drop)
            .map_err(CallError::shim("make the sandbox's namespaces"))
    }

    async fn attach(
        &self,
        sandbox: &Sandbox,
        plan: &SandboxPlan,
    ) -> Result<Vec<std::net::IpAddr>, CallError> {
        let record = sandbox.record();
        let netns = self.paths.namespace(sandbox.id.as_str(), NamespaceKind::Network);
        let cgroup = cgroup_names::path(plan.cgroup_parent.name());
        let pod = network::attachment(&sandbox.id, netns, &record.config, &cgroup);
        Ok(self.network.attach(pod).await?)
    }

    /// Takes back a half-made sandbox; what can't be taken back now is tried again later.
    pub(crate) async fn undo_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let sandbox_id = &sandbox.id;
        let taken = {
            let _alone = sandbox.gate.write().await;
            if self.store.sandbox_by_id(sandbox_id).is_none() {
                // Somebody else was faster.
                return;
            }
            self.take_down(sandbox).await
        };
        let Err(error) = taken else { return };
        let error = error.chain();
        tracing::warn!(%sandbox_id, error, "failed to undo a half-made sandbox; trying again in the background");
        self.store.free_name(sandbox.id.as_str());
        let (node, sandbox) = (self.clone(), sandbox.clone());
        tokio::spawn(async move {
            let mut pause = FIRST_RETRY;
            loop {
                tokio::time::sleep(pause).await;
                let _alone = sandbox.gate.write().await;
                if node.store.sandbox_by_id(&sandbox.id).is_none() {
                    // Somebody else was faster.
                    return;
                }
                match node.take_down(&sandbox).await {
                    Ok(()) => return,
                    Err(error) => {
                        let (error, sandbox_id) = (error.chain(), &sandbox.id);
                        tracing::warn!(%sandbox_id, error, "still failed to undo a half-made sandbox");
                    }
                }
                pause = (pause * 2).min(LAST_RETRY);
            }
        });
    }
}

/// The cgroup of the pod's own init.
pub(super) fn init_cgroup(record: &SandboxRecord) -> String {
    cgroup_names::container(record.cgroup_parent.name(), record.id.as_str())
}

/// Resources and overhead together, where both or one are given; only sums of limits that both sides have make sense.
pub(crate) fn pod_limits(limits: &PodLimits) -> Option<cri_api::v1::LinuxContainerResources> {
    let mut sum = limits.resources.clone()?;
    if let Some(overhead) = &limits.overhead {
        let add = |a: i64, b: i64| if a > 0 { a.saturating_add(b.max(0)) } else { a };
        sum.memory_limit_in_bytes = add(sum.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
        sum.cpu_shares = add(sum.cpu_shares, overhead.cpu_shares);
        if sum.cpu_period == overhead.cpu_period {
            sum.cpu_quota = add(sum.cpu_quota, overhead.cpu_quota);
        }
    }
    // A pod's cgroup has no process of its own to set this on.
    sum.oom_score_adj = 0;
    Some(sum)
}
