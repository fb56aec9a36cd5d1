//! Statuses of small pods.

use controlplane_api::k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateTerminated, ContainerStatus, EphemeralContainer,
    PodReadinessGate, VolumeMount,
};
use controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::*;
use crate::observed::{ContainerState, ObservedContainer};
use crate::probe::{ProbeKind, ProbeResult};

/// The inputs of a status, to be changed and then asked.
struct Case {
    pod: Pod,
    observed: ObservedPod,
    probes: ProbeResults,
    waiting: BTreeMap<String, Waiting>,
    previous: Option<PodStatus>,
    stage: Stage,
    end: Option<StatusOverride>,
    resize: ResizeStatus,
    host_ips: Vec<IpAddr>,
    now: i64,
}

impl Case {
    fn new(pod: Pod, containers: Vec<ObservedContainer>) -> Self {
        Self {
            pod,
            observed: observed(containers),
            probes: ProbeResults::default(),
            waiting: BTreeMap::new(),
            previous: None,
            stage: Stage::Syncing,
            end: None,
            resize: ResizeStatus::default(),
            host_ips: vec!["192.168.0.2".parse().unwrap()],
            now: 100,
        }
    }

    fn status(&self) -> PodStatus {
        pod_status(&StatusInputs {
            pod: &self.pod,
            observed: &self.observed,
            probes: &self.probes,
            waiting: &self.waiting,
            previous: self.previous.as_ref(),
            stage: self.stage,
            end: self.end.as_ref(),
            resize: &self.resize,
            host_ips: &self.host_ips,
            runtime: "orlop",
            recursive_read_only: true,
            now: at(self.now),
        })
    }

    /// Makes a status that is the previous one from now on.
    fn settle(&mut self) -> PodStatus {
        let status = self.status();
        self.previous = Some(status.clone());
        status
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }
}

