//! Admission of small pods to a small node.

use controlplane_api::k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodOS,
    PodSecurityContext, Sysctl, Toleration,
};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{amounts, asks, container, pod, sidecar, spec};

fn node() -> Node {
    Node {
        name: "node".to_owned(),
        labels: BTreeMap::from([
            ("disk".to_owned(), "ssd".to_owned()),
            ("cores".to_owned(), "8".to_owned()),
        ]),
        allocatable: amounts(&[
            ("cpu", "2"),
            ("memory", "1Gi"),
            ("pods", "3"),
            ("example.com/gpu", "1"),
        ])
        .unwrap(),
        ..Default::default()
    }
}

/// A pod that asks for so much.
fn asking(uid: &str, requests: &[(&str, &str)]) -> Pod {
    let mut it = pod("Always", Vec::new(), vec![asks(container("a"), requests, &[])]);
    it.metadata.uid = Some(uid.to_owned());
    it
}

fn prioritized(priority: i32, it: Pod) -> Pod {
    let mut it = it;
    spec(&mut it).priority = Some(priority);
    it
}

fn made_static(it: Pod) -> Pod {
    let mut it = it;
    let source = ("kubernetes.io/config.source".to_owned(), "file".to_owned());
    it.metadata
        .annotations
        .get_or_insert_default()
        .insert(source.0, source.1);
    it
}

fn verdict(it: &Pod, others: &[&Pod]) -> Result<(), (String, String)> {
    on(it, &node(), others)
}

fn on(it: &Pod, node: &Node, others: &[&Pod]) -> Result<(), (String, String)> {
    match admit(it, node, others) {
        Admission::Admitted => Ok(()),
        Admission::Rejected(why) => Err((why.reason, why.message)),
        Admission::Preempt { victims } => Err(("preempts".to_owned(), victims.join(" "))),
    }
}

fn rejected(reason: &str, message: &str) -> Result<(), (String, String)> {
    Err((reason.to_owned(), message.to_owned()))
}

#[test]
fn resources_must_suffice() {
    let half = asking("1", &[("cpu", "1500m"), ("memory", "500Mi")]);
    assert_eq!(verdict(&half, &[]), Ok(()));
    assert_eq!(
        verdict(&asking("2", &[("cpu", "600m")]), &[&half]),
        rejected(
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
        )
    );
    assert_eq!(
        verdict(&asking("2", &[("memory", "600Mi")]), &[&half]),
        rejected(
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 629145600, used: 524288000, capacity: 1073741824"
        )
    );
    let small = asking("3", &[]);
    assert_eq!(
        verdict(&small, &[&small, &small, &small]),
        rejected(
            "OutOfpods",
            "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
        )
    );
    assert_eq!(
        verdict(&asking("4", &[("ephemeral-storage", "1Ki")]), &[])
            .unwrap_err()
            .0,
        "OutOfephemeral-storage"
    );
    assert_eq!(
        verdict(&asking("5", &[("example.com/gpu", "2")]), &[])
            .unwrap_err()
            .0,
        "OutOfexample.com/gpu"
    );
    // What the node doesn't know may be somebody else's.
    assert_eq!(verdict(&asking("6", &[("example.com/other", "2")]), &[]), Ok(()));
    let mut overhead = asking("7", &[("cpu", "1")]);
    spec(&mut overhead).overhead = amounts(&[("cpu", "1500m")]);
    assert_eq!(verdict(&overhead, &[]).unwrap_err().0, "OutOfcpu");
}

