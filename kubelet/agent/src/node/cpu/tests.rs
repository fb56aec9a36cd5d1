use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::node::topology::NodeMask;

/// CPUs are numbered as usual: first every core's first thread.
fn machine(sockets: u32, numa_per_socket: u32, cores: u32, threads: u32) -> Machine {
    let in_all = sockets * numa_per_socket * cores;
    let mut built = Machine::default();
    for thread in 0..threads {
        for core in 0..in_all {
            let numa = core / cores;
            let socket = numa / numa_per_socket;
            built
                .cpus
                .insert(thread * in_all + core, Place { socket, numa, core });
        }
    }
    built
}

fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

fn taken(machine: &Machine, free: &str, count: usize) -> String {
    take(machine, &set(free), count, Options::default())
        .unwrap()
        .to_string()
}

fn ask(uid: &'static str, container: &'static str, cpus: i64) -> Ask<'static> {
    Ask {
        uid,
        container,
        milli_cpus: cpus * 1000,
        guaranteed: true,
        init: false,
    }
}

#[test]
fn lists_are_the_kernels() {
    for text in ["", "0", "0-3,8", "1,3,5-6"] {
        assert_eq!(set(text).to_string(), text);
    }
    assert_eq!(set("3,1,2").to_string(), "1-3");
    for bad in ["a", "1-", "3-1", "1,,2", "99999999", "-1"] {
        assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
    }
    assert_eq!(
        "1.3".parse::<CpuSet>().unwrap_err().to_string(),
        "strconv.Atoi: parsing \"1.3\": invalid syntax"
    );
}

#[test]
fn cores_and_sockets_are_kept_together() {
    // One socket of four cores with two threads each.
    let small = machine(1, 1, 4, 2);
    assert_eq!(taken(&small, "0-7", 2), "0,4");
    assert_eq!(taken(&small, "0-7", 3), "0-1,4");
    assert_eq!(taken(&small, "0-7", 8), "0-7");
    // A core that is half taken already is taken from before another is broken up.
    assert_eq!(taken(&small, "1-7", 1), "4");
    // Two sockets of six.
    let two = machine(2, 1, 3, 2);
    assert_eq!(taken(&two, "0-11", 6), "0-2,6-8");
    // The socket with less left comes first, as far as whole cores go.
    assert_eq!(taken(&two, "1-11", 2), "1,7");
    assert_eq!(taken(&two, "1-11", 6), "3-5,9-11");
    let error = take(&two, &set("1"), 2, Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not enough cpus available to satisfy request: requested=2, available=1"
    );
}

#[test]
fn cpus_are_distributed_over_numa_nodes_if_that_is_asked_for() {
    let two = machine(2, 1, 4, 1);
    let spread = Options {
        across_numa: true,
        ..Options::default()
    };
    // One node is enough: nothing to distribute.
    assert_eq!(take(&two, &set("0-7"), 4, spread).unwrap().len(), 4);
    let six = take(&two, &set("0-7"), 6, spread).unwrap();
    for node in 0..2 {
        let of_node = two.cpus_where(|place| place.numa == node);
        assert_eq!(six.intersection(&of_node).len(), 3);
    }
}

#[test]
fn options_are_upstreams() {
    let gates = BTreeMap::new();
    let parse = |name: &str, value: &str| {
        Options::parse(&BTreeMap::from([(name.to_owned(), value.to_owned())]), &gates)
            .map_err(|e| e.to_string())
    };
    assert!(parse("full-pcpus-only", "true").unwrap().full_cores);
    assert!(
        parse("none", "true")
            .unwrap_err()
            .contains("unknown cpumanager policy option")
    );
    assert!(
        parse("align-by-socket", "true")
            .unwrap_err()
            .contains("Alpha-level Options not enabled")
    );
    assert!(
        parse("prefer-align-cpus-by-uncorecache", "true")
            .unwrap_err()
            .contains("not supported")
    );
    assert!(
        parse("full-pcpus-only", "maybe")
            .unwrap_err()
            .contains("bad value for option")
    );
}