/// `status reason message` of a condition.
fn condition(status: &PodStatus, type_: &str) -> String {
    let all = status.conditions.as_ref().unwrap();
    let Some(one) = all.iter().find(|one| one.type_ == type_) else {
        return "none".to_owned();
    };
    let parts = [Some(one.status.clone()), one.reason.clone(), one.message.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn regular(status: &PodStatus, place: usize) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[place]
}

fn init(status: &PodStatus, place: usize) -> &ContainerStatus {
    &status.init_container_statuses.as_ref().unwrap()[place]
}

fn why(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap();
    match (state.waiting, state.terminated) {
        (Some(waiting), _) => format!("waiting {}", waiting.reason.unwrap_or_default()),
        (_, Some(ended)) => format!("ended {} {}", ended.exit_code, ended.reason.unwrap_or_default()),
        _ => "running".to_owned(),
    }
}

fn last(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

#[test]
fn a_pod_comes_up() {
    let it = pod("Always", vec![container("i"), sidecar("s")], vec![container("a")]);
    let mut case = Case::new(it, Vec::new());
    case.observed.sandboxes.clear();
    let new = case.settle();
    assert_eq!(
        (new.phase.as_deref(), new.pod_ip.as_deref()),
        (Some("Pending"), None)
    );
    assert_eq!(
        (why(init(&new, 0)), why(regular(&new, 0))),
        ("waiting PodInitializing".into(), "waiting PodInitializing".into())
    );
    assert_eq!(
        condition(&new, "Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [i s]"
    );
    assert_eq!(
        condition(&new, "Ready"),
        "False ContainersNotReady containers with unready status: [s a]"
    );
    assert_eq!(
        (
            condition(&new, "PodScheduled"),
            condition(&new, "PodReadyToStartContainers")
        ),
        ("True".into(), "False PodSandboxNotReady".into())
    );
    assert_eq!(new.start_time, Some(Time(at(100))));

    case.observed = observed(vec![seen("i", 0, running())]);
    case.now = 101;
    let initializing = case.settle();
    assert_eq!(
        (initializing.phase.as_deref(), initializing.pod_ip.as_deref()),
        (Some("Pending"), Some("10.0.0.7"))
    );
    assert_eq!(condition(&initializing, "PodReadyToStartContainers"), "True");
    assert_eq!(
        (why(init(&initializing, 0)), init(&initializing, 0).started),
        ("running".into(), Some(true))
    );
    assert!(!init(&initializing, 0).ready);

    case.observed = observed(vec![seen("s", 0, running()), seen("i", 0, exited(0))]);
    case.now = 102;
    let initialized = case.settle();
    assert_eq!(initialized.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&initialized, "Initialized"), "True");
    assert!(init(&initialized, 0).ready && init(&initialized, 1).ready);

    case.observed.containers.insert(0, seen("a", 0, running()));
    case.now = 103;
    let up = case.settle();
    assert_eq!(
        (up.phase.as_deref(), condition(&up, "Ready")),
        (Some("Running"), "True".to_owned())
    );
    assert_eq!(regular(&up, 0).container_id.as_deref(), Some("orlop://a-0"));
    // Times of transitions are those of the change.
    let times = |status: &PodStatus| -> Vec<(String, i64)> {
        let all = status.conditions.iter().flatten();
        all.map(|one| {
            (
                one.type_.clone(),
                one.last_transition_time.as_ref().unwrap().0.as_second() - at(0).as_second(),
            )
        })
        .collect()
    };
    case.now = 200;
    assert_eq!(times(&case.settle()), times(&up));
    let expected = [
        ("PodReadyToStartContainers", 101),
        ("Initialized", 102),
        ("Ready", 103),
        ("ContainersReady", 103),
        ("PodScheduled", 100),
    ];
    assert_eq!(times(&up), expected.map(|(type_, when)| (type_.to_owned(), when)));
    assert_eq!(up.start_time, Some(Time(at(100))));
}

#[test]
fn phases_follow_from_states_and_policies() {
    // Letters: R running, 0 and 1 ended, - never started.
    let table = [
        ("Always", "RR", "Running"),
        ("Always", "R1", "Running"),
        ("Always", "11", "Running"),
        ("Always", "00", "Running"),
        ("Always", "R-", "Pending"),
        ("OnFailure", "00", "Succeeded"),
        ("OnFailure", "01", "Running"),
        ("OnFailure", "R1", "Running"),
        ("Never", "00", "Succeeded"),
        ("Never", "01", "Failed"),
        ("Never", "R1", "Running"),
        ("Never", "0-", "Pending"),
    ];
    for (policy, states, phase) in table {
        let it = pod(policy, Vec::new(), vec![container("a"), container("b")]);
        let containers = ["a", "b"]
            .into_iter()
            .zip(states.chars())
            .filter_map(|(name, letter)| {
                Some(seen(
                    name,
                    0,
                    match letter {
                        'R' => running(),
                        '0' => exited(0),
                        '1' => exited(1),
                        _ => return None,
                    },
                ))
            });
        let containers: Vec<_> = containers.collect();
        assert_eq!(Case::new(it, containers).phase(), phase, "{policy} {states}");
    }
}

#[test]
fn a_failed_init_container_fails_the_pod_or_is_tried_again() {
    for (policy, phase) in [
        ("Never", "Failed"),
        ("OnFailure", "Pending"),
        ("Always", "Pending"),
    ] {
        let it = pod(policy, vec![container("i")], vec![container("a")]);
        assert_eq!(
            Case::new(it, vec![seen("i", 0, exited(1))]).phase(),
            phase,
            "{policy}"
        );
    }
}

#[test]
fn a_pod_that_can_never_go_on_has_failed() {
    let it = pod("Never", vec![container("i")], vec![container("a")]);
    let mut case = Case::new(it, vec![seen("i", 0, exited(0))]);
    assert_eq!(case.phase(), "Pending");
    case.observed.sandboxes[0].ready = false;
    assert_eq!(case.phase(), "Failed");
    // Where nothing has run yet, it begins anew.
    case.observed.containers.clear();
    assert_eq!(case.phase(), "Pending");
}

#[test]
fn crash_loops_show_their_last_end() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 3, exited(1)), seen("a", 2, exited(2))]);
    let waiting = Waiting {
        reason: "CrashLoopBackOff".to_owned(),
        message: "back-off".to_owned(),
        until: None,
    };
    case.waiting.insert("a".to_owned(), waiting);
    let status = case.status();
    let one = regular(&status, 0);
    assert_eq!(
        (status.phase.as_deref(), why(one).as_str(), one.restart_count),
        (Some("Running"), "waiting CrashLoopBackOff", 3)
    );
    assert_eq!(
        (
            last(one).unwrap().exit_code,
            last(one).unwrap().container_id.as_deref()
        ),
        (1, Some("orlop://a-3"))
    );
    // Not waiting: its end is its state, the one before the last state.
    case.waiting.clear();
    let status = case.status();
    assert_eq!(
        (
            why(regular(&status, 0)).as_str(),
            last(regular(&status, 0)).unwrap().exit_code
        ),
        ("ended 1 Error", 2)
    );
    // A reason that is left over is no concern of a running container.
    case.waiting.insert(
        "a".to_owned(),
        Waiting {
            reason: "ErrImagePull".to_owned(),
            message: String::new(),
            until: None,
        },
    );
    case.observed.containers[0].state = running();
    assert_eq!(why(regular(&case.status(), 0)), "running");
}

