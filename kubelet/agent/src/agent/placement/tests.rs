//! Who gets what, and that it outlives a restart.

use std::collections::BTreeMap;

use super::*;
use crate::node::cpu::Place;

/// Four CPUs of two cores on one node.
fn machine() -> Machine {
    Machine {
        cpus: (0..4_u32)
            .map(|cpu| {
                let place = Place {
                    socket: 0,
                    numa: 0,
                    core: cpu % 2,
                };
                (cpu, place)
            })
            .collect(),
        memory: [(0, 1 << 30)].into(),
        hugepages: BTreeMap::new(),
    }
}

fn capacity(reserved_milli: i64) -> Capacity {
    let memory = |bytes| Amounts::from([("memory".to_owned(), Quantity::from_bytes(bytes))]);
    let cpu = Quantity::new(
        reserved_milli / 1_000,
        controlplane_api::quantity::Format::DecimalSi,
    );
    Capacity {
        capacity: memory(1 << 30),
        allocatable: memory((1 << 30) - (100 << 20)),
        system_reserved: [("cpu".to_owned(), cpu)].into(),
        ..Capacity::default()
    }
}

fn config(cpu: &str, memory: &str) -> KubeletConfiguration {
    let limits: BTreeMap<String, String> = [("memory".to_owned(), "100Mi".to_owned())].into();
    KubeletConfiguration {
        cpu_manager_policy: cpu.to_owned(),
        memory_manager_policy: memory.to_owned(),
        topology_manager_policy: "none".to_owned(),
        topology_manager_scope: "container".to_owned(),
        reserved_memory: vec![crate::config::MemoryReservation { numa_node: 0, limits }],
        ..Default::default()
    }
}

fn pod(uid: &str, cpu: &str) -> Pod {
    let limits = serde_json::json!({"cpu": cpu, "memory": "64Mi"});
    let manifest = serde_json::json!({
        "metadata": {"namespace": "default", "name": "web", "uid": uid},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits, "requests": limits}}]},
    });
    serde_json::from_value(manifest).expect("a pod")
}

fn container(id: &str, uid: &str) -> v1::Container {
    v1::Container {
        id: id.to_owned(),
        state: v1::ContainerState::ContainerRunning.into(),
        labels: [
            (POD_UID.to_owned(), uid.to_owned()),
            (CONTAINER_NAME.to_owned(), "c".to_owned()),
        ]
        .into(),
        ..Default::default()
    }
}

#[test]
fn without_policies_nothing_is_done() {
    let root = tempfile::tempdir().expect("a directory");
    let config = config("none", "None");
    let placement = Placement::new(&config, &machine(), &capacity(1_000), root.path()).expect("no policies");
    assert!(placement.is_idle());
    placement.admit(&pod("a", "2"), &[]).expect("admitted");
    assert_eq!(placement.of("a", "c"), Allocated::default());
    placement.release("a");
    placement.forget_gone(|_| false);
    assert!(sharing(&placement, &[container("1", "a")]).is_empty());
    let files = std::fs::read_dir(root.path()).expect("listed").count();
    assert_eq!(files, 0, "there is no state to keep");
}

#[test]
fn cpus_and_memory_are_given_kept_over_a_restart_and_given_back() {
    let root = tempfile::tempdir().expect("a directory");
    let config = config("static", "Static");
    let start = || Placement::new(&config, &machine(), &capacity(1_000), root.path()).expect("started");
    let placement = start();
    placement.admit(&pod("a", "2"), &[]).expect("admitted");
    placement.admit(&pod("shared", "500m"), &[]).expect("admitted");
    let given = placement.of("a", "c");
    assert!(given.exclusive, "{given:?}");
    assert_eq!(given.memory_nodes, "0");
    let own: CpuSet = given.cpus.parse().expect("a list");
    let rest: CpuSet = placement.of("shared", "c").cpus.parse().expect("a list");
    assert_eq!(own.len(), 2);
    assert_eq!((rest.len(), rest.intersection(&own).len()), (2, 0));
    assert_eq!(
        sharing(&placement, &[container("1", "a"), container("2", "shared")]),
        [("2".to_owned(), rest.to_string())]
    );

    let again = start();
    assert_eq!(again.of("a", "c"), given);
    assert!(again.has_restored());
    again.forget_gone(|uid| uid == "a");
    assert_eq!(again.of("a", "c"), given, "it is there still");
    again.forget_gone(|_| false);
    assert!(!again.has_restored());
    assert!(!again.of("a", "c").exclusive);
    assert_eq!(start().of("any", "c").cpus, "0-3");
    again.admit(&pod("b", "2"), &[]).expect("admitted");
    again.forget_gone(|_| false);
    assert!(again.of("b", "c").exclusive, "its worker releases it");
    again.release("b");
    assert!(!start().has_restored());
}

