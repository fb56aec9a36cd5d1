//! Plans for small pods.

mod exhaustive;
mod simulation;

use super::stop::{grace_period, termination_order};
use super::*;
use crate::backoff::Delays;
use crate::fixtures::*;
use crate::probe::{ProbeKind, ProbeResult};
use controlplane_api::k8s_openapi::api::core::v1::{ContainerResizePolicy, EphemeralContainer, Probe};

/// A plan with nothing special: no probes, no back-off, nothing said before.
fn plan(pod: &Pod, observed: &ObservedPod) -> PodActions {
    plan_with(
        pod,
        observed,
        &ProbeResults::default(),
        &RestartBackoff::default(),
        None,
        at(100),
    )
}

fn plan_with(
    pod: &Pod,
    observed: &ObservedPod,
    probes: &ProbeResults,
    restarts: &RestartBackoff,
    previous: Option<&PodStatus>,
    now: Timestamp,
) -> PodActions {
    compute_pod_actions(&Inputs {
        pod,
        observed,
        previous,
        probes,
        restarts,
        resizable: true,
        now,
    })
}

fn started(plan: &PodActions) -> Vec<(&str, u32)> {
    plan.start
        .iter()
        .map(|one| (one.name.as_str(), one.attempt))
        .collect()
}

fn killed(plan: &PodActions) -> Vec<(&str, KillContainerReason)> {
    plan.kill
        .iter()
        .map(|one| (one.id.as_str(), one.reason))
        .collect()
}

