//! What a pod's configuration asks for; pure.

use cri_api::v1::{self, NamespaceMode};
use cri_shim_protocol::NamespaceKind;

use crate::cgroup_names;
use crate::config::CgroupConfig;
use crate::network::check_port_mappings;
use crate::store::{CgroupParent, Owned};

/// A configuration that makes no sense; the text names the field and says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// What a sandbox is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPlan {
    /// The namespaces to make and pin.
    pub owned: Owned,
    /// What to call it; none: as the host.
    pub hostname: Option<String>,
    /// Kernel parameters, sorted.
    pub sysctls: Vec<(String, String)>,
    /// `(container, host, length)`.
    pub uid_mappings: Vec<(u32, u32, u32)>,
    /// `(container, host, length)`.
    pub gid_mappings: Vec<(u32, u32, u32)>,
    /// The cgroup above its containers.
    pub cgroup_parent: CgroupParent,
}

impl SandboxPlan {
    /// The kinds of namespaces to make, in the shim's order.
    pub fn kinds(&self) -> Vec<NamespaceKind> {
        kinds(&self.owned)
    }
}

/// The kinds of namespaces that a sandbox owns, in the shim's order.
pub(crate) fn kinds(owned: &Owned) -> Vec<NamespaceKind> {
    [
        (owned.user, NamespaceKind::User),
        (owned.network, NamespaceKind::Network),
        (owned.ipc, NamespaceKind::Ipc),
        (owned.uts, NamespaceKind::Uts),
        (owned.pid, NamespaceKind::Pid),
    ]
    .into_iter()
    .filter_map(|(own, kind)| own.then_some(kind))
    .collect()
}

/// The name that must be unique among sandboxes.
pub fn sandbox_name(metadata: &v1::PodSandboxMetadata) -> String {
    let v1::PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    } = metadata;
    format!("{name}_{namespace}_{uid}_{attempt}")
}

/// The name that must be unique among containers.
pub fn container_name(metadata: &v1::ContainerMetadata, pod: &v1::PodSandboxMetadata) -> String {
    let v1::PodSandboxMetadata {
        name, uid, namespace, ..
    } = pod;
    format!("{}_{name}_{namespace}_{uid}_{}", metadata.name, metadata.attempt)
}

fn invalid<T>(text: impl Into<String>) -> Result<T, InvalidConfig> {
    Err(InvalidConfig(text.into()))
}

/// Reads a pod's configuration. `cgroup` says whose cgroups pods get and where those without a parent go, `id` names
/// the sandbox.
///
/// # Errors
/// The first field that makes no sense.
pub(crate) fn sandbox(
    config: &v1::PodSandboxConfig,
    cgroup: &CgroupConfig,
    id: &str,
) -> Result<SandboxPlan, InvalidConfig> {
    let Some(metadata) = &config.metadata else {
        return invalid("the sandbox configuration has no metadata");
    };
    for (field, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return invalid(format!("the sandbox's metadata.{field} is empty"));
        }
    }
    if config.hostname.len() > 64 {
        return invalid(format!(
            "hostname `{}` is longer than 64 characters",
            config.hostname
        ));
    }
    if config.hostname.contains(['\0', '\n']) {
        return invalid("hostname has a control character in it");
    }
    if config.windows.is_some() {
        return invalid("`windows` is set, but this is a Linux runtime");
    }
    check_port_mappings(&config.port_mappings).map_err(InvalidConfig)?;
    let linux = config.linux.clone().unwrap_or_default();
    let options = linux
        .security_context
        .as_ref()
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default();
    let owned = owned(&options)?;
    let (uid_mappings, gid_mappings) = mappings(&options)?;
    let hostname = (owned.uts && !config.hostname.is_empty()).then(|| config.hostname.clone());
    Ok(SandboxPlan {
        owned,
        hostname,
        sysctls: sysctls(&linux, &owned)?,
        uid_mappings,
        gid_mappings,
        cgroup_parent: cgroup_parent(&linux.cgroup_parent, cgroup, id)?,
    })
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, InvalidConfig> {
    NamespaceMode::try_from(value)
        .or_else(|_| invalid(format!("namespace_options.{field} has the unknown value {value}")))
}

