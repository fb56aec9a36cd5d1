//! The rules of [`container_spec`], each on its own, and a few whole specifications as goldens in `testdata/spec`.
//!
//! `ORLOP_UPDATE_GOLDENS=1 cargo test -p cri-server` writes the goldens anew.

use std::path::{Path, PathBuf};

use cri_api::v1::{self, MountPropagation, NamespaceMode, SupplementalGroupsPolicy};
use oci_spec::image::{Config, ConfigBuilder, ImageConfiguration};
use oci_spec::runtime::{Capability, LinuxNamespaceType, Mount, Spec};

use super::*;

/// All that a [`SpecInput`] borrows.
struct Case {
    sandbox: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    image: ImageConfiguration,
    user: ResolvedUser,
    namespaces: NamespacePaths,
    sources: Vec<MountSource>,
    volumes: Vec<ImageVolume>,
    devices: Vec<ResolvedDevice>,
    seccomp: Option<String>,
    hosts: Option<PathBuf>,
    defaults: SpecDefaults,
    host: HostFacts,
}

impl Case {
    fn new() -> Self {
        let mut image = ImageConfiguration::default();
        let config = ConfigBuilder::default()
            .entrypoint(texts(&["/bin/server"]))
            .cmd(texts(&["--port", "80"]))
            .env(texts(&["PATH=/bin", "COLOR=red", "BARE"]))
            .working_dir("/srv")
            .build()
            .unwrap();
        image.set_config(Some(config));
        let pin = |name: &str| Some(PathBuf::from(format!("/run/orlop/cri/pods/s/ns/{name}")));
        Self {
            sandbox: v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: "web".to_owned(),
                    uid: "u-1".to_owned(),
                    namespace: "default".to_owned(),
                    attempt: 0,
                }),
                hostname: "web-0".to_owned(),
                ..Default::default()
            },
            container: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata {
                    name: "server".to_owned(),
                    attempt: 0,
                }),
                image: Some(v1::ImageSpec {
                    image: "sha256:1".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            image,
            user: ResolvedUser {
                uid: 0,
                gid: 0,
                additional_gids: vec![0],
                home: Some("/root".to_owned()),
            },
            namespaces: NamespacePaths {
                network: pin("net"),
                ipc: pin("ipc"),
                uts: pin("uts"),
                pid: pin("pid"),
                user: None,
            },
            sources: vec![],
            volumes: vec![],
            devices: vec![],
            seccomp: None,
            hosts: None,
            defaults: SpecDefaults::default(),
            host: HostFacts {
                bounding: ALL_CAPABILITIES.to_vec(),
                recursive_read_only: true,
                idmapped_mounts: true,
                swap_accounting: true,
                ..HostFacts::default()
            },
        }
    }

    fn input(&self) -> SpecInput<'_> {
        let pod = Path::new("/run/orlop/cri/pods/s");
        SpecInput {
            sandbox_id: "s".to_owned(),
            container_id: "c".to_owned(),
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            user: self.user.clone(),
            rootfs: "rootfs".into(),
            namespaces: self.namespaces.clone(),
            cgroups_path: "/kubepods/pod1/c".to_owned(),
            files: SandboxFiles {
                hostname: pod.join("hostname"),
                resolv_conf: pod.join("resolv.conf"),
                shm: pod.join("shm"),
                hosts: self.hosts.clone(),
            },
            mount_sources: self.sources.clone(),
            image_volumes: self.volumes.clone(),
            devices: self.devices.clone(),
            seccomp_profile: self.seccomp.clone(),
            defaults: &self.defaults,
            host: &self.host,
        }
    }

    fn spec(&self) -> Spec {
        container_spec(&self.input()).unwrap()
    }

    fn error(&self) -> String {
        container_spec(&self.input()).unwrap_err().to_string()
    }

    fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        let linux = self.container.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn sandbox_security(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        let linux = self.sandbox.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn privileged() -> Self {
        let mut case = Self::new();
        case.sandbox_security().privileged = true;
        case.security().privileged = true;
        case
    }

    fn mount(&mut self, mount: v1::Mount, peering: Peering) {
        let path = if mount.host_path.is_empty() {
            "/image"
        } else {
            &mount.host_path
        };
        self.sources.push(MountSource {
            path: path.into(),
            peering,
        });
        self.container.mounts.push(mount);
    }

    fn user_namespace(&mut self) {
        self.namespaces.user = Some("/run/orlop/cri/pods/s/ns/user".into());
        let all = vec![v1::IdMapping {
            host_id: 100_000,
            container_id: 0,
            length: 65536,
        }];
        let options = self.sandbox_security().namespace_options.get_or_insert_default();
        options.userns_options = Some(v1::UserNamespace {
            mode: NamespaceMode::Pod as i32,
            uids: all.clone(),
            gids: all,
        });
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

fn volume(host: &str, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

fn at<'a>(spec: &'a Spec, place: &str) -> Option<&'a Mount> {
    spec.mounts()
        .as_ref()
        .unwrap()
        .iter()
        .find(|m| m.destination() == Path::new(place))
}

fn options<'a>(spec: &'a Spec, place: &str) -> Vec<&'a str> {
    let mount = at(spec, place).unwrap_or_else(|| panic!("nothing at {place}"));
    mount
        .options()
        .as_ref()
        .unwrap()
        .iter()
        .map(String::as_str)
        .collect()
}

