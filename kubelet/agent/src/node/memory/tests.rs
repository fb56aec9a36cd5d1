use proptest::prelude::*;

use super::*;

const GI: u64 = 1 << 30;

fn machine(nodes: u32) -> Machine {
    let mut machine = Machine::default();
    for node in 0..nodes {
        machine.memory.insert(node, 8 * GI);
        machine
            .hugepages
            .insert(node, BTreeMap::from([(2 << 20, 2 * GI)]));
    }
    machine
}

fn policy(nodes: u32) -> Static {
    let reservation = MemoryReservation {
        numa_node: 0,
        limits: BTreeMap::from([("memory".to_owned(), "1Gi".to_owned())]),
    };
    let reserved = Amounts::from([("memory".to_owned(), "1Gi".parse().unwrap())]);
    Static::new(&machine(nodes), &[reservation], &reserved).unwrap()
}

fn want(gib: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("memory".to_owned(), gib * GI)])
}

fn nodes(policy: &Static, uid: &str) -> Vec<u32> {
    policy
        .nodes_of(uid, "c")
        .unwrap_or_default()
        .into_iter()
        .collect()
}

#[test]
fn reservations_have_to_add_up() {
    let reserved = Amounts::from([("memory".to_owned(), "2Gi".parse().unwrap())]);
    let error = Static::new(&machine(1), &[], &reserved).unwrap_err().to_string();
    assert_eq!(
        error,
        "the total amount \"0\" of type \"memory\" is not equal to the value \"2Gi\" determined by Node Allocatable feature"
    );
    let elsewhere = MemoryReservation {
        numa_node: 7,
        limits: BTreeMap::from([("memory".to_owned(), "2Gi".to_owned())]),
    };
    assert!(matches!(
        Static::new(&machine(1), &[elsewhere], &reserved),
        Err(MemoryError::NoSuchNode(7, ..))
    ));
    let table = policy(2).nodes()[&0].tables["memory"];
    assert_eq!(
        (table.total, table.allocatable, table.free),
        (6 * GI, 5 * GI, 5 * GI)
    );
}

#[test]
fn the_fewest_nodes_are_taken_and_groups_stay_together() {
    let mut policy = policy(3);
    // No node has seven, so two are used together from now on.
    policy.allocate(("a", "c"), true, false, &want(7), None).unwrap();
    assert_eq!(nodes(&policy, "a"), [0, 1]);
    // Alone it can only be on the third.
    policy.allocate(("b", "c"), true, false, &want(3), None).unwrap();
    assert_eq!(nodes(&policy, "b"), [2]);
    policy.allocate(("d", "c"), true, false, &want(4), None).unwrap();
    assert_eq!(nodes(&policy, "d"), [0, 1]);
    assert_eq!(
        policy.allocate(("e", "c"), true, false, &want(4), None),
        Err(MemoryError::NotEnough)
    );
    policy.release("a", "c");
    policy.release("d", "c");
    policy.allocate(("e", "c"), true, false, &want(4), None).unwrap();
    assert_eq!(nodes(&policy, "e"), [0]);
    // Who isn't guaranteed asks for nothing.
    policy
        .allocate(("f", "c"), false, false, &want(100), None)
        .unwrap();
    assert_eq!(policy.nodes_of("f", "c"), None);
}

#[test]
fn what_was_agreed_on_is_kept_or_widened() {
    let mut policy = policy(2);
    let second: NodeMask = [1].into_iter().collect();
    policy
        .allocate(("a", "c"), true, false, &want(1), Some(second))
        .unwrap();
    assert_eq!(nodes(&policy, "a"), [1]);
    assert_eq!(
        policy.hints("a", "c", true, &want(1)).unwrap()[0].nodes,
        Some(second)
    );
    policy.release("a", "c");
    policy
        .allocate(("b", "c"), true, false, &want(7), Some(second))
        .unwrap();
    assert_eq!(nodes(&policy, "b"), [0, 1]);
    assert_eq!(policy.hints("x", "c", false, &want(1)), None);
}

#[test]
fn containers_take_over_what_init_containers_had() {
    let mut policy = policy(1);
    policy
        .allocate(("a", "init"), true, true, &want(4), None)
        .unwrap();
    policy.allocate(("a", "c"), true, false, &want(3), None).unwrap();
    assert_eq!(policy.nodes()[&0].tables["memory"].free, GI);
    policy.release("a", "init");
    assert_eq!(policy.nodes()[&0].tables["memory"].free, GI, "it is still in use");
    policy.release("a", "c");
    assert_eq!(policy.nodes()[&0].tables["memory"].free, 5 * GI);
}

#[test]
fn the_state_file_is_upstreams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(state::FILE);
    assert!(state::read(&path, "Static").unwrap().is_none());
    let mut policy = policy(2);
    policy.allocate(("a", "c"), true, false, &want(7), None).unwrap();
    state::write(&path, "Static", policy.nodes(), policy.assignments()).unwrap();
    let (nodes, assignments) = state::read(&path, "Static").unwrap().unwrap();
    let again = self::policy(2).restore(&nodes, assignments).unwrap();
    assert_eq!(
        (again.nodes(), again.assignments()),
        (policy.nodes(), policy.assignments())
    );
    assert_eq!(
        self::policy(1).restore(&nodes, Assignments::new()),
        Err(MemoryError::OtherMachine)
    );
    assert!(
        state::read(&path, "None")
            .unwrap_err()
            .to_string()
            .contains("differs from state checkpoint policy")
    );
    // One that upstream wrote.
    let data = r#"{"policyName":"static","machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},"entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}}}"#;
    let text = |checksum: u32| {
        serde_json::json!({"policyName": "x", "checksum": 0, "data": data, "dataChecksum": checksum})
            .to_string()
    };
    std::fs::write(&path, text(1_849_615_440)).unwrap();
    let (nodes, assignments) = state::read(&path, "static").unwrap().unwrap();
    assert_eq!(nodes[&0].tables["memory"].free, 1024);
    assert_eq!(assignments["pod"]["container1"][0].size, 512);
    std::fs::write(&path, text(1)).unwrap();
    assert!(
        state::read(&path, "static")
            .unwrap_err()
            .to_string()
            .contains("checkpoint is corrupted")
    );
}

proptest! {
    #[test]
    fn nothing_is_set_aside_twice_and_all_comes_back(
        steps in proptest::collection::vec((0..4_u8, 0..3_u8, 0..9_u64, any::<bool>(), any::<bool>()), 0..40),
    ) {
        let mut policy = policy(3);
        let before = policy.nodes().clone();
        for (pod, container, gib, init, release) in steps {
            let (uid, name) = (format!("p{pod}"), format!("c{container}"));
            if release {
                policy.release(&uid, &name);
            } else {
                let _ = policy.allocate((&uid, &name), true, init, &want(gib), None);
            }
            let set_aside: u64 = policy.assignments().values().flat_map(|pod| pod.values().flatten()).map(|b| b.size).sum();
            let reserved: u64 = policy.nodes().values().map(|node| node.tables["memory"].reserved).sum();
            prop_assert_eq!(set_aside, reserved);
            for node in policy.nodes().values() {
                let table = node.tables["memory"];
                prop_assert_eq!(table.free + table.reserved, table.allocatable);
            }
        }
        policy.release_all_but(|_| false);
        prop_assert_eq!(policy.nodes(), &before);
    }
}
