//! What goes round by the clock: whether the runtime is ready, what pods that are gone left behind, dead containers.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cri_api::v1;
use oci_runtime_cgroups::CgroupDriver;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::adapters::{NodeAdmission, class};
use super::facts::{self, Place};
use super::garbage::Garbage;
use crate::config::KubeletConfiguration;
use crate::metrics::KubeletMetrics;
use crate::node::capacity::Capacity;
use crate::node::cgroups::{Cgroups, Kernel};
use crate::runtime::observe::labels::POD_UID;
use crate::sync::{Context, Input, SyncLoop};

/// How often the runtime is asked for its state while it isn't ready, and while it is.
const IMPATIENT: Duration = Duration::from_millis(500);
const PATIENT: Duration = Duration::from_secs(5);
/// How often what nobody has is looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// What the housekeeping works with.
pub(super) struct House {
    pub(super) ctx: Arc<Context>,
    pub(super) config: KubeletConfiguration,
    pub(super) place: Place,
    pub(super) capacity: Capacity,
    pub(super) driver: CgroupDriver,
    pub(super) cgroups: Arc<Cgroups<Kernel>>,
    pub(super) admission: Arc<NodeAdmission>,
    pub(super) metrics: KubeletMetrics,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) garbage: Arc<Garbage>,
}

/// Goes round until nobody listens. A sweep that takes long keeps nobody from hearing of the runtime.
pub(super) async fn run(house: House) {
    tokio::select! {
        () = house.inputs.closed() => {}
        () = house.rounds() => {}
        () = house.sweeps() => {}
    }
}

/// Whether the runtime's network is up, by what the runtime says; a runtime that doesn't answer has none.
pub(super) fn network_of(status: Option<&v1::StatusResponse>) -> Result<(), String> {
    let Some(conditions) = status
        .and_then(|status| status.status.as_ref())
        .map(|status| &status.conditions)
    else {
        return Err("container runtime status check may not have completed yet".to_owned());
    };
    match conditions
        .iter()
        .find(|condition| condition.r#type == "NetworkReady")
    {
        Some(network) if network.status => Ok(()),
        Some(network) => Err(format!(
            "container runtime network not ready: NetworkReady=false reason:{} message:{}",
            network.reason, network.message
        )),
        None => Err("container runtime network not ready: it tells no NetworkReady".to_owned()),
    }
}

impl House {
    async fn rounds(&self) {
        let mut shares = None;
        loop {
            let ready = self.runtime().await;
            self.weigh(&mut shares);
            self.count();
            tokio::time::sleep(if ready { PATIENT } else { IMPATIENT }).await;
        }
    }

    async fn sweeps(&self) {
        // Not at once: the sources have to be heard before a pod counts as gone.
        let mut sweep = tokio::time::interval_at(tokio::time::Instant::now() + SWEEP, SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = 0;
        loop {
            sweep.tick().await;
            self.sweep().await;
            let changes = self.ctx.registry.changes();
            if std::mem::replace(&mut seen, changes) != changes {
                self.ctx.blocking(crate::memory::give_back).await;
            }
        }
    }

    /// Asks the runtime for its state. Pods that waited for its network look again when it is up.
    async fn runtime(&self) -> bool {
        let status = self.ctx.cri.status(v1::StatusRequest { verbose: false }).await;
        let status = status.ok();
        let network = network_of(status.as_ref());
        let ready = network.is_ok();
        let changed = {
            let mut known = self.ctx.network.write().unwrap_or_else(PoisonError::into_inner);
            let changed = known.is_ok() != ready;
            *known = network;
            changed
        };
        if status.is_some() {
            let facts = facts::node_facts(
                &self.config,
                &self.place,
                &self.capacity,
                self.driver,
                status.as_ref(),
            );
            let mut node = self
                .admission
                .node
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            node.strict_groups = facts.runtime.supplemental_groups_policy;
            drop(node);
            let mut known = self.ctx.facts.write().unwrap_or_else(PoisonError::into_inner);
            if **known != facts {
                *known = Arc::new(facts);
            }
        }
        if changed {
            info!(ready, "the runtime's network changed");
            // Those that miss it look by themselves a little later.
            let _ = self.inputs.try_send(Input::LookAll);
        }
        ready
    }

    /// Gives the burstable pods together the weight of what they request.
    fn weigh(&self, last: &mut Option<i64>) {
        let active = self.ctx.registry.active();
        let burstable = active
            .iter()
            .filter(|pod| class(pod) == crate::node::cgroups::QosClass::Burstable);
        let milli: i64 = burstable
            .map(|pod| {
                let requests = crate::node::resources::PodResources::of(pod).requests;
                requests
                    .get("cpu")
                    .map_or(0, controlplane_api::Quantity::milli_value)
            })
            .sum();
        if *last == Some(milli) {
            return;
        }
        match self.cgroups.weigh(milli) {
            Ok(()) => *last = Some(milli),
            Err(error) => warn!(%error, "failed to weigh the burstable pods"),
        }
    }

    fn count(&self) {
        let pods = self.ctx.registry.pods();
        let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let running = pods
            .iter()
            .filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"));
        self.metrics.running_pods.set(&[], number(running.count()));
        let known: std::collections::BTreeSet<_> =
            pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        self.metrics.retain_pods(|uid| known.contains(uid));
    }

    /// Removes what no pod has, and dead containers beyond the last one of each name.
    async fn sweep(&self) {
        if !self.ctx.registry.is_settled() {
            return;
        }
        // What the runtime holds may still be ending: it isn't in the registry where only the runtime knows it.
        let held = match self.held().await {
            Ok(held) => held,
            Err(error) => {
                warn!(%error, "failed to find what is left of pods");
                return;
            }
        };
        let ctx = self.ctx.clone();
        let swept = self.ctx.blocking(move || {
            let known = |uid: &str| ctx.registry.knows(uid) || held.contains(uid);
            SyncLoop::sweep(&ctx, &known);
        });
        swept.await;
        if self.admission.placement.has_restored()
            && let Err(error) = self.forget_gone().await
        {
            warn!(%error, "failed to find pods of before the start");
        }
        if let Err(error) = self.garbage.remove_dead(false).await {
            warn!(%error, "failed to remove dead containers");
        }
    }

    /// Takes CPUs and memory back from pods that neither the runtime nor anybody else knows any more.
    async fn forget_gone(&self) -> Result<(), crate::runtime::CallError> {
        let held = self.held().await?;
        let registry = &self.ctx.registry;
        let placement = &self.admission.placement;
        placement.forget_gone(|uid| registry.knows(uid) || held.contains(uid));
        Ok(())
    }

    /// The UIDs of the pods that the runtime holds sandboxes of.
    async fn held(&self) -> Result<BTreeSet<String>, crate::runtime::CallError> {
        let request = v1::ListPodSandboxRequest::default();
        let sandboxes = self.ctx.cri.list_pod_sandbox(request).await?.items;
        let uids = sandboxes
            .into_iter()
            .filter_map(|mut one| one.labels.remove(POD_UID));
        Ok(uids.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_not_up_is_told_with_its_reason() {
        assert!(network_of(None).is_err());
        let condition = v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: "no conflist".to_owned(),
        };
        let mut status = v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition],
            }),
            ..Default::default()
        };
        let said = network_of(Some(&status)).expect_err("it isn't up");
        assert!(
            said.contains("reason:NetworkPluginNotReady message:no conflist"),
            "{said}"
        );
        if let Some(status) = status.status.as_mut() {
            status.conditions[0].status = true;
        }
        assert_eq!(network_of(Some(&status)), Ok(()));
    }
}
