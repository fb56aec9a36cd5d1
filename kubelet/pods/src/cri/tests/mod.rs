//! Tests of each rule, with pods as people write them.

mod config;
mod downward;
mod env;
mod names;
mod resources;
mod security;
mod userns;

use std::net::IpAddr;
use std::sync::LazyLock;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::facts::*;
use super::*;
use crate::cri::dns::ResolvConf;

/// A pod with a spec, named `web` in `default`.
fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
        "spec": spec,
    }))
    .unwrap()
}

/// A pod with one container `c` that has these fields besides its name and image.
fn one(container: Value) -> Pod {
    let mut whole = json!({"name": "c", "image": "img"});
    whole
        .as_object_mut()
        .unwrap()
        .extend(container.as_object().unwrap().clone());
    pod(json!({"containers": [whole]}))
}

fn first(pod: &Pod) -> Container {
    pod.spec.as_ref().unwrap().containers[0].clone()
}

fn facts() -> NodeFacts {
    static FACTS: LazyLock<NodeFacts> = LazyLock::new(|| NodeFacts {
        node_name: "node-1".into(),
        hostname: "machine".into(),
        host_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        dns: DnsFacts {
            cluster_domain: "cluster.local".into(),
            cluster_servers: vec!["10.96.0.10".parse().unwrap()],
            host: Some(ResolvConf::parse(
                "nameserver 9.9.9.9\nsearch example.com.\noptions rotate ndots:2\n",
            )),
        },
        memory_capacity: 8 << 30,
        swap_capacity: 4 << 30,
        allocatable: Allocatable {
            cpu_milli: 4000,
            memory: 7 << 30,
            ephemeral_storage: 100 << 30,
        },
        cgroup: CgroupFacts {
            v2: true,
            swap_controller: true,
            hugepage_sizes: vec!["2MB".into(), "1GB".into()],
            ..CgroupFacts::default()
        },
        runtime: RuntimeFacts {
            recursive_read_only: true,
            user_namespaces: true,
            supplemental_groups_policy: true,
            mount_options: true,
            ..RuntimeFacts::default()
        },
        ..NodeFacts::default()
    });
    FACTS.clone()
}

fn image() -> ResolvedImage {
    ResolvedImage {
        reference: "sha256:abc".into(),
        id: "sha256:abc".into(),
        user: ImageUser::Id(0),
        annotations: Default::default(),
    }
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn extra() -> ContainerExtra {
    ContainerExtra {
        pod_ips: ips(&["10.0.0.5"]),
        ..ContainerExtra::default()
    }
}

fn config(pod: &Pod) -> Result<cri_api::v1::ContainerConfig, ConfigError> {
    container_config(pod, "c", 0, &image(), &facts(), &extra())
}
