//! Thresholds, holds and restarts of probes.

use proptest::prelude::*;

use super::*;
use crate::fixtures::at;

fn timing() -> Timing {
    Timing::of(&Probe {
        initial_delay_seconds: Some(5),
        ..Default::default()
    })
}

fn new(kind: ProbeKind) -> ProbeState {
    ProbeState::new(kind, timing(), SignedDuration::ZERO)
}

fn running(id: &str, started_up: bool) -> Target {
    Target::Running {
        id: id.to_owned(),
        started: at(0),
        started_up,
    }
}

fn change(id: &str, kind: ProbeKind, result: ProbeResult) -> Option<Change> {
    Some(Change {
        id: id.to_owned(),
        kind,
        result,
    })
}

/// Hands in outcomes (`+`, `-`, `!`) one period apart; says the results that came of each.
fn run(state: &mut ProbeState, outcomes: &str) -> Vec<Option<ProbeResult>> {
    let mut results = Vec::new();
    for letter in outcomes.chars() {
        let Some((when, _)) = state.next_at() else {
            results.push(None);
            continue;
        };
        let outcome = match letter {
            '+' => Outcome::Success,
            '-' => Outcome::Failure,
            _ => Outcome::Error,
        };
        results.push(step(state, outcome, when).map(|change| change.result));
    }
    results
}

#[test]
fn numbers_default_as_upstream() {
    let seconds = SignedDuration::from_secs;
    let defaults = Timing::of(&Probe::default());
    assert_eq!(
        (defaults.initial_delay, defaults.period, defaults.timeout),
        (seconds(0), seconds(10), seconds(1))
    );
    assert_eq!((defaults.success_threshold, defaults.failure_threshold), (1, 3));
    let odd = Timing::of(&Probe {
        period_seconds: Some(0),
        failure_threshold: Some(-1),
        ..Default::default()
    });
    assert_eq!(odd, defaults);
}

#[test]
fn liveness_fails_at_its_threshold_and_then_holds() {
    let mut state = new(ProbeKind::Liveness);
    assert_eq!(
        state.observe(&running("a", true), false, at(1)),
        change("a", ProbeKind::Liveness, ProbeResult::Success)
    );
    assert_eq!(state.next_at(), Some((at(5), "a")));
    assert_eq!(state.observe(&running("a", true), false, at(2)), None);
    // A success between, and probings that fail themselves, count.
    let results = run(&mut state, "--+-!--+");
    assert_eq!(
        results,
        [
            None,
            None,
            None,
            None,
            None,
            None,
            Some(ProbeResult::Failure),
            None
        ]
    );
    assert_eq!(state.next_at(), None);
    // Another container begins anew.
    assert_eq!(
        state.observe(&running("b", true), false, at(200)),
        change("b", ProbeKind::Liveness, ProbeResult::Success)
    );
    assert_eq!(state.next_at(), Some((at(200), "b")));
}

#[test]
fn readiness_goes_both_ways_by_its_thresholds() {
    let timing = Timing {
        success_threshold: 2,
        failure_threshold: 2,
        ..timing()
    };
    let mut state = ProbeState::new(ProbeKind::Readiness, timing, SignedDuration::ZERO);
    state.observe(&running("a", true), false, at(1));
    use ProbeResult::{Failure, Success};
    assert_eq!(
        run(&mut state, "+-++--+"),
        [None, None, None, Some(Success), None, Some(Failure), None]
    );
}

#[test]
fn others_wait_for_startup() {
    let mut readiness = new(ProbeKind::Readiness);
    assert_eq!(
        readiness.observe(&running("a", false), false, at(1)),
        change("a", ProbeKind::Readiness, ProbeResult::Failure)
    );
    assert_eq!(readiness.observe(&running("a", false), false, at(2)), None);
    assert_eq!(readiness.next_at(), None);
    let mut startup = new(ProbeKind::Startup);
    assert_eq!(
        startup.observe(&running("a", false), false, at(1)),
        change("a", ProbeKind::Startup, ProbeResult::Unknown)
    );
    assert_eq!(run(&mut startup, "-+-"), [None, Some(ProbeResult::Success), None]);
    assert_eq!(readiness.observe(&running("a", true), false, at(30)), None);
    assert_eq!(readiness.next_at(), Some((at(30), "a")));
    step(&mut readiness, Outcome::Failure, at(30));
    readiness.hurry(at(31));
    assert_eq!(readiness.next_at(), Some((at(31), "a")));
}

