use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use cri_nri::v1alpha1 as nri;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::json;

use super::adjust::{AdjustError, Ground, adjust};
use super::{limits, messages};
use crate::spec::{HostFacts, Peering};
use crate::store::testing;

fn host() -> HostFacts {
    HostFacts {
        bounding: Vec::new(),
        cgroup_v2: true,
        swap_accounting: true,
        hugepage_sizes: vec!["2MB".into()],
        apparmor: false,
        selinux: false,
        recursive_read_only: true,
        idmapped_mounts: true,
        oom_score_floor: Some(-10),
    }
}

fn spec() -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.1.0",
        "root": { "path": "/r" },
        "process": {
            "user": { "uid": 1, "gid": 2 }, "args": ["sh"], "cwd": "/",
            "env": ["PATH=/bin", "A=1", "B=2"],
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 10, "soft": 5 }],
        },
        "annotations": { "old": "1", "other": "2" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind"] },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/n" }, { "type": "mount" }],
            "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 2 }],
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "cpu": { "shares": 10, "cpus": "0" },
                "memory": { "limit": 1000, "swap": 1000 },
            },
        },
    }))
    .unwrap()
}

fn adjusted(wish: nri::ContainerAdjustment) -> Result<Spec, AdjustError> {
    let host = host();
    let ground = Ground {
        host: &host,
        peering: &|path| {
            if path.starts_with("/shared") {
                Peering::Shared
            } else {
                Peering::Private
            }
        },
    };
    let mut spec = spec();
    adjust(&mut spec, &wish, &ground).map(|()| spec)
}

fn linux(wish: nri::LinuxContainerAdjustment) -> nri::ContainerAdjustment {
    nri::ContainerAdjustment {
        linux: Some(wish),
        ..nri::ContainerAdjustment::default()
    }
}

fn limited(resources: nri::LinuxResources) -> nri::ContainerAdjustment {
    linux(nri::LinuxContainerAdjustment {
        resources: Some(resources),
        ..nri::LinuxContainerAdjustment::default()
    })
}

