//! Version, Status, RuntimeConfig, UpdateRuntimeConfig, and what isn't there: checkpoints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::*;
use serde_json::json;

use crate::config::{Config, Driver};
use crate::errors::CallError;
use crate::node::Node;

/// The version of the kubelet's runtime API that VersionResponse has always named.
const KUBELET_API: &str = "0.1.0";
/// How long a network plugin may think about whether it is well.
const NETWORK_PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn version(
    _node: Arc<Node>,
    _request: VersionRequest,
) -> Result<VersionResponse, CallError> {
    Ok(VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "orlop".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}

pub(super) async fn status(node: Arc<Node>, request: StatusRequest) -> Result<StatusResponse, CallError> {
    let settings = node.config();
    let network = match tokio::time::timeout(NETWORK_PATIENCE, node.network.status()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(CallError::from(error).chain()),
        Err(_) => Err(format!(
            "the network plugin didn't answer STATUS within {} s",
            NETWORK_PATIENCE.as_secs()
        )),
    };
    let handlers = settings.runtime_names().into_iter();
    Ok(StatusResponse {
        runtime_handlers: handlers.map(|name| handler(&node, &settings, name)).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
        info: if request.verbose {
            info(&node, &settings, network.as_ref().err())
        } else {
            HashMap::new()
        },
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "", Ok(())),
                condition("NetworkReady", "NetworkPluginNotReady", network),
            ],
        }),
    })
}

fn condition(kind: &str, reason: &str, state: Result<(), String>) -> RuntimeCondition {
    let status = state.is_ok();
    RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: if status { String::new() } else { reason.to_owned() },
        message: state.err().unwrap_or_default(),
    }
}

/// What a handler can do. Of a foreign executable nothing is promised.
fn handler(node: &Node, settings: &Config, name: String) -> RuntimeHandler {
    let builtin = settings.runtime(&name).is_some_and(|h| h.path.is_none());
    RuntimeHandler {
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: builtin && node.host.recursive_read_only,
            user_namespaces: builtin && node.host.idmapped_mounts,
        }),
        name,
    }
}

/// What `crictl info` shows beside the status.
fn info(node: &Node, settings: &Config, network: Option<&String>) -> HashMap<String, String> {
    let config = json!({
        "root": settings.root,
        "state": settings.state,
        "socket": settings.socket,
        "cgroupDriver": match settings.cgroup.driver {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        },
        "cgroupRoot": settings.cgroup.root(),
        "defaultRuntime": settings.default_runtime,
        "runtimes": settings.runtime_names(),
        "cniConfDir": settings.cni.conf_dir,
        "cniBinDirs": settings.cni.bin_dirs,
        "registryHostsDir": settings.images.hosts_dir,
    });
    let host = json!({
        "cgroupV2": node.host.cgroup_v2,
        "apparmor": node.host.apparmor,
        "selinux": node.host.selinux,
        "recursiveReadOnly": node.host.recursive_read_only,
        "idmappedMounts": node.host.idmapped_mounts,
        "oomScoreFloor": node.host.oom_score_floor,
    });
    let counts = json!({
        "sandboxes": node.store.sandboxes().len(),
        "containers": node.store.containers().len(),
        "images": node.images.list().len(),
    });
    [
        ("config".to_owned(), config.to_string()),
        ("host".to_owned(), host.to_string()),
        ("counts".to_owned(), counts.to_string()),
        (
            "lastCNIStatus".to_owned(),
            json!(network.map_or("OK", String::as_str)).to_string(),
        ),
        ("version".to_owned(), json!(env!("CARGO_PKG_VERSION")).to_string()),
    ]
    .into()
}

pub(super) async fn config(
    node: Arc<Node>,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, CallError> {
    let driver = match node.config().cgroup.driver {
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        Driver::Systemd => CgroupDriver::Systemd,
    };
    Ok(RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver as i32,
        }),
    })
}

/// The kubelet tells the node's pod CIDR here; pods' networks are configured by the conflist, which names it itself.
pub(super) async fn update_config(
    _node: Arc<Node>,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, CallError> {
    let config = request.runtime_config.and_then(|c| c.network_config);
    let pod_cidr = config.map(|n| n.pod_cidr).unwrap_or_default();
    tracing::debug!(
        pod_cidr,
        "the pod CIDR is taken from the network configuration instead"
    );
    Ok(UpdateRuntimeConfigResponse {})
}

const NO_CHECKPOINTS: CallError = CallError::Unimplemented(
    "checkpoints are not supported: no process can be frozen to disk by this runtime",
);

pub(super) async fn checkpoint_container(
    _node: Arc<Node>,
    _request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, CallError> {
    Err(NO_CHECKPOINTS)
}

pub(super) async fn checkpoint_pod(
    _node: Arc<Node>,
    _request: CheckpointPodRequest,
) -> Result<CheckpointPodResponse, CallError> {
    Err(NO_CHECKPOINTS)
}

pub(super) async fn restore_pod(
    _node: Arc<Node>,
    _request: RestorePodRequest,
) -> Result<RestorePodResponse, CallError> {
    Err(NO_CHECKPOINTS)
}
