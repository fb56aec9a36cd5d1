use super::*;

fn mask(nodes: &[u32]) -> Option<NodeMask> {
    Some(nodes.iter().copied().collect())
}

fn hint(nodes: &[u32], preferred: bool) -> Hint {
    Hint {
        nodes: mask(nodes),
        preferred,
    }
}

fn wishes(all: &[(&str, Option<Vec<Hint>>)]) -> Wishes {
    all.iter()
        .map(|(name, hints)| ((*name).to_owned(), hints.clone()))
        .collect()
}

fn two() -> BTreeSet<u32> {
    BTreeSet::from([0, 1])
}

#[test]
fn hints_that_agree_stay_preferred() {
    let cpu = wishes(&[(
        "cpu",
        Some(vec![hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)]),
    )]);
    let gpu = wishes(&[("gpu", Some(vec![hint(&[1], true), hint(&[0, 1], false)]))]);
    assert_eq!(merge(&two(), &[cpu.clone(), gpu], false, None), hint(&[1], true));
    // Without wishes of the other, the lower node.
    assert_eq!(
        merge(&two(), &[cpu, wishes(&[("x", None)])], false, None),
        hint(&[0], true)
    );
    assert_eq!(merge(&two(), &[], false, None), hint(&[0, 1], true));
}

#[test]
fn policies_admit_what_upstream_s_do() {
    let apart = [
        wishes(&[("cpu", Some(vec![hint(&[0], true), hint(&[0, 1], false)]))]),
        wishes(&[("gpu", Some(vec![hint(&[1], true), hint(&[0, 1], false)]))]),
    ];
    let settings = |policy| Settings {
        policy,
        ..Settings::default()
    };
    let near = Nearness::new();
    assert_eq!(settings(Policy::None).admit(&two(), &apart, &near), Ok(None));
    assert!(settings(Policy::BestEffort).admit(&two(), &apart, &near).is_ok());
    let refused = settings(Policy::Restricted)
        .admit(&two(), &apart, &near)
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Resources cannot be allocated with Topology locality"
    );
    assert_eq!(
        settings(Policy::SingleNumaNode).admit(&two(), &apart, &near),
        Err(NotAligned)
    );
    let wide = [wishes(&[("cpu", Some(vec![hint(&[0, 1], true)]))])];
    assert_eq!(
        settings(Policy::Restricted).admit(&two(), &wide, &near),
        Ok(mask(&[0, 1]))
    );
    assert_eq!(
        settings(Policy::SingleNumaNode).admit(&two(), &wide, &near),
        Err(NotAligned)
    );
    let none_left = [wishes(&[("cpu", Some(Vec::new()))])];
    assert_eq!(
        settings(Policy::Restricted).admit(&two(), &none_left, &near),
        Err(NotAligned)
    );
    assert!(
        settings(Policy::BestEffort)
            .admit(&two(), &none_left, &near)
            .is_ok()
    );
    // A pod without wishes runs anywhere.
    assert_eq!(
        settings(Policy::SingleNumaNode).admit(&two(), &[], &near),
        Ok(None)
    );
}

#[test]
fn nearer_nodes_are_better_if_that_is_asked_for() {
    let nodes: BTreeSet<u32> = (0..4).collect();
    let all = [wishes(&[(
        "cpu",
        Some(vec![hint(&[0, 1], true), hint(&[0, 2], true)]),
    )])];
    let mut near = Nearness::new();
    near.insert((0, 1), 30);
    near.insert((1, 0), 30);
    near.insert((0, 2), 20);
    near.insert((2, 0), 20);
    assert_eq!(merge(&nodes, &all, false, None), hint(&[0, 1], true));
    assert_eq!(merge(&nodes, &all, false, Some(&near)), hint(&[0, 2], true));
}

#[test]
fn settings_are_read_and_large_machines_refused() {
    let none = BTreeMap::new();
    assert!(Settings::parse("restricted", "pod", &none, 2).is_ok());
    assert!(Settings::parse("some", "pod", &none, 2).is_err());
    assert!(Settings::parse("none", "all", &none, 2).is_err());
    assert_eq!(
        Settings::parse("restricted", "pod", &none, 9)
            .unwrap_err()
            .to_string(),
        "unsupported on machines with more than 8 NUMA Nodes"
    );
    let more = BTreeMap::from([("max-allowable-numa-nodes".to_owned(), "16".to_owned())]);
    assert!(Settings::parse("restricted", "pod", &more, 9).is_ok());
    let other = BTreeMap::from([("other".to_owned(), "16".to_owned())]);
    assert!(Settings::parse("restricted", "pod", &other, 1).is_err());
}

#[test]
fn the_smallest_sets_that_could_ever_serve_are_preferred() {
    let nodes: BTreeSet<u32> = (0..3).collect();
    let hints = aligned_hints(
        &nodes,
        |mask| mask.len() >= 2,
        |mask| mask.has(2) && mask.len() >= 2,
    );
    assert_eq!(
        hints,
        [hint(&[0, 2], true), hint(&[1, 2], true), hint(&[0, 1, 2], false)]
    );
}
