use std::collections::BTreeMap;

use super::*;
use crate::v1alpha1::*;

fn creation() -> Creation {
    Creation::new(Container {
        id: "new".into(),
        args: vec!["sh".into()],
        env: vec!["PATH=/bin".into(), "A=1".into()],
        annotations: BTreeMap::from([("old".to_owned(), "1".to_owned())]),
        mounts: vec![mount("/etc", "/host/etc")],
        ..Container::default()
    })
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: source.into(),
        ..Mount::default()
    }
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn wish(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse {
        adjust: Some(adjust),
        ..CreateContainerResponse::default()
    }
}

fn linux(linux: LinuxContainerAdjustment) -> CreateContainerResponse {
    wish(ContainerAdjustment {
        linux: Some(linux),
        ..ContainerAdjustment::default()
    })
}

fn shares(value: u64) -> LinuxResources {
    LinuxResources {
        cpu: Some(LinuxCpu {
            shares: Some(OptionalUInt64 { value }),
            ..LinuxCpu::default()
        }),
        ..LinuxResources::default()
    }
}

fn update(id: &str, resources: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(resources),
        }),
        ignore_failure,
    }
}

fn texts(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn an_empty_wish_changes_nothing() {
    let mut it = creation();
    let before = it.container.clone();
    it.apply("00-a", CreateContainerResponse::default()).unwrap();
    it.apply("01-b", wish(ContainerAdjustment::default())).unwrap();
    assert_eq!(it.container, before);
    assert_eq!(it.adjust, ContainerAdjustment::default());
    assert!(it.changes.updates.is_empty() && it.evict.is_empty());
}

#[test]
fn the_next_plugin_sees_what_the_one_before_wants() {
    let mut it = creation();
    let first = ContainerAdjustment {
        env: vec![env("B", "2"), env("A", "9")],
        annotations: texts(&[("new", "x")]),
        mounts: vec![mount("/data", "/host/data")],
        args: vec!["sleep".into(), "1".into()],
        ..ContainerAdjustment::default()
    };
    it.apply("00-a", wish(first)).unwrap();
    assert_eq!(it.container.env, ["PATH=/bin", "B=2", "A=9"]);
    assert_eq!(it.container.args, ["sleep", "1"]);
    assert_eq!(it.container.mounts.len(), 2);
    assert_eq!(it.container.annotations, texts(&[("old", "1"), ("new", "x")]));
    it.apply(
        "01-b",
        wish(ContainerAdjustment {
            env: vec![env("C", "3")],
            ..ContainerAdjustment::default()
        }),
    )
    .unwrap();
    assert_eq!(it.adjust.env, [env("B", "2"), env("A", "9"), env("C", "3")]);
}

#[test]
fn two_must_not_set_the_same() {
    let same: Vec<(CreateContainerResponse, &str)> = vec![
        (
            wish(ContainerAdjustment {
                env: vec![env("B", "2")],
                ..ContainerAdjustment::default()
            }),
            "Env `B`",
        ),
        (
            wish(ContainerAdjustment {
                annotations: texts(&[("k", "v")]),
                ..ContainerAdjustment::default()
            }),
            "Annotations `k`",
        ),
        (
            wish(ContainerAdjustment {
                mounts: vec![mount("/data", "/x")],
                ..ContainerAdjustment::default()
            }),
            "Mounts `/data`",
        ),
        (
            wish(ContainerAdjustment {
                args: vec!["x".into()],
                ..ContainerAdjustment::default()
            }),
            "Args",
        ),
        (
            wish(ContainerAdjustment {
                rlimits: vec![PosixRlimit {
                    r#type: "RLIMIT_NOFILE".into(),
                    hard: 1,
                    soft: 1,
                }],
                ..ContainerAdjustment::default()
            }),
            "Rlimits `RLIMIT_NOFILE`",
        ),
        (
            wish(ContainerAdjustment {
                cdi_devices: vec![CdiDevice { name: "v/c=d".into() }],
                ..ContainerAdjustment::default()
            }),
            "CdiDevices `v/c=d`",
        ),
        (
            linux(LinuxContainerAdjustment {
                resources: Some(shares(2)),
                ..LinuxContainerAdjustment::default()
            }),
            "CPUShares",
        ),
        (
            linux(LinuxContainerAdjustment {
                cgroups_path: "/x".into(),
                ..LinuxContainerAdjustment::default()
            }),
            "CgroupsPath",
        ),
        (
            linux(LinuxContainerAdjustment {
                oom_score_adj: Some(OptionalInt { value: 1 }),
                ..LinuxContainerAdjustment::default()
            }),
            "OomScoreAdj",
        ),
        (
            linux(LinuxContainerAdjustment {
                sysctl: texts(&[("net.a", "1")]),
                ..LinuxContainerAdjustment::default()
            }),
            "Sysctl `net.a`",
        ),
        (
            linux(LinuxContainerAdjustment {
                scheduler: Some(LinuxScheduler::default()),
                ..LinuxContainerAdjustment::default()
            }),
            "LinuxSched",
        ),
        (
            linux(LinuxContainerAdjustment {
                seccomp_policy: Some(LinuxSeccomp::default()),
                ..LinuxContainerAdjustment::default()
            }),
            "SeccompPolicy",
        ),
        (
            linux(LinuxContainerAdjustment {
                io_priority: Some(LinuxIoPriority::default()),
                ..LinuxContainerAdjustment::default()
            }),
            "IoPriority",
        ),
        (
            linux(LinuxContainerAdjustment {
                memory_policy: Some(LinuxMemoryPolicy::default()),
                ..LinuxContainerAdjustment::default()
            }),
            "MemoryPolicy",
        ),
        (
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace {
                    r#type: "ipc".into(),
                    path: "/p".into(),
                }],
                ..LinuxContainerAdjustment::default()
            }),
            "Namespace `ipc`",
        ),
        (
            linux(LinuxContainerAdjustment {
                net_devices: BTreeMap::from([("eth1".to_owned(), LinuxNetDevice::default())]),
                ..LinuxContainerAdjustment::default()
            }),
            "LinuxNetDevices `eth1`",
        ),
        (
            linux(LinuxContainerAdjustment {
                rdt: Some(LinuxRdt {
                    clos_id: Some(OptionalString::default()),
                    ..LinuxRdt::default()
                }),
                ..LinuxContainerAdjustment::default()
            }),
            "RdtClosID",
        ),
    ];
    for (wish, field) in same {
        let mut it = creation();
        it.apply("00-a", wish.clone()).unwrap();
        let text = it.apply("01-b", wish).unwrap_err().to_string();
        let wanted = format!("NRI plugins `01-b` and `00-a` both tried to set {field}");
        assert_eq!(text, wanted);
    }
}