#[test]
fn the_node_must_be_the_one_that_is_wanted() {
    let why = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    let selecting = |name: &str, value: &str| {
        let mut it = asking("1", &[]);
        spec(&mut it).node_selector = Some(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        it
    };
    assert_eq!(verdict(&selecting("disk", "ssd"), &[]), Ok(()));
    assert_eq!(
        verdict(&selecting("disk", "tape"), &[]),
        rejected("NodeAffinity", why)
    );
    let requiring = |field: bool, key: &str, operator: &str, values: &[&str]| {
        let requirement = NodeSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        let mut term = NodeSelectorTerm::default();
        let list = if field {
            &mut term.match_fields
        } else {
            &mut term.match_expressions
        };
        *list = Some(vec![requirement]);
        let required = NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm::default(), term],
        };
        let affinity = NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..Default::default()
        };
        let mut it = asking("1", &[]);
        spec(&mut it).affinity = Some(Affinity {
            node_affinity: Some(affinity),
            ..Default::default()
        });
        verdict(&it, &[]).is_ok()
    };
    let table = [
        (false, "disk", "In", vec!["hdd", "ssd"], true),
        (false, "disk", "In", vec!["hdd"], false),
        (false, "disk", "NotIn", vec!["ssd"], false),
        (false, "other", "NotIn", vec!["ssd"], true),
        (false, "disk", "Exists", vec![], true),
        (false, "other", "Exists", vec![], false),
        (false, "disk", "DoesNotExist", vec![], false),
        (false, "cores", "Gt", vec!["7"], true),
        (false, "cores", "Gt", vec!["8"], false),
        (false, "cores", "Lt", vec!["9"], true),
        (false, "disk", "Lt", vec!["9"], false),
        (true, "metadata.name", "In", vec!["node"], true),
        (true, "metadata.name", "In", vec!["elsewhere"], false),
    ];
    for (field, key, operator, values, holds) in table {
        assert_eq!(
            requiring(field, key, operator, &values),
            holds,
            "{key} {operator} {values:?}"
        );
    }
    let mut named = asking("1", &[]);
    spec(&mut named).node_name = Some("elsewhere".to_owned());
    assert_eq!(verdict(&named, &[]).unwrap_err().0, "NodeName");
}

fn with_port(container: Container, host_port: i32, protocol: &str, ip: &str) -> Container {
    let port = ContainerPort {
        container_port: 80,
        host_port: Some(host_port),
        protocol: Some(protocol.to_owned()),
        host_ip: Some(ip.to_owned()).filter(|ip| !ip.is_empty()),
        ..Default::default()
    };
    Container {
        ports: Some(vec![port]),
        ..container
    }
}

#[test]
fn ports_of_the_host_are_taken_once() {
    let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    let using = |port, protocol: &str, ip: &str| {
        pod(
            "Always",
            Vec::new(),
            vec![with_port(container("a"), port, protocol, ip)],
        )
    };
    let taken = using(8080, "TCP", "10.0.0.1");
    let clash = rejected("NodePorts", why);
    let table = [
        (using(8080, "TCP", ""), clash.clone()),
        (using(8080, "TCP", "10.0.0.1"), clash.clone()),
        (using(8080, "TCP", "10.0.0.2"), Ok(())),
        (using(8080, "UDP", ""), Ok(())),
        (using(8081, "TCP", ""), Ok(())),
    ];
    for (it, expected) in table {
        assert_eq!(verdict(&it, &[&taken]), expected);
    }
    let in_sidecar = pod(
        "Always",
        vec![with_port(sidecar("s"), 8080, "TCP", "")],
        vec![container("a")],
    );
    assert_eq!(verdict(&in_sidecar, &[&taken]), clash);
    let in_init = pod(
        "Always",
        vec![with_port(container("i"), 8080, "TCP", "")],
        vec![container("a")],
    );
    assert_eq!(verdict(&in_init, &[&taken]), Ok(()));
    let mut on_host = pod("Always", Vec::new(), vec![container("a")]);
    let port = ContainerPort {
        container_port: 8080,
        ..Default::default()
    };
    spec(&mut on_host).containers[0].ports = Some(vec![port]);
    assert_eq!(verdict(&on_host, &[&taken]), Ok(()));
    spec(&mut on_host).host_network = Some(true);
    assert_eq!(verdict(&on_host, &[&taken]), clash);
}