#[test]
fn reserved_cpus_are_shared_but_never_anybodys_own() {
    let all = machine(1, 1, 4, 2);
    let policy = Static::new(all.clone(), Options::default(), 1500, None).unwrap();
    assert_eq!(policy.allocatable().to_string(), "1-3,5-7");
    assert_eq!(policy.shared().to_string(), "0-7");
    assert_eq!(
        Static::new(all.clone(), Options::default(), 0, None)
            .unwrap_err()
            .to_string(),
        "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
    );
    let error = Static::new(all, Options::default(), 0, Some(set("7-9")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("size of 7 did not equal 3"), "{error}");
}

#[test]
fn init_containers_hand_their_cpus_on() {
    let mut policy = Static::new(machine(1, 1, 4, 1), Options::default(), 1000, None).unwrap();
    let init = Ask {
        init: true,
        ..ask("a", "init", 3)
    };
    policy.allocate(&init, None).unwrap();
    policy.allocate(&ask("a", "main", 2), None).unwrap();
    let (of_init, of_main) = (
        policy.cpus_of("a", "init").clone(),
        policy.cpus_of("a", "main").clone(),
    );
    assert!(of_main.is_subset(&of_init));
    assert_eq!(policy.shared().to_string(), "0");
    // What main has stays its own when init's are given back.
    assert!(policy.release("a", "init"));
    assert!(policy.shared().intersection(&of_main).is_empty());
    assert!(policy.release("a", "main"));
    assert_eq!(policy.shared().to_string(), "0-3");
}

#[test]
fn full_cores_or_a_refusal() {
    let options = Options {
        full_cores: true,
        ..Options::default()
    };
    let mut policy = Static::new(machine(1, 1, 4, 2), options, 2000, None).unwrap();
    let error = policy.allocate(&ask("a", "c", 3), None).unwrap_err();
    assert_eq!(error.reason(), "SMTAlignmentError");
    assert_eq!(
        error.to_string(),
        "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
    );
    policy.allocate(&ask("a", "c", 4), None).unwrap();
    let error = policy.allocate(&ask("b", "c", 4), None).unwrap_err().to_string();
    assert_eq!(
        error,
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, CPUs per \
         core = 2"
    );
}

#[test]
fn hints_name_the_nodes_that_have_enough_left() {
    let mut policy = Static::new(machine(2, 1, 4, 1), Options::default(), 1000, None).unwrap();
    let hints = policy.hints(&ask("a", "c", 4)).unwrap();
    let nodes: Vec<_> = hints
        .iter()
        .map(|hint| (hint.nodes.unwrap().nodes().collect::<Vec<_>>(), hint.preferred))
        .collect();
    assert_eq!(nodes, [(vec![1], true), (vec![0, 1], false)]);
    let node: NodeMask = [1].into_iter().collect();
    policy.allocate(&ask("a", "c", 4), Some(node)).unwrap();
    assert_eq!(policy.cpus_of("a", "c").to_string(), "4-7");
    // After a restart it can only be where it is.
    let again = policy.hints(&ask("a", "c", 4)).unwrap();
    assert!(again.iter().all(|hint| hint.nodes.unwrap().has(1)));
    assert!(
        policy
            .hints(&Ask {
                guaranteed: false,
                ..ask("b", "c", 1)
            })
            .is_none()
    );
}

#[test]
fn the_state_file_is_upstreams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(state::FILE);
    assert!(state::read(&path, "static").unwrap().is_none());
    let assignments = BTreeMap::from([(
        "pod".to_owned(),
        BTreeMap::from([
            ("container1".to_owned(), set("4-6")),
            ("container2".to_owned(), set("1-3")),
        ]),
    )]);
    state::write(&path, "static", &set("7-9"), &assignments).unwrap();
    assert_eq!(
        state::read(&path, "static").unwrap(),
        Some((set("7-9"), assignments.clone()))
    );
    let refused = state::read(&path, "none").unwrap_err().to_string();
    assert!(
        refused.contains("configured policy \"none\" differs from state checkpoint policy \"static\", please drain this node"),
        "{refused}"
    );
    // Files that upstream wrote: 1.35, 1.19 and a fresh one of 1.30.
    for (text, policy, shared) in [
        (
            r#"{"policyName":"other","defaultCpuSet":"1-9","checksum":1234,"data":"{\"policyName\":\"static\",\"defaultCPUSet\":\"7-9\",\"entries\":{\"pod\":{\"container1\":\"4-6\",\"container2\":\"1-3\"}}}","dataChecksum":1420829534}"#,
            "static",
            "7-9",
        ),
        (
            r#"{"policyName":"none","defaultCpuSet":"1-3","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":3415933391}"#,
            "none",
            "1-3",
        ),
        (
            r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#,
            "none",
            "",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(
            state::read(&path, policy).unwrap().unwrap().0,
            set(shared),
            "{text}"
        );
        std::fs::write(
            &path,
            text.replace("3415933391", "5")
                .replace("1353318690", "5")
                .replace("1420829534", "5"),
        )
        .unwrap();
        assert!(
            state::read(&path, policy)
                .unwrap_err()
                .to_string()
                .contains("checkpoint is corrupted")
        );
    }
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let policy = || Static::new(machine(1, 1, 4, 1), Options::default(), 1000, None).unwrap();
    let one = |cpus: &str| BTreeMap::from([("a".to_owned(), BTreeMap::from([("c".to_owned(), set(cpus))]))]);
    policy().restore(set("0-1"), one("2-3")).unwrap();
    policy().restore(CpuSet::new(), BTreeMap::new()).unwrap();
    for (shared, own, words) in [
        (
            "1",
            "2-3",
            "not all reserved cpus: \"0\" are present in defaultCpuSet: \"1\"",
        ),
        (
            "0-2",
            "2-3",
            "pod: a, container: c cpuset: \"2-3\" overlaps with default cpuset \"0-2\"",
        ),
        (
            "0-1",
            "2-4",
            "current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-4\"",
        ),
        ("", "2-4", "default cpuset cannot be empty"),
    ] {
        assert_eq!(
            policy().restore(set(shared), one(own)).unwrap_err().to_string(),
            words
        );
    }
}

#[test]
fn topology_is_read_from_sys() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join("devices/system").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("cpu/online", "0-3\n");
    for cpu in 0..4 {
        file(
            &format!("cpu/cpu{cpu}/topology/physical_package_id"),
            &format!("{}\n", cpu / 2),
        );
        file(&format!("cpu/cpu{cpu}/topology/core_id"), "0\n");
    }
    file("node/node0/cpulist", "0-1\n");
    file("node/node1/cpulist", "2-3\n");
    file("node/node1/meminfo", "Node 1 MemTotal:        2048 kB\n");
    file("node/node1/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
    let read = read_machine(dir.path(), 1).unwrap();
    assert_eq!(
        read.cpus[&3],
        Place {
            socket: 1,
            numa: 1,
            core: 2
        }
    );
    assert_eq!((read.cpus_per_core(), read.sockets()), (2, 2));
    assert_eq!(read.memory, BTreeMap::from([(1, 2048 * 1024)]));
    assert_eq!(
        read.hugepages[&1],
        BTreeMap::from([(2048 * 1024, 3 * 2048 * 1024)])
    );
    // This machine's own can be read, whatever it is.
    let here = read_machine(std::path::Path::new("/sys"), 1).unwrap();
    assert!(!here.cpus.is_empty() && !here.memory.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8, u8, i64, bool),
    Release(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..5_u8, 0..3_u8, 0..7_i64, any::<bool>()).prop_map(|(p, c, n, i)| Step::Allocate(p, c, n, i)),
        (0..5_u8, 0..3_u8).prop_map(|(p, c)| Step::Release(p, c)),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn as_many_are_taken_as_were_asked_for(
        shape in (1..3_u32, 1..3_u32, 1..4_u32, 1..3_u32),
        hidden in any::<u64>(),
        count in 0..16_usize,
        flags in any::<(bool, bool)>(),
    ) {
        let machine = machine(shape.0, shape.1, shape.2, shape.3);
        let free: CpuSet = machine.all().iter().filter(|cpu| hidden >> cpu & 1 == 0).collect();
        let options = Options { across_numa: flags.0, across_cores: flags.1, ..Options::default() };
        match take(&machine, &free, count, options) {
            Ok(taken) => prop_assert!(taken.len() == count && taken.is_subset(&free)),
            Err(_) => prop_assert!(free.len() < count),
        }
    }

    #[test]
    fn no_cpu_is_given_twice_and_the_pool_is_the_rest(steps in steps(), strict in any::<bool>()) {
        let machine = machine(2, 1, 4, 2);
        let options = Options { strict_reservation: strict, ..Options::default() };
        let mut policy = Static::new(machine.clone(), options, 1000, None).unwrap();
        let before = policy.shared().clone();
        for step in steps {
            match step {
                Step::Allocate(pod, container, cpus, init) => {
                    let (uid, name) = (format!("p{pod}"), format!("c{container}"));
                    let ask = Ask { uid: &uid, container: &name, milli_cpus: cpus * 1000, guaranteed: true, init };
                    let had = policy.assignments().get(&uid).is_some_and(|pod| pod.contains_key(&name));
                    if policy.allocate(&ask, None).is_ok() && cpus > 0 && !had {
                        prop_assert_eq!(policy.cpus_of(&uid, &name).len() as i64, cpus);
                    }
                }
                Step::Release(pod, container) => {
                    policy.release(&format!("p{pod}"), &format!("c{container}"));
                }
            }
            let mut owners: BTreeMap<u32, &str> = BTreeMap::new();
            let mut own = CpuSet::new();
            for (uid, containers) in policy.assignments() {
                for cpus in containers.values() {
                    for cpu in cpus.iter() {
                        prop_assert!(owners.insert(cpu, uid).is_none_or(|other| other == uid), "{} twice", cpu);
                    }
                    own = own.union(cpus);
                }
            }
            prop_assert!(own.intersection(policy.shared()).is_empty());
            prop_assert_eq!(own.union(policy.shared()), before.clone());
            prop_assert!(own.is_subset(&policy.allocatable()));
            // What is kept is what a restart takes.
            let fresh = Static::new(machine.clone(), options, 1000, None).unwrap();
            let again = fresh.restore(policy.shared().clone(), policy.assignments().clone()).unwrap();
            prop_assert_eq!(again.assignments(), policy.assignments());
        }
        policy.release_all_but(|_| false);
        prop_assert_eq!(policy.shared(), &before);
    }
}
