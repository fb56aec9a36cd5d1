use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Mutex;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::containers::{self, Dead, PodState, Sandbox};
use super::images::{self, Disk, Image, Images, NoCapacity};
use super::logs::{self, Outcome, ReopenLog, Step};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn set(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(ToString::to_string).collect()
}

fn image(id: &str, size: u64) -> Image {
    Image {
        id: id.to_owned(),
        size,
        pinned: false,
    }
}

const POLICY: images::Policy = images::Policy {
    high_percent: 85,
    low_percent: 80,
    minimum_age: SignedDuration::from_secs(120),
    maximum_age: SignedDuration::ZERO,
};

#[test]
fn the_longest_unused_images_go_down_to_the_low_threshold() {
    let all = [image("a", 10), image("b", 10), image("c", 10)];
    let mut state = Images::new(at(0));
    state.observe(&all, &set(&["a", "b"]), at(0));
    state.observe(&all, &set(&["b"]), at(50));
    let disk = |available| Disk {
        capacity: 1000,
        available,
    };
    let plan = state
        .plan(&POLICY, &all, &set(&["b"]), disk(160), at(200))
        .unwrap();
    assert_eq!(plan, images::Plan::default());
    let plan = state
        .plan(&POLICY, &all, &set(&["b"]), disk(150), at(200))
        .unwrap();
    // c was never used.
    assert_eq!(plan.remove, [("c".to_owned(), 10), ("a".to_owned(), 10)]);
    assert_eq!(plan.wanted, 50);
    let (reason, message) = plan.shortfall(20).unwrap();
    assert_eq!(reason, "FreeDiskSpaceFailed");
    assert!(message.contains("Attempted to free 50 bytes, but only found 20 bytes eligible to free."));
    assert_eq!(plan.shortfall(50), None);
    assert_eq!(
        state
            .plan(&POLICY, &all, &set(&[]), disk(0), at(50))
            .unwrap()
            .wanted,
        200
    );
    assert_eq!(
        state.plan(&POLICY, &all, &set(&[]), Disk::default(), at(50)),
        Err(NoCapacity)
    );
}

#[test]
fn young_pinned_and_used_images_stay_but_at_a_shortage_only_the_latter() {
    let mut all = [image("young", 1), image("pinned", 1), image("used", 1)];
    all[1].pinned = true;
    let full = Disk {
        capacity: 100,
        available: 0,
    };
    let mut state = Images::new(at(0));
    let plan = state.plan(&POLICY, &all, &set(&["used"]), full, at(0)).unwrap();
    assert!(plan.remove.is_empty());
    let plan = state.all_unused(&all, &set(&["used"]), at(1));
    assert_eq!(plan.remove, [("young".to_owned(), 1)]);
    let never = images::Policy {
        high_percent: 100,
        ..POLICY
    };
    assert!(
        state
            .plan(&never, &all, &set(&[]), full, at(1000))
            .unwrap()
            .remove
            .is_empty()
    );
}

#[test]
fn images_beyond_the_maximum_age_go_whatever_the_disk_holds() {
    let policy = images::Policy {
        maximum_age: SignedDuration::from_secs(1000),
        ..POLICY
    };
    let all = [image("old", 1), image("fresh", 1)];
    let empty = Disk {
        capacity: 100,
        available: 100,
    };
    let mut state = Images::new(at(0));
    state.observe(&all, &set(&["fresh"]), at(500));
    assert!(
        state
            .plan(&policy, &all, &set(&[]), empty, at(1000))
            .unwrap()
            .remove
            .is_empty()
    );
    let plan = state.plan(&policy, &all, &set(&[]), empty, at(1501)).unwrap();
    assert_eq!((plan.remove.len(), plan.expired, plan.wanted), (2, 2, 0));
    // What was removed is forgotten.
    state.observe(&all[..1], &set(&[]), at(1502));
    assert_eq!(state.all_unused(&all[..1], &set(&[]), at(1503)).remove.len(), 1);
}

fn dead(id: &str, uid: &str, name: &str, second: i64) -> Dead {
    Dead {
        id: id.to_owned(),
        uid: uid.to_owned(),
        name: name.to_owned(),
        attempt: 0,
        created: at(second),
    }
}

fn states(uid: &str) -> PodState {
    match uid {
        "alive" => PodState::Alive,
        "ended" => PodState::Ended,
        _ => PodState::Gone,
    }
}

