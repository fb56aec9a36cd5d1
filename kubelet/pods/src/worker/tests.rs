//! Lives of pods.

use controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::deadline::{deadline, exceeded};
use super::turns::StaticTurns;
use super::*;
use crate::fixtures::{at, container, pod, spec};

fn a_pod() -> Box<Pod> {
    Box::new(pod("Always", Vec::new(), vec![container("a")]))
}

fn deleted(grace: i64) -> Box<Pod> {
    let mut pod = a_pod();
    pod.metadata.deletion_timestamp = Some(Time(at(0)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn syncing() -> PodLife {
    PodLife::begin(a_pod(), true, false, at(0))
}

fn kill(grace: Option<i64>) -> Update {
    Update::Kill {
        cause: Cause::Evicted,
        grace,
        status: Some(exceeded()),
    }
}

fn after_all(life: PodLife, updates: impl IntoIterator<Item = Update>) -> PodLife {
    updates
        .into_iter()
        .fold(life, |life, update| life.update(update, at(9)).life)
}

#[test]
fn a_deleted_pod_ends_and_is_gone_once_its_source_forgets_it() {
    let life = after_all(syncing(), [Update::Set(deleted(20))]);
    let ending = life.ending().unwrap();
    assert_eq!(
        (ending.cause, ending.grace, ending.since),
        (Cause::Deleted, 20, at(9))
    );
    let life = after_all(life, [Update::ContainersEnded, Update::CleanedUp]);
    assert!(matches!(life, PodLife::Terminated { cleaned: true, .. }));
    assert_eq!(after_all(life, [Update::Removed]), PodLife::Gone { again: None });
}

#[test]
fn a_removed_pod_is_gone_once_it_is_cleaned_up() {
    let life = after_all(syncing(), [Update::Removed]);
    assert_eq!(
        (life.ending().unwrap().cause, life.ending().unwrap().grace),
        (Cause::Removed, 1)
    );
    assert!(life.may_run());
    let life = after_all(life, [Update::ContainersEnded]);
    assert!(!life.may_run());
    assert_eq!(
        after_all(life, [Update::CleanedUp]),
        PodLife::Gone { again: None }
    );
}

#[test]
fn a_pod_that_comes_again_meanwhile_is_handed_out_at_the_end() {
    let ends = [
        Update::Removed,
        Update::Set(a_pod()),
        Update::ContainersEnded,
        Update::CleanedUp,
    ];
    assert_eq!(after_all(syncing(), ends), PodLife::Gone { again: Some(a_pod()) });
    let late = [
        Update::Removed,
        Update::ContainersEnded,
        Update::Set(a_pod()),
        Update::CleanedUp,
    ];
    assert_eq!(after_all(syncing(), late), PodLife::Gone { again: Some(a_pod()) });
    let gone_again = [Update::Removed, Update::Set(a_pod()), Update::Removed];
    let life = after_all(
        after_all(syncing(), gone_again),
        [Update::ContainersEnded, Update::CleanedUp],
    );
    assert_eq!(life, PodLife::Gone { again: None });
}

#[test]
fn grace_only_gets_shorter_and_interrupts() {
    let mut own = a_pod();
    spec(&mut own).termination_grace_period_seconds = Some(45);
    let life = PodLife::begin(own, true, false, at(0));
    let first = life.update(kill(None), at(1));
    assert_eq!(
        (first.effect, first.life.ending().unwrap().grace),
        (Effect::Interrupt, 45)
    );
    let longer = first.life.update(kill(Some(90)), at(2));
    assert_eq!(
        (longer.effect, longer.life.ending().unwrap().grace),
        (Effect::None, 45)
    );
    let shorter = longer.life.update(Update::Set(deleted(5)), at(3));
    assert_eq!(
        (shorter.effect, shorter.life.ending().unwrap().grace),
        (Effect::Interrupt, 5)
    );
    let now = shorter.life.update(kill(Some(0)), at(3));
    assert_eq!(
        (now.effect, now.life.ending().unwrap().grace),
        (Effect::Interrupt, 1)
    );
    assert_eq!(now.life.ending().unwrap().cause, Cause::Evicted);
    assert_eq!(now.life.ending().unwrap().status, Some(exceeded()));
}

#[test]
fn what_never_started_needs_no_ending() {
    let waiting = PodLife::begin(a_pod(), false, false, at(0));
    assert!(matches!(waiting, PodLife::Waiting { .. }));
    assert_eq!(
        after_all(waiting.clone(), [Update::Removed]),
        PodLife::Gone { again: None }
    );
    assert_eq!(waiting.start(), syncing());
}

#[test]
fn final_pods_are_only_cleaned_up() {
    let mut done = a_pod();
    done.status = Some(PodStatus {
        phase: Some("Failed".to_owned()),
        ..Default::default()
    });
    assert!(matches!(
        PodLife::begin(done.clone(), true, false, at(0)),
        PodLife::Terminated { .. }
    ));
    // Unless something of it still runs.
    assert!(matches!(
        PodLife::begin(done, true, true, at(0)),
        PodLife::Syncing { .. }
    ));
    assert!(matches!(
        PodLife::begin(deleted(3), true, true, at(0)),
        PodLife::Terminating(_)
    ));
}

#[test]
fn pods_of_the_runtime_alone_end_and_are_gone() {
    let life = PodLife::orphan("u".to_owned(), "n".to_owned(), "s".to_owned(), at(0));
    assert_eq!(
        (life.pod(), life.ending().unwrap().cause),
        (None, Cause::Orphaned)
    );
    let life = after_all(
        life,
        [Update::Set(a_pod()), Update::ContainersEnded, Update::CleanedUp],
    );
    assert_eq!(life, PodLife::Gone { again: Some(a_pod()) });
}

#[test]
fn completed_pods_stay_until_their_source_forgets_them() {
    let life = after_all(
        syncing(),
        [Update::Completed, Update::ContainersEnded, Update::CleanedUp],
    );
    let PodLife::Terminated {
        ending,
        cleaned: true,
    } = &life
    else {
        panic!("{life:?}");
    };
    assert_eq!(ending.cause, Cause::Completed);
    assert_eq!(after_all(life, [Update::Removed]), PodLife::Gone { again: None });
}

#[test]
fn deadlines_count_from_the_start() {
    let mut it = a_pod();
    let mut status = PodStatus::default();
    assert_eq!(deadline(&it, &status), None);
    spec(&mut it).active_deadline_seconds = Some(60);
    assert_eq!(deadline(&it, &status), None);
    status.start_time = Some(Time(at(5)));
    assert_eq!(deadline(&it, &status), Some(at(65)));
    assert!(exceeded().failed);
}

#[test]
fn static_pods_of_one_name_take_turns_and_the_newest_wins() {
    let mut turns = StaticTurns::default();
    assert!(turns.claim("s", "n", "1"));
    assert!(turns.claim("s", "n", "1"));
    assert!(!turns.claim("s", "n", "2"));
    assert!(!turns.claim("s", "n", "3"));
    assert!(turns.claim("s", "other", "4"));
    assert_eq!(turns.release("s", "n", "3"), None);
    assert!(!turns.claim("s", "n", "5"));
    assert_eq!(turns.release("s", "n", "1"), Some("5".to_owned()));
    assert!(!turns.claim("s", "n", "2"));
    assert_eq!(turns.release("s", "n", "2"), None);
    assert_eq!(turns.release("s", "n", "5"), None);
    assert_eq!(turns.release("s", "other", "4"), None);
    assert_eq!(turns, StaticTurns::default());
}

fn updates() -> impl Strategy<Value = Update> {
    prop_oneof![
        Just(Update::Set(a_pod())),
        (0..50i64).prop_map(|grace| Update::Set(deleted(grace))),
        Just(Update::Removed),
        prop::option::of(0..50i64).prop_map(kill),
        Just(Update::Completed),
        Just(Update::ContainersEnded),
        Just(Update::CleanedUp),
    ]
}

fn rank(life: &PodLife) -> usize {
    match life {
        PodLife::Waiting { .. } => 0,
        PodLife::Syncing { .. } => 1,
        PodLife::Terminating(_) => 2,
        PodLife::Terminated { .. } => 3,
        PodLife::Gone { .. } => 4,
    }
}

proptest! {
    /// A life never goes back, grace never grows, and what is left of it at the end is gone.
    #[test]
    fn lives_only_go_forward(may_start in any::<bool>(), updates in prop::collection::vec(updates(), 0..30)) {
        let mut life = PodLife::begin(a_pod(), may_start, false, at(0));
        for update in updates {
            let (before, grace) = (rank(&life), life.ending().map(|ending| (ending.cause, ending.grace)));
            life = life.update(update, at(1)).life;
            prop_assert!(rank(&life) >= before);
            if let (Some((cause, grace)), Some(ending)) = (grace, life.ending()) {
                prop_assert!(ending.grace <= grace && ending.grace >= 1);
                prop_assert_eq!(ending.cause, cause);
            }
        }
        let end = [Update::Removed, Update::ContainersEnded, Update::CleanedUp];
        prop_assert_eq!(after_all(life, end), PodLife::Gone { again: None });
    }
}
