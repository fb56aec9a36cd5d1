//! Pods in a simulated runtime: whatever happens to them, no plan breaks order, nothing healthy ends, and once nothing more
//! happens plans come to rest.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::containers::RestartPolicy;
use crate::hash::container_hash;
use crate::status::{ResizeStatus, Stage, StatusInputs, pod_status};

/// What happens to a pod between two plans.
#[derive(Debug, Clone)]
enum Event {
    Exit(usize, i32),
    StartupDone(usize),
    ProbeFails(usize),
    StartupFails(usize),
    Lost(usize),
    SandboxDies,
    Forget(usize),
    NewImage(usize),
    KubeletRestarts,
    Time(i64),
}

/// How far the next plan is carried out: all of it, or so many of its steps.
type Reach = Option<usize>;

fn events() -> impl Strategy<Value = Vec<(Event, Reach)>> {
    let event = prop_oneof![
        4 => (0..5usize, prop_oneof![3 => Just(0), 3 => Just(1), 1 => Just(42)]).prop_map(|(which, code)| Event::Exit(which, code)),
        4 => (0..5usize).prop_map(Event::StartupDone),
        1 => (0..5usize).prop_map(Event::ProbeFails),
        1 => (0..5usize).prop_map(Event::StartupFails),
        1 => (0..5usize).prop_map(Event::Lost),
        1 => Just(Event::SandboxDies),
        1 => (0..5usize).prop_map(Event::Forget),
        1 => (0..5usize).prop_map(Event::NewImage),
        1 => Just(Event::KubeletRestarts),
        4 => (1..400i64).prop_map(Event::Time),
    ];
    prop::collection::vec(
        (
            event,
            prop_oneof![3 => Just(None), 1 => (0..4usize).prop_map(Some)],
        ),
        0..40,
    )
}

fn pods() -> impl Strategy<Value = Pod> {
    let kind = prop_oneof![Just(0), Just(1), Just(2)];
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    (
        policy,
        prop::collection::vec(kind, 0..4),
        1..3usize,
        prop::bool::weighted(0.3),
    )
        .prop_map(|(policy, init, regular, ruled)| {
            let init = init.into_iter().enumerate().map(|(place, kind)| match kind {
                0 => container(&format!("i{place}")),
                1 => sidecar(&format!("i{place}")),
                _ => Container {
                    startup_probe: probe(),
                    ..sidecar(&format!("i{place}"))
                },
            });
            let regular = (0..regular).map(|place| Container {
                restart_policy_rules: ruled.then(|| vec![rule("RestartAllContainers", 42)]),
                ..container(&format!("r{place}"))
            });
            pod(policy, init.collect(), regular.collect())
        })
}

/// The runtime, and the truth about what has happened in it.
struct World {
    pod: Pod,
    observed: ObservedPod,
    probes: ProbeResults,
    restarts: RestartBackoff,
    previous: Option<PodStatus>,
    now: i64,
    made: u32,
    /// Per sandbox: init containers that have done their part there.
    passed: BTreeSet<(String, String)>,
    /// Containers that ended by themselves, by ID.
    ended: BTreeMap<String, i32>,
}

impl World {
    fn new(pod: Pod) -> Self {
        Self {
            pod,
            observed: ObservedPod::default(),
            probes: ProbeResults::default(),
            restarts: RestartBackoff::default(),
            previous: None,
            now: 0,
            made: 0,
            passed: BTreeSet::new(),
            ended: BTreeMap::new(),
        }
    }

    fn plan_at(&self, when: Timestamp) -> PodActions {
        plan_with(
            &self.pod,
            &self.observed,
            &self.probes,
            &self.restarts,
            self.previous.as_ref(),
            when,
        )
    }