fn keep() -> SandboxAction {
    SandboxAction::Keep {
        id: "sandbox-0".to_owned(),
    }
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_first_containers() {
    let all = pod("Always", Vec::new(), vec![container("a"), container("b")]);
    let first = plan(&all, &ObservedPod::default());
    assert_eq!(
        first.sandbox,
        SandboxAction::Create {
            attempt: 0,
            replaces: None
        }
    );
    assert_eq!(
        (first.kill_pod, started(&first)),
        (None, vec![("a", 0), ("b", 0)])
    );
    let with_init = pod("Always", vec![container("i"), sidecar("s")], vec![container("a")]);
    assert_eq!(started(&plan(&with_init, &ObservedPod::default())), [("i", 0)]);
}

#[test]
fn a_sandbox_is_replaced_when_it_cannot_be_used() {
    let it = pod("Always", vec![container("i")], vec![container("a")]);
    let containers = vec![seen("a", 0, running()), seen("i", 0, exited(0))];
    let good = observed(containers.clone());
    assert!(plan(&it, &good).is_empty());
    let mut cases = [good.clone(), good.clone(), good.clone(), good];
    cases[0].sandboxes[0].ready = false;
    cases[1].sandboxes[0].ips.clear();
    cases[2].sandboxes[0].host_network = Some(true);
    cases[3].sandboxes.push(ObservedSandbox {
        id: "older".to_owned(),
        ..sandbox(0)
    });
    for case in cases {
        let plan = plan(&it, &case);
        let replaces = Some("sandbox-0".to_owned());
        assert_eq!(plan.sandbox, SandboxAction::Create { attempt: 1, replaces });
        assert_eq!(plan.kill_pod, Some(KillReason::SandboxChanged));
        assert_eq!(
            (started(&plan), plan.remove.clone()),
            (vec![("i", 1)], vec!["i-0".to_owned()])
        );
    }
    let mut hosts = pod("Always", Vec::new(), vec![container("a")]);
    spec(&mut hosts).host_network = Some(true);
    let mut on_host = observed(vec![seen("a", 0, running())]);
    on_host.sandboxes[0].ips.clear();
    on_host.sandboxes[0].host_network = Some(true);
    assert!(plan(&hosts, &on_host).is_empty());
}

#[test]
fn a_pod_that_is_done_gets_no_new_sandbox() {
    let cases = [
        ("Never", 1, false),
        ("Never", 0, false),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
    ];
    for (policy, code, again) in cases {
        let it = pod(policy, Vec::new(), vec![container("a")]);
        let mut gone = observed(vec![seen("a", 0, exited(code))]);
        gone.sandboxes[0].ready = false;
        let plan = plan(&it, &gone);
        assert_eq!(
            matches!(plan.sandbox, SandboxAction::Create { .. }),
            again,
            "{policy} {code}"
        );
        assert_eq!(plan.is_empty(), !again, "{policy} {code}");
    }
    // Init containers that ran don't run again where nothing may.
    let it = pod("Never", vec![container("i")], vec![container("a")]);
    let mut gone = observed(vec![seen("i", 0, exited(0))]);
    gone.sandboxes[0].ready = false;
    assert!(plan(&it, &gone).is_empty());
    // But what has never run does.
    gone.containers.clear();
    assert_eq!(started(&plan(&it, &gone)), [("i", 0)]);
}

#[test]
fn in_a_new_sandbox_only_what_is_to_run_again_starts() {
    let it = pod(
        "OnFailure",
        Vec::new(),
        vec![container("a"), container("b"), container("c")],
    );
    let mut gone = observed(vec![
        seen("a", 0, exited(0)),
        seen("b", 2, exited(1)),
        seen("c", 0, running()),
    ]);
    gone.sandboxes[0].ready = false;
    assert_eq!(started(&plan(&it, &gone)), [("b", 3), ("c", 1)]);
}

#[test]
fn a_finished_pod_ends_with_its_sidecars_and_then_stays_so() {
    let it = pod("OnFailure", vec![sidecar("s")], vec![container("a")]);
    let mut finished = observed(vec![seen("a", 0, exited(0)), seen("s", 0, running())]);
    let end = plan(&it, &finished);
    assert_eq!(
        (end.kill_pod, end.sandbox.clone()),
        (Some(KillReason::Completed), SandboxAction::None)
    );
    assert_eq!((end.start, end.kill), (Vec::new(), Vec::new()));
    finished.sandboxes[0].ready = false;
    finished.containers[1].state = exited(137);
    assert!(plan(&it, &finished).is_empty());
}

#[test]
fn a_startup_probe_holds_back_the_next_container() {
    let slow = Container {
        startup_probe: probe(),
        ..sidecar("s")
    };
    let it = pod("Always", vec![slow, container("i")], vec![container("a")]);
    let up = observed(vec![seen("s", 0, running())]);
    let with = |result: Option<ProbeResult>| {
        let mut probes = ProbeResults::default();
        if let Some(result) = result {
            probes.set("s-0", ProbeKind::Startup, result);
        }
        plan_with(&it, &up, &probes, &RestartBackoff::default(), None, at(100))
    };
    assert!(with(None).is_empty());
    assert!(with(Some(ProbeResult::Unknown)).is_empty());
    assert_eq!(started(&with(Some(ProbeResult::Success))), [("i", 0)]);
    let failed = with(Some(ProbeResult::Failure));
    assert_eq!(killed(&failed), [("s-0", KillContainerReason::StartupProbe)]);
    assert_eq!(failed.kill[0].message, "Init container s failed startup probe");
    assert_eq!(started(&failed), [("s", 1)]);
}

#[test]
fn failed_probes_end_containers_with_their_own_grace() {
    let alive = Container {
        liveness_probe: Some(Probe {
            termination_grace_period_seconds: Some(7),
            ..Default::default()
        }),
        ..container("a")
    };
    let mut probes = ProbeResults::default();
    probes.set("a-0", ProbeKind::Liveness, ProbeResult::Failure);
    let up = observed(vec![seen("a", 0, running())]);
    for (policy, again) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let it = pod(policy, Vec::new(), vec![alive.clone()]);
        let plan = plan_with(&it, &up, &probes, &RestartBackoff::default(), None, at(100));
        let order = &plan.kill[0];
        assert_eq!(
            (order.reason, order.grace),
            (KillContainerReason::LivenessProbe, Some(7))
        );
        let ending = if again { ", will be restarted" } else { "" };
        assert_eq!(
            order.message,
            format!("Container a failed liveness probe{ending}")
        );
        assert_eq!(plan.start.len(), usize::from(again));
        assert_eq!(plan.kill_pod, None);
        assert_eq!(grace_period(&it, Some(&alive), Some(order.reason), None), 7);
    }
}

#[test]
fn a_changed_image_makes_a_new_container_whatever_the_policy() {
    let it = pod(
        "Never",
        Vec::new(),
        vec![Container {
            image: Some("image:2".to_owned()),
            ..container("a")
        }],
    );
    let plan = plan(&it, &observed(vec![seen("a", 0, running())]));
    assert_eq!(killed(&plan), [("a-0", KillContainerReason::DefinitionChanged)]);
    assert_eq!(
        plan.kill[0].message,
        "Container a definition changed, will be restarted"
    );
    assert_eq!(started(&plan), [("a", 1)]);
}

