use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::KubeletConfiguration;

const MI: i64 = 1 << 20;

fn config() -> KubeletConfiguration {
    KubeletConfiguration::default()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pod(name: &str, priority: i32, memory: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {
            "priority": priority,
            "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "resources": {"requests": {"memory": memory}}}],
        },
    }))
    .unwrap()
}

fn uses(memory: i64, disk: i64) -> Usage {
    let container = ContainerUsage {
        memory: Some(memory),
        root: Storage {
            bytes: disk,
            inodes: 1,
        },
        logs: Storage::default(),
    };
    Usage {
        memory: Some(memory),
        processes: Some(1),
        containers: BTreeMap::from([("c".to_owned(), container)]),
        ..Usage::default()
    }
}

fn settings(hard: &str, soft: &str, more: &str) -> Settings {
    let map = |text: &str| {
        text.split(',')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    };
    let mut config = config();
    config.eviction_hard = Some(map(hard));
    config.eviction_soft = map(soft);
    config.eviction_soft_grace_period = config
        .eviction_soft
        .keys()
        .map(|k| (k.clone(), "1m".to_owned()))
        .collect();
    config.eviction_minimum_reclaim = map(more);
    config.enforce_node_allocatable = Vec::new();
    Settings {
        thresholds: thresholds_of(&config).unwrap(),
        transition: SignedDuration::from_mins(5),
        most_grace_seconds: 10,
        local_storage: true,
        spare_static: true,
        ..Settings::default()
    }
}

fn seen(signal: Signal, available: i64, second: i64) -> Observations {
    Observations::from([(
        signal,
        Observation {
            available,
            capacity: 1000 * MI,
            time: Some(at(second)),
        },
    )])
}

#[test]
fn thresholds_are_read_as_upstream_reads_them() {
    let read = |name: &str, text: &str| {
        parse_thresholds(&BTreeMap::from([(name.to_owned(), text.to_owned())]))
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        read("memory.available", "100Mi").unwrap()[0].limit.of(0),
        100 * MI
    );
    assert_eq!(read("nodefs.available", "10%").unwrap()[0].limit.of(1000), 100);
    assert!(read("nodefs.inodesFree", "0%").unwrap().is_empty());
    assert_eq!(
        read("cpu.available", "1").unwrap_err(),
        "unsupported eviction signal cpu.available"
    );
    assert_eq!(
        read("allocatableMemory.available", "1").unwrap_err(),
        "unsupported eviction signal allocatableMemory.available"
    );
    assert_eq!(
        read("memory.available", "-1").unwrap_err(),
        "eviction threshold -1 must be positive"
    );
    assert!(read("memory.available", "120%").is_err() && read("memory.available", "much").is_err());
    let mut config = config();
    config.eviction_soft = BTreeMap::from([("memory.available".to_owned(), "1Gi".to_owned())]);
    assert_eq!(
        thresholds_of(&config).unwrap_err().to_string(),
        "grace period must be specified for the soft eviction threshold memory.available"
    );
    config.eviction_soft_grace_period = BTreeMap::from([("memory.available".to_owned(), "-1s".to_owned())]);
    assert!(
        thresholds_of(&config)
            .unwrap_err()
            .to_string()
            .contains("must be a positive value")
    );
    config.eviction_soft.clear();
    config.eviction_soft_grace_period.clear();
    config.eviction_hard = Some(BTreeMap::from([(
        "memory.available".to_owned(),
        "100Mi".to_owned(),
    )]));
    let signals: Vec<Signal> = thresholds_of(&config).unwrap().iter().map(|t| t.signal).collect();
    assert_eq!(
        signals,
        [Signal::MemoryAvailable, Signal::AllocatableMemoryAvailable]
    );
}