    /// Makes the pod's status, which the next plan and the next status see, and compares it with the one before.
    fn tell(&mut self, waiting: &BTreeMap<String, Waiting>) {
        let status = pod_status(&StatusInputs {
            pod: &self.pod,
            observed: &self.observed,
            probes: &self.probes,
            waiting,
            previous: self.previous.as_ref(),
            stage: Stage::Syncing,
            end: None,
            resize: &ResizeStatus::default(),
            host_ips: &[],
            runtime: "test",
            recursive_read_only: false,
            now: at(self.now),
        });
        if let Some(before) = &self.previous {
            let is_final =
                |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            assert!(
                !is_final(before) || before.phase == status.phase,
                "{:?} after {:?}",
                status.phase,
                before.phase
            );
            let lists = |status: &PodStatus| {
                [
                    status.init_container_statuses.clone(),
                    status.container_statuses.clone(),
                ]
                .into_iter()
                .flatten()
                .flatten()
            };
            for (old, new) in lists(before).zip(lists(&status)) {
                assert_eq!(old.name, new.name);
                assert!(new.restart_count >= old.restart_count, "{} counts down", new.name);
                assert!(
                    !new.ready
                        || new.started != Some(false)
                        || new.state.as_ref().unwrap().terminated.is_some()
                );
            }
        }
        for one in self.observed.containers.iter().filter(|one| one.is_running()) {
            let mut lists = [&status.init_container_statuses, &status.container_statuses]
                .into_iter()
                .flatten()
                .flatten();
            let told = lists.find(|told| told.name == one.name).unwrap();
            assert_eq!(u32::try_from(told.restart_count), Ok(one.attempt), "{}", one.name);
        }
        self.previous = Some(status);
    }

    /// Whether a rule has all containers start again.
    fn restarts_all(&self) -> bool {
        let newest = self.newest();
        let sandbox = self.observed.sandbox().map(|sandbox| sandbox.id.clone());
        containers::all_could_restart(&self.pod)
            && self.observed.containers.iter().any(|one| {
                let ended = matches!(one.state, ContainerState::Exited { exit_code: 42, .. });
                let counts = newest.contains(&one.id) && Some(&one.sandbox_id) == sandbox.as_ref();
                ended && counts && one.name.starts_with('r')
            })
    }

    fn spec_of(&self, name: &str) -> (ContainerKind, Container) {
        containers::find(&self.pod, name).unwrap()
    }

    fn nth(
        &mut self,
        which: usize,
        wanted: impl Fn(&ObservedContainer) -> bool,
    ) -> Option<&mut ObservedContainer> {
        let all: Vec<_> = self
            .observed
            .containers
            .iter_mut()
            .filter(|one| wanted(one))
            .collect();
        let count = all.len();
        all.into_iter().nth(which.checked_rem(count)?)
    }

