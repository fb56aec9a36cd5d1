//! The prober under a paused clock, with commands for probes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubelet_pods::probe::{Change, ProbeKind, ProbeResult};
use serde_json::{Value, json};

use super::{Scripted, exit};
use crate::probing::{ExecError, Limits, PodProbes, ProbeSink, Probed, ProbedContainer, Prober, Seen};

#[derive(Default)]
struct Heard {
    changes: Mutex<Vec<(String, Change)>>,
    probed: Mutex<Vec<(String, ProbeKind, &'static str)>>,
}

impl ProbeSink for Heard {
    fn changed(&self, pod_uid: &str, change: &Change) {
        self.changes
            .lock()
            .unwrap()
            .push((pod_uid.to_owned(), change.clone()));
    }

    fn probed(&self, probed: &Probed<'_>) {
        let label = probed.outcome.label();
        self.probed
            .lock()
            .unwrap()
            .push((probed.container_id.to_owned(), probed.kind, label));
    }
}

struct Bed {
    exec: Arc<Scripted>,
    heard: Arc<Heard>,
    prober: Arc<Prober>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn wall() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn bed(exec: Scripted, limits: Limits) -> Bed {
    let (exec, heard) = (Arc::new(exec), Arc::new(Heard::default()));
    let none = Box::new(|_: SignedDuration| SignedDuration::ZERO);
    let prober = Prober::new(exec.clone(), heard.clone(), limits, none, wall());
    let task = tokio::spawn(prober.clone().run());
    Bed {
        exec,
        heard,
        prober,
        task,
    }
}

fn pod(uid: &str, probes: Value, seen: Seen) -> PodProbes {
    let mut spec = json!({"name": "c"});
    spec.as_object_mut()
        .unwrap()
        .extend(probes.as_object().unwrap().clone());
    let spec = Arc::new(serde_json::from_value(spec).unwrap());
    PodProbes {
        uid: uid.into(),
        ip: None,
        terminating: false,
        containers: vec![ProbedContainer { spec, seen }],
    }
}

fn running(id: &str) -> Seen {
    Seen::Running {
        id: id.into(),
        started: wall(),
    }
}

fn command(name: &str, period: u32) -> Value {
    json!({"exec": {"command": [name]}, "periodSeconds": period})
}

impl Bed {
    fn commands(&self) -> Vec<String> {
        self.exec
            .calls
            .lock()
            .unwrap()
            .iter()
            .map(|(_, command, _)| command[0].clone())
            .collect()
    }