fn env(spec: &Spec) -> Vec<&str> {
    let process = spec.process().as_ref().unwrap();
    process
        .env()
        .as_ref()
        .unwrap()
        .iter()
        .map(String::as_str)
        .collect()
}

fn args(spec: &Spec) -> Vec<&str> {
    let process = spec.process().as_ref().unwrap();
    process
        .args()
        .as_ref()
        .unwrap()
        .iter()
        .map(String::as_str)
        .collect()
}

fn namespace_path(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<PathBuf>> {
    let all = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
    all.iter().find(|n| n.typ() == kind).map(|n| n.path().clone())
}

fn golden(name: &str, spec: &Spec) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/spec")
        .join(format!("{name}.json"));
    let mut value = serde_json::to_value(spec).unwrap();
    sort_capabilities(&mut value);
    if std::env::var_os("ORLOP_UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&value).unwrap() + "\n").unwrap();
    }
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(value, expected, "{name}: see ORLOP_UPDATE_GOLDENS");
    // What is written must be readable again.
    serde_json::from_value::<Spec>(expected).unwrap();
}

/// oci-spec keeps capabilities in hash sets, whose order is random.
fn sort_capabilities(spec: &mut serde_json::Value) {
    let sets = spec
        .pointer_mut("/process/capabilities")
        .and_then(|c| c.as_object_mut());
    for (_, list) in sets.into_iter().flatten() {
        list.as_array_mut().unwrap().sort_by_key(|c| c.to_string());
    }
}

#[test]
fn a_plain_container() {
    golden("plain", &Case::new().spec());
}

#[test]
fn a_privileged_container() {
    let mut case = Case::privileged();
    let node = DeviceNode {
        block: false,
        major: 10,
        minor: 200,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    case.devices = vec![ResolvedDevice {
        container_path: "/dev/net/tun".into(),
        permissions: "rwm".to_owned(),
        node,
    }];
    // All of this is ignored.
    let security = case.security();
    security.masked_paths = texts(&["/x"]);
    security.seccomp = Some(v1::SecurityProfile::default());
    security.capabilities = Some(v1::Capability {
        drop_capabilities: texts(&["ALL"]),
        ..Default::default()
    });
    golden("privileged", &case.spec());
}

#[test]
fn a_pod_as_the_kubelet_sends_it() {
    let mut case = Case::new();
    case.user_namespace();
    case.user = ResolvedUser {
        uid: 1000,
        gid: 3000,
        additional_gids: vec![3000, 2000],
        home: Some("/home/app".to_owned()),
    };
    case.hosts = Some("/run/orlop/cri/pods/s/hosts".into());
    case.container.command = texts(&["sh", "-c"]);
    case.container.args = texts(&["sleep inf"]);
    case.container.tty = true;
    case.container.envs = vec![v1::KeyValue {
        key: "KUBERNETES_PORT".into(),
        value: b"tcp://10.0.0.1:443".into(),
    }];
    let mut token = volume(
        "/var/lib/kubelet/pods/u-1/token",
        "/var/run/secrets/kubernetes.io/serviceaccount",
    );
    token.readonly = true;
    token.uid_mappings = vec![v1::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65536,
    }];
    token.gid_mappings = token.uid_mappings.clone();
    case.mount(token, Peering::Shared);
    case.mount(
        volume("/var/lib/kubelet/pods/u-1/etc-hosts", "/etc/hosts"),
        Peering::Shared,
    );
    let security = case.security();
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    security.capabilities = Some(v1::Capability {
        add_capabilities: texts(&["NET_BIND_SERVICE"]),
        drop_capabilities: texts(&["ALL"]),
        ..Default::default()
    });
    security.masked_paths = texts(&["/proc/kcore"]);
    security.readonly_paths = texts(&["/proc/sys"]);
    security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    case.container.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 985,
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: 0,
        }],
        ..Default::default()
    });
    golden("kubelet", &case.spec());
}