#[test]
fn an_ended_container_is_not_ready_and_one_that_stays_ended_is_over() {
    let mut state = new(ProbeKind::Readiness);
    state.observe(&running("a", true), false, at(1));
    run(&mut state, "+");
    let ended = |again| Target::Ended {
        id: "a".to_owned(),
        again,
    };
    assert_eq!(
        state.observe(&ended(true), false, at(9)),
        change("a", ProbeKind::Readiness, ProbeResult::Failure)
    );
    assert_eq!(state.observe(&ended(true), false, at(9)), None);
    assert!(!state.is_over());
    state.observe(&Target::Absent, false, at(9));
    state.observe(&ended(false), false, at(9));
    assert!(state.is_over());
    assert_eq!(state.observe(&running("b", true), false, at(9)), None);
}

#[test]
fn while_a_pod_ends_only_readiness_goes_on() {
    for kind in [ProbeKind::Liveness, ProbeKind::Startup] {
        let mut state = new(kind);
        state.observe(&running("a", false), false, at(1));
        assert_eq!(
            state.observe(&running("a", false), true, at(2)),
            change("a", kind, ProbeResult::Success)
        );
        assert!(state.is_over());
    }
    let mut readiness = new(ProbeKind::Readiness);
    readiness.observe(&running("a", true), false, at(1));
    run(&mut readiness, "+");
    assert_eq!(readiness.observe(&running("a", true), true, at(9)), None);
    assert_eq!(
        run(&mut readiness, "---"),
        [None, None, Some(ProbeResult::Failure)]
    );
}

#[test]
fn a_restarted_kubelet_keeps_what_was_said_and_spreads_its_probes() {
    let jitter = SignedDuration::from_secs(7);
    let mut state =
        ProbeState::new(ProbeKind::Readiness, timing(), jitter).recovered("a", ProbeResult::Success);
    assert_eq!(
        state.observe(&running("a", true), false, at(1)),
        change("a", ProbeKind::Readiness, ProbeResult::Success)
    );
    assert_eq!(state.next_at(), Some((at(12), "a")));
    assert_eq!(
        state.observe(&running("b", true), false, at(20)),
        change("b", ProbeKind::Readiness, ProbeResult::Failure)
    );
    assert_eq!(state.next_at(), Some((at(20), "b")));
    let mut startup = new(ProbeKind::Startup);
    assert_eq!(
        startup.observe(&running("a", true), false, at(1)),
        change("a", ProbeKind::Startup, ProbeResult::Success)
    );
    assert_eq!(startup.next_at(), None);
}

#[test]
fn results_are_kept_by_container() {
    let mut results = ProbeResults::default();
    assert!(results.set("a", ProbeKind::Liveness, ProbeResult::Success));
    assert!(!results.set("a", ProbeKind::Liveness, ProbeResult::Success));
    assert_eq!(
        (results.liveness("a"), results.readiness("a")),
        (Some(ProbeResult::Success), None)
    );
    results.set("b", ProbeKind::Startup, ProbeResult::Unknown);
    results.retain(|id| id == "b");
    assert_eq!(
        (results.liveness("a"), results.startup("b")),
        (None, Some(ProbeResult::Unknown))
    );
    results.forget("b");
    assert_eq!(results, ProbeResults::default());
}

proptest! {
    /// Results follow from the last outcomes alone: a result comes exactly when as many equal ones as its threshold ask for
    /// have come in a row, and it isn't the result already.
    #[test]
    fn results_are_what_a_look_back_says(
        outcomes in prop::collection::vec(any::<bool>(), 0..60),
        success in 1..4u32,
        failure in 1..4u32,
    ) {
        let timing = Timing { success_threshold: success, failure_threshold: failure, ..timing() };
        let mut state = ProbeState::new(ProbeKind::Readiness, timing, SignedDuration::ZERO);
        state.observe(&running("a", true), false, at(1));
        let mut result = ProbeResult::Failure;
        for end in 1..=outcomes.len() {
            let outcome = if outcomes[end - 1] { Outcome::Success } else { Outcome::Failure };
            let (when, _) = state.next_at().unwrap();
            let told = step(&mut state, outcome, when);
            prop_assert_eq!(state.next_at().unwrap().0, after(when, timing.period));
            let streak = outcomes[..end].iter().rev().take_while(|one| **one == outcomes[end - 1]).count();
            let (threshold, reached) =
                if outcomes[end - 1] { (success, ProbeResult::Success) } else { (failure, ProbeResult::Failure) };
            let expected = (streak >= threshold as usize && reached != result).then_some(reached);
            prop_assert_eq!(told.map(|change| change.result), expected);
            result = expected.unwrap_or(result);
        }
    }
}
