//! Restart policies and rules.

use super::*;
use crate::fixtures::{container, pod, rule, sidecar};

fn after(policy: &str, container: &Container, kind: ContainerKind, code: i32) -> AfterExit {
    after_exit(
        &pod(policy, Vec::new(), vec![container.clone()]),
        container,
        kind,
        code,
    )
}

#[test]
fn policies_decide_by_kind_and_exit_code() {
    use AfterExit::{Restart, Stay};
    use ContainerKind::{Ephemeral, Init, Regular, Sidecar};
    let plain = container("a");
    let table = [
        ("Always", Regular, Restart, Restart),
        ("OnFailure", Regular, Stay, Restart),
        ("Never", Regular, Stay, Stay),
        ("Always", Init, Stay, Restart),
        ("OnFailure", Init, Stay, Restart),
        ("Never", Init, Stay, Stay),
        ("Never", Sidecar, Restart, Restart),
        ("Always", Ephemeral, Stay, Stay),
    ];
    for (policy, kind, well, ill) in table {
        assert_eq!(
            (after(policy, &plain, kind, 0), after(policy, &plain, kind, 3)),
            (well, ill),
            "{policy} {kind:?}"
        );
    }
}

#[test]
fn a_containers_own_policy_and_rules_come_before_the_pods() {
    let own = Container {
        restart_policy: Some("Never".to_owned()),
        ..container("a")
    };
    assert_eq!(after("Always", &own, ContainerKind::Regular, 1), AfterExit::Stay);
    let ruled = Container {
        restart_policy_rules: Some(vec![rule("Restart", 42), rule("RestartAllContainers", 43)]),
        ..own
    };
    let ends = [41, 42, 43].map(|code| after("Always", &ruled, ContainerKind::Regular, code));
    assert_eq!(ends, [AfterExit::Stay, AfterExit::Restart, AfterExit::RestartAll]);
    let mut all_but = rule("Restart", 0);
    all_but.exit_codes.as_mut().unwrap().operator = "NotIn".to_owned();
    let all_but = Container {
        restart_policy_rules: Some(vec![all_but]),
        ..ruled
    };
    let ends = [0, 9].map(|code| after("Always", &all_but, ContainerKind::Regular, code));
    assert_eq!(ends, [AfterExit::Stay, AfterExit::Restart]);
}

#[test]
fn containers_are_found_in_all_lists() {
    let mut pod = pod("Always", vec![container("i"), sidecar("s")], vec![container("r")]);
    let ephemeral = EphemeralContainer {
        name: "e".to_owned(),
        image: Some("debug".to_owned()),
        stdin: Some(true),
        ..Default::default()
    };
    crate::fixtures::spec(&mut pod).ephemeral_containers = Some(vec![ephemeral]);
    let kinds = ["i", "s", "r", "e"].map(|name| find(&pod, name).unwrap().0);
    assert_eq!(
        kinds,
        [
            ContainerKind::Init,
            ContainerKind::Sidecar,
            ContainerKind::Regular,
            ContainerKind::Ephemeral
        ]
    );
    let ephemeral = find(&pod, "e").unwrap().1;
    assert_eq!(
        (ephemeral.image.as_deref(), ephemeral.stdin),
        (Some("debug"), Some(true))
    );
    assert_eq!(find(&pod, "x"), None);
}