#[test]
fn command_and_args_follow_the_images_rules() {
    let mut case = Case::new();
    let mut with = |command: &[&str], arguments: &[&str]| {
        case.container.command = texts(command);
        case.container.args = texts(arguments);
        args(&case.spec()).join(" ")
    };
    assert_eq!(with(&[], &[]), "/bin/server --port 80");
    assert_eq!(with(&[], &["-v"]), "/bin/server -v");
    assert_eq!(
        with(&["sh"], &[]),
        "sh",
        "the image's cmd belongs to its entrypoint"
    );
    assert_eq!(with(&["sh"], &["-c", "x"]), "sh -c x");
    case.image.set_config(Some(
        ConfigBuilder::default().cmd(texts(&["sh"])).build().unwrap(),
    ));
    case.container.command = vec![];
    case.container.args = vec![];
    assert_eq!(args(&case.spec()), ["sh"]);
    case.image.set_config(None);
    assert!(case.error().starts_with("no command specified"));
    case.container.command = texts(&[""]);
    assert!(case.error().starts_with("no command specified"));
    case.container.command = texts(&["a\0b"]);
    assert_eq!(case.error(), "argument `a\\0b` has a NUL byte in it");
}

#[test]
fn the_environment_is_built_in_layers() {
    let mut case = Case::new();
    assert_eq!(
        env(&case.spec()),
        ["PATH=/bin", "HOSTNAME=web-0", "COLOR=red", "BARE=", "HOME=/root"]
    );
    let set = |key: &str, value: &[u8]| v1::KeyValue {
        key: key.to_owned(),
        value: value.to_vec(),
    };
    case.container.envs = vec![
        set("COLOR", b"blue"),
        set("HOME", b"/h"),
        set("TERM", b"dumb"),
        set("E", b"a=b"),
    ];
    case.container.tty = true;
    let expected = [
        "PATH=/bin",
        "HOSTNAME=web-0",
        "COLOR=blue",
        "BARE=",
        "HOME=/h",
        "TERM=dumb",
        "E=a=b",
    ];
    assert_eq!(env(&case.spec()), expected);
    case.container.envs = vec![];
    case.sandbox.hostname = String::new();
    case.image.set_config(Some(
        ConfigBuilder::default().cmd(texts(&["sh"])).build().unwrap(),
    ));
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env(&case.spec()), [path, "TERM=xterm", "HOME=/root"]);
    case.container.envs = vec![set("A=B", b"")];
    assert!(case.error().starts_with("environment variable `A=B`"));
    case.container.envs = vec![set("A", b"\xff")];
    assert!(case.error().contains("`A`: the value is not valid UTF-8"));
}

#[test]
fn the_working_directory_is_absolute() {
    let mut case = Case::new();
    let cwd = |case: &Case| {
        case.spec()
            .process()
            .as_ref()
            .unwrap()
            .cwd()
            .display()
            .to_string()
    };
    assert_eq!(cwd(&case), "/srv");
    case.container.working_dir = "/w".to_owned();
    assert_eq!(cwd(&case), "/w");
    case.container.working_dir = "w".to_owned();
    assert_eq!(case.error(), "working directory `w` is not absolute");
    case.container.working_dir = String::new();
    let old: Config = ConfigBuilder::default()
        .cmd(texts(&["sh"]))
        .working_dir("app")
        .build()
        .unwrap();
    case.image.set_config(Some(old));
    assert_eq!(cwd(&case), "/app");
}

#[test]
fn capabilities_stay_within_what_the_host_can_give() {
    let mut case = Case::privileged();
    case.host.bounding.retain(|c| *c != Capability::SysResource);
    let spec = case.spec();
    let held = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    let bounding = held.bounding().as_ref().unwrap();
    assert!(bounding.contains(&Capability::SysAdmin) && !bounding.contains(&Capability::SysResource));
    assert!(held.ambient().as_ref().unwrap().is_empty() && held.inheritable().as_ref().unwrap().is_empty());
}

