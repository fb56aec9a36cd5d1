//! Pod networks, as the server needs them: a trait, and the real thing over CNI.
//!
//! CNI calls block, each with a time limit of its own, so they run on threads that may block.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cni_invoke::{Attachment, Cni, PortMapping, Protocol};
use cni_types::{RuntimeConfig, RuntimeDns};
use cri_api::{PodSandboxId, v1};

/// The interface in every pod.
pub const IFNAME: &str = "eth0";

/// One pod's place on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAttachment {
    /// The sandbox.
    pub sandbox: PodSandboxId,
    /// Its network namespace.
    pub netns: PathBuf,
    /// What plugins are told in CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// What plugins are told by capability.
    pub runtime: RuntimeConfig,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    /// CNI.
    #[error(transparent)]
    Cni(#[from] cni_invoke::NetworkError),
    /// ADD gave no address.
    #[error("the network gave the pod no IP address; check the `ipam` of the network configuration")]
    NoAddress,
    /// The thread that did it panicked.
    #[error("the task that worked on the network was lost")]
    Lost,
}

/// Names the sandboxes that exist, also those that are being made.
pub type Valid = Box<dyn FnOnce() -> Vec<PodSandboxId> + Send>;

/// Attaches pods to the network.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Attaches a pod; its addresses, the primary first.
    ///
    /// # Errors
    /// When no network is configured or a plugin refuses; nothing of it is left then, as far as plugins can undo.
    async fn attach(&self, pod: PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError>;

    /// Detaches a pod; one that isn't attached is fine.
    ///
    /// # Errors
    /// When a plugin refuses: it must be repeated.
    async fn detach(&self, sandbox: &PodSandboxId, netns: PathBuf) -> Result<(), PodNetworkError>;

    /// Whether pods could be attached now.
    ///
    /// # Errors
    /// Why not.
    async fn status(&self) -> Result<(), PodNetworkError>;

    /// Releases whatever belongs to none of the sandboxes that `valid` names; it is asked while no attach runs.
    ///
    /// # Errors
    /// What could not be released.
    async fn reclaim(&self, valid: Valid) -> Result<(), PodNetworkError>;
}

/// Networks by CNI.
pub struct CniNetwork {
    cni: Arc<Cni>,
    /// Reclaiming takes it for writing, so that no attach falls between its question and its work.
    gate: tokio::sync::RwLock<()>,
}

impl CniNetwork {
    /// The network that this CNI is configured for.
    pub fn new(cni: Cni) -> Self {
        Self {
            cni: Arc::new(cni),
            gate: tokio::sync::RwLock::default(),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cni) -> Result<T, PodNetworkError> + Send + 'static,
    ) -> Result<T, PodNetworkError> {
        let cni = self.cni.clone();
        tokio::task::spawn_blocking(move || work(&cni))
            .await
            .unwrap_or(Err(PodNetworkError::Lost))
    }
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn attach(&self, pod: PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
        let _shared = self.gate.read().await;
        self.blocking(move |cni| {
            let attachment = Attachment {
                container_id: pod.sandbox.to_string(),
                netns: pod.netns,
                ifname: IFNAME.to_owned(),
                args: pod.args,
                runtime: pod.runtime,
            };
            let result = cni.add(&attachment)?;
            let ips = pod_ips(&result);
            if ips.is_empty() {
                cni.del(&attachment)?;
                return Err(PodNetworkError::NoAddress);
            }
            Ok(ips)
        })
        .await
    }

    async fn detach(&self, sandbox: &PodSandboxId, netns: PathBuf) -> Result<(), PodNetworkError> {
        let attachment = Attachment {
            container_id: sandbox.to_string(),
            netns,
            ifname: IFNAME.to_owned(),
            ..Attachment::default()
        };
        self.blocking(move |cni| Ok(cni.del(&attachment)?)).await
    }

    async fn status(&self) -> Result<(), PodNetworkError> {
        self.blocking(|cni| Ok(cni.status()?)).await
    }

    async fn reclaim(&self, valid: Valid) -> Result<(), PodNetworkError> {
        let _alone = self.gate.write().await;
        let valid: Vec<_> = valid()
            .into_iter()
            .map(|id| (id.to_string(), IFNAME.to_owned()))
            .collect();
        self.blocking(move |cni| Ok(cni.gc(&valid)?)).await
    }
}

/// The pod's addresses: those of interfaces inside it, in the order of the result; all, if it names no interfaces.
fn pod_ips(result: &cni_types::AddResult) -> Vec<IpAddr> {
    let inside = |index: Option<usize>| {
        index.is_none_or(|n| {
            result
                .interfaces
                .get(n)
                .is_none_or(|interface| !interface.sandbox.is_empty())
        })
    };
    let ips = result.ips.iter().filter(|ip| inside(ip.interface));
    ips.map(|ip| ip.address.ip()).collect()
}