#[test]
fn who_exceeds_requests_goes_first_and_the_message_is_upstreams() {
    let settings = settings("memory.available=100Mi", "", "");
    let (modest, greedy) = (pod("modest", 0, "500Mi"), pod("greedy", 100, "50Mi"));
    let (little, much) = (uses(400 * MI, 0), uses(200 * MI, 0));
    let pods = [
        Candidate {
            pod: &modest,
            usage: Some(&little),
        },
        Candidate {
            pod: &greedy,
            usage: Some(&much),
        },
    ];
    let mut state = State::default();
    let decision = state.synchronize(
        &settings,
        &seen(Signal::MemoryAvailable, 50 * MI, 0),
        &pods,
        at(0),
    );
    assert_eq!(decision.conditions, BTreeSet::from([Condition::Memory]));
    let shortage = decision.shortage.unwrap();
    assert!(shortage.reclaim.is_empty());
    let eviction = shortage.victim(&settings, &pods).unwrap();
    assert_eq!((eviction.uid.as_str(), eviction.grace_seconds), ("greedy", 1));
    assert_eq!(
        eviction.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 200Mi, \
         request is 50Mi, has larger consumption of memory. "
    );
    assert_eq!(eviction.annotations["offending_containers"], "c");
    assert_eq!(eviction.annotations["starved_resource"], "memory");
    // The same observation isn't acted on twice, a newer one is.
    let again = state.synchronize(
        &settings,
        &seen(Signal::MemoryAvailable, 50 * MI, 0),
        &pods,
        at(10),
    );
    assert!(again.shortage.is_none() && again.conditions.contains(&Condition::Memory));
    let newer = state.synchronize(
        &settings,
        &seen(Signal::MemoryAvailable, 50 * MI, 11),
        &pods,
        at(20),
    );
    assert!(newer.shortage.is_some());
}

#[test]
fn priority_decides_among_those_that_exceed_and_unknown_use_comes_first() {
    let settings = settings("memory.available=100Mi", "", "");
    let (low, high, unknown) = (
        pod("low", 1, "10Mi"),
        pod("high", 5, "10Mi"),
        pod("unknown", 9, "10Mi"),
    );
    let (a, b) = (uses(20 * MI, 0), uses(900 * MI, 0));
    let mut pods = vec![
        Candidate {
            pod: &high,
            usage: Some(&b),
        },
        Candidate {
            pod: &low,
            usage: Some(&a),
        },
    ];
    let shortage = |pods: &[Candidate<'_>]| {
        let seen = seen(Signal::MemoryAvailable, 0, 0);
        State::default()
            .synchronize(&settings, &seen, pods, at(0))
            .shortage
            .unwrap()
    };
    assert_eq!(shortage(&pods).victim(&settings, &pods).unwrap().uid, "low");
    pods.push(Candidate {
        pod: &unknown,
        usage: None,
    });
    assert_eq!(shortage(&pods).victim(&settings, &pods).unwrap().uid, "unknown");
}

#[test]
fn critical_pods_stay() {
    let settings = settings("memory.available=100Mi", "", "");
    let critical = pod("critical", SYSTEM_CRITICAL, "1Mi");
    let mut mirrored = pod("static", 0, "1Mi");
    mirrored.metadata.annotations = Some(BTreeMap::from([(
        "kubernetes.io/config.source".to_owned(),
        "file".to_owned(),
    )]));
    let usage = uses(10 * MI, 0);
    let pods = [
        Candidate {
            pod: &critical,
            usage: Some(&usage),
        },
        Candidate {
            pod: &mirrored,
            usage: Some(&usage),
        },
    ];
    let seen = seen(Signal::MemoryAvailable, 0, 0);
    let shortage = State::default()
        .synchronize(&settings, &seen, &pods, at(0))
        .shortage
        .unwrap();
    assert_eq!(shortage.victim(&settings, &pods), None);
    // On a node with static pods alone one of them has to go.
    let mut alone = settings.clone();
    alone.spare_static = false;
    assert_eq!(shortage.victim(&alone, &pods).unwrap().uid, "static");
}

#[test]
fn where_static_pods_may_go_none_does_that_gives_nothing_back() {
    let mut settings = settings("memory.available=100Mi,pid.available=10%", "", "");
    settings.spare_static = false;
    let (idle, unknown, busy) = (
        pod("a-idle", 0, "0"),
        pod("b-unknown", 0, "0"),
        pod("c-busy", 5, "1Gi"),
    );
    let (nothing, little) = (uses(0, 0), uses(MI, 0));
    let silent = Usage::default();
    let mut pods = vec![
        Candidate {
            pod: &idle,
            usage: Some(&nothing),
        },
        Candidate {
            pod: &unknown,
            usage: None,
        },
        Candidate {
            pod: &unknown,
            usage: Some(&silent),
        },
    ];
    let seen = seen(Signal::MemoryAvailable, 0, 0);
    let shortage = State::default()
        .synchronize(&settings, &seen, &pods, at(0))
        .shortage
        .unwrap();
    assert_eq!(shortage.victim(&settings, &pods), None);
    pods.push(Candidate {
        pod: &busy,
        usage: Some(&little),
    });
    assert_eq!(shortage.victim(&settings, &pods).unwrap().uid, "c-busy");
    // Upstream's order, where others bring the victim back.
    settings.spare_static = true;
    assert_eq!(shortage.victim(&settings, &pods).unwrap().uid, "b-unknown");
}