#[test]
fn a_container_that_cannot_start_says_why() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, Vec::new());
    for reason in [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "RunContainerError",
    ] {
        let waiting = Waiting {
            reason: reason.to_owned(),
            message: "text".to_owned(),
            until: None,
        };
        case.waiting.insert("a".to_owned(), waiting);
        let status = case.status();
        assert_eq!(
            (status.phase.as_deref(), why(regular(&status, 0))),
            (Some("Pending"), format!("waiting {reason}"))
        );
    }
}

#[test]
fn probes_decide_what_is_started_and_ready() {
    let probed = Container {
        startup_probe: probe(),
        readiness_probe: probe(),
        ..container("a")
    };
    let mut case = Case::new(
        pod("Always", Vec::new(), vec![probed]),
        vec![seen("a", 0, running())],
    );
    let judged = |case: &Case| {
        let status = case.status();
        (regular(&status, 0).started, regular(&status, 0).ready)
    };
    assert_eq!(judged(&case), (Some(false), false));
    case.probes.set("a-0", ProbeKind::Readiness, ProbeResult::Success);
    assert_eq!(judged(&case), (Some(false), false));
    case.probes.set("a-0", ProbeKind::Startup, ProbeResult::Success);
    assert_eq!(judged(&case), (Some(true), true));
    // A restarted kubelet knows no results yet: what was said of this container stands.
    case.settle();
    case.probes = ProbeResults::default();
    assert_eq!(judged(&case), (Some(true), true));
    case.probes.set("a-0", ProbeKind::Readiness, ProbeResult::Failure);
    assert_eq!(judged(&case), (Some(true), false));
    assert_eq!(
        condition(&case.status(), "Ready"),
        "False ContainersNotReady containers with unready status: [a]"
    );
    // Nothing was said of another container.
    case.probes = ProbeResults::default();
    case.observed.containers.insert(0, seen("a", 1, running()));
    assert_eq!(judged(&case), (Some(false), false));
}

#[test]
fn readiness_gates_are_others_to_open() {
    let mut it = pod("Always", Vec::new(), vec![container("a")]);
    spec(&mut it).readiness_gates = Some(vec![PodReadinessGate {
        condition_type: "example.com/gate".to_owned(),
    }]);
    let mut case = Case::new(it, vec![seen("a", 0, running())]);
    assert_eq!(
        condition(&case.status(), "Ready"),
        "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"example.com/gate\" does not exist."
    );
    assert_eq!(condition(&case.status(), "ContainersReady"), "True");
    let mut gate = |open: &str| {
        let conditions = vec![PodCondition {
            type_: "example.com/gate".to_owned(),
            status: open.to_owned(),
            ..Default::default()
        }];
        case.pod.status = Some(PodStatus {
            conditions: Some(conditions),
            ..Default::default()
        });
        case.status()
    };
    assert_eq!(
        condition(&gate("False"), "Ready"),
        "False ReadinessGatesNotReady the status of pod readiness gate \"example.com/gate\" is not \"True\", but False"
    );
    let open = gate("True");
    assert_eq!(
        (condition(&open, "Ready"), condition(&open, "example.com/gate")),
        ("True".into(), "True".into())
    );
}

