use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;

fn clock() -> (Arc<AtomicI64>, Now) {
    let time = Arc::new(AtomicI64::new(1000));
    let hands = time.clone();
    (time, Arc::new(move || at(hands.load(Ordering::Relaxed))))
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap()
}

fn span(start: i64, end: Option<i64>) -> PhaseSpan {
    PhaseSpan {
        name: "sync",
        start: at(start),
        end: end.map(at),
        container: None,
    }
}

#[test]
fn phases_add_up_to_the_share_that_they_cover() {
    let (time, now) = clock();
    let timelines = Timelines::new(Limits::default(), now);
    timelines.seen("u");
    let queue = timelines.begin("u", Phase::Queue, None);
    time.store(1100, Ordering::Relaxed);
    queue.end();
    time.store(1200, Ordering::Relaxed);
    let pull = timelines.begin("u", Phase::Pull, Some("web"));
    assert_eq!(timelines.of("u").unwrap().end, None);
    time.store(2000, Ordering::Relaxed);
    timelines.finished("u");
    time.store(5000, Ordering::Relaxed);
    drop(pull);
    drop(timelines.begin("u", Phase::Sync, None));
    let pod = timelines.of("u").unwrap();
    assert_eq!((pod.start, pod.end), (at(1000), Some(at(2000))));
    assert_eq!(pod.wall_seconds, 1.0);
    assert!((pod.covered - 0.9).abs() < 1e-9);
    assert_eq!(pod.phases.len(), 2);
    assert_eq!(pod.phases[1].container.as_deref(), Some("web"));
    assert_eq!(pod.phases[1].end, Some(at(2000)));
    let json = serde_json::to_value(&pod).unwrap();
    assert_eq!(json["phases"][0]["name"], "queue");
    assert_eq!(json["wallSeconds"], 1.0);
}

#[test]
fn memory_is_bounded_and_the_oldest_go() {
    let (_, now) = clock();
    let timelines = Timelines::new(Limits { pods: 2, phases: 3 }, now);
    for uid in ["a", "b", "c"] {
        timelines.seen(uid);
    }
    assert!(timelines.of("a").is_none());
    for _ in 0..5 {
        drop(timelines.begin("c", Phase::Sync, None));
    }
    let pod = timelines.of("c").unwrap();
    assert_eq!((pod.phases.len(), pod.dropped), (3, 2));
    timelines.forget("b");
    timelines.seen("d");
    assert!(timelines.of("c").is_some() && timelines.of("d").is_some() && timelines.of("b").is_none());
    drop(timelines.begin("never seen", Phase::Sync, None));
    assert!(timelines.of("never seen").is_none());
}

#[test]
fn a_new_start_is_not_touched_by_the_old_ones_phases() {
    let (time, now) = clock();
    let timelines = Timelines::new(Limits::default(), now);
    timelines.seen("u");
    let old = timelines.begin("u", Phase::Hook, None);
    timelines.seen("u");
    assert_eq!(
        timelines.of("u").unwrap().phases.len(),
        1,
        "a start that runs goes on"
    );
    timelines.finished("u");
    timelines.seen("u");
    let new = timelines.begin("u", Phase::Sync, None);
    time.store(3000, Ordering::Relaxed);
    drop(old);
    assert_eq!(timelines.of("u").unwrap().phases[0].end, None);
    drop(new);
    assert_eq!(timelines.of("u").unwrap().phases[0].end, Some(at(3000)));
}

proptest! {
    #[test]
    fn the_share_is_what_counting_milliseconds_gives(
        spans in proptest::collection::vec((0i64..60, proptest::option::of(0i64..60)), 0..8),
        start in 0i64..30,
        length in 1i64..30,
    ) {
        let phases: Vec<_> = spans.iter().map(|(from, until)| span(*from, *until)).collect();
        let end = start + length;
        let counted = (start..end)
            .filter(|t| spans.iter().any(|(from, until)| from <= t && *t < until.unwrap_or(end)))
            .count();
        let share = covered_share(&phases, at(start), at(end));
        prop_assert!((share - counted as f64 / length as f64).abs() < 1e-9);
    }
}