#[test]
fn soft_thresholds_wait_and_leave_time() {
    let settings = settings("", "memory.available=100Mi", "");
    let one = pod("one", 0, "1Mi");
    let usage = uses(10 * MI, 0);
    let pods = [Candidate {
        pod: &one,
        usage: Some(&usage),
    }];
    let mut state = State::default();
    let mut look = |available: i64, second: i64| {
        state.synchronize(
            &settings,
            &seen(Signal::MemoryAvailable, available, second),
            &pods,
            at(second),
        )
    };
    assert!(look(50 * MI, 0).shortage.is_none());
    assert!(look(50 * MI, 59).shortage.is_none());
    // A moment above it, and the time starts again.
    assert!(look(500 * MI, 60).shortage.is_none());
    assert!(look(50 * MI, 70).shortage.is_none());
    let shortage = look(50 * MI, 130).shortage.unwrap();
    assert_eq!(shortage.victim(&settings, &pods).unwrap().grace_seconds, 10);
}

#[test]
fn conditions_outlive_the_pressure_by_the_transition_period() {
    let settings = settings("nodefs.available=10%", "", "");
    let mut state = State::default();
    let mut look = |available: i64, second: i64| {
        let seen = seen(Signal::NodeFsAvailable, available, second);
        state.synchronize(&settings, &seen, &[], at(second)).conditions
    };
    assert_eq!(look(99 * MI, 0), BTreeSet::from([Condition::Disk]));
    assert_eq!(look(500 * MI, 299), BTreeSet::from([Condition::Disk]));
    assert!(look(500 * MI, 300).is_empty());
    assert_eq!(Condition::Disk.told(true).0, "KubeletHasDiskPressure");
}

#[test]
fn more_than_the_threshold_is_reclaimed_if_that_is_asked_for() {
    let settings = settings("nodefs.available=100Mi", "", "nodefs.available=200Mi");
    let mut state = State::default();
    let mut look = |available: i64, second: i64| {
        let seen = seen(Signal::NodeFsAvailable, available, second);
        state.synchronize(&settings, &seen, &[], at(second)).shortage
    };
    let shortage = look(50 * MI, 0).unwrap();
    assert_eq!(shortage.reclaim, [Reclaim::DeadContainers, Reclaim::UnusedImages]);
    assert!(!shortage.is_over(&settings, &seen(Signal::NodeFsAvailable, 250 * MI, 1)));
    assert!(shortage.is_over(&settings, &seen(Signal::NodeFsAvailable, 350 * MI, 1)));
    assert!(look(250 * MI, 10).is_some());
    assert!(look(350 * MI, 20).is_none());
    assert!(look(250 * MI, 30).is_none());
}

#[test]
fn disk_use_counts_by_the_disk_that_runs_low() {
    let mut settings = settings("nodefs.available=100Mi,imagefs.available=100Mi", "", "");
    settings.disks = Disks::ImagesApart;
    let (layers, volumes) = (pod("layers", 0, "0"), pod("volumes", 0, "0"));
    let of_layers = uses(0, 50 * MI);
    let mut of_volumes = uses(0, 0);
    of_volumes.volumes.insert(
        "v".to_owned(),
        Storage {
            bytes: 20 * MI,
            inodes: 9,
        },
    );
    let pods = [
        Candidate {
            pod: &layers,
            usage: Some(&of_layers),
        },
        Candidate {
            pod: &volumes,
            usage: Some(&of_volumes),
        },
    ];
    for (signal, first) in [
        (Signal::ImageFsAvailable, "layers"),
        (Signal::NodeFsAvailable, "volumes"),
    ] {
        let shortage = State::default()
            .synchronize(&settings, &seen(signal, 0, 0), &pods, at(0))
            .shortage
            .unwrap();
        assert_eq!(shortage.victim(&settings, &pods).unwrap().uid, first);
    }
}