#[test]
fn final_phases_stay() {
    let it = pod("Never", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 0, exited(0))]);
    let done = case.settle();
    assert_eq!(done.phase.as_deref(), Some("Succeeded"));
    for type_ in ["Ready", "ContainersReady"] {
        assert_eq!(condition(&done, type_), "False PodCompleted");
    }
    assert_eq!(condition(&done, "Initialized"), "True PodCompleted");
    case.observed = ObservedPod::default();
    case.end = Some(crate::worker::deadline::exceeded());
    let still = case.status();
    assert_eq!(
        (still.phase.as_deref(), still.reason.clone()),
        (Some("Succeeded"), None)
    );
    assert_eq!(why(regular(&still, 0)), "ended 0 Completed");
    case.previous = None;
    case.pod.status = Some(PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some("Evicted".to_owned()),
        ..Default::default()
    });
    let failed = case.status();
    assert_eq!(
        (failed.phase.as_deref(), failed.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn an_evicted_pod_says_so_and_keeps_saying_it() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 0, running())]);
    case.settle();
    case.stage = Stage::Terminating;
    case.end = Some(StatusOverride {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory.".to_owned(),
        failed: true,
        disruption: Some(("TerminationByKubelet".to_owned(), "why".to_owned())),
    });
    let ending = case.settle();
    assert_eq!(
        (ending.phase.as_deref(), ending.reason.as_deref()),
        (Some("Failed"), Some("Evicted"))
    );
    assert_eq!(
        condition(&ending, "DisruptionTarget"),
        "True TerminationByKubelet why"
    );
    assert_eq!(condition(&ending, "Ready"), "False PodFailed");
    case.end = None;
    case.stage = Stage::Terminated;
    case.observed = ObservedPod::default();
    let ended = case.status();
    assert_eq!((&ended.reason, &ended.message), (&ending.reason, &ending.message));
    assert_eq!(
        condition(&ended, "DisruptionTarget"),
        "True TerminationByKubelet why"
    );
    assert_eq!(why(regular(&ended, 0)), "ended 137 ContainerStatusUnknown");
}

#[test]
fn ended_pods_have_ends_only() {
    let it = pod(
        "Always",
        vec![container("i"), container("j")],
        vec![container("a")],
    );
    let mut case = Case::new(it, vec![seen("i", 0, exited(1))]);
    case.stage = Stage::Terminated;
    let status = case.status();
    let states = [
        why(init(&status, 0)),
        why(init(&status, 1)),
        why(regular(&status, 0)),
    ];
    assert_eq!(
        states,
        [
            "ended 1 Error",
            "waiting PodInitializing",
            "ended 137 ContainerStatusUnknown"
        ]
    );
    // Ended by the node or its owner, a pod has succeeded only if all of its containers have.
    for (code, phase) in [(0, "Succeeded"), (137, "Failed")] {
        let it = pod("Always", Vec::new(), vec![container("a")]);
        let mut case = Case::new(it, vec![seen("a", 0, exited(code))]);
        assert_eq!(case.phase(), "Running");
        case.stage = Stage::Terminated;
        assert_eq!(case.phase(), phase);
    }
}

#[test]
fn what_the_runtime_lost_is_told_by_what_was_said() {
    let it = pod("Always", vec![container("i")], vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 2, running()), seen("i", 0, exited(0))]);
    case.settle();
    // An init container's end that is gone stays; so it does where nothing was said.
    case.observed.containers.truncate(1);
    assert_eq!(why(init(&case.status(), 0)), "ended 0 Completed");
    let previous = case.previous.take();
    assert_eq!(why(init(&case.status(), 0)), "ended 0 Completed");
    // What ran and is gone has ended somehow, and counts.
    case.previous = previous;
    case.observed.containers.clear();
    let lost = case.settle();
    let one = regular(&lost, 0);
    assert_eq!(
        (why(one).as_str(), one.restart_count),
        ("waiting PodInitializing", 3)
    );
    assert_eq!(
        (last(one).unwrap().exit_code, last(one).unwrap().reason.as_deref()),
        (137, Some("ContainerStatusUnknown"))
    );
    assert_eq!(lost.phase.as_deref(), Some("Running"));
    assert_eq!(regular(&case.status(), 0).restart_count, 3);
    // An unknown state after a known one is an end.
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 0, running())]);
    case.settle();
    case.observed.containers[0].state = ContainerState::Unknown;
    let unknown = case.settle();
    assert_eq!(
        (
            why(regular(&unknown, 0)).as_str(),
            regular(&unknown, 0).restart_count
        ),
        ("ended 137 ContainerStatusUnknown", 0)
    );
}