#[test]
fn taints_that_end_pods_keep_them_out_unless_they_are_static() {
    let taint = |key: &str, effect: &str| Taint {
        key: key.to_owned(),
        value: Some("v".to_owned()),
        effect: effect.to_owned(),
        ..Default::default()
    };
    let tainted = Node {
        taints: vec![taint("other", "NoSchedule"), taint("gone", "NoExecute")],
        ..node()
    };
    let it = asking("1", &[]);
    let why = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    assert_eq!(on(&it, &tainted, &[]), rejected("TaintToleration", why));
    assert_eq!(on(&made_static(it.clone()), &tainted, &[]), Ok(()));
    let tolerating = |key: &str, operator: &str, value: &str| {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let toleration = Toleration {
            key: text(key),
            operator: text(operator),
            value: text(value),
            ..Default::default()
        };
        let mut it = it.clone();
        spec(&mut it).tolerations = Some(vec![toleration]);
        on(&it, &tainted, &[]).is_ok()
    };
    let table = [
        ("gone", "", "v", true),
        ("gone", "Equal", "w", false),
        ("gone", "Exists", "", true),
        ("", "Exists", "", true),
        ("", "", "v", false),
        ("other", "Exists", "", false),
        ("gone", "Gt", "1", false),
    ];
    for (key, operator, value, tolerates) in table {
        assert_eq!(
            tolerating(key, operator, value),
            tolerates,
            "{key} {operator} {value}"
        );
    }
}

#[test]
fn a_node_in_want_takes_few() {
    let want = |all: &[&str]| Node {
        pressure: all.iter().map(|one| (*one).to_owned()).collect(),
        ..node()
    };
    let best_effort = asking("1", &[]);
    let burstable = asking("2", &[("memory", "1Mi")]);
    let memory = want(&["MemoryPressure"]);
    let why = "The node had condition: [MemoryPressure]. ";
    assert_eq!(on(&best_effort, &memory, &[]), rejected("Evicted", why));
    assert_eq!(on(&burstable, &memory, &[]), Ok(()));
    assert_eq!(on(&made_static(best_effort.clone()), &memory, &[]), Ok(()));
    let both = want(&["DiskPressure", "MemoryPressure"]);
    assert_eq!(
        on(&burstable, &both, &[]),
        rejected(
            "Evicted",
            "The node had condition: [DiskPressure MemoryPressure]. "
        )
    );
    let mut tolerating = best_effort;
    let toleration = Toleration {
        operator: Some("Exists".to_owned()),
        ..Default::default()
    };
    spec(&mut tolerating).tolerations = Some(vec![toleration]);
    assert_eq!(on(&tolerating, &memory, &[]), Ok(()));
    assert_eq!(
        on(&tolerating, &want(&["DiskPressure"]), &[]).unwrap_err().0,
        "Evicted"
    );
}

#[test]
fn what_the_software_cannot_do_is_named() {
    let mut windows = asking("1", &[]);
    spec(&mut windows).os = Some(PodOS {
        name: "windows".to_owned(),
    });
    assert_eq!(
        verdict(&windows, &[]),
        rejected(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS"
        )
    );
    let mut labelled = asking("1", &[]);
    labelled.metadata.labels = Some(BTreeMap::from([(
        "kubernetes.io/os".to_owned(),
        "windows".to_owned(),
    )]));
    assert_eq!(
        verdict(&labelled, &[]).unwrap_err().0,
        "PodOSSelectorNodeLabelDoesNotMatch"
    );
    let secured = |context: PodSecurityContext| {
        let mut it = asking("1", &[]);
        spec(&mut it).security_context = Some(context);
        it
    };
    let strict = secured(PodSecurityContext {
        supplemental_groups_policy: Some("Strict".to_owned()),
        ..Default::default()
    });
    assert_eq!(
        verdict(&strict, &[]).unwrap_err().0,
        "SupplementalGroupsPolicyNotSupported"
    );
    assert_eq!(
        on(
            &strict,
            &Node {
                strict_groups: true,
                ..node()
            },
            &[]
        ),
        Ok(())
    );
    let profile = controlplane_api::k8s_openapi::api::core::v1::AppArmorProfile {
        type_: "RuntimeDefault".to_owned(),
        ..Default::default()
    };
    let armored = secured(PodSecurityContext {
        app_armor_profile: Some(profile),
        ..Default::default()
    });
    assert_eq!(
        verdict(&armored, &[]),
        rejected(
            "AppArmor",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host"
        )
    );
    assert_eq!(
        on(
            &armored,
            &Node {
                app_armor: true,
                ..node()
            },
            &[]
        ),
        Ok(())
    );
}