fn env(key: &str, value: &str) -> nri::KeyValue {
    nri::KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn texts(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn mount(destination: &str, source: &str, options: &[&str]) -> nri::Mount {
    nri::Mount {
        destination: destination.into(),
        r#type: "bind".into(),
        source: source.into(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
    }
}

fn refused(wish: nri::ContainerAdjustment, why: &str) {
    let error = crate::errors::CallError::from(adjusted(wish).unwrap_err());
    assert!(error.chain().contains(why), "{}", error.chain());
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
}

#[test]
fn no_wish_changes_nothing() {
    assert_eq!(adjusted(nri::ContainerAdjustment::default()).unwrap(), spec());
}

#[test]
fn environment_arguments_and_annotations() {
    let spec = adjusted(nri::ContainerAdjustment {
        env: vec![env("A", "9"), env("-B", ""), env("C", "3")],
        args: vec!["sleep".into(), "1".into()],
        annotations: texts(&[("old", "9"), ("-other", ""), ("new", "3")]),
        ..nri::ContainerAdjustment::default()
    })
    .unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.env().as_ref().unwrap(), &["PATH=/bin", "A=9", "C=3"]);
    assert_eq!(process.args().as_ref().unwrap(), &["sleep", "1"]);
    let wanted = HashMap::from([("old".into(), "9".into()), ("new".into(), "3".into())]);
    assert_eq!(spec.annotations().as_ref().unwrap(), &wanted);
}

#[test]
fn a_process_gets_its_limits_and_priorities() {
    let mut wish = linux(nri::LinuxContainerAdjustment {
        oom_score_adj: Some(nri::OptionalInt { value: -500 }),
        io_priority: Some(nri::LinuxIoPriority {
            class: nri::IoPrioClass::IoprioClassIdle as i32,
            priority: 3,
        }),
        scheduler: Some(nri::LinuxScheduler {
            policy: nri::LinuxSchedulerPolicy::SchedBatch as i32,
            nice: 5,
            flags: vec![nri::LinuxSchedulerFlag::SchedFlagResetOnFork as i32],
            ..nri::LinuxScheduler::default()
        }),
        ..nri::LinuxContainerAdjustment::default()
    });
    let limit = |kind: &str| nri::PosixRlimit {
        r#type: kind.into(),
        hard: 77,
        soft: 66,
    };
    wish.rlimits = vec![limit("RLIMIT_NOFILE"), limit("RLIMIT_CORE")];
    let spec = adjusted(wish.clone()).unwrap();
    let process = spec.process().as_ref().unwrap();
    let limits = process.rlimits().clone().unwrap();
    assert_eq!((limits.len(), limits[0].hard(), limits[1].soft()), (2, 77, 66));
    // As low as this machine lets it be.
    assert_eq!(process.oom_score_adj(), Some(-10));
    assert_eq!(process.io_priority().unwrap().priority(), 3);
    let written = serde_json::to_value(process.scheduler()).unwrap();
    assert_eq!(written["policy"], "SCHED_BATCH");
    assert_eq!(written["nice"], 5);
    // And plugins see it as it was wished.
    let record = testing::container(1, 2);
    let seen = messages::container(&record, Some(&spec), None);
    let asked = wish.linux.clone().unwrap();
    let linux = seen.linux.unwrap();
    assert_eq!(
        (linux.io_priority, linux.scheduler),
        (asked.io_priority, asked.scheduler)
    );
    assert_eq!(seen.rlimits, wish.rlimits);

    wish.rlimits = vec![limit("RLIMIT_NONE")];
    refused(wish, "an rlimit");
    let score = linux_score(1001);
    refused(score, "1001");
}

fn linux_score(value: i64) -> nri::ContainerAdjustment {
    linux(nri::LinuxContainerAdjustment {
        oom_score_adj: Some(nri::OptionalInt { value }),
        ..nri::LinuxContainerAdjustment::default()
    })
}

#[test]
fn mounts_are_replaced_removed_and_sorted() {
    let spec = adjusted(nri::ContainerAdjustment {
        mounts: vec![
            mount("/a/b/c", "/x", &["rbind"]),
            mount("-/etc/hosts", "", &[]),
            mount("/proc/", "/y", &["rbind"]),
            mount("/z", "/shared/z", &["rbind", "rslave"]),
        ],
        ..nri::ContainerAdjustment::default()
    })
    .unwrap();
    let mounts = spec.mounts().clone().unwrap();
    let places: Vec<_> = mounts
        .iter()
        .map(|m| m.destination().display().to_string())
        .collect();
    assert_eq!(places, ["/proc", "/z", "/a/b/c"]);
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/y")));
    let propagation = spec.linux().as_ref().unwrap().rootfs_propagation().clone();
    assert_eq!(propagation.as_deref(), Some("rslave"));
    for bad in [
        mount("relative", "/x", &[]),
        mount("/", "/x", &[]),
        mount("/a", "/private", &["rshared"]),
        mount("/a", "/private", &["rslave"]),
    ] {
        let wish = nri::ContainerAdjustment {
            mounts: vec![bad.clone()],
            ..nri::ContainerAdjustment::default()
        };
        assert!(adjusted(wish).is_err(), "{bad:?}");
    }
}

#[test]
fn hooks_are_added_in_order() {
    let hook = |path: &str| nri::Hook {
        path: path.into(),
        args: vec!["a".into()],
        env: vec!["E=1".into()],
        timeout: Some(nri::OptionalInt { value: 3 }),
    };
    let wish = |path: &str| nri::ContainerAdjustment {
        hooks: Some(nri::Hooks {
            create_runtime: vec![hook(path), hook("/second")],
            poststop: vec![hook("/third")],
            ..nri::Hooks::default()
        }),
        ..nri::ContainerAdjustment::default()
    };
    let spec = adjusted(wish("/first")).unwrap();
    let hooks = spec.hooks().clone().unwrap();
    let paths: Vec<_> = hooks
        .create_runtime()
        .iter()
        .flatten()
        .map(|h| h.path().display().to_string())
        .collect();
    assert_eq!(paths, ["/first", "/second"]);
    assert_eq!(hooks.poststop().as_ref().unwrap()[0].timeout(), Some(3));
    assert!(hooks.poststart().is_none());
    let seen = messages::container(&testing::container(1, 2), Some(&spec), None);
    assert_eq!(seen.hooks.unwrap(), wish("/first").hooks.unwrap());
    refused(wish("first"), "not absolute");
}

#[test]
fn devices_come_with_a_rule_and_go() {
    let device = |path: &str| nri::LinuxDevice {
        path: path.into(),
        r#type: "c".into(),
        major: 5,
        minor: 6,
        file_mode: Some(nri::OptionalFileMode { value: 0o600 }),
        uid: Some(nri::OptionalUInt32 { value: 7 }),
        gid: None,
    };
    let wish = |devices| {
        linux(nri::LinuxContainerAdjustment {
            devices,
            ..nri::LinuxContainerAdjustment::default()
        })
    };
    let spec = adjusted(wish(vec![device("/dev/y"), device("-/dev/x")])).unwrap();
    let linux = spec.linux().clone().unwrap();
    let devices = linux.devices().clone().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!((devices[0].major(), devices[0].uid()), (5, Some(7)));
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert_eq!(rules.len(), 2);
    assert!(rules[1].allow() && rules[1].minor() == Some(6));
    let odd = nri::LinuxDevice {
        r#type: "?".into(),
        ..device("/dev/y")
    };
    refused(wish(vec![odd]), "a device");
}

#[test]
fn namespaces_sysctls_and_seccomp() {
    let namespace = |kind: &str, path: &str| nri::LinuxNamespace {
        r#type: kind.into(),
        path: path.into(),
    };
    let wish = |namespaces| {
        linux(nri::LinuxContainerAdjustment {
            namespaces,
            sysctl: texts(&[("net.x", "1"), ("-net.y", "")]),
            seccomp_policy: Some(nri::LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                architectures: vec!["SCMP_ARCH_X86_64".into()],
                syscalls: vec![nri::LinuxSyscall {
                    names: vec!["mkdir".into()],
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(nri::OptionalUInt32 { value: 1 }),
                    args: vec![nri::LinuxSeccompArg {
                        index: 1,
                        value: 2,
                        value_two: 3,
                        op: "SCMP_CMP_MASKED_EQ".into(),
                    }],
                }],
                ..nri::LinuxSeccomp::default()
            }),
            ..nri::LinuxContainerAdjustment::default()
        })
    };
    let good = wish(vec![namespace("-network", ""), namespace("ipc", "/i")]);
    let spec = adjusted(good.clone()).unwrap();
    let linux = spec.linux().clone().unwrap();
    let kinds: Vec<_> = linux.namespaces().iter().flatten().map(|n| n.typ()).collect();
    assert!(kinds.contains(&LinuxNamespaceType::Ipc) && !kinds.contains(&LinuxNamespaceType::Network));
    assert_eq!(linux.sysctl().as_ref().unwrap()["net.x"], "1");
    let seen = messages::container(&testing::container(1, 2), Some(&spec), None);
    assert_eq!(
        seen.linux.unwrap().seccomp_policy,
        good.linux.unwrap().seccomp_policy
    );
    refused(wish(vec![namespace("user", "/u")]), "user namespace");
    refused(wish(vec![namespace("mount", "/m")]), "mount namespace");
    refused(wish(vec![namespace("odd", "")]), "a namespace");
}

fn memory(limit: Option<i64>, swap: Option<i64>) -> nri::LinuxMemory {
    let value = |value: Option<i64>| value.map(|value| nri::OptionalInt64 { value });
    nri::LinuxMemory {
        limit: value(limit),
        swap: value(swap),
        ..nri::LinuxMemory::default()
    }
}

#[test]
fn limits_are_laid_over_those_that_stay() {
    let wish = nri::LinuxResources {
        cpu: Some(nri::LinuxCpu {
            quota: Some(nri::OptionalInt64 { value: 5000 }),
            mems: "1".into(),
            ..nri::LinuxCpu::default()
        }),
        memory: Some(nri::LinuxMemory {
            reservation: Some(nri::OptionalInt64 { value: 500 }),
            ..memory(Some(3000), None)
        }),
        hugepage_limits: vec![nri::HugepageLimit {
            page_size: "2MB".into(),
            limit: 7,
        }],
        unified: texts(&[("memory.high", "5")]),
        pids: Some(nri::LinuxPids { limit: 9 }),
        ..nri::LinuxResources::default()
    };
    let spec = adjusted(limited(wish)).unwrap();
    let resources = spec.linux().clone().unwrap().resources().clone().unwrap();
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.quota()), (Some(10), Some(5000)));
    assert_eq!(
        (cpu.cpus().as_deref(), cpu.mems().as_deref()),
        (Some("0"), Some("1"))
    );
    let memory = resources.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(3000), Some(3000)));
    assert_eq!(memory.reservation(), Some(500));
    assert_eq!(resources.pids().unwrap().limit(), 9);
    assert_eq!(resources.unified().as_ref().unwrap()["memory.high"], "5");
    // Plugins see what was written.
    let seen = limits::from_oci(&resources);
    assert_eq!(seen.pids, Some(nri::LinuxPids { limit: 9 }));
    assert_eq!(seen.cpu.unwrap().shares, Some(nri::OptionalUInt64 { value: 10 }));
}