#[test]
fn ephemeral_containers_start_once() {
    let mut it = pod("Always", vec![container("i")], vec![container("a")]);
    let debug = EphemeralContainer {
        name: "debug".to_owned(),
        ..Default::default()
    };
    spec(&mut it).ephemeral_containers = Some(vec![debug]);
    // Even while init containers run.
    let during = plan(&it, &observed(vec![seen("i", 0, running())]));
    assert_eq!(during.start[0].kind, ContainerKind::Ephemeral);
    assert_eq!(started(&during), [("debug", 0)]);
    let ended = observed(vec![seen("debug", 0, exited(1)), seen("i", 0, running())]);
    assert!(plan(&it, &ended).is_empty());
}

#[test]
fn crashes_wait_out_their_back_off() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let crashed = observed(vec![seen("a", 1, exited_at(1, 100))]);
    let mut restarts = RestartBackoff::new(Delays::default());
    restarts.started(BackoffKey::of(&it, &container("a")), at(50), at(60));
    let waits = plan_with(&it, &crashed, &ProbeResults::default(), &restarts, None, at(104));
    assert!(waits.is_empty());
    let why = &waits.waiting["a"];
    assert_eq!(
        (why.reason.as_str(), why.until),
        ("CrashLoopBackOff", Some(at(110)))
    );
    assert_eq!(
        why.message,
        "back-off 10s restarting failed container=a pod=pod_space(uid)"
    );
    assert_eq!(waits.wake_at, Some(at(110)));
    let starts = plan_with(&it, &crashed, &ProbeResults::default(), &restarts, None, at(110));
    assert_eq!(started(&starts), [("a", 2)]);
    assert_eq!(starts.start[0].after, Some(at(100)));
}

#[test]
fn a_rule_restarts_all_containers_in_place() {
    let trigger = Container {
        restart_policy_rules: Some(vec![rule("RestartAllContainers", 42)]),
        ..container("t")
    };
    let it = pod(
        "Never",
        vec![container("i"), sidecar("s")],
        vec![trigger, container("a")],
    );
    let mut now = observed(vec![
        seen("t", 0, exited(42)),
        seen("a", 0, running()),
        seen("s", 0, running()),
        seen("i", 0, exited(0)),
    ]);
    let reset = plan(&it, &now);
    assert_eq!(reset.sandbox, keep());
    assert_eq!(
        killed(&reset),
        [
            ("s-0", KillContainerReason::RestartAll),
            ("a-0", KillContainerReason::RestartAll)
        ]
    );
    assert!(reset.kill.iter().all(|one| !one.hooks));
    // The one that set it off goes last.
    assert_eq!(reset.remove, ["i-0", "s-0", "a-0", "t-0"]);
    assert!(reset.start.is_empty());
    // Half done: the one that set it off, older ends of it or not, carries it on.
    now.containers.retain(|one| one.name == "t" || one.name == "a");
    now.containers[1].state = exited(143);
    now.containers.push(ObservedContainer {
        id: "older".to_owned(),
        ..seen("t", 0, exited(0))
    });
    let half = plan(&it, &now);
    assert_eq!(
        (half.remove, half.start.len()),
        (vec!["older".into(), "a-0".into(), "t-0".into()], 0)
    );
    // In another sandbox all begins anew anyway.
    now.containers.truncate(1);
    now.sandboxes.insert(
        0,
        ObservedSandbox {
            id: "new".to_owned(),
            ..sandbox(1)
        },
    );
    now.sandboxes[1].ready = false;
    assert_eq!(started(&plan(&it, &now)), [("i", 0)]);
    now.sandboxes.remove(0);
    now.sandboxes[0].ready = true;
    let mut told = PodStatus::default();
    // Done: begins anew, with counts that go on.
    now.containers.clear();
    told.init_container_statuses = Some(vec![
        controlplane_api::k8s_openapi::api::core::v1::ContainerStatus {
            name: "i".to_owned(),
            restart_count: 1,
            ..Default::default()
        },
    ]);
    let anew = plan_with(
        &it,
        &now,
        &ProbeResults::default(),
        &RestartBackoff::default(),
        Some(&told),
        at(100),
    );
    assert_eq!(started(&anew), [("i", 1)]);
}