#[test]
fn a_privileged_container_needs_a_privileged_sandbox() {
    let mut case = Case::new();
    case.security().privileged = true;
    assert!(
        case.error()
            .starts_with("the container is privileged but its sandbox is not")
    );
}

#[test]
fn pid_namespaces_by_mode() {
    use LinuxNamespaceType::Pid;
    let mut case = Case::new();
    let pod = Some(Some(PathBuf::from("/run/orlop/cri/pods/s/ns/pid")));
    assert_eq!(namespace_path(&case.spec(), Pid), pod);

    let mode = |case: &mut Case, mode: NamespaceMode| {
        case.security().namespace_options.get_or_insert_default().pid = mode as i32;
    };
    mode(&mut case, NamespaceMode::Container);
    assert_eq!(namespace_path(&case.spec(), Pid), Some(None));
    mode(&mut case, NamespaceMode::Node);
    assert_eq!(namespace_path(&case.spec(), Pid), None);
    mode(&mut case, NamespaceMode::Target);
    assert_eq!(namespace_path(&case.spec(), Pid), pod);
    case.namespaces.pid = None;
    assert!(case.error().contains("the target container has no PID namespace"));
    mode(&mut case, NamespaceMode::Pod);
    assert!(
        case.error()
            .contains("its sandbox was made without a shared PID namespace")
    );
    case.security().namespace_options.get_or_insert_default().pid = 9;
    assert!(case.error().contains("has the unknown value 9"));

    // A container that says nothing gets its sandbox's mode.
    case.container.linux = None;
    case.sandbox_security()
        .namespace_options
        .get_or_insert_default()
        .pid = NamespaceMode::Container as i32;
    assert_eq!(namespace_path(&case.spec(), Pid), Some(None));
}

#[test]
fn namespaces_of_the_host_are_left_out() {
    let mut case = Case::new();
    case.namespaces.network = None;
    case.namespaces.ipc = None;
    let spec = case.spec();
    assert_eq!(namespace_path(&spec, LinuxNamespaceType::Network), None);
    assert_eq!(namespace_path(&spec, LinuxNamespaceType::Ipc), None);
    assert_eq!(namespace_path(&spec, LinuxNamespaceType::Mount), Some(None));
    assert_eq!(namespace_path(&spec, LinuxNamespaceType::Cgroup), Some(None));
    assert_eq!(at(&spec, "/sys").unwrap().typ().as_deref(), Some("sysfs"));
    assert_eq!(
        namespace_path(&Case::privileged().spec(), LinuxNamespaceType::Cgroup),
        None
    );
}

#[test]
fn in_a_user_namespace_the_hosts_sys_and_proc_are_bound() {
    let mut case = Case::new();
    case.user_namespace();
    assert_eq!(
        at(&case.spec(), "/sys").unwrap().typ().as_deref(),
        Some("sysfs"),
        "the network is the pod's own"
    );
    case.namespaces.network = None;
    case.security().namespace_options.get_or_insert_default().pid = NamespaceMode::Node as i32;
    let spec = case.spec();
    assert_eq!(at(&spec, "/sys").unwrap().typ().as_deref(), Some("bind"));
    assert_eq!(at(&spec, "/proc").unwrap().typ().as_deref(), Some("bind"));
    assert!(options(&spec, "/dev/pts").contains(&"gid=5"));
    let gids = |case: &mut Case, length| {
        let options = case.sandbox_security().namespace_options.as_mut().unwrap();
        options.userns_options.as_mut().unwrap().gids[0].length = length;
    };
    gids(&mut case, 5);
    assert!(
        !options(&case.spec(), "/dev/pts").contains(&"gid=5"),
        "group 5 is not mapped"
    );
    gids(&mut case, 6);
    assert!(options(&case.spec(), "/dev/pts").contains(&"gid=5"));
}

#[test]
fn a_mount_takes_the_place_of_a_default_one_and_what_is_below() {
    let mut case = Case::new();
    case.mount(volume("/srv/hostname", "/etc//hostname"), Peering::Private);
    case.mount(volume("/dev", "/dev/"), Peering::Private);
    let spec = case.spec();
    assert_eq!(
        at(&spec, "/etc/hostname").unwrap().source().as_deref(),
        Some(Path::new("/srv/hostname"))
    );
    assert!(at(&spec, "/dev/pts").is_none() && at(&spec, "/dev/shm").is_none());
    let places: Vec<_> = spec
        .mounts()
        .as_ref()
        .unwrap()
        .iter()
        .map(Mount::destination)
        .collect();
    let mut unique = places.clone();
    unique.dedup();
    assert_eq!(places, unique);
    assert!(at(&spec, "/etc/resolv.conf").is_some());
}