#[test]
fn the_newest_dead_container_of_each_name_is_kept() {
    let all = [
        dead("1", "alive", "a", 1),
        dead("2", "alive", "a", 2),
        dead("3", "alive", "b", 1),
        dead("4", "ended", "a", 1),
        dead("5", "gone", "a", 1),
    ];
    let policy = containers::Policy::default();
    let run = |ready, everything| containers::containers(&policy, &all, states, ready, everything, at(10));
    assert_eq!(run(true, false), ["5", "1"]);
    assert_eq!(run(true, true), ["4", "5", "1"]);
    assert_eq!(run(false, true), ["1"]);
    let few = containers::Policy { most: 1, ..policy };
    assert_eq!(
        containers::containers(&few, &all, states, true, false, at(10)),
        ["5", "1", "4", "3"]
    );
    let old = containers::Policy {
        minimum_age: SignedDuration::from_secs(9),
        ..policy
    };
    assert_eq!(
        containers::containers(&old, &all, states, true, false, at(10)),
        ["5"]
    );
}

#[test]
fn the_newest_is_the_last_attempt_whatever_the_clock_said() {
    let at_attempt = |id: &str, attempt, second| Dead {
        attempt,
        ..dead(id, "alive", "a", second)
    };
    let all = [at_attempt("before", 0, 9), at_attempt("after", 1, 2)];
    let policy = containers::Policy::default();
    let gone = containers::containers(&policy, &all, states, true, false, at(10));
    assert_eq!(gone, ["before"]);
    let sandbox = |id: &str, attempt, second| Sandbox {
        id: id.to_owned(),
        uid: "alive".to_owned(),
        attempt,
        created: at(second),
        ready: false,
        has_containers: false,
    };
    let all = [sandbox("before", 0, 9), sandbox("after", 1, 2)];
    assert_eq!(containers::sandboxes(&all, states, true, false), ["before"]);
}

#[test]
fn sandboxes_go_once_they_are_replaced_or_their_pod_is_gone() {
    let sandbox = |id: &str, uid: &str, second, ready, has_containers| Sandbox {
        id: id.to_owned(),
        uid: uid.to_owned(),
        attempt: 0,
        created: at(second),
        ready,
        has_containers,
    };
    let all = [
        sandbox("1", "alive", 1, false, false),
        sandbox("2", "alive", 2, false, false),
        sandbox("3", "gone", 1, false, false),
        sandbox("4", "gone", 1, false, true),
        sandbox("5", "gone", 0, true, false),
        sandbox("6", "ended", 1, false, false),
    ];
    assert_eq!(containers::sandboxes(&all, states, true, false), ["1", "3"]);
    assert_eq!(containers::sandboxes(&all, states, true, true), ["1", "3", "6"]);
    assert_eq!(containers::sandboxes(&all, states, false, true), ["1", "3"]);
}

#[test]
fn logs_of_pods_that_are_gone_go() {
    let folders = ["ns_p_alive", "ns_p_gone", "lost+found", "a_b", "a_b_"];
    assert_eq!(
        containers::log_folders(folders, states, true),
        BTreeSet::from(["ns_p_gone"])
    );
    assert!(containers::log_folders(folders, states, false).is_empty());
}

/// Makes the log anew as a runtime does, or refuses.
struct Runtime {
    log: std::path::PathBuf,
    refuses: Mutex<bool>,
}

#[async_trait]
impl ReopenLog for Runtime {
    async fn reopen(&self, _: &str) -> Result<(), String> {
        if *self.refuses.lock().unwrap() {
            return Err("no".to_owned());
        }
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map(drop)
            .map_err(|e| e.to_string())
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn logs_are_rotated_compressed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    let runtime = Runtime {
        log: log.clone(),
        refuses: Mutex::new(false),
    };
    let policy = logs::Policy {
        most_bytes: 5,
        most_files: 3,
    };
    let mut outcomes = Vec::new();
    for round in 0..4 {
        std::fs::write(&log, format!("round {round}")).unwrap();
        outcomes.push(
            logs::rotate(&policy, "c", &log, &runtime, at(round))
                .await
                .unwrap(),
        );
    }
    assert_eq!(outcomes, [Outcome::Rotated; 4]);
    let stamp = |second| {
        at(second)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .strftime("%Y%m%d-%H%M%S")
            .to_string()
    };
    let (older, newer) = (format!("0.log.{}.gz", stamp(2)), format!("0.log.{}", stamp(3)));
    assert_eq!(names(dir.path()), ["0.log".to_owned(), older.clone(), newer]);
    let mut text = String::new();
    let file = std::fs::File::open(dir.path().join(older)).unwrap();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "round 2");
    std::fs::write(&log, "four").unwrap();
    assert_eq!(
        logs::rotate(&policy, "c", &log, &runtime, at(9)).await.unwrap(),
        Outcome::Kept
    );
}