#[test]
fn resizes_are_in_place_or_by_a_new_container() {
    let wanted = asks(
        container("a"),
        &[("cpu", "500m")],
        &[("cpu", "1"), ("memory", "1Gi")],
    );
    let in_force = |cpu: &str, memory: &str| {
        let now = asks(
            container("a"),
            &[("cpu", "500m")],
            &[("cpu", cpu), ("memory", memory)],
        );
        let mut one = seen("a", 0, running());
        one.resources = now.resources;
        observed(vec![one])
    };
    let it = pod("Always", Vec::new(), vec![wanted.clone()]);
    assert!(plan(&it, &in_force("1000m", "1024Mi")).is_empty());
    let cpu = plan(&it, &in_force("2", "1Gi"));
    assert_eq!(
        (cpu.resize[0].cpu, cpu.resize[0].memory, cpu.kill.len()),
        (true, false, 0)
    );
    assert_eq!(cpu.resize[0].resources, wanted.resources.clone().unwrap());
    let policy = ContainerResizePolicy {
        resource_name: "memory".to_owned(),
        restart_policy: "RestartContainer".to_owned(),
    };
    let strict = Container {
        resize_policy: Some(vec![policy]),
        ..wanted
    };
    let it = pod("Always", Vec::new(), vec![strict]);
    let memory = plan(&it, &in_force("2", "2Gi"));
    assert_eq!(killed(&memory), [("a-0", KillContainerReason::Resize)]);
    assert_eq!((started(&memory), memory.resize.len()), (vec![("a", 1)], 0));
    assert_eq!(plan(&it, &in_force("2", "1Gi")).resize.len(), 1);
}

#[test]
fn older_instances_end() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let twice = observed(vec![seen("a", 1, running()), seen("a", 0, running())]);
    let plan_of_two = plan(&it, &twice);
    assert_eq!(killed(&plan_of_two), [("a-0", KillContainerReason::Superseded)]);
    assert!(plan_of_two.start.is_empty());
    let mut elsewhere = observed(vec![seen("a", 0, running())]);
    elsewhere.containers[0].sandbox_id = "older".to_owned();
    let moved = plan(&it, &elsewhere);
    assert_eq!((killed(&moved).len(), started(&moved)), (1, vec![("a", 1)]));
}

#[test]
fn nothing_starts_in_a_deleted_pod() {
    let mut it = pod("Always", Vec::new(), vec![container("a")]);
    it.metadata.deletion_timestamp =
        Some(controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    assert!(plan(&it, &ObservedPod::default()).is_empty());
    assert!(plan(&it, &observed(vec![seen("a", 0, exited(1))])).is_empty());
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let it = pod(
        "Always",
        vec![sidecar("s1"), container("i"), sidecar("s2")],
        vec![container("a"), container("b")],
    );
    let all = observed(vec![
        seen("a", 0, running()),
        seen("b", 0, exited(0)),
        seen("s1", 0, running()),
        seen("s2", 0, ContainerState::Unknown),
        seen("i", 0, exited(0)),
        seen("stranger", 0, running()),
    ]);
    let order: Vec<Vec<_>> = termination_order(&it, &all)
        .into_iter()
        .map(|step| step.containers.into_iter().map(|(id, _)| id).collect())
        .collect();
    assert_eq!(order, [vec!["a-0", "stranger-0"], vec!["s2-0"], vec!["s1-0"]]);
    let nameless = termination_order(&Pod::default(), &all);
    assert_eq!((nameless.len(), nameless[0].containers.len()), (1, 4));
}

#[test]
fn grace_has_an_order_and_a_least() {
    let mut it = pod("Always", Vec::new(), vec![container("a")]);
    assert_eq!(grace_period(&it, None, None, None), 30);
    spec(&mut it).termination_grace_period_seconds = Some(0);
    assert_eq!(grace_period(&it, None, None, None), 2);
    spec(&mut it).termination_grace_period_seconds = Some(60);
    let probed = Container {
        startup_probe: Some(Probe {
            termination_grace_period_seconds: Some(5),
            ..Default::default()
        }),
        ..container("a")
    };
    let reason = Some(KillContainerReason::StartupProbe);
    assert_eq!(grace_period(&it, Some(&probed), reason, None), 5);
    assert_eq!(
        grace_period(&it, Some(&probed), Some(KillContainerReason::LivenessProbe), None),
        60
    );
    assert_eq!(grace_period(&it, Some(&probed), reason, Some(9)), 9);
}