    fn end(&mut self, id: &str, exit_code: i32) {
        let now = self.now;
        let one = self
            .observed
            .containers
            .iter_mut()
            .find(|one| one.id == id)
            .unwrap();
        if !one.has_exited() {
            one.state = exited_at(exit_code, now);
        }
        let passed = (one.sandbox_id.clone(), one.name.clone());
        let name = one.name.clone();
        if exit_code == 0 && self.spec_of(&name).0 == ContainerKind::Init {
            self.passed.insert(passed);
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Exit(which, code) => {
                if let Some(id) = self
                    .nth(*which, ObservedContainer::is_running)
                    .map(|one| one.id.clone())
                {
                    self.end(&id, *code);
                    self.ended.insert(id, *code);
                }
            }
            Event::StartupDone(which) => {
                if let Some(one) = self
                    .nth(*which, ObservedContainer::is_running)
                    .map(|one| one.clone())
                    && self.probes.startup(&one.id) == Some(ProbeResult::Unknown)
                {
                    self.probes.set(&one.id, ProbeKind::Startup, ProbeResult::Success);
                    self.passed.insert((one.sandbox_id, one.name));
                }
            }
            Event::ProbeFails(which) => {
                if let Some(id) = self
                    .nth(*which, ObservedContainer::is_running)
                    .map(|one| one.id.clone())
                {
                    self.probes.set(&id, ProbeKind::Liveness, ProbeResult::Failure);
                }
            }
            Event::StartupFails(which) => {
                if let Some(id) = self
                    .nth(*which, ObservedContainer::is_running)
                    .map(|one| one.id.clone())
                    && self.probes.startup(&id) == Some(ProbeResult::Unknown)
                {
                    self.probes.set(&id, ProbeKind::Startup, ProbeResult::Failure);
                }
            }
            Event::Lost(which) => {
                if let Some(one) = self.nth(*which, ObservedContainer::is_running) {
                    one.state = ContainerState::Unknown;
                }
            }
            Event::SandboxDies => self.stop_sandboxes(),
            Event::Forget(which) => {
                // The garbage collector keeps the newest of each name.
                let newest: BTreeSet<String> = self.newest();
                let gone = self.nth(*which, |one| one.has_exited() && !newest.contains(&one.id));
                if let Some(id) = gone.map(|one| one.id.clone()) {
                    self.observed.containers.retain(|one| one.id != id);
                }
            }
            Event::NewImage(which) => {
                let all = &mut spec(&mut self.pod).containers;
                let place = which % all.len();
                all[place].image = Some(format!("image:{}", self.now + 2));
            }
            Event::KubeletRestarts => {
                self.restarts = RestartBackoff::default();
                self.restarts.recover(&self.pod, &self.observed);
            }
            Event::Time(seconds) => self.now += seconds,
        }
    }

    fn newest(&self) -> BTreeSet<String> {
        let names: BTreeSet<_> = self
            .observed
            .containers
            .iter()
            .map(|one| one.name.clone())
            .collect();
        names
            .iter()
            .filter_map(|name| self.observed.container(name))
            .map(|one| one.id.clone())
            .collect()
    }

    fn stop_sandboxes(&mut self) {
        let alive: Vec<_> = self
            .observed
            .containers
            .iter()
            .filter(|one| !one.has_exited())
            .map(|one| one.id.clone())
            .collect();
        for id in alive {
            self.end(&id, 137);
        }
        for sandbox in &mut self.observed.sandboxes {
            sandbox.ready = false;
        }
    }

    /// Carries a plan out, and stops after some steps where told so.
    fn carry_out(&mut self, plan: &PodActions, reach: Reach) {
        let anew = self.restarts_all() && plan.start.is_empty();
        let mut left = reach.unwrap_or(usize::MAX);
        let mut step = || {
            let go = left > 0;
            left = left.saturating_sub(1);
            go
        };
        if plan.kill_pod.is_some() {
            if !step() {
                return;
            }
            self.stop_sandboxes();
        }
        for order in &plan.kill {
            if !step() {
                return;
            }
            self.end(&order.id, 143);
        }
        for id in &plan.remove {
            if !step() {
                return;
            }
            let one = self.observed.by_id(id).unwrap();
            assert!(!one.is_running(), "{id} is removed while it runs");
            if anew {
                // All begin anew: what an init container has done counts no more.
                let done = (one.sandbox_id.clone(), one.name.clone());
                self.passed.remove(&done);
                self.ended.remove(id);
            }
            self.observed.containers.retain(|one| one.id != *id);
        }
        if let SandboxAction::Create { attempt, .. } = plan.sandbox {
            if !step() {
                return;
            }
            self.observed.sandboxes.insert(0, sandbox(attempt));
        }
        for order in &plan.start {
            if !step() {
                return;
            }
            self.start(order);
        }
    }

