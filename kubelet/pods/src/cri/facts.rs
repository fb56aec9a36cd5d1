//! What a pod's configuration depends on besides the pod: the node, its runtime, and the kubelet's configuration.

use std::net::IpAddr;
use std::time::Duration;

use super::dns::ResolvConf;

/// The node, its runtime and the kubelet's configuration, as far as pods' configurations depend on them.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts {
    /// The kubelet's own directory, `/var/lib/kubelet`.
    pub root_dir: String,
    /// Where pods' logs are, `/var/log/pods`.
    pub pod_logs_dir: String,
    /// The node's name in the cluster.
    pub node_name: String,
    /// The machine's host name.
    pub hostname: String,
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// Name resolution.
    pub dns: DnsFacts,
    /// Physical memory in bytes.
    pub memory_capacity: u64,
    /// Swap in bytes.
    pub swap_capacity: u64,
    /// What pods may use together: what `resourceFieldRef` names where a container has no limit.
    pub allocatable: Allocatable,
    /// cgroups.
    pub cgroup: CgroupFacts,
    /// `cpuCFSQuota` and `cpuCFSQuotaPeriod`.
    pub cpu_quota: CpuQuota,
    /// `memorySwap.swapBehavior`.
    pub swap: SwapBehavior,
    /// The gate MemoryQoS and `memoryThrottlingFactor`; none when it is off.
    pub memory_qos: Option<MemoryQos>,
    /// `seccompDefault`: containers that say nothing run with the runtime's profile.
    pub seccomp_default: bool,
    /// `allowedUnsafeSysctls`: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// `singleProcessOOMKill`: the kernel kills one process of a container rather than all of them.
    pub single_process_oom_kill: bool,
    /// `podPidsLimit`; none is without limit.
    pub pod_pids_limit: Option<i64>,
    /// `/sys/devices/system/cpu/cpu*/thermal_throttle` as far as they exist; masked in containers.
    pub thermal_throttle_paths: Vec<String>,
    /// What the runtime says it can do.
    pub runtime: RuntimeFacts,
}

/// Name resolution on the node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DnsFacts {
    /// `clusterDomain`; empty is none.
    pub cluster_domain: String,
    /// `clusterDNS`.
    pub cluster_servers: Vec<IpAddr>,
    /// The file that `resolvConf` names; none when it names none, and lookups then ask the pod itself.
    pub host: Option<ResolvConf>,
}

/// Allocatable resources of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// Directories below the hierarchy.
    Cgroupfs,
    /// Slices and scopes of systemd's.
    #[default]
    Systemd,
}

/// The node's cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupFacts {
    /// `cgroupDriver`.
    pub driver: CgroupDriver,
    /// The names of the cgroups above `kubepods`; none for the root.
    pub root: Vec<String>,
    /// Whether there is one hierarchy, version 2.
    pub v2: bool,
    /// Whether swap can be limited per cgroup.
    pub swap_controller: bool,
    /// The page sizes that the hugetlb controller knows, as it names them: `2MB`, `1GB`.
    pub hugepage_sizes: Vec<String>,
}

/// CFS quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// Whether CPU limits are enforced.
    pub enforced: bool,
    /// The period.
    pub period: Duration,
}

/// Whether containers may swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwapBehavior {
    /// None may.
    #[default]
    NoSwap,
    /// Burstable ones may, in proportion to their memory request.
    LimitedSwap,
}

/// The gate MemoryQoS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryQos {
    /// `memoryThrottlingFactor`.
    pub throttling_factor: f64,
    /// Bytes of a page.
    pub page_size: i64,
}

/// What the runtime says it can do, of the handler that the pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuntimeFacts {
    /// Recursive read-only mounts.
    pub recursive_read_only: bool,
    /// Pods with user namespaces.
    pub user_namespaces: bool,
    /// User namespaces together with the host's network.
    pub user_namespaces_host_network: bool,
    /// `supplementalGroupsPolicy`.
    pub supplemental_groups_policy: bool,
    /// `bindMountOptions` of a volume mount.
    pub mount_options: bool,
}

impl Default for CpuQuota {
    fn default() -> CpuQuota {
        CpuQuota {
            enforced: true,
            period: Duration::from_millis(100),
        }
    }
}

impl Default for NodeFacts {
    fn default() -> NodeFacts {
        NodeFacts {
            root_dir: "/var/lib/kubelet".to_owned(),
            pod_logs_dir: "/var/log/pods".to_owned(),
            node_name: String::new(),
            hostname: String::new(),
            host_ips: Vec::new(),
            dns: DnsFacts::default(),
            memory_capacity: 0,
            swap_capacity: 0,
            allocatable: Allocatable::default(),
            cgroup: CgroupFacts::default(),
            cpu_quota: CpuQuota::default(),
            swap: SwapBehavior::default(),
            memory_qos: None,
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            single_process_oom_kill: false,
            pod_pids_limit: None,
            thermal_throttle_paths: Vec::new(),
            runtime: RuntimeFacts::default(),
        }
    }
}

impl NodeFacts {
    /// The directory of a pod's own files.
    pub fn pod_dir(&self, uid: &str) -> String {
        format!("{}/pods/{uid}", self.root_dir)
    }

    /// The file that is a pod's `/etc/hosts`.
    pub fn hosts_file(&self, uid: &str) -> String {
        format!("{}/etc-hosts", self.pod_dir(uid))
    }

    /// The directory below which a container's termination messages lie.
    pub fn container_dir(&self, uid: &str, container: &str) -> String {
        format!("{}/containers/{container}", self.pod_dir(uid))
    }
}
