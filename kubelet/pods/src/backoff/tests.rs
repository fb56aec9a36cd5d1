//! Ladders of delays.

use proptest::prelude::*;

use super::*;
use crate::fixtures::{at, container, exited_at, observed, pod, seen};
use crate::times::go_duration;

fn key() -> BackoffKey {
    BackoffKey {
        pod_uid: "uid".to_owned(),
        container: "a".to_owned(),
        spec_hash: 1,
    }
}

/// Has a container crash as soon as it may start, so many times; says after how many seconds each start came.
fn waits(restarts: &mut RestartBackoff, times: usize) -> Vec<i64> {
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..times {
        let ended = now;
        if let Some(until) = restarts.may_start_at(&key(), at(ended), at(now)) {
            now = until.as_second() - at(0).as_second();
        }
        restarts.started(key(), at(ended), at(now));
        waits.push(now - ended);
        now += 1;
    }
    waits
}

#[test]
fn delays_double_up_to_five_minutes() {
    let mut restarts = RestartBackoff::default();
    assert_eq!(waits(&mut restarts, 9), [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    let delays = Delays {
        first: FIRST_DELAY,
        greatest: SignedDuration::from_secs(15),
    };
    assert_eq!(waits(&mut RestartBackoff::new(delays), 4), [0, 10, 15, 15]);
    let short = Delays {
        first: FIRST_DELAY,
        greatest: SignedDuration::from_secs(1),
    };
    assert_eq!(waits(&mut RestartBackoff::new(short), 3), [0, 1, 1]);
}

#[test]
fn ten_good_minutes_begin_anew() {
    let mut restarts = RestartBackoff::default();
    for _ in 0..5 {
        restarts.started(key(), at(0), at(0));
    }
    assert_eq!(restarts.delay(&key()), Some(SignedDuration::from_secs(160)));
    assert!(restarts.may_start_at(&key(), at(600), at(600)).is_some());
    assert_eq!(restarts.may_start_at(&key(), at(601), at(601)), None);
    restarts.started(key(), at(601), at(601));
    assert_eq!(restarts.delay(&key()), Some(FIRST_DELAY));
}

#[test]
fn a_clock_set_back_holds_nobody() {
    let mut restarts = RestartBackoff::default();
    restarts.started(key(), at(5000), at(5000));
    assert_eq!(restarts.may_start_at(&key(), at(5001), at(0)), None);
    let mut pulls = PullBackoff::default();
    pulls.failed("uid", "image", "", at(5000));
    assert_eq!(pulls.waits("uid", "image", at(0)), None);
}

#[test]
fn entries_go_with_their_pods_and_with_time() {
    let mut restarts = RestartBackoff::default();
    restarts.started(key(), at(0), at(0));
    restarts.started(
        BackoffKey {
            pod_uid: "other".to_owned(),
            ..key()
        },
        at(0),
        at(0),
    );
    assert_eq!(restarts.len(), 2);
    restarts.forget("uid");
    assert_eq!(restarts.delay(&key()), None);
    restarts.expire(at(601), |uid| uid == "other");
    assert_eq!(restarts.len(), 1);
    restarts.expire(at(601), |_| false);
    assert!(restarts.is_empty());
}

#[test]
fn a_restarted_kubelet_goes_on_where_it_was() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let key = BackoffKey::of(&it, &container("a"));
    // It ended at 10, and this instance came when 40 seconds were over: so 80 are next.
    let mut newest = seen("a", 4, exited_at(1, 60));
    newest.created = at(52);
    if let ContainerState::Exited { started, .. } = &mut newest.state {
        *started = Some(at(52));
    }
    let crashing = observed(vec![newest, seen("a", 3, exited_at(1, 10))]);
    let mut restarts = RestartBackoff::default();
    restarts.recover(&it, &crashing);
    assert_eq!(restarts.delay(&key), Some(SignedDuration::from_secs(80)));
    assert_eq!(restarts.may_start_at(&key, at(60), at(61)), Some(at(140)));
    // What is known already isn't touched, a first instance has nothing to wait for.
    restarts.started(key.clone(), at(60), at(140));
    restarts.recover(&it, &crashing);
    assert_eq!(restarts.delay(&key), Some(SignedDuration::from_secs(160)));
    let mut none = RestartBackoff::default();
    none.recover(&it, &observed(vec![seen("a", 0, exited_at(1, 10))]));
    assert!(none.is_empty());
}

#[test]
fn pulls_back_off_by_pod_and_image() {
    let mut pulls = PullBackoff::default();
    assert_eq!(pulls.waits("uid", "image", at(0)), None);
    pulls.failed("uid", "image", "ErrImagePull: no such host", at(0));
    let wait = pulls.waits("uid", "image", at(9)).unwrap();
    assert_eq!(wait.until, at(10));
    assert_eq!(
        wait.message,
        "Back-off pulling image \"image\": ErrImagePull: no such host"
    );
    assert_eq!(pulls.waits("uid", "image", at(10)), None);
    assert_eq!(pulls.waits("other", "image", at(9)), None);
    pulls.failed("uid", "image", "", at(10));
    assert_eq!(
        pulls.waits("uid", "image", at(29)).unwrap().message,
        "Back-off pulling image \"image\""
    );
    pulls.succeeded("uid", "image");
    pulls.failed("uid", "image", "", at(40));
    assert_eq!(pulls.waits("uid", "image", at(41)).unwrap().until, at(50));
    pulls.forget("uid");
    assert_eq!(pulls.waits("uid", "image", at(41)), None);
}

proptest! {
    /// What a restarted kubelet derives from two instances is what the one before knew.
    #[test]
    fn recovery_finds_the_truth(crashes in 2..10usize, ran in 1..9i64) {
        let it = pod("Always", Vec::new(), vec![container("a")]);
        let key = BackoffKey::of(&it, &container("a"));
        let mut restarts = RestartBackoff::default();
        let (mut now, mut instances) = (0, Vec::new());
        for attempt in 0..crashes {
            let started = now;
            now += ran;
            let mut one = seen("a", u32::try_from(attempt).unwrap(), exited_at(1, now));
            if let ContainerState::Exited { started: when, .. } = &mut one.state {
                *when = Some(at(started));
            }
            instances.insert(0, one);
            if attempt + 1 < crashes {
                let ended = at(now);
                if let Some(until) = restarts.may_start_at(&key, ended, ended) {
                    now = until.as_second() - at(0).as_second();
                }
                restarts.started(key.clone(), ended, at(now));
            }
        }
        instances.truncate(2);
        let mut recovered = RestartBackoff::default();
        recovered.recover(&it, &observed(instances));
        prop_assert_eq!(recovered.delay(&key).map(go_duration), restarts.delay(&key).map(go_duration));
    }
}