    fn start(&mut self, order: &StartContainer) {
        let (kind, spec) = self.spec_of(&order.name);
        assert_eq!(kind, order.kind);
        let sandbox = self.observed.sandboxes[0].clone();
        assert!(sandbox.ready, "{} starts in a dead sandbox", order.name);
        let runs = self.observed.all_named(&order.name).any(|one| one.is_running());
        assert!(!runs, "{} starts beside itself", order.name);
        let taken = self
            .observed
            .all_named(&order.name)
            .any(|one| one.attempt >= order.attempt);
        assert!(!taken, "{} starts with an attempt that there was", order.name);
        self.check_predecessors(order, kind, &sandbox.id);
        if let Some(ended) = order.after {
            self.restarts
                .started(BackoffKey::of(&self.pod, &spec), ended, at(self.now));
        }
        self.made += 1;
        let mut one = seen(
            &order.name,
            order.attempt,
            ContainerState::Running {
                started: at(self.now),
            },
        );
        one.id = format!("c{}", self.made);
        one.sandbox_id.clone_from(&sandbox.id);
        one.created = at(self.now);
        one.spec_hash = Some(container_hash(&spec));
        if spec.startup_probe.is_some() {
            self.probes.set(&one.id, ProbeKind::Startup, ProbeResult::Unknown);
        }
        self.observed.containers.insert(0, one);
        if kind == ContainerKind::Sidecar && spec.startup_probe.is_none() {
            self.passed.insert((sandbox.id, order.name.clone()));
        }
    }

    /// Every init container before it has done its part in this very sandbox.
    fn check_predecessors(&self, order: &StartContainer, kind: ContainerKind, sandbox: &str) {
        let init = containers::init_containers(&self.pod);
        let before = match kind {
            ContainerKind::Regular => init.len(),
            _ => init.iter().position(|one| one.name == order.name).unwrap(),
        };
        for one in &init[..before] {
            let key = (sandbox.to_owned(), one.name.clone());
            assert!(
                self.passed.contains(&key),
                "{} starts before {} is through",
                order.name,
                one.name
            );
        }
    }

    /// What may be seen of any plan without knowing how it came about.
    fn check(&self, plan: &PodActions) {
        for order in &plan.kill {
            let one = self.observed.by_id(&order.id).unwrap();
            let (_, spec) = self.spec_of(&one.name);
            let failed = self.probes.liveness(&one.id) == Some(ProbeResult::Failure)
                || self.probes.startup(&one.id) == Some(ProbeResult::Failure);
            let changed = one.spec_hash != Some(container_hash(&spec));
            let lost = one.state == ContainerState::Unknown;
            let with_all = order.reason == KillContainerReason::RestartAll && self.restarts_all();
            assert!(
                failed || changed || lost || with_all,
                "{} is healthy and ends: {order:?}",
                one.name
            );
        }
        if plan.kill_pod == Some(KillReason::SandboxChanged) {
            assert!(!self.observed.sandboxes[0].ready);
        }
        if let Some(KillReason::Completed) = plan.kill_pod {
            let regular = containers::regular_containers(&self.pod);
            let runs = regular.iter().any(|one| {
                self.observed
                    .container(&one.name)
                    .is_some_and(|one| one.is_running())
            });
            assert!(!runs, "the pod ends while a container runs");
        }
        if containers::restart_policy(&self.pod) == RestartPolicy::Never {
            for order in plan
                .start
                .iter()
                .filter(|order| order.kind != ContainerKind::Sidecar)
            {
                let newest = self.observed.container(&order.name);
                let ruled = containers::all_could_restart(&self.pod);
                let by_itself = newest
                    .and_then(|one| self.ended.get(&one.id))
                    .is_some_and(|code| !(ruled && *code == 42));
                let replaced = plan.kill.iter().any(|kill| kill.name == order.name);
                assert!(
                    !by_itself || replaced,
                    "{} runs again though it never should",
                    order.name
                );
            }
        }
        self.check_wake(plan);
    }