fn owned(options: &v1::NamespaceOption) -> Result<Owned, InvalidConfig> {
    let shared = |field: &str, value: i32| match mode(field, value)? {
        NamespaceMode::Node => Ok(false),
        NamespaceMode::Pod | NamespaceMode::Container => Ok(true),
        NamespaceMode::Target => invalid(format!(
            "namespace_options.{field}: a sandbox can't have mode TARGET"
        )),
    };
    let network = shared("network", options.network)?;
    let ipc = shared("ipc", options.ipc)?;
    let pid = match mode("pid", options.pid)? {
        NamespaceMode::Pod => true,
        NamespaceMode::Node | NamespaceMode::Container => false,
        NamespaceMode::Target => return invalid("namespace_options.pid: a sandbox can't have mode TARGET"),
    };
    let user = match &options.userns_options {
        None => false,
        Some(user) => match mode("userns_options.mode", user.mode)? {
            NamespaceMode::Node => false,
            NamespaceMode::Pod => true,
            other => {
                let name = other.as_str_name();
                return invalid(format!("userns_options.mode {name} is not POD or NODE"));
            }
        },
    };
    Ok(Owned {
        user,
        network,
        ipc,
        uts: network,
        pid,
    })
}

type Mappings = Vec<(u32, u32, u32)>;

fn mappings(options: &v1::NamespaceOption) -> Result<(Mappings, Mappings), InvalidConfig> {
    let Some(user) = &options.userns_options else {
        return Ok((Vec::new(), Vec::new()));
    };
    if user.mode() != NamespaceMode::Pod {
        if !user.uids.is_empty() || !user.gids.is_empty() {
            return invalid("userns_options has mappings, but its mode is NODE; use POD or no mappings");
        }
        return Ok((Vec::new(), Vec::new()));
    }
    let read = |field: &str, mappings: &[v1::IdMapping]| {
        if mappings.is_empty() {
            return invalid(format!(
                "userns_options.{field} is empty; a user namespace needs mappings"
            ));
        }
        let mut read = Vec::with_capacity(mappings.len());
        for m in mappings {
            let fits = |first: u32| first.checked_add(m.length.saturating_sub(1)).is_some();
            if m.length == 0 || !fits(m.host_id) || !fits(m.container_id) {
                return invalid(format!(
                    "userns_options.{field}: mapping of {} IDs from {} to {} makes no sense",
                    m.length, m.container_id, m.host_id
                ));
            }
            read.push((m.container_id, m.host_id, m.length));
        }
        Ok(read)
    };
    Ok((read("uids", &user.uids)?, read("gids", &user.gids)?))
}

fn sysctls(linux: &v1::LinuxPodSandboxConfig, owned: &Owned) -> Result<Vec<(String, String)>, InvalidConfig> {
    let mut all: Vec<_> = linux
        .sysctls
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.sort();
    for (name, _) in &all {
        let dotted = name.replace('/', ".");
        let of_ipc = dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted == "kernel.sem"
            || dotted.starts_with("fs.mqueue.");
        let (namespace, own) = if dotted.starts_with("net.") {
            ("network", owned.network)
        } else if of_ipc {
            ("IPC", owned.ipc)
        } else if dotted == "kernel.domainname" {
            ("UTS", owned.uts)
        } else {
            return invalid(format!(
                "sysctl `{name}` belongs to no namespace of the pod: it would change the whole node"
            ));
        };
        if !own {
            return invalid(format!(
                "sysctl `{name}` would change the whole node, because the pod uses the node's {namespace} namespace"
            ));
        }
    }
    Ok(all)
}

fn cgroup_parent(given: &str, cgroup: &CgroupConfig, id: &str) -> Result<CgroupParent, InvalidConfig> {
    if given.is_empty() {
        return Ok(CgroupParent::Ours(cgroup_names::pod(cgroup.root(), id)));
    }
    cgroup_names::given_parent(given, cgroup.driver.into())
        .map(CgroupParent::Given)
        .map_err(InvalidConfig)
}

/// Where a container's log goes; none: nowhere.
pub(crate) fn log_path(
    sandbox: &v1::PodSandboxConfig,
    container: &v1::ContainerConfig,
) -> Result<Option<std::path::PathBuf>, InvalidConfig> {
    if sandbox.log_directory.is_empty() || container.log_path.is_empty() {
        return Ok(None);
    }
    let folder = std::path::Path::new(&sandbox.log_directory);
    if !folder.is_absolute() {
        return invalid(format!(
            "log_directory `{}` is not an absolute path",
            sandbox.log_directory
        ));
    }
    let file = std::path::Path::new(&container.log_path);
    let plain = |c: std::path::Component<'_>| {
        matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir)
    };
    if !file.components().all(plain) {
        return invalid(format!(
            "log_path `{}` is not a path below the sandbox's log directory",
            container.log_path
        ));
    }
    Ok(Some(folder.join(file)))
}