#[test]
fn sysctls_are_safe_or_allowed() {
    let setting = |name: &str| {
        let mut it = asking("1", &[]);
        let sysctls = vec![Sysctl {
            name: name.to_owned(),
            value: "1".to_owned(),
        }];
        spec(&mut it).security_context = Some(PodSecurityContext {
            sysctls: Some(sysctls),
            ..Default::default()
        });
        it
    };
    assert_eq!(verdict(&setting("net/ipv4/tcp_syncookies"), &[]), Ok(()));
    assert_eq!(
        verdict(&setting("kernel.msgmax"), &[]),
        rejected(
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        )
    );
    let allowing = Node {
        allowed_sysctls: vec!["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()],
        ..node()
    };
    assert_eq!(on(&setting("kernel.msgmax"), &allowing, &[]), Ok(()));
    let mut on_host = setting("net.core.somaxconn");
    spec(&mut on_host).host_network = Some(true);
    assert_eq!(
        on(&on_host, &allowing, &[]),
        rejected(
            "SysctlForbidden",
            "forbidden sysctl: \"net.core.somaxconn\" not allowed with host net enabled"
        )
    );
    let mut ipc = setting("kernel.msgmax");
    spec(&mut ipc).host_ipc = Some(true);
    assert_eq!(
        on(&ipc, &allowing, &[]).unwrap_err().1,
        "forbidden sysctl: \"kernel.msgmax\" not allowed with host ipc enabled"
    );
}

#[test]
fn critical_pods_push_out_the_least_important_that_suffice() {
    let critical = made_static(asking("c", &[("cpu", "1")]));
    let best_effort = asking("best-effort", &[]);
    let burstable = asking("burstable", &[("cpu", "1"), ("memory", "1Mi")]);
    let guaranteed = {
        let mut it = asking("guaranteed", &[]);
        let amounts = [("cpu", "1"), ("memory", "1Mi")];
        spec(&mut it).containers = vec![asks(container("a"), &amounts, &amounts)];
        it
    };
    let pushes = |who: &Pod, others: &[&Pod]| match admit(who, &node(), others) {
        Admission::Preempt { victims } => victims,
        other => panic!("{other:?}"),
    };
    assert_eq!(pushes(&critical, &[&guaranteed, &burstable]), ["burstable"]);
    assert_eq!(
        pushes(
            &critical,
            &[
                &prioritized(5, burstable.clone()),
                &prioritized(0, guaranteed.clone())
            ]
        ),
        ["guaranteed"]
    );
    // For a place among the pods, the least important one goes.
    let third = made_static(asking("c", &[]));
    assert_eq!(
        pushes(&third, &[&guaranteed, &best_effort, &burstable]),
        ["best-effort"]
    );
    // Pods as important aren't touched.
    let system = prioritized(CRITICAL_PRIORITY, asking("system", &[("cpu", "2")]));
    let (reason, message) = verdict(&critical, &[&system]).unwrap_err();
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(
        message.ends_with("no set of running pods found to reclaim resources: [(res: cpu, q: 1000), ]"),
        "{message}"
    );
    // Others push nobody out, and what isn't for want of resources can't be helped.
    assert_eq!(
        verdict(&asking("d", &[("cpu", "1")]), &[&guaranteed, &burstable])
            .unwrap_err()
            .0,
        "OutOfcpu"
    );
    let mut elsewhere = critical;
    spec(&mut elsewhere).node_name = Some("elsewhere".to_owned());
    assert_eq!(
        verdict(&elsewhere, &[&guaranteed, &burstable]).unwrap_err().0,
        "NodeName"
    );
}

#[test]
fn a_resize_is_given_put_off_or_refused() {
    let other = asking("other", &[("cpu", "1"), ("memory", "512Mi")]);
    let asks = |cpu: &str, memory: &str| asking("it", &[("cpu", cpu), ("memory", memory)]);
    let resize = |it: &Pod| admit_resize(it, &node(), &[&other]);
    assert_eq!(resize(&asks("1", "512Mi")), Ok(()));
    assert_eq!(
        resize(&asks("1100m", "1Mi")),
        rejected(
            "Deferred",
            "Node didn't have enough resource: cpu, requested: 1100, used: 1000, capacity: 2000"
        )
    );
    assert_eq!(
        resize(&asks("3", "1Mi")),
        rejected(
            "Infeasible",
            "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000"
        )
    );
    assert_eq!(
        resize(&asks("3", "2Gi")).unwrap_err().1,
        "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824"
    );
    assert_eq!(
        resize(&made_static(asks("1", "1Mi"))),
        rejected("Infeasible", "In-place resize of static-pods is not supported")
    );
}

#[test]
fn the_fewest_and_nearest_go() {
    let critical = made_static(asking("c", &[("cpu", "1")]));
    let sized = |uid: &str, cpu: &str| asking(uid, &[("cpu", cpu)]);
    let wide = Node {
        allocatable: amounts(&[("cpu", "2"), ("pods", "20")]).unwrap(),
        ..node()
    };
    let (small, middle, large) = (
        sized("small", "300m"),
        sized("middle", "600m"),
        sized("large", "1"),
    );
    let Admission::Preempt { victims } = admit(&critical, &wide, &[&small, &middle, &large]) else {
        panic!("nobody goes");
    };
    // 900 are missing: the large one alone suffices.
    assert_eq!(victims, ["large"]);
    assert!(preempted().failed);
}

proptest! {
    /// With its victims gone, a critical pod fits; and each victim is needed.
    #[test]
    fn victims_suffice_and_each_is_needed(
        sizes in prop::collection::vec((1..900i64, 0..3i32), 0..8),
        wanted in 1..2000i64,
    ) {
        let all: Vec<Pod> = sizes
            .iter()
            .enumerate()
            .map(|(place, (cpu, priority))| {
                prioritized(*priority, asking(&place.to_string(), &[("cpu", &format!("{cpu}m"))]))
            })
            .collect();
        let others: Vec<&Pod> = all.iter().collect();
        let wide = Node { allocatable: amounts(&[("cpu", "2"), ("pods", "20")]).unwrap(), ..node() };
        let critical = made_static(asking("c", &[("cpu", &format!("{wanted}m"))]));
        let used: i64 = sizes.iter().map(|(cpu, _)| cpu).sum();
        let left = |gone: &[String]| -> Vec<&Pod> {
            others.iter().copied().filter(|one| !gone.contains(one.metadata.uid.as_ref().unwrap())).collect()
        };
        match admit(&critical, &wide, &others) {
            Admission::Admitted => prop_assert!(used + wanted <= 2000),
            Admission::Preempt { victims } => {
                prop_assert!(used + wanted > 2000);
                prop_assert_eq!(admit(&critical, &wide, &left(&victims)), Admission::Admitted);
                // Of the most important victims none could have stayed.
                let most = victims.iter().map(|uid| sizes[uid.parse::<usize>().unwrap()].1).max();
                for uid in victims.iter().filter(|uid| Some(sizes[uid.parse::<usize>().unwrap()].1) == most) {
                    let weaker: Vec<String> = (0..sizes.len())
                        .map(|place| place.to_string())
                        .filter(|one| one != uid)
                        .filter(|one| Some(sizes[one.parse::<usize>().unwrap()].1) < most || victims.contains(one))
                        .collect();
                    prop_assert_ne!(admit(&critical, &wide, &left(&weaker)), Admission::Admitted);
                }
            }
            Admission::Rejected(why) => prop_assert!(false, "{why:?}"),
        }
    }
}