    /// Until `wake_at` the plan stays the same, and then it is another.
    fn check_wake(&self, plan: &PodActions) {
        let Some(wake) = plan.wake_at else {
            assert!(plan.waiting.values().all(|one| one.until.is_none()));
            assert_eq!(&self.plan_at(at(self.now + 100_000)), plan);
            return;
        };
        assert!(wake > at(self.now));
        let before = wake.checked_sub(jiff::SignedDuration::from_nanos(1)).unwrap();
        assert_eq!(&self.plan_at(before), plan);
        assert_ne!(&self.plan_at(wake), plan);
    }

    /// Plans and acts until nothing is left to do; startup probes succeed meanwhile.
    fn settle(&mut self) {
        for _ in 0..60 {
            let plan = self.plan_at(at(self.now));
            self.check(&plan);
            self.tell(&plan.waiting);
            if self.is_final() {
                return self.check_final();
            }
            self.carry_out(&plan, None);
            for which in 0..5 {
                self.happen(&Event::StartupDone(which));
            }
            let init: Vec<_> = self
                .observed
                .containers
                .iter()
                .filter(|one| one.is_running())
                .cloned()
                .collect();
            for one in &init {
                if self.spec_of(&one.name).0 == ContainerKind::Init {
                    self.end(&one.id, 0);
                }
            }
            if let Some(wake) = plan.wake_at.filter(|_| plan.is_empty()) {
                self.now = self.now.max(wake.as_second() - at(0).as_second());
            } else if plan.is_empty() {
                let again = self.plan_at(at(self.now));
                if again.is_empty() && again.wake_at.is_none() {
                    return self.check_rest();
                }
            }
        }
        panic!("never comes to rest: {:#?}", self.plan_at(at(self.now)));
    }

    /// At rest each regular container runs or has ended for good, and sidecars run exactly while the pod does.
    fn check_rest(&self) {
        let regular = containers::regular_containers(&self.pod);
        let runs = |name: &str| {
            self.observed
                .container(name)
                .is_some_and(ObservedContainer::is_running)
        };
        let alive = regular.iter().any(|one| runs(&one.name));
        for init in containers::init_containers(&self.pod) {
            assert_eq!(
                runs(&init.name),
                alive && containers::is_sidecar(init),
                "{}",
                init.name
            );
        }
        if containers::restart_policy(&self.pod) == RestartPolicy::Always {
            assert!(regular.iter().all(|one| runs(&one.name)));
        }
        // A pod without a running container has said so before.
        assert!(alive);
    }

    fn is_final(&self) -> bool {
        let phase = self.previous.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// A pod whose phase is final is ended by its worker: nothing of it runs but sidecars, and nothing would be started.
    fn check_final(&self) {
        assert_ne!(containers::restart_policy(&self.pod), RestartPolicy::Always);
        let plan = self.plan_at(at(self.now));
        // What ran and whose state nobody knows has failed, though the plan alone would start it.
        let lost = |name: &String| {
            plan.kill
                .iter()
                .any(|kill| kill.name == *name && kill.reason == KillContainerReason::Unknown)
        };
        let is_sidecar = |name: &String| self.spec_of(name).0 == ContainerKind::Sidecar;
        let wanted = plan.start.iter().map(|one| &one.name).chain(plan.waiting.keys());
        assert!(
            wanted.into_iter().all(|name| lost(name) || is_sidecar(name)),
            "{plan:?}"
        );
        let running = self.observed.containers.iter().filter(|one| one.is_running());
        for one in running {
            assert_eq!(self.spec_of(&one.name).0, ContainerKind::Sidecar, "{}", one.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_order_is_kept_and_plans_come_to_rest(pod in pods(), events in events()) {
        let mut world = World::new(pod);
        for (event, reach) in &events {
            let plan = world.plan_at(at(world.now));
            world.check(&plan);
            world.tell(&plan.waiting);
            if world.is_final() {
                world.check_final();
                return Ok(());
            }
            world.carry_out(&plan, *reach);
            world.now += 1;
            world.happen(event);
        }
        world.settle();
    }
}