/// `/etc/resolv.conf` of a DNS configuration; none: the host's.
pub(crate) fn resolv_conf(dns: Option<&v1::DnsConfig>) -> Result<Option<String>, InvalidConfig> {
    let Some(dns) = dns else { return Ok(None) };
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return Ok(None);
    }
    let all = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(odd) = all.into_iter().find(|text| text.contains(['\n', '\0'])) {
        return invalid(format!(
            "dns_config has a control character in `{}`",
            odd.escape_debug()
        ));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(Some(text))
}

/// `/etc/hosts` of a pod with these addresses and this name.
pub(crate) fn hosts(hostname: &str, ips: &[std::net::IpAddr]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if !hostname.is_empty() {
        for ip in ips {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::testing;

    fn config(options: Option<v1::NamespaceOption>) -> v1::PodSandboxConfig {
        let mut config = (*testing::sandbox(1).config).clone();
        config.hostname = "pod".into();
        config.linux = Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: options,
                ..Default::default()
            }),
            ..Default::default()
        });
        config
    }

    fn modes(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> Option<v1::NamespaceOption> {
        Some(v1::NamespaceOption {
            network: network as i32,
            pid: pid as i32,
            ipc: ipc as i32,
            ..Default::default()
        })
    }

    fn plan(config: &v1::PodSandboxConfig) -> Result<SandboxPlan, InvalidConfig> {
        sandbox(config, &CgroupConfig::default(), "id")
    }

    #[test]
    fn a_pod_that_says_nothing_has_all_namespaces_of_its_own() {
        let plan = plan(&config(None)).unwrap();
        use NamespaceKind as K;
        assert_eq!(plan.kinds(), [K::Network, K::Ipc, K::Uts, K::Pid]);
        assert_eq!(plan.hostname.as_deref(), Some("pod"));
        assert_eq!(plan.cgroup_parent, CgroupParent::Ours("/orlop/id".into()));
    }

    #[test]
    fn the_hosts_namespaces_on_request() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let host = plan(&config(modes(Node, Node, Node))).unwrap();
        assert!(host.kinds().is_empty());
        assert_eq!(host.hostname, None, "the node's name is the node's");
        let own_pids = plan(&config(modes(Pod, Container, Pod))).unwrap();
        assert!(!own_pids.owned.pid);
        for odd in [
            modes(Target, Pod, Pod),
            modes(Pod, Target, Pod),
            modes(Pod, Pod, Target),
        ] {
            assert!(plan(&config(odd)).is_err());
        }
    }

    #[test]
    fn user_namespaces_need_mappings_that_make_sense() {
        let with = |mode: NamespaceMode, maps: Vec<(u32, u32, u32)>| {
            let maps: Vec<_> = maps
                .into_iter()
                .map(|(container_id, host_id, length)| v1::IdMapping {
                    host_id,
                    container_id,
                    length,
                })
                .collect();
            plan(&config(Some(v1::NamespaceOption {
                userns_options: Some(v1::UserNamespace {
                    mode: mode as i32,
                    uids: maps.clone(),
                    gids: maps,
                }),
                ..Default::default()
            })))
        };
        let good = with(NamespaceMode::Pod, vec![(0, 100_000, 65536)]).unwrap();
        assert!(good.owned.user);
        assert_eq!(good.uid_mappings, [(0, 100_000, 65536)]);
        assert!(!with(NamespaceMode::Node, vec![]).unwrap().owned.user);
        assert!(with(NamespaceMode::Node, vec![(0, 1, 1)]).is_err());
        assert!(with(NamespaceMode::Pod, vec![]).is_err());
        assert!(with(NamespaceMode::Pod, vec![(0, 5, 0)]).is_err());
        assert!(with(NamespaceMode::Pod, vec![(0, u32::MAX, 2)]).is_err());
        assert!(with(NamespaceMode::Container, vec![(0, 5, 1)]).is_err());
    }

    #[test]
    fn sysctls_must_belong_to_the_pod() {
        let with = |options, name: &str| {
            let mut config = config(options);
            let linux = config.linux.as_mut().unwrap();
            linux.sysctls.insert(name.into(), "1".into());
            plan(&config)
        };
        use NamespaceMode::{Node, Pod};
        assert!(with(None, "net.ipv4.ip_forward").is_ok());
        assert!(with(None, "net/ipv4/ip_forward").is_ok());
        assert!(with(None, "kernel.shm_rmid_forced").is_ok());
        assert!(with(None, "fs.mqueue.msg_max").is_ok());
        assert!(with(None, "vm.swappiness").is_err());
        assert!(
            with(None, "kernel.shmx/../panic").is_ok(),
            "the shim refuses what isn't there"
        );
        assert!(with(modes(Node, Pod, Pod), "net.ipv4.ip_forward").is_err());
        assert!(with(modes(Pod, Pod, Node), "kernel.sem").is_err());
    }

    #[test]
    fn names_hosts_and_parents_that_make_no_sense() {
        let mut no_metadata = config(None);
        no_metadata.metadata = None;
        assert!(plan(&no_metadata).is_err());
        let mut unnamed = config(None);
        unnamed.metadata.as_mut().unwrap().uid.clear();
        assert!(plan(&unnamed).unwrap_err().to_string().contains("uid"));
        let mut long = config(None);
        long.hostname = "x".repeat(65);
        assert!(plan(&long).is_err());
        let parent = |text: &str| cgroup_parent(text, &CgroupConfig::default(), "id");
        assert_eq!(parent("/k/pod1"), Ok(CgroupParent::Given("/k/pod1".into())));
        assert_eq!(parent("k//pod1/"), Ok(CgroupParent::Given("/k/pod1".into())));
        assert!(parent("/").is_err());
        assert!(parent("/a/../b").is_err());
    }

    #[test]
    fn logs_stay_in_their_folder() {
        let sandbox = |dir: &str| v1::PodSandboxConfig {
            log_directory: dir.into(),
            ..Default::default()
        };
        let container = |path: &str| v1::ContainerConfig {
            log_path: path.into(),
            ..Default::default()
        };
        let of = |dir, path| log_path(&sandbox(dir), &container(path));
        assert_eq!(of("", "x"), Ok(None));
        assert_eq!(of("/l", ""), Ok(None));
        assert_eq!(of("/l", "a/0.log"), Ok(Some("/l/a/0.log".into())));
        for (dir, path) in [("l", "x"), ("/l", "../x"), ("/l", "/x"), ("/l", "a/../../x")] {
            assert!(of(dir, path).is_err(), "{dir} {path}");
        }
    }

    #[test]
    fn resolv_conf_as_asked_or_the_hosts() {
        assert_eq!(resolv_conf(None), Ok(None));
        assert_eq!(resolv_conf(Some(&v1::DnsConfig::default())), Ok(None));
        let dns = v1::DnsConfig {
            servers: vec!["10.10.10.10".into(), "fd00::1".into()],
            searches: vec!["google.com".into(), "x".into()],
            options: vec!["ndots:8".into()],
        };
        let text = "search google.com x\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n";
        assert_eq!(resolv_conf(Some(&dns)), Ok(Some(text.into())));
        let odd = v1::DnsConfig {
            servers: vec!["1\nnameserver 2".into()],
            ..Default::default()
        };
        assert!(resolv_conf(Some(&odd)).is_err());
    }

    #[test]
    fn a_pod_knows_its_own_name() {
        let text = hosts("pod", &["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]);
        assert!(text.ends_with("10.0.0.5\tpod\nfd00::5\tpod\n"));
        assert!(!hosts("", &["10.0.0.5".parse().unwrap()]).contains("10.0.0.5"));
    }

    proptest! {
        #[test]
        fn no_configuration_panics(network in -1..6i32, pid in -1..6i32, ipc in -1..6i32, parent in "\\PC*", host in "\\PC*") {
            let mut config = config(Some(v1::NamespaceOption { network, pid, ipc, ..Default::default() }));
            config.hostname = host;
            config.linux.as_mut().unwrap().cgroup_parent = parent;
            if let Ok(plan) = plan(&config) {
                prop_assert!(plan.cgroup_parent.name().starts_with('/'));
                prop_assert!(!plan.cgroup_parent.name().contains("/../"));
            }
        }
    }
}