/// What plugins are told about a pod.
pub fn attachment(
    sandbox: &PodSandboxId,
    netns: PathBuf,
    config: &v1::PodSandboxConfig,
    cgroup: &str,
) -> PodAttachment {
    let metadata = config.metadata.clone().unwrap_or_default();
    let args = [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.to_string()),
        ("K8S_POD_UID", metadata.uid),
    ];
    let dns = config.dns_config.as_ref().map(|dns| RuntimeDns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    });
    PodAttachment {
        sandbox: sandbox.clone(),
        netns,
        args: args.map(|(key, value)| (key.to_owned(), value)).into(),
        runtime: RuntimeConfig {
            port_mappings: config.port_mappings.iter().filter_map(port_mapping).collect(),
            dns,
            cgroup_path: Some(cgroup.to_owned()),
            bandwidth: bandwidth(&config.annotations),
            ..RuntimeConfig::default()
        },
    }
}

/// A mapping that maps something: with a host port.
fn port_mapping(mapping: &v1::PortMapping) -> Option<PortMapping> {
    let port = |number: i32| u16::try_from(number).ok().filter(|n| *n > 0);
    Some(PortMapping {
        host_port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
        protocol: match mapping.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip: mapping.host_ip.parse().ok(),
    })
}

/// Why a pod's port mappings make no sense, if they don't.
pub fn check_port_mappings(mappings: &[v1::PortMapping]) -> Result<(), String> {
    for mapping in mappings {
        let in_range = |n: i32| (0..=65535).contains(&n);
        if !in_range(mapping.host_port) || !in_range(mapping.container_port) {
            let (host, container) = (mapping.host_port, mapping.container_port);
            return Err(format!("port mapping {host}:{container}: ports are 0 to 65535"));
        }
        if mapping.host_port > 0 && mapping.container_port == 0 {
            return Err(format!(
                "port mapping {}:0: the container port is missing",
                mapping.host_port
            ));
        }
        if v1::Protocol::try_from(mapping.protocol).is_err() {
            return Err(format!("port mapping: unknown protocol {}", mapping.protocol));
        }
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
            return Err(format!(
                "port mapping: `{}` is not an IP address",
                mapping.host_ip
            ));
        }
    }
    Ok(())
}

/// The pod's limits from the annotations that Kubernetes has for them; what can't be read counts as absent.
fn bandwidth(annotations: &std::collections::HashMap<String, String>) -> Option<cni_invoke::Bandwidth> {
    let rate = |key: &str| annotations.get(key).and_then(|text| bits(text)).unwrap_or(0);
    let ingress = rate("kubernetes.io/ingress-bandwidth");
    let egress = rate("kubernetes.io/egress-bandwidth");
    if ingress == 0 && egress == 0 {
        return None;
    }
    // Half a second's worth may come at once, within what the kernel's token bucket can count.
    let burst = |rate: u64| (rate / 2).clamp(u64::from(rate > 0), u64::from(u32::MAX));
    Some(cni_invoke::Bandwidth {
        ingress_rate: ingress,
        ingress_burst: burst(ingress),
        egress_rate: egress,
        egress_burst: burst(egress),
    })
}

/// A quantity such as `10M` or `1Gi`, in bits per second.
fn bits(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn plugins_are_told_who_the_pod_is_and_what_it_wants() {
        let mut config = (*testing::sandbox(1).config).clone();
        config.port_mappings = vec![
            v1::PortMapping {
                protocol: v1::Protocol::Udp as i32,
                container_port: 53,
                host_port: 5353,
                host_ip: "127.0.0.1".into(),
            },
            v1::PortMapping {
                container_port: 80,
                ..Default::default()
            },
        ];
        config
            .annotations
            .insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
        let id = PodSandboxId::from_bytes([1; 32]);
        let pod = attachment(&id, "/ns".into(), &config, "/orlop/x");
        assert!(pod.args.contains(&("K8S_POD_NAME".into(), "pod-1".into())));
        assert_eq!(pod.runtime.port_mappings.len(), 1, "no host port, no mapping");
        assert_eq!(pod.runtime.port_mappings[0].protocol, Protocol::Udp);
        let bandwidth = pod.runtime.bandwidth.unwrap();
        assert_eq!(
            (bandwidth.egress_rate, bandwidth.egress_burst),
            (10_000_000, 5_000_000)
        );
        assert_eq!((bandwidth.ingress_rate, bandwidth.ingress_burst), (0, 0));
    }

    #[test]
    fn port_mappings_that_make_no_sense_are_refused() {
        let check = |host_port, container_port, protocol, host_ip: &str| {
            check_port_mappings(&[v1::PortMapping {
                protocol,
                container_port,
                host_port,
                host_ip: host_ip.into(),
            }])
        };
        assert!(check(80, 80, 0, "").is_ok());
        assert!(check(0, 80, 1, "::1").is_ok());
        assert!(check(70000, 80, 0, "").is_err());
        assert!(check(80, 0, 0, "").is_err());
        assert!(check(80, -1, 0, "").is_err());
        assert!(check(80, 80, 7, "").is_err());
        assert!(check(80, 80, 0, "localhost").is_err());
    }

    #[test]
    fn quantities() {
        assert_eq!(bits("1Mi"), Some(1 << 20));
        assert_eq!(bits("5"), Some(5));
        assert_eq!(bits("5x"), None);
        assert_eq!(bits(""), None);
        assert_eq!(bits("99999999999999999999G"), None);
    }
}
