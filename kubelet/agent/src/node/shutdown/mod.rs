//! Graceful node shutdown: pods end in an order, while logind holds the machine's shutdown back.
//!
//! At start the kubelet takes a delay inhibitor of logind's ([`logind`]). When logind announces a shutdown, no pod is
//! admitted any more, and pods are ended group by group ([`groups`]): those of the lowest priorities first, each group
//! with its period; then the inhibitor is let go. logind's own limit of such delays is raised by a drop-in of its
//! configuration where it is too low ([`logind_drop_in`]).

pub mod logind;

use crate::config::KubeletConfiguration;

/// Priority from which pods are critical, `system-cluster-critical`.
const CRITICAL: i32 = 2_000_000_000;

/// Reason and message in the status of a pod that was ended.
pub const TERMINATED: (&str, &str) = (
    "Terminated",
    "Pod was terminated in response to imminent node shutdown.",
);
/// Reason and message with which a pod isn't admitted any more.
pub const NOT_ADMITTED: (&str, &str) = ("NodeShutdown", "Pod was rejected as the node is shutting down.");
/// Reason and message of the node's `Ready` condition, which is false then.
pub const NOT_READY: (&str, &str) = ("KubeletNotReady", "node is shutting down");

/// Where logind's drop-in is, below `/etc/systemd`.
pub const DROP_IN: &str = "logind.conf.d/99-kubelet.conf";

/// Seconds that pods of at least some priority have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// The lowest priority.
    pub priority: i32,
    /// The seconds.
    pub seconds: i64,
}

/// Pods that end together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// How long the next group waits for this one at most.
    pub seconds: i64,
    /// The pods with the seconds that each has: its own grace period, but no more than the group's.
    pub pods: Vec<(String, i64)>,
}

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.priority`; 0 without.
    pub priority: i32,
    /// `spec.terminationGracePeriodSeconds`; 30 without.
    pub grace_seconds: i64,
}

/// The periods of a configuration, by ascending priority; none: shutdowns aren't delayed.
#[must_use]
pub fn periods(config: &KubeletConfiguration) -> Vec<Period> {
    let enabled = crate::config::enabled(&config.feature_gates, "GracefulNodeShutdown");
    let mut periods: Vec<Period> = Vec::new();
    for given in config
        .shutdown_grace_period_by_pod_priority
        .iter()
        .filter(|_| enabled)
    {
        periods.push(Period {
            priority: given.priority,
            seconds: given.shutdown_grace_period_seconds,
        });
    }
    let nanos = config.shutdown_grace_period.as_nanos();
    if enabled && periods.is_empty() && nanos > 0 {
        let critical = config.shutdown_grace_period_critical_pods.as_nanos();
        let seconds = |nanos: i64| nanos / 1_000_000_000;
        periods.push(Period {
            priority: 0,
            seconds: seconds(nanos - critical),
        });
        periods.push(Period {
            priority: CRITICAL,
            seconds: seconds(critical),
        });
    }
    periods.sort();
    periods
}

/// How long a shutdown is to be held back in all, in seconds.
#[must_use]
pub fn delay_seconds(periods: &[Period]) -> i64 {
    periods
        .iter()
        .fold(0, |all, period| all.saturating_add(period.seconds.max(0)))
}

/// Which pods end when: the groups one after the other, the lowest priorities first. A pod below all of them is in the
/// first.
#[must_use]
pub fn groups(periods: &[Period], pods: &[Running]) -> Vec<Group> {
    let mut groups: Vec<Group> = periods
        .iter()
        .map(|period| Group {
            seconds: period.seconds.max(0),
            pods: Vec::new(),
        })
        .collect();
    for pod in pods {
        let below = periods.partition_point(|period| period.priority <= pod.priority);
        if let Some(group) = groups.get_mut(below.saturating_sub(1)) {
            let seconds = pod.grace_seconds.clamp(0, group.seconds);
            group.pods.push((pod.uid.clone(), seconds));
        }
    }
    groups.retain(|group| !group.pods.is_empty());
    groups
}

/// The drop-in that lets logind wait long enough.
#[must_use]
pub fn logind_drop_in(delay_seconds: i64) -> String {
    format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={delay_seconds}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{GoDuration, ShutdownGracePeriodByPodPriority};

    fn config() -> KubeletConfiguration {
        KubeletConfiguration::default()
    }

    fn running(uid: &str, priority: i32, grace_seconds: i64) -> Running {
        Running {
            uid: uid.to_owned(),
            priority,
            grace_seconds,
        }
    }

    #[test]
    fn critical_pods_end_last() {
        let mut config = config();
        assert!(periods(&config).is_empty());
        config.shutdown_grace_period = GoDuration::from_secs(30);
        config.shutdown_grace_period_critical_pods = GoDuration::from_secs(10);
        let periods = periods(&config);
        assert_eq!(delay_seconds(&periods), 30);
        let pods = [
            running("dns", 2_000_001_000, 30),
            running("web", 0, 5),
            running("low", -5, 60),
        ];
        let groups = groups(&periods, &pods);
        assert_eq!(groups[0].pods, [("web".to_owned(), 5), ("low".to_owned(), 20)]);
        assert_eq!(groups[1].pods, [("dns".to_owned(), 10)]);
        assert_eq!(
            logind_drop_in(30),
            "# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n"
        );
    }

    #[test]
    fn priorities_have_periods_of_their_own_and_a_gate_turns_it_off() {
        let mut config = config();
        let given = |priority, seconds| ShutdownGracePeriodByPodPriority {
            priority,
            shutdown_grace_period_seconds: seconds,
        };
        config.shutdown_grace_period_by_pod_priority = vec![given(1000, 20), given(0, 60)];
        let found = periods(&config);
        assert_eq!(
            found[0],
            Period {
                priority: 0,
                seconds: 60
            }
        );
        let groups = groups(&found, &[running("a", 999, 100), running("b", 1000, 100)]);
        assert_eq!(
            groups.iter().map(|group| group.pods[0].1).collect::<Vec<_>>(),
            [60, 20]
        );
        config
            .feature_gates
            .insert("GracefulNodeShutdown".to_owned(), false);
        assert!(periods(&config).is_empty());
    }

    proptest! {
        #[test]
        fn everybody_ends_once_and_in_order(
            periods in proptest::collection::btree_map(-10..10_i32, 0..100_i64, 1..5),
            pods in proptest::collection::vec((-20..20_i32, 0..200_i64), 0..20),
        ) {
            let periods: Vec<Period> = periods.into_iter().map(|(priority, seconds)| Period { priority, seconds }).collect();
            let pods: Vec<Running> = pods.into_iter().enumerate().map(|(i, (p, g))| running(&i.to_string(), p, g)).collect();
            let groups = groups(&periods, &pods);
            let mut last = i32::MIN;
            let mut count = 0;
            for group in &groups {
                let of_group: Vec<i32> = group.pods.iter().map(|(uid, _)| pods[uid.parse::<usize>().unwrap()].priority).collect();
                prop_assert!(of_group.iter().all(|priority| *priority >= last));
                last = *of_group.iter().max().unwrap();
                count += of_group.len();
                prop_assert!(group.pods.iter().all(|(_, seconds)| *seconds <= group.seconds));
            }
            prop_assert_eq!(count, pods.len());
            prop_assert!(groups.iter().map(|group| group.seconds).sum::<i64>() <= delay_seconds(&periods));
        }
    }
}