#[test]
fn parents_are_mounted_before_children() {
    let mut case = Case::new();
    for place in ["/a/b/c", "/a", "/proc/x", "/a/b"] {
        case.mount(volume("/h", place), Peering::Private);
    }
    let spec = case.spec();
    let places: Vec<_> = spec
        .mounts()
        .as_ref()
        .unwrap()
        .iter()
        .map(Mount::destination)
        .collect();
    for (at, place) in places.iter().enumerate() {
        assert!(
            !places[..at].iter().any(|earlier| earlier.starts_with(place)),
            "{place:?} in {places:?}"
        );
    }
}

#[test]
fn mounts_that_make_no_sense_are_refused() {
    let error = |mount: v1::Mount| {
        let mut case = Case::new();
        case.mount(mount, Peering::Private);
        case.error()
    };
    assert_eq!(
        error(volume("/h", "rel")),
        "mount destination `rel` is not an absolute path"
    );
    assert!(error(volume("/h", "/a/..")).contains("the root itself"));
    assert!(error(volume("", "/a")).contains("neither a host path nor an image"));
    let image = Some(v1::ImageSpec {
        image: "i".to_owned(),
        ..Default::default()
    });
    assert!(
        error(v1::Mount {
            image: image.clone(),
            ..volume("/h", "/a")
        })
        .contains("both a host path and")
    );
    assert!(
        error(v1::Mount {
            image_sub_path: "x".to_owned(),
            ..volume("/h", "/a")
        })
        .contains("without an image")
    );
    assert!(
        error(v1::Mount {
            propagation: 7,
            ..volume("/h", "/a")
        })
        .contains("unknown value 7")
    );
    let half = vec![v1::IdMapping {
        host_id: 1,
        container_id: 0,
        length: 1,
    }];
    assert!(
        error(v1::Mount {
            uid_mappings: half,
            ..volume("/h", "/a")
        })
        .contains("only possible together")
    );
    assert!(
        error(v1::Mount {
            mount_options: texts(&["lowerdir=/"]),
            ..volume("/h", "/a")
        })
        .contains("`lowerdir=/`")
    );

    let mut twice = Case::new();
    twice.mount(volume("/h", "/a"), Peering::Private);
    twice.mount(volume("/i", "/b/../a/"), Peering::Private);
    assert_eq!(twice.error(), "more than one mount at `/a`");

    let mut missing = Case::new();
    missing.container.mounts.push(volume("/h", "/a"));
    assert!(missing.error().starts_with("inconsistent input"));
}

#[test]
fn propagation_needs_the_hosts_side_to_play_along() {
    let with = |propagation: MountPropagation, peering: Peering| {
        let mut case = Case::new();
        case.mount(
            v1::Mount {
                propagation: propagation as i32,
                ..volume("/h", "/a")
            },
            peering,
        );
        case
    };
    use MountPropagation as P;
    assert_eq!(
        options(&with(P::PropagationPrivate, Peering::Shared).spec(), "/a"),
        ["rbind", "rprivate", "rw"]
    );
    for peering in [Peering::Slave, Peering::Shared] {
        let spec = with(P::PropagationHostToContainer, peering).spec();
        assert_eq!(options(&spec, "/a"), ["rbind", "rslave", "rw"]);
        assert_eq!(
            spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(),
            Some("rslave")
        );
    }
    let spec = with(P::PropagationBidirectional, Peering::Shared).spec();
    assert_eq!(options(&spec, "/a"), ["rbind", "rshared", "rw"]);
    assert_eq!(
        spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(),
        Some("rshared")
    );
    assert!(
        with(P::PropagationHostToContainer, Peering::Private)
            .error()
            .contains("`/h` is private")
    );
    assert!(
        with(P::PropagationBidirectional, Peering::Slave)
            .error()
            .contains("`/h` is not shared")
    );
}