#[test]
fn counts_go_on_when_all_containers_restart() {
    let trigger = Container {
        restart_policy_rules: Some(vec![rule("RestartAllContainers", 42)]),
        ..container("t")
    };
    let it = pod("Never", Vec::new(), vec![container("a"), trigger]);
    let mut case = Case::new(it, vec![seen("t", 0, running()), seen("a", 0, running())]);
    assert_eq!(condition(&case.settle(), "AllContainersRestarting"), "False");
    case.observed.containers[0].state = exited(42);
    let begun = case.settle();
    assert_eq!(begun.phase.as_deref(), Some("Running"));
    assert_eq!(
        condition(&begun, "AllContainersRestarting"),
        "True RestartAllContainersStarted container exited with restart policy rule"
    );
    case.observed.containers.clear();
    let removed = case.settle();
    assert_eq!(removed.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&removed, "AllContainersRestarting"), "False");
    let states = [0, 1].map(|place| {
        (
            why(regular(&removed, place)),
            regular(&removed, place).restart_count,
        )
    });
    assert_eq!(
        states,
        [0, 1].map(|_| ("waiting RestartingAllContainers".to_owned(), 1))
    );
    case.observed = observed(vec![seen("t", 1, running()), seen("a", 1, running())]);
    let again = case.settle();
    assert_eq!(
        (why(regular(&again, 1)).as_str(), regular(&again, 1).restart_count),
        ("running", 1)
    );
    assert_eq!(last(regular(&again, 1)).unwrap().exit_code, 42);
    assert_eq!(condition(&again, "Initialized"), "True");
}

#[test]
fn what_containers_use_is_told() {
    let mount = |name: &str, read_only: bool, recursive: Option<&str>| VolumeMount {
        name: name.to_owned(),
        mount_path: format!("/{name}"),
        read_only: read_only.then_some(true),
        recursive_read_only: recursive.map(ToOwned::to_owned),
        ..Default::default()
    };
    let mounts = vec![
        mount("w", false, None),
        mount("r", true, None),
        mount("rr", true, Some("IfPossible")),
    ];
    let wanted = asks(
        container("a"),
        &[("cpu", "1"), ("memory", "1Gi")],
        &[("cpu", "2")],
    );
    let it = pod(
        "Always",
        Vec::new(),
        vec![Container {
            volume_mounts: Some(mounts),
            ..wanted
        }],
    );
    let mut one = seen("a", 0, running());
    one.user = Some((7, 8, vec![9]));
    one.stop_signal = Some("SIGUSR1".to_owned());
    one.resources = asks(
        container("a"),
        &[("cpu", "500m")],
        &[("cpu", "1"), ("memory", "9Gi")],
    )
    .resources;
    let mut case = Case::new(it, vec![one]);
    let status = case.status();
    let told = regular(&status, 0);
    let read_only: Vec<_> = told
        .volume_mounts
        .iter()
        .flatten()
        .map(|one| one.recursive_read_only.as_deref())
        .collect();
    assert_eq!(read_only, [None, Some("Disabled"), Some("Enabled")]);
    let user = told.user.clone().unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (7, 8, Some(vec![9]))
    );
    assert_eq!(told.stop_signal.as_deref(), Some("SIGUSR1"));
    let resources = told.resources.clone().unwrap();
    assert_eq!(resources.requests, amounts(&[("cpu", "500m"), ("memory", "1Gi")]));
    assert_eq!(resources.limits, amounts(&[("cpu", "1"), ("memory", "9Gi")]));
    assert_eq!(
        told.allocated_resources,
        amounts(&[("cpu", "1"), ("memory", "1Gi")])
    );
    assert_eq!(status.qos_class.as_deref(), Some("Burstable"));
    assert_eq!(
        (told.image.as_str(), told.image_id.as_str()),
        ("image:1", "sha256:1")
    );
    // A container that doesn't run has what it is given.
    case.observed.containers[0].state = exited(0);
    assert_eq!(
        regular(&case.status(), 0).resources.clone().unwrap().limits,
        amounts(&[("cpu", "2")])
    );
}