#[test]
fn limits_of_local_storage_are_kept() {
    let mut limited: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "uid": "p"},
        "spec": {
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "10Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "20Mi"}}},
            ],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}],
        },
    }))
    .unwrap();
    let message = |pod: &Pod, a: i64, b: i64, v: i64| {
        let container = |bytes| ContainerUsage {
            logs: Storage { bytes, inodes: 1 },
            ..ContainerUsage::default()
        };
        let usage = Usage {
            containers: BTreeMap::from([("a".to_owned(), container(a)), ("b".to_owned(), container(b))]),
            volumes: BTreeMap::from([("v".to_owned(), Storage { bytes: v, inodes: 1 })]),
            ..Usage::default()
        };
        exceeding_local_storage(&Candidate {
            pod,
            usage: Some(&usage),
        })
        .map(|eviction| eviction.message)
    };
    assert_eq!(message(&limited, MI, MI, MI), None);
    assert_eq!(
        message(&limited, 0, 0, 6 * MI).unwrap(),
        "Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". "
    );
    assert_eq!(
        message(&limited, 11 * MI, 0, 0).unwrap(),
        "Container a exceeded its local ephemeral storage limit \"10Mi\". "
    );
    assert_eq!(
        message(&limited, 9 * MI, 19 * MI, 4 * MI).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "
    );
    let usage = Usage {
        volumes: BTreeMap::from([(
            "v".to_owned(),
            Storage {
                bytes: 6 * MI,
                inodes: 1,
            },
        )]),
        ..Usage::default()
    };
    let mut over = |priority: i32| {
        limited.spec.as_mut().unwrap().priority = Some(priority);
        let pods = [Candidate {
            pod: &limited,
            usage: Some(&usage),
        }];
        State::default()
            .synchronize(&settings("", "", ""), &Observations::new(), &pods, at(0))
            .over_limit
            .len()
    };
    assert_eq!((over(0), over(SYSTEM_CRITICAL)), (1, 0));
}

#[test]
fn under_pressure_only_some_pods_are_taken() {
    let memory = BTreeSet::from([Condition::Memory]);
    let plain = pod("p", 0, "0");
    assert!(refusal(&BTreeSet::new(), &plain, true).is_none());
    assert!(refusal(&memory, &plain, false).is_none());
    let (reason, message) = refusal(&memory, &plain, true).unwrap();
    assert_eq!(
        (reason, message.as_str()),
        ("Evicted", "The node had condition: [MemoryPressure]. ")
    );
    let mut tolerant = plain.clone();
    tolerant.spec.as_mut().unwrap().tolerations =
        serde_json::from_value(json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]))
            .unwrap();
    assert!(refusal(&memory, &tolerant, true).is_none());
    let both = BTreeSet::from([Condition::Memory, Condition::Disk]);
    assert!(
        refusal(&both, &plain, false)
            .unwrap()
            .1
            .contains("[MemoryPressure DiskPressure]")
    );
    assert!(refusal(&both, &pod("c", SYSTEM_CRITICAL, "0"), false).is_none());
}

proptest! {
    #[test]
    fn the_victim_is_never_one_that_should_stay_longer(pods in proptest::collection::vec((0..3_i32, 1..200_i64, 1..200_i64), 1..12)) {
        let settings = settings("memory.available=100Mi", "", "");
        let made: Vec<(Pod, Usage)> = pods.iter().enumerate().map(|(index, (priority, request, used))| {
            (pod(&format!("p{index}"), *priority, &format!("{request}Mi")), uses(used * MI, 0))
        }).collect();
        let candidates: Vec<Candidate<'_>> = made.iter().map(|(pod, usage)| Candidate { pod, usage: Some(usage) }).collect();
        let seen = seen(Signal::MemoryAvailable, 0, 0);
        let shortage = State::default().synchronize(&settings, &seen, &candidates, at(0)).shortage.unwrap();
        let victim = shortage.victim(&settings, &candidates).unwrap();
        let index: usize = victim.uid[1..].parse().unwrap();
        let key = |(priority, request, used): &(i32, i64, i64)| (used <= request, *priority, request - used);
        let least = pods.iter().map(key).min().unwrap();
        prop_assert_eq!(key(&pods[index]), least);
    }
}