#[test]
fn limits_that_are_not_possible_are_refused() {
    let with_memory = |memory| {
        limited(nri::LinuxResources {
            memory: Some(memory),
            ..nri::LinuxResources::default()
        })
    };
    refused(with_memory(memory(Some(-2), None)), "memory_limit_in_bytes");
    // Swap is held against the limit that stays.
    refused(with_memory(memory(None, Some(10))), "memory_swap_limit_in_bytes");
    adjusted(with_memory(memory(None, Some(2000)))).unwrap();
    let class = Some(nri::OptionalString { value: "x".into() });
    refused(
        limited(nri::LinuxResources {
            rdt_class: class.clone(),
            ..nri::LinuxResources::default()
        }),
        "an RDT class",
    );
    refused(
        limited(nri::LinuxResources {
            blockio_class: class,
            ..nri::LinuxResources::default()
        }),
        "a block I/O class",
    );
    refused(
        limited(nri::LinuxResources {
            unified: texts(&[("../x", "1")]),
            ..nri::LinuxResources::default()
        }),
        "unified",
    );
}

#[test]
fn what_this_runtime_does_not_have_is_refused_by_name() {
    refused(
        nri::ContainerAdjustment {
            cdi_devices: vec![nri::CdiDevice { name: "v/c=d".into() }],
            ..nri::ContainerAdjustment::default()
        },
        "CDI device `v/c=d`",
    );
    let devices = BTreeMap::from([("eth1".to_owned(), nri::LinuxNetDevice::default())]);
    refused(
        linux(nri::LinuxContainerAdjustment {
            net_devices: devices,
            ..nri::LinuxContainerAdjustment::default()
        }),
        "network device `eth1`",
    );
    refused(
        linux(nri::LinuxContainerAdjustment {
            memory_policy: Some(nri::LinuxMemoryPolicy::default()),
            ..nri::LinuxContainerAdjustment::default()
        }),
        "a memory policy",
    );
    refused(
        linux(nri::LinuxContainerAdjustment {
            rdt: Some(nri::LinuxRdt {
                clos_id: Some(nri::OptionalString::default()),
                ..nri::LinuxRdt::default()
            }),
            ..nri::LinuxContainerAdjustment::default()
        }),
        "an RDT group",
    );
}