#[tokio::test]
async fn a_refusal_leaves_the_log_as_it_was_and_an_absent_one_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    std::fs::write(&log, "much text").unwrap();
    let runtime = Runtime {
        log: log.clone(),
        refuses: Mutex::new(true),
    };
    let policy = logs::Policy {
        most_bytes: 5,
        most_files: 3,
    };
    let error = logs::rotate(&policy, "c", &log, &runtime, at(0))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("failed to reopen container log"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "much text");
    // Killed between the renaming and the call.
    std::fs::rename(&log, dir.path().join("0.log.20260101-000000")).unwrap();
    *runtime.refuses.lock().unwrap() = false;
    assert_eq!(
        logs::rotate(&policy, "c", &log, &runtime, at(1)).await.unwrap(),
        Outcome::Reopened
    );
    assert!(log.exists());
}

/// Makes the new log, and then says that it couldn't.
struct Late(std::path::PathBuf);

#[async_trait::async_trait]
impl logs::ReopenLog for Late {
    async fn reopen(&self, _: &str) -> Result<(), String> {
        std::fs::write(&self.0, "new").map_err(|error| error.to_string())?;
        Err("deadline exceeded".to_owned())
    }
}

#[tokio::test]
async fn a_log_that_was_made_anew_all_the_same_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    std::fs::write(&log, "much text").unwrap();
    let policy = logs::Policy {
        most_bytes: 5,
        most_files: 3,
    };
    let error = logs::rotate(&policy, "c", &log, &Late(log.clone()), at(0))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("deadline exceeded"), "{error}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "new");
    let all = names(dir.path());
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(
        std::fs::read_to_string(dir.path().join(&all[1])).unwrap(),
        "much text"
    );
}

#[test]
fn what_a_crash_left_is_tidied_up() {
    let names: Vec<String> = [
        "0.log",
        "0.log.1",
        "0.log.1.gz",
        "0.log.2.tmp",
        "0.log.2",
        "1.log.7",
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    let remove = |name: &str| Step::Remove(name.to_owned());
    let compress = |name: &str| Step::Compress(name.to_owned());
    assert_eq!(
        logs::tidy("0.log", &names, 5),
        [remove("0.log.1"), remove("0.log.2.tmp"), compress("0.log.2")]
    );
    assert_eq!(
        logs::tidy("0.log", &names, 2),
        [
            remove("0.log.1"),
            remove("0.log.2.tmp"),
            remove("0.log.1.gz"),
            remove("0.log.2")
        ]
    );
}

proptest! {
    #[test]
    fn no_more_dead_containers_stay_than_are_wanted(
        all in proptest::collection::vec((0..3_u8, 0..2_u8, 0..50_i64), 0..30),
        each in 0..3_i32,
        most in -1..10_i32,
    ) {
        let dead: Vec<Dead> = all.iter().enumerate().map(|(index, (uid, name, second))| {
            dead(&index.to_string(), &format!("p{uid}"), &format!("c{name}"), *second)
        }).collect();
        let policy = containers::Policy { most_per_container: each, most, ..containers::Policy::default() };
        let removed = containers::containers(&policy, &dead, |_| PodState::Alive, true, false, at(100));
        let unique: BTreeSet<&String> = removed.iter().collect();
        prop_assert_eq!(unique.len(), removed.len());
        let left: Vec<&Dead> = dead.iter().filter(|one| !unique.contains(&one.id)).collect();
        for (uid, name) in left.iter().map(|one| (&one.uid, &one.name)) {
            let of_unit = |one: &&Dead| one.uid == *uid && one.name == *name;
            prop_assert!(left.iter().copied().filter(of_unit).count() <= usize::try_from(each).unwrap());
            let oldest_left = left.iter().copied().filter(of_unit).map(|one| one.created).min().unwrap();
            let gone = dead.iter().filter(|one| unique.contains(&one.id)).filter(of_unit);
            prop_assert!(gone.map(|one| one.created).max().is_none_or(|newest| newest <= oldest_left));
        }
        prop_assert!(most < 0 || left.len() <= usize::try_from(most).unwrap());
    }
}
