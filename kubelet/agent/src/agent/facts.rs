//! What the node is: read from the kernel and the configuration, and what the runtime says of itself.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use cri_api::v1;
use kubelet_pods::cri::dns::ResolvConf;
use kubelet_pods::cri::{
    Allocatable, CgroupDriver, CgroupFacts, CpuQuota, DnsFacts, MemoryQos, NodeFacts, RuntimeFacts,
    SwapBehavior,
};
use oci_runtime_cgroups::CgroupDriver as Driver;

use crate::config::{KubeletConfiguration, enabled};
use crate::node::capacity::Capacity;

/// The directories and names that aren't the configuration's.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The kubelet's own directory.
    pub(super) root: String,
    /// The node's name.
    pub(super) node_name: String,
    /// Its addresses, the primary one first.
    pub(super) ips: Vec<IpAddr>,
}

/// The machine's name, as the kernel has it.
pub(super) fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

/// The node's addresses: those of `--node-ip` where given, else the one that packets to the outside would carry, else
/// the loopback's.
pub(super) fn addresses(node_ip: Option<&str>) -> Result<Vec<IpAddr>, String> {
    if let Some(given) = node_ip.filter(|given| !given.is_empty()) {
        return given
            .split(',')
            .map(|one| {
                one.trim()
                    .parse()
                    .map_err(|_| format!("--node-ip: `{one}` is no address"))
            })
            .collect();
    }
    // Connecting a datagram socket sends nothing: the kernel only picks the way and the address to take.
    let outward = |bind: &str, to: &str| {
        let socket = std::net::UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    let found: Vec<_> = [
        outward("0.0.0.0:0", "192.0.2.1:9"),
        outward("[::]:0", "[2001:db8::1]:9"),
    ]
    .into_iter()
    .flatten()
    .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    .collect();
    Ok(if found.is_empty() {
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]
    } else {
        found
    })
}

/// `/proc/meminfo`'s entry of a name, in bytes.
pub(super) fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: u64 = line
        .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    kib.saturating_mul(1024)
}

/// Whether there is one hierarchy of cgroups, version 2.
pub(super) fn unified_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Everything that pods' configurations depend on.
pub(super) fn node_facts(
    config: &KubeletConfiguration,
    place: &Place,
    capacity: &Capacity,
    driver: Driver,
    runtime: Option<&v1::StatusResponse>,
) -> NodeFacts {
    let allocatable = |name: &str| capacity.allocatable.get(name);
    NodeFacts {
        root_dir: place.root.clone(),
        pod_logs_dir: config.pod_logs_dir.trim_end_matches('/').to_owned(),
        node_name: place.node_name.clone(),
        hostname: hostname(),
        host_ips: place.ips.clone(),
        dns: DnsFacts {
            cluster_domain: config.cluster_domain.clone(),
            cluster_servers: config
                .cluster_dns
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
            host: resolv_conf(&config.resolver_config),
        },
        memory_capacity: meminfo("MemTotal"),
        swap_capacity: meminfo("SwapTotal"),
        allocatable: Allocatable {
            cpu_milli: allocatable("cpu").map_or(0, |amount| amount.milli_value()),
            memory: allocatable("memory").map_or(0, |amount| amount.value()),
            ephemeral_storage: allocatable("ephemeral-storage").map_or(0, |amount| amount.value()),
        },
        cgroup: CgroupFacts {
            driver: match driver {
                Driver::Systemd => CgroupDriver::Systemd,
                Driver::Cgroupfs => CgroupDriver::Cgroupfs,
            },
            root: config
                .cgroup_root
                .split('/')
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect(),
            v2: unified_cgroups(),
            swap_controller: Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
                || unified_cgroups(),
            hugepage_sizes: hugepage_sizes(),
        },
        cpu_quota: CpuQuota {
            enforced: config.cpu_cfs_quota,
            period: Duration::from_nanos(
                u64::try_from(config.cpu_cfs_quota_period.as_nanos()).unwrap_or(100_000_000),
            ),
        },
        swap: match config.memory_swap.swap_behavior.as_str() {
            "LimitedSwap" => SwapBehavior::LimitedSwap,
            _ => SwapBehavior::NoSwap,
        },
        memory_qos: enabled(&config.feature_gates, "MemoryQoS").then(|| MemoryQos {
            throttling_factor: config.memory_throttling_factor.unwrap_or(0.9),
            page_size: 4096,
        }),
        seccomp_default: config.seccomp_default,
        allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        single_process_oom_kill: config.single_process_oom_kill.unwrap_or(!unified_cgroups()),
        pod_pids_limit: Some(config.pod_pids_limit).filter(|limit| *limit > 0),
        thermal_throttle_paths: thermal_throttle(),
        runtime: runtime_facts(runtime),
    }
}

/// What the runtime says that its default handler can do.
fn runtime_facts(status: Option<&v1::StatusResponse>) -> RuntimeFacts {
    let Some(status) = status else {
        return RuntimeFacts::default();
    };
    let handler = status
        .runtime_handlers
        .iter()
        .find(|handler| handler.name.is_empty())
        .or_else(|| status.runtime_handlers.first())
        .and_then(|handler| handler.features);
    let features = status.features.unwrap_or_default();
    RuntimeFacts {
        recursive_read_only: handler.is_some_and(|handler| handler.recursive_read_only_mounts),
        user_namespaces: handler.is_some_and(|handler| handler.user_namespaces),
        user_namespaces_host_network: features.user_namespaces_host_network,
        supplemental_groups_policy: features.supplemental_groups_policy,
        mount_options: features.mount_options,
    }
}

fn resolv_conf(path: &str) -> Option<ResolvConf> {
    if path.is_empty() {
        return None;
    }
    fs::read_to_string(path).ok().map(|text| ResolvConf::parse(&text))
}

/// Sizes of huge pages in the hugetlb controller's words: `2MB`, `1GB`.
fn hugepage_sizes() -> Vec<String> {
    let mut sizes: Vec<_> = huge_page_bytes()
        .into_iter()
        .map(|bytes| match bytes {
            bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
            bytes if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
            bytes => format!("{}KB", bytes >> 10),
        })
        .collect();
    sizes.sort();
    sizes
}

/// Sizes of huge pages that the kernel knows, in bytes.
pub(super) fn huge_page_bytes() -> Vec<u64> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let sizes = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        kib.checked_mul(1024)
    });
    sizes.collect()
}

fn thermal_throttle() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_addresses_are_taken_as_they_are_and_found_ones_are_not_loopback() {
        let given = addresses(Some("10.0.0.1,fd00::1")).expect("addresses");
        assert_eq!(
            given.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "fd00::1"]
        );
        assert!(addresses(Some("10.0.0")).is_err());
        let found = addresses(None).expect("some address");
        assert!(!found.is_empty());
    }

    #[test]
    fn the_machine_is_read_from_the_kernel() {
        assert!(meminfo("MemTotal") > 1 << 20);
        assert_eq!(meminfo("NoSuchEntry"), 0);
        assert!(!hostname().is_empty());
    }

    #[test]
    fn what_the_runtime_does_not_say_it_cannot_do() {
        assert_eq!(runtime_facts(None), RuntimeFacts::default());
        let status = v1::StatusResponse {
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(v1::RuntimeHandlerFeatures {
                    user_namespaces: true,
                    ..Default::default()
                }),
            }],
            ..Default::default()
        };
        assert!(runtime_facts(Some(&status)).user_namespaces);
        assert!(!runtime_facts(Some(&status)).recursive_read_only);
    }
}