#[test]
fn lists_are_sorted_and_ephemeral_containers_never_ready() {
    let mut it = pod(
        "Always",
        vec![container("z"), container("y")],
        vec![container("b"), container("a")],
    );
    let debug = |name: &str| EphemeralContainer {
        name: name.to_owned(),
        ..Default::default()
    };
    spec(&mut it).ephemeral_containers = Some(vec![debug("e2"), debug("e1")]);
    it.metadata.generation = Some(4);
    let case = Case::new(it, vec![seen("e1", 0, running())]);
    let status = case.status();
    let names = |list: &Option<Vec<ContainerStatus>>| -> Vec<String> {
        list.iter().flatten().map(|one| one.name.clone()).collect()
    };
    assert_eq!(names(&status.container_statuses), ["a", "b"]);
    assert_eq!(names(&status.init_container_statuses), ["z", "y"]);
    assert_eq!(names(&status.ephemeral_container_statuses), ["e1", "e2"]);
    let ephemeral = &status.ephemeral_container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        (ephemeral.ready, ephemeral.started, why(ephemeral).as_str()),
        (false, None, "running")
    );
    assert_eq!(status.observed_generation, Some(4));
    assert!(
        status
            .conditions
            .iter()
            .flatten()
            .all(|one| one.observed_generation == Some(4))
    );
}

#[test]
fn addresses_are_sorted_kept_and_the_hosts_where_it_is_its_network() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 0, running())]);
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    case.observed.sandboxes[0].ips = vec![ip("10.0.0.7"), ip("10.0.0.8"), ip("fd00::7")];
    let ips = |status: &PodStatus| -> Vec<String> {
        status
            .pod_ips
            .iter()
            .flatten()
            .map(|one| one.ip.clone())
            .collect()
    };
    assert_eq!(ips(&case.status()), ["10.0.0.7", "fd00::7"]);
    case.host_ips = vec![ip("fd00::1"), ip("192.168.0.2")];
    let six = case.settle();
    assert_eq!(
        (ips(&six), six.pod_ip.as_deref()),
        (vec!["fd00::7".to_owned(), "10.0.0.7".to_owned()], Some("fd00::7"))
    );
    assert_eq!(
        (six.host_ip.as_deref(), six.host_ips.map(|all| all.len())),
        (Some("fd00::1"), Some(2))
    );
    case.observed.sandboxes[0].ready = false;
    assert_eq!(ips(&case.status()), ips(&case.previous.clone().unwrap()));
    let mut it = pod("Always", Vec::new(), vec![container("a")]);
    spec(&mut it).host_network = Some(true);
    let mut case = Case::new(it, Vec::new());
    assert_eq!(ips(&case.settle()), ["192.168.0.2"]);
    case.host_ips = vec![ip("192.168.0.3"), ip("fd00::1")];
    assert_eq!(ips(&case.status()), ["192.168.0.2", "fd00::1"]);
}

#[test]
fn resizes_are_conditions_while_the_pod_lives() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let mut case = Case::new(it, vec![seen("a", 0, running())]);
    case.resize.pending = Some(("Deferred".to_owned(), "no room".to_owned()));
    case.resize.in_progress = Some((String::new(), String::new()));
    let status = case.status();
    assert_eq!(condition(&status, "PodResizePending"), "True Deferred no room");
    assert_eq!(condition(&status, "PodResizeInProgress"), "True");
    case.stage = Stage::Terminated;
    assert_eq!(condition(&case.status(), "PodResizePending"), "none");
}

#[test]
fn rejected_pods_have_failed() {
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let status = rejected(&it, "NodePorts", "Predicate NodePorts failed: x", at(3));
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("NodePorts"))
    );
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: Predicate NodePorts failed: x")
    );
    assert_eq!(status.start_time, Some(Time(at(3))));
    assert_eq!(condition(&status, "Ready"), "False PodFailed");
}

#[test]
fn classes_never_change() {
    let mut it = pod("Always", Vec::new(), vec![container("a")]);
    assert_eq!(qos::qos_class(&it), "BestEffort");
    it.status = Some(PodStatus {
        qos_class: Some("Guaranteed".to_owned()),
        ..Default::default()
    });
    assert_eq!(qos::qos_class(&it), "Guaranteed");
}

#[test]
fn times_have_whole_seconds() {
    let odd = at(5).checked_add(jiff::SignedDuration::from_millis(700)).unwrap();
    let it = pod("Always", Vec::new(), vec![container("a")]);
    let case = Case::new(it, vec![seen("a", 0, ContainerState::Running { started: odd })]);
    let state: ApiState = regular(&case.status(), 0).state.clone().unwrap();
    assert_eq!(state.running.unwrap().started_at, Some(Time(at(5))));
}