#[test]
fn who_can_t_have_all_gets_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let config = config("static", "None");
    let placement = Placement::new(&config, &machine(), &capacity(1_000), root.path()).expect("started");
    let mut two = pod("a", "2");
    if let Some(spec) = &mut two.spec {
        let mut second = spec.containers[0].clone();
        second.name = "d".to_owned();
        spec.containers.push(second);
    }
    let (reason, message) = placement.admit(&two, &[]).expect_err("there are three");
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(message.starts_with("Allocate failed due to "), "{message}");
    assert_eq!(placement.of("a", "c").cpus, "0-3");
    placement.admit(&pod("b", "3"), &[]).expect("all are there still");
}

#[test]
fn a_state_that_can_t_be_followed_stops_the_start() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::write(root.path().join(cpu::state::FILE), "{").expect("written");
    let config = config("static", "None");
    assert!(Placement::new(&config, &machine(), &capacity(1_000), root.path()).is_err());
    let nothing = Placement::new(
        &config,
        &machine(),
        &capacity(0),
        tempfile::tempdir().expect("a directory").path(),
    );
    let refused = nothing.expect_err("nothing is reserved");
    assert!(refused.contains("to be greater than zero"), "{refused}");
}

#[test]
fn containers_are_told_again_until_it_is_known_to_have_worked() {
    let all = |cpus: &str| ["a", "b"].map(|id| (id.to_owned(), cpus.to_owned())).to_vec();
    let mut told = BTreeMap::new();
    assert_eq!(untold(all("0-3"), &mut told), all("0-3"));
    // Only one of them could be told.
    told.insert("a".to_owned(), "0-3".to_owned());
    assert_eq!(untold(all("0-3"), &mut told), all("0-3")[1..]);
    told.insert("b".to_owned(), "0-3".to_owned());
    assert!(untold(all("0-3"), &mut told).is_empty());
    assert_eq!(untold(all("2-3"), &mut told), all("2-3"));
    assert!(untold(Vec::new(), &mut told).is_empty());
    assert!(told.is_empty(), "those that are gone are forgotten");
}

#[test]
fn what_preempted_pods_have_is_free_for_whom_they_end() {
    let root = tempfile::tempdir().expect("a directory");
    let config = config("static", "Static");
    let placement = Placement::new(&config, &machine(), &capacity(1_000), root.path()).expect("started");
    placement.admit(&pod("victim", "2"), &[]).expect("admitted");
    placement
        .admit(&pod("critical", "2"), &[])
        .expect_err("one is left");
    assert!(placement.of("victim", "c").exclusive, "a refusal takes nothing");
    placement
        .admit(&pod("critical", "2"), &["victim".to_owned()])
        .expect("the victim's are free");
    let (own, rest) = (placement.of("critical", "c"), placement.of("victim", "c"));
    assert!(own.exclusive && !rest.exclusive);
    let [own, rest] = [own, rest].map(|given| given.cpus.parse::<CpuSet>().expect("a list"));
    assert_eq!(rest.intersection(&own).len(), 0);
    assert_eq!(
        sharing(&placement, &[container("1", "victim")]),
        [("1".to_owned(), rest.to_string())]
    );
    placement.release("victim");
    assert!(placement.of("critical", "c").exclusive);
}
