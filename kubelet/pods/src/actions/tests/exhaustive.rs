//! Every combination of a restart policy, an init container or sidecar, and two regular containers, against a model that is
//! written as tables.

use super::*;

const STATES: &str = "-CR01U";
const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

fn state(letter: char) -> Option<ContainerState> {
    match letter {
        '-' => None,
        'C' => Some(ContainerState::Created),
        'R' => Some(running()),
        '0' => Some(exited(0)),
        '1' => Some(exited(1)),
        'U' => Some(ContainerState::Unknown),
        _ => unreachable!("no such state"),
    }
}

/// What is expected of a pod: names started, names killed, and why all of it ends.
#[derive(Debug, PartialEq, Eq, Default)]
struct Expected {
    start: String,
    kill: String,
    end: Option<KillReason>,
}

/// The states in which a regular container is started.
fn starts(policy: &str) -> &'static str {
    match policy {
        "Always" => "-C01U",
        "OnFailure" => "-C1U",
        _ => "-CU",
    }
}

fn model(policy: &str, lead: Option<(bool, char)>, a: char, b: char) -> Expected {
    let mut expected = Expected::default();
    let initialized = (a, b) != ('-', '-');
    if let Some((is_sidecar, state)) = lead {
        let failed = !is_sidecar && !initialized && policy == "Never" && "1U".contains(state);
        if failed {
            return Expected {
                end: Some(KillReason::InitFailed),
                ..Expected::default()
            };
        }
        let restarted = if is_sidecar { "-C01U" } else { "-C1U" };
        if restarted.contains(state) && (is_sidecar || !initialized) {
            expected.start.push('l');
            if state == 'U' {
                expected.kill.push('l');
            }
        }
        let done = if is_sidecar { 'R' } else { '0' };
        if !initialized && state != done {
            return expected;
        }
    }
    let mut alive = false;
    for (name, state) in [('a', a), ('b', b)] {
        let start = starts(policy).contains(state);
        alive |= start || state == 'R';
        if start {
            expected.start.push(name);
        }
        if start && state == 'U' {
            expected.kill.push(name);
        }
    }
    if alive {
        expected
    } else {
        Expected {
            end: Some(KillReason::Completed),
            ..Expected::default()
        }
    }
}

#[test]
fn all_small_pods_are_planned_as_the_model_says() {
    let leads = STATES
        .chars()
        .flat_map(|state| [Some((false, state)), Some((true, state))])
        .chain([None]);
    let mut seen_cases = 0;
    for lead in leads {
        for policy in POLICIES {
            for a in STATES.chars() {
                for b in STATES.chars() {
                    check(policy, lead, a, b);
                    seen_cases += 1;
                }
            }
        }
    }
    assert_eq!(seen_cases, 13 * 3 * 36);
}

fn check(policy: &str, lead: Option<(bool, char)>, a: char, b: char) {
    let init = lead.map(|(is_sidecar, _)| if is_sidecar { sidecar("l") } else { container("l") });
    let it = pod(
        policy,
        init.into_iter().collect(),
        vec![container("a"), container("b")],
    );
    let states = [("l", lead.map_or('-', |(_, state)| state)), ("a", a), ("b", b)];
    let containers = states
        .into_iter()
        .filter_map(|(name, letter)| Some(seen(name, 0, state(letter)?)))
        .collect();
    let plan = plan(&it, &observed(containers));
    let names = |all: Vec<&str>| all.concat();
    let actual = Expected {
        start: names(plan.start.iter().map(|one| one.name.as_str()).collect()),
        kill: names(plan.kill.iter().map(|one| one.name.as_str()).collect()),
        end: plan.kill_pod,
    };
    assert_eq!(
        actual,
        model(policy, lead, a, b),
        "{policy} lead {lead:?} a {a} b {b}"
    );
    let created = states
        .iter()
        .filter(|(name, letter)| *letter == 'C' && actual.start.contains(name))
        .count();
    assert_eq!(plan.remove.len(), created, "{policy} lead {lead:?} a {a} b {b}");
}