#[test]
fn recursive_read_only_is_refused_where_it_cannot_hold() {
    let rro = v1::Mount {
        readonly: true,
        recursive_read_only: true,
        ..volume("/h", "/a")
    };
    let with = |mount: v1::Mount| {
        let mut case = Case::new();
        case.mount(mount, Peering::Shared);
        case
    };
    assert_eq!(
        options(&with(rro.clone()).spec(), "/a"),
        ["rbind", "rprivate", "rro"]
    );
    assert!(
        with(v1::Mount {
            readonly: false,
            ..rro.clone()
        })
        .error()
        .contains("needs `readonly`")
    );
    let sharing = MountPropagation::PropagationHostToContainer as i32;
    assert!(
        with(v1::Mount {
            propagation: sharing,
            ..rro.clone()
        })
        .error()
        .contains("needs propagation PRIVATE")
    );
    let mut old = with(rro);
    old.host.recursive_read_only = false;
    assert!(
        old.error()
            .contains("this kernel can't make mounts read-only recursively")
    );
}

#[test]
fn image_mounts_are_read_only_with_their_options() {
    let mut case = Case::new();
    let image = Some(v1::ImageSpec {
        image: "i".to_owned(),
        ..Default::default()
    });
    let mount = v1::Mount {
        image,
        readonly: true,
        mount_options: texts(&["noexec", "ro"]),
        ..volume("", "/a")
    };
    case.mount(mount.clone(), Peering::Private);
    assert_eq!(options(&case.spec(), "/a"), ["rbind", "rprivate", "ro", "noexec"]);
    case.container.mounts[0] = v1::Mount {
        mount_options: texts(&["rw"]),
        ..mount.clone()
    };
    assert!(case.error().contains("`rw` contradicts a read-only mount"));
    case.container.mounts[0] = v1::Mount {
        readonly: false,
        ..mount
    };
    assert!(case.error().contains("only be mounted read-only"));
}

#[test]
fn image_volumes_give_way_to_mounts() {
    let mut case = Case::new();
    let folder = |container: &str| ImageVolume {
        container_path: container.into(),
        host_path: format!("/volumes{container}").into(),
    };
    case.volumes = vec![folder("/data"), folder("/cache")];
    case.mount(volume("/h", "/data"), Peering::Private);
    let spec = case.spec();
    assert_eq!(
        at(&spec, "/data").unwrap().source().as_deref(),
        Some(Path::new("/h"))
    );
    assert_eq!(
        at(&spec, "/cache").unwrap().source().as_deref(),
        Some(Path::new("/volumes/cache"))
    );
}

#[test]
fn devices_become_nodes_and_rules() {
    let mut case = Case::new();
    let node = DeviceNode {
        block: true,
        major: 8,
        minor: 1,
        mode: 0o660,
        uid: 0,
        gid: 6,
    };
    let device = |path: &str, permissions: &str| ResolvedDevice {
        container_path: path.into(),
        permissions: permissions.to_owned(),
        node: node.clone(),
    };
    case.devices = vec![device("/dev/disk", "r")];
    let spec = case.spec();
    let linux = spec.linux().as_ref().unwrap();
    let nodes = linux.devices().as_ref().unwrap();
    assert_eq!((nodes.len(), nodes[0].major(), nodes[0].gid()), (1, 8, Some(6)));
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(rules.first().unwrap().to_string(), "a *:* rwm");
    assert!(!rules.first().unwrap().allow());
    assert_eq!(rules.last().unwrap().to_string(), "b 8:1 r");

    case.devices = vec![device("/dev/disk", "rx")];
    assert_eq!(
        case.error(),
        "device `/dev/disk`: permissions `rx` are not made of `r`, `w` and `m`"
    );
    case.devices = vec![device("/dev/../disk", "r")];
    assert!(case.error().starts_with("device destination `/dev/../disk`"));

    let spec = Case::privileged().spec();
    let rules = spec
        .linux()
        .as_ref()
        .unwrap()
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .clone()
        .unwrap();
    assert!(rules.len() == 1 && rules[0].allow());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut case = Case::new();
    case.container.cdi_devices = vec![v1::CdiDevice {
        name: "vendor.com/gpu=0".to_owned(),
    }];
    assert!(case.error().starts_with("CDI device `vendor.com/gpu=0`"));
    let mut case = Case::new();
    case.container.windows = Some(v1::WindowsContainerConfig::default());
    assert!(case.error().contains("Linux runtime"));
}

