//! Which sandboxes and containers a list RPC wants.

use std::collections::HashMap;

use cri_api::v1;

use super::{ContainerRecord, SandboxPhase, SandboxRecord};
use crate::status;

/// Whether all wanted labels are there with these values.
pub fn labels_match(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `id` begins as wanted; nothing wanted fits all.
fn id_matches(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

/// Whether a sandbox is to be listed. One that is being made never is.
pub fn sandbox(filter: Option<&v1::PodSandboxFilter>, record: &SandboxRecord) -> bool {
    if record.phase == SandboxPhase::Creating {
        return false;
    }
    filter.is_none_or(|f| {
        id_matches(&f.id, record.id.as_str())
            && f.state
                .is_none_or(|wanted| wanted.state == status::sandbox_state(record.phase) as i32)
            && labels_match(&f.label_selector, &record.config.labels)
    })
}

/// Whether a container is to be listed. One that is being made never is.
pub fn container(filter: Option<&v1::ContainerFilter>, record: &ContainerRecord) -> bool {
    let Some(state) = status::container_state(&record.phase) else {
        return false;
    };
    filter.is_none_or(|f| {
        id_matches(&f.id, record.id.as_str())
            && id_matches(&f.pod_sandbox_id, record.sandbox.as_str())
            && f.state.is_none_or(|wanted| wanted.state == state as i32)
            && labels_match(&f.label_selector, &record.config.labels)
    })
}

/// Whether a container's statistics are wanted.
pub fn container_stats(filter: Option<&v1::ContainerStatsFilter>, record: &ContainerRecord) -> bool {
    filter.is_none_or(|f| {
        id_matches(&f.id, record.id.as_str())
            && id_matches(&f.pod_sandbox_id, record.sandbox.as_str())
            && labels_match(&f.label_selector, &record.config.labels)
    })
}

/// Whether a sandbox's statistics are wanted.
pub fn sandbox_stats(filter: Option<&v1::PodSandboxStatsFilter>, record: &SandboxRecord) -> bool {
    filter.is_none_or(|f| {
        id_matches(&f.id, record.id.as_str()) && labels_match(&f.label_selector, &record.config.labels)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::{ContainerPhase, testing};

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn sandboxes_by_id_state_and_labels() {
        let record = testing::sandbox(0x12);
        let fits = |f: v1::PodSandboxFilter| sandbox(Some(&f), &record);
        let state = |state| Some(v1::PodSandboxStateValue { state });
        assert!(sandbox(None, &record));
        assert!(fits(v1::PodSandboxFilter::default()));
        assert!(fits(v1::PodSandboxFilter {
            id: "1212".into(),
            state: state(0),
            label_selector: labels(&[("app", "a18")]),
        }));
        assert!(!fits(v1::PodSandboxFilter {
            id: "13".into(),
            ..Default::default()
        }));
        assert!(!fits(v1::PodSandboxFilter {
            state: state(1),
            ..Default::default()
        }));
        assert!(!fits(v1::PodSandboxFilter {
            label_selector: labels(&[("app", "a18"), ("tier", "x")]),
            ..Default::default()
        }));
        let mut creating = testing::sandbox(1);
        creating.phase = SandboxPhase::Creating;
        assert!(!sandbox(None, &creating));
    }

    #[test]
    fn containers_by_id_sandbox_state_and_labels() {
        let mut record = testing::container(0x12, 0x34);
        let fits = |f: v1::ContainerFilter, r: &ContainerRecord| container(Some(&f), r);
        let in_sandbox = v1::ContainerFilter {
            pod_sandbox_id: "34".repeat(32),
            state: Some(v1::ContainerStateValue { state: 0 }),
            ..Default::default()
        };
        assert!(fits(in_sandbox.clone(), &record));
        record.phase = ContainerPhase::Running {
            pid: 1,
            started_at: 1,
        };
        assert!(!fits(in_sandbox, &record));
        assert!(!fits(
            v1::ContainerFilter {
                pod_sandbox_id: "35".into(),
                ..Default::default()
            },
            &record
        ));
        record.phase = ContainerPhase::Creating;
        assert!(!container(None, &record));
    }

    proptest! {
        #[test]
        fn a_selector_made_of_the_labels_themselves_fits(pairs in proptest::collection::hash_map(".*", ".*", 0..5)) {
            prop_assert!(labels_match(&pairs, &pairs));
            prop_assert!(labels_match(&HashMap::new(), &pairs));
            let mut more = pairs.clone();
            more.insert("one more".into(), String::new());
            if !pairs.contains_key("one more") {
                prop_assert!(!labels_match(&more, &pairs));
            }
        }
    }
}