#[test]
fn what_is_removed_first_may_be_set() {
    let mut it = creation();
    let set = |value: &str, mark: bool| {
        let mut adjust = ContainerAdjustment {
            env: vec![env("B", value)],
            annotations: texts(&[("k", value)]),
            mounts: vec![mount("/data", value)],
            args: vec![value.into()],
            ..ContainerAdjustment::default()
        };
        if mark {
            adjust.env.insert(0, env("-B", ""));
            adjust.annotations.insert("-k".into(), String::new());
            adjust.mounts.insert(0, mount("-/data", ""));
            adjust.args.insert(0, String::new());
        }
        wish(adjust)
    };
    it.apply("00-a", set("1", false)).unwrap();
    it.apply("01-b", set("2", true)).unwrap();
    assert_eq!(it.adjust.env, [env("B", "2")]);
    assert_eq!(it.adjust.annotations, texts(&[("k", "2")]));
    assert_eq!(it.adjust.mounts, [mount("/data", "2")]);
    assert_eq!(it.adjust.args, ["2"]);
    it.apply("02-c", set("3", false)).unwrap_err();
}

#[test]
fn what_the_cri_wants_can_be_removed() {
    let mut it = creation();
    let adjust = ContainerAdjustment {
        env: vec![env("-A", "")],
        annotations: texts(&[("-old", "")]),
        mounts: vec![mount("-/etc", "")],
        ..ContainerAdjustment::default()
    };
    it.apply("00-a", wish(adjust)).unwrap();
    assert_eq!(it.container.env, ["PATH=/bin"]);
    assert!(it.container.annotations.is_empty() && it.container.mounts.is_empty());
    assert_eq!(it.adjust.env, [env("-A", "")]);
    assert_eq!(it.adjust.annotations, texts(&[("-old", "")]));
    assert_eq!(it.adjust.mounts, [mount("-/etc", "")]);
    // Nobody owned it, so anybody may set it anew.
    let anew = ContainerAdjustment {
        env: vec![env("A", "5")],
        ..ContainerAdjustment::default()
    };
    it.apply("01-b", wish(anew)).unwrap();
    assert_eq!(it.adjust.env, [env("A", "5")]);
}