#[test]
fn seccomp_profiles() {
    use v1::security_profile::ProfileType as Type;
    let profile = |kind: Type, name: &str| {
        Some(v1::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: name.to_owned(),
        })
    };
    let filter = |case: &Case| case.spec().linux().as_ref().unwrap().seccomp().clone();

    let mut case = Case::new();
    assert_eq!(filter(&case), None, "no profile is no filter, as the CRI says");
    case.defaults.unset_seccomp = UnsetSeccomp::RuntimeDefault;
    assert!(filter(&case).is_some());

    case.security().seccomp = profile(Type::Unconfined, "");
    assert_eq!(filter(&case), None);
    case.security().seccomp = profile(Type::RuntimeDefault, "");
    assert!(filter(&case).is_some());
    case.security().seccomp = profile(Type::Localhost, "");
    assert!(case.error().contains("needs a `localhost_ref`"));
    case.security().seccomp = profile(Type::Localhost, "/p.json");
    let source = seccomp_source(
        case.container.linux.as_ref().unwrap().security_context.as_ref(),
        UnsetSeccomp::default(),
    );
    assert_eq!(source.unwrap(), SeccompSource::File("/p.json".into()));
    assert!(case.error().starts_with("inconsistent input"));
    case.seccomp = Some("{".to_owned());
    assert_eq!(
        case.error(),
        "seccomp profile `/p.json` is not an OCI seccomp profile"
    );
    case.seccomp = Some(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_owned());
    assert!(filter(&case).is_some());

    case.sandbox_security().privileged = true;
    case.security().privileged = true;
    assert_eq!(filter(&case), None, "privileged is unconfined");
}

#[test]
#[allow(deprecated)]
fn old_callers_name_profiles_in_text() {
    let mut case = Case::new();
    case.security().seccomp_profile_path = "runtime/default".to_owned();
    assert!(case.spec().linux().as_ref().unwrap().seccomp().is_some());
    case.security().seccomp_profile_path = "localhost/relative".to_owned();
    assert!(
        case.error()
            .starts_with("unknown seccomp profile `localhost/relative`")
    );
    case.security().seccomp_profile_path = "docker".to_owned();
    assert!(case.error().starts_with("unknown seccomp profile `docker`"));
    case.security().seccomp_profile_path = "unconfined".to_owned();
    case.security().apparmor_profile = "localhost/mine".to_owned();
    assert_eq!(
        case.error(),
        "AppArmor profile `mine` is asked for, but AppArmor is not enabled on this host"
    );
    case.security().apparmor_profile = "runtime/default".to_owned();
    assert_eq!(case.spec().process().as_ref().unwrap().apparmor_profile(), &None);
}

#[test]
fn apparmor_and_selinux_where_the_host_has_them() {
    let mut case = Case::new();
    case.host.apparmor = true;
    case.host.selinux = true;
    case.defaults.apparmor_profile = Some("orlop-default".to_owned());
    case.security().selinux_options = Some(v1::SeLinuxOption {
        level: "s0:c1,c2".to_owned(),
        ..Default::default()
    });
    let spec = case.spec();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.apparmor_profile().as_deref(), Some("orlop-default"));
    assert_eq!(
        process.selinux_label().as_deref(),
        Some("system_u:system_r:container_t:s0:c1,c2")
    );
    let label = spec.linux().as_ref().unwrap().mount_label().clone();
    assert_eq!(
        label.as_deref(),
        Some("system_u:object_r:container_file_t:s0:c1,c2")
    );
    case.mount(
        v1::Mount {
            selinux_relabel: true,
            ..volume("/h", "/a")
        },
        Peering::Private,
    );
    assert!(case.error().contains("SELinux relabelling is not supported"));
    case.host.selinux = false;
    assert_eq!(case.spec().process().as_ref().unwrap().selinux_label(), &None);
}

#[test]
#[allow(deprecated)]
fn apparmor_profiles_are_asked_for_in_two_ways() {
    use v1::security_profile::ProfileType as Type;
    let mut case = Case::new();
    case.host.apparmor = true;
    case.defaults.apparmor_profile = Some("orlop-default".to_owned());
    let profile = |case: &Case| case.spec().process().as_ref().unwrap().apparmor_profile().clone();
    assert_eq!(
        profile(&case).as_deref(),
        Some("orlop-default"),
        "nothing asked for"
    );
    for (text, kind, name, wanted) in [
        ("runtime/default", Type::RuntimeDefault, "", "orlop-default"),
        ("unconfined", Type::Unconfined, "", "unconfined"),
        ("localhost/mine", Type::Localhost, "mine", "mine"),
        ("localhost/mine", Type::Localhost, "localhost/mine", "mine"),
    ] {
        case.security().apparmor = None;
        case.security().apparmor_profile = text.to_owned();
        assert_eq!(profile(&case).as_deref(), Some(wanted), "{text}");
        // The new field decides where both are there.
        case.security().apparmor_profile = "localhost/other".to_owned();
        case.security().apparmor = Some(v1::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: name.to_owned(),
        });
        assert_eq!(profile(&case).as_deref(), Some(wanted), "{kind:?}");
    }
    case.sandbox_security().privileged = true;
    case.security().privileged = true;
    assert_eq!(profile(&case).as_deref(), Some("mine"), "a named profile stays");
    for apparmor in [Type::RuntimeDefault, Type::Unconfined] {
        case.security().apparmor = Some(v1::SecurityProfile {
            profile_type: apparmor as i32,
            localhost_ref: String::new(),
        });
        assert_ne!(profile(&case).as_deref(), Some("orlop-default"), "{apparmor:?}");
    }
}