    fn changes(&self) -> Vec<(ProbeKind, ProbeResult)> {
        self.heard
            .changes
            .lock()
            .unwrap()
            .iter()
            .map(|(_, change)| (change.kind, change.result))
            .collect()
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(10)).await;
}

use ProbeKind::{Liveness, Readiness, Startup};
use ProbeResult::{Failure, Success, Unknown};

#[tokio::test(start_paused = true)]
async fn each_probe_keeps_its_period() {
    let bed = bed(Scripted::new(|_, _| exit(0, "")), Limits::default());
    let probes = json!({"livenessProbe": command("l", 10), "readinessProbe": command("r", 3)});
    bed.prober.observe(&pod("u", probes, running("id")), wall());
    pass(30).await;
    let commands = bed.commands();
    let of = |name: &str| commands.iter().filter(|command| *command == name).count();
    assert_eq!((of("l"), of("r")), (4, 11));
    assert_eq!(
        bed.changes(),
        [(Liveness, Success), (Readiness, Failure), (Readiness, Success)]
    );
    assert_eq!(bed.prober.results().readiness("id"), Some(Success));
    assert_eq!(
        bed.exec.calls.lock().unwrap()[0].2,
        Duration::from_secs(1),
        "the timeout is the runtime's, too"
    );
}

#[tokio::test(start_paused = true)]
async fn startup_comes_first_and_readiness_right_after_it() {
    let up = Arc::new(AtomicBool::new(false));
    let flag = up.clone();
    let script = move |_: &str, command: &[String]| {
        exit(i32::from(command[0] == "s" && !flag.load(Ordering::Relaxed)), "")
    };
    let bed = bed(Scripted::new(script), Limits::default());
    let mut startup = command("s", 5);
    startup["failureThreshold"] = json!(10);
    let probes = json!({"startupProbe": startup, "livenessProbe": command("l", 10), "readinessProbe": command("r", 10)});
    bed.prober.observe(&pod("u", probes, running("id")), wall());
    pass(12).await;
    assert_eq!(bed.commands(), ["s", "s", "s"]);
    up.store(true, Ordering::Relaxed);
    pass(3).await;
    let mut last = bed.commands().split_off(3);
    last.sort();
    assert_eq!(last, ["l", "r", "s"]);
    let changes = bed.changes();
    assert!(changes.contains(&(Startup, Unknown)) && changes.contains(&(Startup, Success)));
    assert_eq!(changes.last(), Some(&(Readiness, Success)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_is_told_once_and_waits_for_the_next_container() {
    let bed = bed(
        Scripted::new(|id, _| exit(i32::from(id == "old"), "ill")),
        Limits::default(),
    );
    let probes = json!({"livenessProbe": command("l", 10)});
    bed.prober
        .observe(&pod("u", probes.clone(), running("old")), wall());
    pass(100).await;
    assert_eq!(bed.commands().len(), 3);
    assert_eq!(bed.changes(), [(Liveness, Success), (Liveness, Failure)]);
    let kept: Vec<_> = bed
        .heard
        .probed
        .lock()
        .unwrap()
        .iter()
        .map(|(_, _, label)| *label)
        .collect();
    assert_eq!(kept, ["failed"; 3]);
    bed.prober.observe(
        &pod("u", probes, running("new")),
        wall() + SignedDuration::from_secs(100),
    );
    pass(10).await;
    assert_eq!(bed.commands().len(), 5);
    let results = bed.prober.results();
    assert_eq!(
        (results.liveness("old"), results.liveness("new")),
        (None, Some(Success))
    );
}

#[tokio::test(start_paused = true)]
async fn an_outcome_of_a_container_that_is_gone_counts_for_nobody() {
    let slow = Scripted {
        takes: Duration::from_secs(1),
        ..Scripted::new(|id, _| exit(i32::from(id == "old"), ""))
    };
    let bed = bed(slow, Limits::default());
    let mut probe = command("l", 10);
    probe["failureThreshold"] = json!(1);
    let probes = json!({"livenessProbe": probe});
    bed.prober
        .observe(&pod("u", probes.clone(), running("old")), wall());
    tokio::time::sleep(Duration::from_millis(500)).await;
    bed.prober.observe(&pod("u", probes, running("new")), wall());
    pass(5).await;
    assert_eq!(bed.prober.results().liveness("new"), Some(Success));
    assert!(!bed.changes().contains(&(Liveness, Failure)));
    let ids: Vec<_> = bed
        .heard
        .probed
        .lock()
        .unwrap()
        .iter()
        .map(|(id, ..)| id.clone())
        .collect();
    assert_eq!(ids, ["new"]);
}

#[tokio::test(start_paused = true)]
async fn no_more_probings_than_allowed_are_under_way() {
    let slow = Scripted {
        takes: Duration::from_millis(500),
        ..Scripted::new(|_, _| exit(0, ""))
    };
    let bed = bed(slow, Limits { at_once: 5 });
    for number in 0..40 {
        let probes = json!({"readinessProbe": command("r", 100)});
        bed.prober.observe(
            &pod(&format!("u{number}"), probes, running(&format!("id{number}"))),
            wall(),
        );
    }
    pass(5).await;
    assert_eq!(bed.exec.under_way.lock().unwrap().1, 5);
    assert_eq!(bed.commands().len(), 40, "all had their turn");
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_is_neither_probed_nor_remembered() {
    let bed = bed(Scripted::new(|_, _| exit(0, "")), Limits::default());
    let probes = json!({"readinessProbe": command("r", 1)});
    bed.prober
        .observe(&pod("u", probes.clone(), running("id")), wall());
    pass(3).await;
    bed.prober.remove("u");
    let so_far = bed.commands().len();
    pass(10).await;
    assert_eq!(bed.commands().len(), so_far);
    assert_eq!(bed.prober.results(), Default::default());
    bed.prober.observe(&pod("u", probes, running("id")), wall());
    let gone = PodProbes {
        uid: "u".into(),
        ip: None,
        terminating: false,
        containers: vec![],
    };
    bed.prober.observe(&gone, wall());
    pass(10).await;
    assert_eq!(bed.commands().len(), so_far);
}

#[tokio::test(start_paused = true)]
async fn a_probing_that_fails_itself_is_tried_thrice_and_counts_as_nothing() {
    let broken = Scripted::new(|_, _| Err(ExecError::Failed("no".into())));
    let bed = bed(broken, Limits::default());
    bed.prober.observe(
        &pod("u", json!({"livenessProbe": command("l", 10)}), running("id")),
        wall(),
    );
    pass(45).await;
    assert_eq!(bed.commands().len(), 15);
    assert_eq!(bed.changes(), [(Liveness, Success)]);
}

#[tokio::test(start_paused = true)]
async fn a_probing_that_panics_does_not_end_the_others() {
    let bed = bed(
        Scripted::new(|_, command| {
            if command[0] == "bad" {
                panic!("on purpose")
            } else {
                exit(0, "")
            }
        }),
        Limits::default(),
    );
    bed.prober.observe(
        &pod("a", json!({"livenessProbe": command("bad", 10)}), running("a")),
        wall(),
    );
    bed.prober.observe(
        &pod("b", json!({"livenessProbe": command("good", 10)}), running("b")),
        wall(),
    );
    pass(25).await;
    let commands = bed.commands();
    assert_eq!(commands.iter().filter(|command| *command == "bad").count(), 3);
    assert_eq!(commands.iter().filter(|command| *command == "good").count(), 3);
}

#[tokio::test(start_paused = true)]
async fn initial_delays_count_from_the_containers_start_whatever_the_wall_clock_does() {
    let bed = bed(Scripted::new(|_, _| exit(0, "")), Limits::default());
    let mut probe = command("r", 10);
    probe["initialDelaySeconds"] = json!(60);
    // The clock was set an hour ahead after the prober had begun; the container has run for 20 s.
    let now = wall() + SignedDuration::from_secs(3600);
    let seen = Seen::Running {
        id: "id".into(),
        started: now - SignedDuration::from_secs(20),
    };
    bed.prober
        .observe(&pod("u", json!({"readinessProbe": probe}), seen), now);
    pass(39).await;
    assert_eq!(bed.commands().len(), 0);
    pass(1).await;
    assert_eq!(bed.commands().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_probes_a_second_are_all_probed() {
    let bed = bed(Scripted::new(|_, _| exit(0, "")), Limits::default());
    for number in 0..1000 {
        let probes = json!({"livenessProbe": command("l", 1)});
        let pod = pod(&format!("u{number}"), probes, running(&format!("id{number}")));
        bed.prober.observe(&pod, wall());
        bed.prober.observe(&pod, wall());
    }
    pass(10).await;
    assert_eq!(bed.commands().len(), 11_000);
}