#[test]
fn the_cris_limits_survive_the_way_there_and_back() {
    let asked = cri_api::v1::LinuxContainerResources {
        cpu_shares: 5,
        cpu_quota: -1,
        cpu_period: 1000,
        memory_limit_in_bytes: 4096,
        memory_swap_limit_in_bytes: 8192,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![cri_api::v1::HugepageLimit {
            page_size: "2MB".into(),
            limit: 3,
        }],
        unified: HashMap::from([("memory.high".to_owned(), "1".to_owned())]),
        ..cri_api::v1::LinuxContainerResources::default()
    };
    assert_eq!(limits::to_cri(&limits::from_cri(&asked)), asked);
}

#[test]
fn pods_and_containers_are_shown_with_their_names() {
    let record = testing::container(1, 2);
    let seen = messages::container(&record, None, None);
    assert_eq!(seen.id, record.id.to_string());
    assert_eq!(seen.pod_sandbox_id, record.sandbox.to_string());
    assert_eq!(seen.name, record.config.metadata.clone().unwrap().name);
    assert_eq!(seen.linux.unwrap().cgroups_path, record.cgroup);
    let record = testing::sandbox(2);
    let paths = crate::paths::Paths::new(Path::new("/root"), Path::new("/state"));
    let ips = ["10.0.0.1".parse().unwrap()];
    let seen = messages::pod(&record, &paths, Some(&ips));
    let metadata = record.config.metadata.clone().unwrap();
    assert_eq!((seen.name, seen.uid), (metadata.name, metadata.uid));
    assert_eq!(seen.ips, ["10.0.0.1"]);
}