#[test]
fn masked_paths_come_from_the_caller_or_the_default() {
    let linux = |case: &Case| case.spec().linux().clone().unwrap();
    let mut case = Case::new();
    assert!(
        linux(&case)
            .masked_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/kcore".to_owned())
    );
    case.security().masked_paths = texts(&["/bin/ls"]);
    assert_eq!(linux(&case).masked_paths().as_deref().unwrap(), ["/bin/ls"]);
    assert!(linux(&case).readonly_paths().as_ref().unwrap().is_empty());
    case.security().masked_paths = vec![];
    case.user_namespace();
    assert!(
        linux(&case).masked_paths().as_ref().unwrap().is_empty(),
        "procMount: Unmasked"
    );
}

#[test]
fn oom_scores_stop_at_what_the_daemon_may_give() {
    let mut case = Case::new();
    let score = |case: &Case| case.spec().process().as_ref().unwrap().oom_score_adj();
    assert_eq!(score(&case), Some(0), "not the daemon's own");
    case.host.oom_score_floor = Some(100);
    assert_eq!(score(&case), Some(100));
    case.host.oom_score_floor = None;
    let asked = |adj| v1::LinuxContainerResources {
        oom_score_adj: adj,
        ..Default::default()
    };
    case.container.linux.get_or_insert_default().resources = Some(asked(-998));
    assert_eq!(score(&case), Some(-998));
    case.host.oom_score_floor = Some(200);
    assert_eq!(score(&case), Some(200));
    case.container.linux.as_mut().unwrap().resources = Some(asked(1001));
    assert!(case.error().starts_with("oom_score_adj = 1001"));
}

#[test]
fn an_exec_changes_only_what_it_must() {
    let mut case = Case::new();
    case.security().no_new_privs = true;
    let spec = case.spec();
    let process = exec_process(&spec, &texts(&["id", "-u"]), false).unwrap();
    let own = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_deref().unwrap(), ["id", "-u"]);
    assert_eq!(process.terminal(), Some(false));
    assert_eq!(
        (process.env(), process.user(), process.cwd()),
        (own.env(), own.user(), own.cwd())
    );
    assert_eq!(process.no_new_privileges(), Some(true));
    let process = exec_process(&spec, &texts(&["sh"]), true).unwrap();
    assert!(process.env().as_ref().unwrap().contains(&"TERM=xterm".to_owned()));
    assert_eq!(process.terminal(), Some(true));
    for bad in [&[][..], &["".to_owned()]] {
        assert!(
            exec_process(&spec, bad, false)
                .unwrap_err()
                .to_string()
                .starts_with("no command specified")
        );
    }
}

#[test]
fn devices_of_this_host_are_found() {
    let asked = |host: &str| {
        vec![v1::Device {
            host_path: host.to_owned(),
            container_path: "/dev/x".to_owned(),
            permissions: String::new(),
        }]
    };
    let found = resolve_devices(&asked("/dev/null"), false).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (
            found[0].node.major,
            found[0].node.minor,
            found[0].permissions.as_str()
        ),
        (1, 3, "rwm")
    );
    assert!(matches!(
        resolve_devices(&asked("/dev/none"), false),
        Err(DeviceError::Look { .. })
    ));
    assert!(matches!(
        resolve_devices(&asked("/etc/passwd"), false),
        Err(DeviceError::NotADevice { .. })
    ));
    assert!(matches!(
        resolve_devices(&asked("/etc"), false),
        Err(DeviceError::NotADevice { .. })
    ));
    let all = resolve_devices(&[], true).unwrap();
    assert!(all.iter().any(|d| d.container_path == Path::new("/dev/null")));
    assert!(!all.iter().any(|d| d.container_path.starts_with("/dev/pts")));
}