#[test]
fn hooks_add_up() {
    let mut it = creation();
    let hook = |path: &str| {
        wish(ContainerAdjustment {
            hooks: Some(Hooks {
                poststop: vec![Hook {
                    path: path.into(),
                    ..Hook::default()
                }],
                ..Hooks::default()
            }),
            ..ContainerAdjustment::default()
        })
    };
    it.apply("00-a", hook("/a")).unwrap();
    it.apply("01-b", hook("/b")).unwrap();
    let hooks = it.adjust.hooks.unwrap().poststop;
    let paths: Vec<_> = hooks.iter().map(|hook| hook.path.as_str()).collect();
    assert_eq!(paths, ["/a", "/b"]);
    assert_eq!(it.container.hooks.unwrap().poststop.len(), 2);
}

#[test]
fn a_container_that_is_being_made_has_no_updates() {
    let mut it = creation();
    let wish = CreateContainerResponse {
        update: vec![update("new", shares(2), true)],
        ..CreateContainerResponse::default()
    };
    let text = it.apply("00-a", wish).unwrap_err().to_string();
    assert!(text.contains("container new while it is being created"), "{text}");
}

#[test]
fn updates_of_others_are_merged_by_container() {
    let mut changes = Changes::default();
    changes.apply("00-a", vec![update("x", shares(2), true)]).unwrap();
    let pids = LinuxResources {
        pids: Some(LinuxPids { limit: 5 }),
        ..LinuxResources::default()
    };
    let more = vec![update("x", pids, false), update("y", shares(3), false)];
    changes.apply("01-b", more).unwrap();
    assert_eq!(changes.updates.len(), 2);
    let first = &changes.updates[0];
    let resources = first.linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(resources.pids, Some(LinuxPids { limit: 5 }));
    assert_eq!(resources.cpu, shares(2).cpu);
    assert!(!first.ignore_failure);
    // What may fail is left out, and the rest stays as it was.
    changes.apply("02-c", vec![update("x", shares(9), true)]).unwrap();
    assert_eq!(
        changes.updates[0]
            .linux
            .as_ref()
            .unwrap()
            .resources
            .as_ref()
            .unwrap()
            .cpu,
        shares(2).cpu
    );
    changes
        .apply("02-c", vec![update("x", shares(9), false)])
        .unwrap_err();
}

#[test]
fn a_wish_that_fails_leaves_no_owner_of_any_part_of_it() {
    let both = LinuxResources {
        pids: Some(LinuxPids { limit: 5 }),
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        ..shares(9)
    };
    let mut changes = Changes::default();
    changes
        .apply("00-a", vec![update("x", shares(2), false)])
        .unwrap();
    let before = changes.owners.clone();
    changes
        .apply("01-b", vec![update("x", both.clone(), true)])
        .unwrap();
    assert_eq!(changes.owners, before);
    let twice = vec![update("y", both.clone(), false), update("y", shares(1), true)];
    changes.apply("01-b", twice).unwrap();
    assert_eq!(changes.updates.len(), 2);
    assert_eq!(changes.updates[1].linux.as_ref().unwrap().resources, Some(both));
}

#[test]
fn many_updates_take_no_longer_each_than_few() {
    let mut changes = Changes::default();
    let many = |plugin: &str| -> Vec<_> {
        let pids = |n| LinuxResources {
            pids: Some(LinuxPids { limit: n }),
            ..LinuxResources::default()
        };
        let wish = |n| match plugin {
            "00-a" => shares(2),
            _ => pids(n),
        };
        (0..20_000)
            .map(|n| update(&format!("c{n}"), wish(n), false))
            .collect()
    };
    for plugin in ["00-a", "01-b"] {
        changes.apply(plugin, many(plugin)).unwrap();
    }
    assert_eq!(changes.updates.len(), 20_000);
    assert_eq!(changes.updates[7].container_id, "c7");
}

#[test]
fn a_plugin_may_change_what_the_cri_asks_for() {
    let mut changes = Changes::of("x", shares(2));
    changes
        .apply("00-a", vec![update("x", shares(7), false)])
        .unwrap();
    assert_eq!(changes.updates.len(), 1);
    let resources = changes.updates[0].linux.clone().unwrap().resources.unwrap();
    assert_eq!(resources, shares(7));
}
