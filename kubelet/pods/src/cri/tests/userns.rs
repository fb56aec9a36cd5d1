//! Ranges of user namespaces.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::cri::userns::*;

fn whole() -> UserNamespaces {
    UserNamespaces::new(RANGE, u32::MAX - RANGE + 1, 1024)
}

#[test]
fn ranges_are_kept_and_given_back() {
    let mut all = whole();
    let a = all.allocate("a").unwrap();
    assert_eq!(
        a,
        IdRange {
            first: 65536,
            length: 65536
        }
    );
    assert_eq!(all.allocate("a"), Ok(a));
    assert_eq!(all.allocate("b").unwrap().first, 131_072);
    all.release("a");
    all.release("a");
    assert_eq!(all.range("a"), None);
    assert_eq!(all.allocate("c"), Ok(a));
    assert_eq!(all.pods().collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn records_that_do_not_fit_are_refused_in_upstreams_words() {
    let mut all = whole();
    let record = |all: &mut UserNamespaces, pod: &str, first, length| {
        all.record(pod, IdRange { first, length })
            .map_err(|error| error.to_string())
    };
    assert_eq!(record(&mut all, "a", 65536 * 3, RANGE), Ok(()));
    assert_eq!(record(&mut all, "a", 65536 * 3, RANGE), Ok(()));
    assert_eq!(
        record(&mut all, "a", 65536, 1).unwrap_err(),
        "wrong user namespace length 1"
    );
    assert_eq!(
        record(&mut all, "a", 5, RANGE).unwrap_err(),
        "wrong user namespace offset specified 5"
    );
    assert_eq!(
        record(&mut all, "a", 65536, RANGE).unwrap_err(),
        "different user namespace range already used by pod \"a\""
    );
    assert_eq!(
        record(&mut all, "b", 65536 * 3, RANGE).unwrap_err(),
        "range picked for pod \"b\" already taken"
    );
    assert!(
        record(&mut all, "b", 0, RANGE).is_err(),
        "the node's own IDs are nobody's"
    );
}

#[test]
fn there_are_no_more_than_fit_or_are_allowed() {
    let mut few = UserNamespaces::new(100_000, 65536 * 3, 10);
    assert_eq!(
        few.allocate("a").unwrap().first,
        131_072,
        "rounded up to where a range starts"
    );
    few.allocate("b").unwrap();
    assert_eq!(few.allocate("c"), Err(UsernsError::Full));
    let mut limited = UserNamespaces::new(RANGE, u32::MAX - RANGE, 1);
    limited.allocate("a").unwrap();
    assert_eq!(limited.allocate("b"), Err(UsernsError::TooMany { limit: 1 }));
    assert_eq!(
        UserNamespaces::new(0, 65535, 1).allocate("a"),
        Err(UsernsError::Full)
    );
}

proptest! {
    #[test]
    fn no_two_pods_share_ids_and_records_restore_all(steps in prop::collection::vec((0_u8..6, any::<bool>()), 0..60)) {
        let mut ranges = UserNamespaces::new(RANGE, RANGE * 4, 8);
        let mut model: BTreeMap<String, IdRange> = BTreeMap::new();
        for (pod, add) in steps {
            let pod = format!("p{pod}");
            if !add {
                ranges.release(&pod);
                model.remove(&pod);
            } else if let Ok(range) = ranges.allocate(&pod) {
                let before = model.insert(pod, range);
                prop_assert!(before.is_none_or(|before| before == range));
            } else {
                prop_assert_eq!(model.len(), 4);
            }
            let mut firsts: Vec<u32> = model.values().map(|range| range.first).collect();
            firsts.sort_unstable();
            firsts.dedup();
            prop_assert_eq!(firsts.len(), model.len());
        }
        let mut restored = UserNamespaces::new(RANGE, RANGE * 4, 8);
        for (pod, range) in &model {
            restored.record(pod, *range).unwrap();
        }
        prop_assert_eq!(restored, ranges);
    }
}
