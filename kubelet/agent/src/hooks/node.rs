//! Hooks as the sync loop knows them: by a container's name, with errors as texts.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{Lifecycle, LifecycleHandler, Pod};
use kubelet_pods::containers::find;

use super::{HookTarget, run, run_pre_stop};
use crate::probing::Exec;
use crate::sync::context::Hooks;

/// The node's hooks.
pub struct NodeHooks {
    exec: Arc<dyn Exec>,
}

impl NodeHooks {
    /// Hooks whose commands run by `exec`.
    pub fn new(exec: Arc<dyn Exec>) -> NodeHooks {
        NodeHooks { exec }
    }
}

#[async_trait]
impl Hooks for NodeHooks {
    async fn post_start(&self, pod: &Pod, ip: Option<IpAddr>, name: &str, id: &str) -> Result<(), String> {
        let Some((_, container)) = find(pod, name) else {
            return Ok(());
        };
        let Some(handler) = handler(container.lifecycle.as_ref(), |all| all.post_start.clone()) else {
            return Ok(());
        };
        let target = HookTarget {
            pod,
            container: &container,
            container_id: id,
            ip,
        };
        run(&handler, target, self.exec.as_ref())
            .await
            .map_err(|error| error.to_string())
    }

    async fn pre_stop(
        &self,
        pod: &Pod,
        ip: Option<IpAddr>,
        name: &str,
        id: &str,
        grace: Duration,
    ) -> Result<(), String> {
        let Some((_, container)) = find(pod, name) else {
            return Ok(());
        };
        let Some(handler) = handler(container.lifecycle.as_ref(), |all| all.pre_stop.clone()) else {
            return Ok(());
        };
        let target = HookTarget {
            pod,
            container: &container,
            container_id: id,
            ip,
        };
        let (_, result) = run_pre_stop(&handler, target, self.exec.as_ref(), grace).await;
        result.map_err(|error| error.to_string())
    }
}

fn handler(
    lifecycle: Option<&Lifecycle>,
    which: impl Fn(&Lifecycle) -> Option<LifecycleHandler>,
) -> Option<LifecycleHandler> {
    lifecycle.and_then(which)
}
