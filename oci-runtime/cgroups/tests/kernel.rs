//! Cgroups on the real kernel, as root. Every test makes cgroups of its own, `/orlop-test-<pid>-<n>`, and removes them.
//!
//! Children are forked from a process with one thread, as the shim does, so this is a program of its own that runs one
//! test after another and reports like libtest does. Names on its command line select tests.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_runtime_cgroups::hierarchy::{Hierarchies, Version};
use oci_runtime_cgroups::{AttachFds, Cgroup, CgroupDriver, CgroupError};
use oci_runtime_sys::clone::{Forked, exit_now, fork};
use oci_runtime_sys::process::{Exit, set_parent_death_signal, wait};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxHugepageLimitBuilder,
    LinuxMemoryBuilder, LinuxNetworkBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

const SIGKILL: i32 = 9;
const MIB: i64 = 1 << 20;

/// A cgroup of this test, gone with it.
struct Scratch(Cgroup);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.thaw();
        let _ = self.0.kill_all();
        while wait(-1, true).is_ok() {}
        self.0.remove().expect("the test's cgroup can be removed");
    }
}

fn scratch_path() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "/orlop-test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn scratch() -> Scratch {
    let cgroup = Cgroup::new(&scratch_path(), CgroupDriver::Cgroupfs).expect("cgroups are mounted");
    cgroup.create().expect("root can make cgroups");
    Scratch(cgroup)
}

/// Says aloud that a test has nothing to look at, after checking by the mount table that this is so.
fn not_mounted(version: Version) {
    let kind = match version {
        Version::V1 => "cgroup",
        Version::V2 => "cgroup2",
    };
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounted = table.lines().find(|line| line.split(' ').nth(2) == Some(kind));
    assert_eq!(mounted, None, "{kind} is mounted, but wasn't found");
    println!("  nothing to test: no file system of type {kind} is mounted");
}

/// A cgroup in the hierarchies of one version only, as hosts of that kind have them.
fn scratch_in(version: Version) -> Option<Scratch> {
    let mut view = (*Hierarchies::of_this_process().unwrap()).clone();
    view.all.retain(|h| h.version == version);
    if view.all.is_empty() {
        not_mounted(version);
        return None;
    }
    let cgroup = Cgroup::in_hierarchies(&scratch_path(), Arc::new(view)).unwrap();
    cgroup.create().unwrap();
    Some(Scratch(cgroup))
}

/// Forks a child that runs `work` inside the cgroup and exits with what it returns; killed if this program dies.
fn child(cgroup: &Cgroup, work: impl FnOnce() -> i32) -> i32 {
    let fds = cgroup.attach_fds().unwrap();
    child_with(&fds, None, work)
}

fn child_with(fds: &AttachFds, into: Option<&OwnedFd>, work: impl FnOnce() -> i32) -> i32 {
    match fork(0, into.map(|fd| fd.as_fd())).unwrap() {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let _ = set_parent_death_signal(SIGKILL);
            let joined = if into.is_some() { fds.join_v1() } else { fds.join() };
            match joined {
                Ok(()) => exit_now(work()),
                Err(failure) => exit_now(100 + failure.errno.min(100)),
            }
        }
    }
}

fn sleep_long() -> i32 {
    std::thread::sleep(Duration::from_secs(60));
    0
}

fn ended(pid: i32) -> Exit {
    wait(pid, true).unwrap().unwrap().1
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !check() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn memory(limit: i64, swap: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default()
        .limit(limit)
        .swap(swap)
        .build()
        .unwrap();
    LinuxResourcesBuilder::default().memory(memory).build().unwrap()
}

fn pids(limit: i64) -> LinuxResources {
    let pids = LinuxPidsBuilder::default().limit(limit).build().unwrap();
    LinuxResourcesBuilder::default().pids(pids).build().unwrap()
}

fn directories(cgroup: &Cgroup) -> Vec<PathBuf> {
    let all = Hierarchies::of_this_process().unwrap();
    all.all
        .iter()
        .map(|h| h.mount.join(&cgroup.path()[1..]))
        .collect()
}

fn create_makes_parents_everywhere_and_remove_leaves_nothing() {
    let top = scratch();
    let leaf = Cgroup::new(&format!("{}/pod/container", top.0.path()), CgroupDriver::Cgroupfs).unwrap();
    assert!(!leaf.exists());
    leaf.create().unwrap();
    leaf.create().unwrap();
    for directory in directories(&leaf) {
        assert!(directory.is_dir(), "{} is missing", directory.display());
    }
    if let Some(cpuset) = leaf.directory("cpuset") {
        let cpus = fs::read_to_string(cpuset.join("cpuset.cpus")).unwrap();
        assert!(!cpus.trim().is_empty() || leaf.v2_directory() == Some(cpuset));
    }
    top.0.remove().unwrap();
    for directory in directories(&top.0) {
        assert!(!directory.exists(), "{} is left", directory.display());
    }
    top.0.remove().unwrap();
    assert!(top.0.stats().unwrap_err().is_not_found());
}

fn a_half_made_cpuset_is_completed() {
    let top = scratch();
    let leaf = Cgroup::new(&format!("{}/a/b", top.0.path()), CgroupDriver::Cgroupfs).unwrap();
    // What a crash after the mkdirs leaves: empty cpusets on v1.
    directories(&leaf)
        .iter()
        .for_each(|d| fs::create_dir_all(d).unwrap());
    leaf.create().unwrap();
    let pid = child(&leaf, || 7);
    assert_eq!(ended(pid), Exit::Code(7));
}

fn a_child_joins_every_hierarchy_by_open_descriptors() {
    let cgroup = scratch();
    let pid = child(&cgroup.0, sleep_long);
    for directory in directories(&cgroup.0) {
        let procs = directory.join("cgroup.procs");
        eventually(&format!("the child is in {}", procs.display()), || {
            fs::read_to_string(&procs).unwrap().trim() == pid.to_string()
        });
    }
    assert_eq!(cgroup.0.pids(false).unwrap(), [pid]);
    assert!(
        !cgroup
            .0
            .pids(false)
            .unwrap()
            .contains(&(std::process::id() as i32))
    );
}

fn a_child_is_cloned_into_v2_and_joins_v1() {
    let cgroup = scratch();
    let Some(fd) = cgroup.0.clone_fd() else {
        assert!(
            cgroup.0.v2_directory().is_none(),
            "v2 is mounted, but there is no descriptor"
        );
        not_mounted(Version::V2);
        return;
    };
    let fds = cgroup.0.attach_fds().unwrap();
    let pid = child_with(&fds, Some(&fd), sleep_long);
    for directory in directories(&cgroup.0) {
        eventually("the child is in every hierarchy", || {
            fs::read_to_string(directory.join("cgroup.procs")).unwrap().trim() == pid.to_string()
        });
    }
}

fn add_pid_moves_a_process() {
    let cgroup = scratch();
    let pid = match fork(0, None).unwrap() {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let _ = set_parent_death_signal(SIGKILL);
            exit_now(sleep_long())
        }
    };
    cgroup.0.add_pid(pid).unwrap();
    assert_eq!(cgroup.0.pids(true).unwrap(), [pid]);
}

fn a_memory_limit_kills_and_the_kill_is_counted() {
    let cgroup = scratch();
    cgroup.0.apply(&memory(16 * MIB, 16 * MIB)).unwrap();
    assert_eq!(cgroup.0.oom_kills().unwrap(), 0);
    let pid = child(&cgroup.0, || {
        let mut eaten = Vec::new();
        for _ in 0..64 {
            eaten.push(vec![1u8; MIB as usize]);
        }
        i32::from(eaten.iter().map(|v| usize::from(v[9])).sum::<usize>() == 0)
    });
    assert_eq!(ended(pid), Exit::Signal(SIGKILL));
    eventually("the OOM kill is counted", || cgroup.0.oom_kills().unwrap() == 1);
    let stats = cgroup.0.stats().unwrap();
    assert_eq!((stats.memory.limit, stats.memory.oom_kills), (Some(16 << 20), 1));
    assert!(
        stats.memory.page_faults > 1000 && stats.memory.max_usage >= 15 << 20,
        "{:?}",
        stats.memory
    );
}

fn memory_limits_grow_and_shrink_in_place() {
    let cgroup = scratch();
    for (limit, swap) in [
        (64, 64),
        (32, 48),
        (128, 128),
        (16, 16),
        (64, 200),
        (128, 200),
        (8, -1),
    ] {
        let swap = if swap < 0 { swap } else { swap * MIB };
        cgroup
            .0
            .apply(&memory(limit * MIB, swap))
            .unwrap_or_else(|e| panic!("{limit}/{swap}: {e:?}"));
        let stats = cgroup.0.stats().unwrap();
        assert_eq!(stats.memory.limit, Some((limit * MIB) as u64));
    }
    let lifted = LinuxMemoryBuilder::default().limit(-1).build().unwrap();
    cgroup
        .0
        .apply(&LinuxResourcesBuilder::default().memory(lifted).build().unwrap())
        .unwrap();
    assert_eq!(cgroup.0.stats().unwrap().memory.limit, None);
}

fn a_pids_limit_stops_forks() {
    let cgroup = scratch();
    cgroup.0.apply(&pids(5)).unwrap();
    let pid = child(&cgroup.0, || {
        let mut made = 0;
        while let Ok(forked) = fork(0, None) {
            match forked {
                Forked::Child => exit_now(sleep_long()),
                Forked::Parent(_) => made += 1,
            }
            if made > 20 {
                break;
            }
        }
        made
    });
    assert_eq!(ended(pid), Exit::Code(4));
    assert_eq!(cgroup.0.stats().unwrap().pids.limit, Some(5));
    cgroup.0.apply(&pids(0)).unwrap();
    assert_eq!(cgroup.0.stats().unwrap().pids.limit, None);
}

fn spin(time: Duration) -> i32 {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    0
}

fn a_cpu_quota_throttles() {
    let cgroup = scratch();
    let cpu = |quota, period| {
        let cpu = LinuxCpuBuilder::default()
            .shares(256u64)
            .quota(quota)
            .period::<u64>(period)
            .build()
            .unwrap();
        LinuxResourcesBuilder::default().cpu(cpu).build().unwrap()
    };
    cgroup.0.apply(&cpu(200_000, 100_000)).unwrap();
    cgroup.0.apply(&cpu(10_000, 50_000)).unwrap();
    let started = Instant::now();
    let pid = child(&cgroup.0, || spin(Duration::from_secs(60)));
    eventually("a fifth of a core is too little for a loop", || {
        cgroup.0.stats().unwrap().cpu.throttled_periods >= 3
    });
    let stats = cgroup.0.stats().unwrap();
    let share = u128::from(stats.cpu_usage_nanos) * 100 / started.elapsed().as_nanos();
    assert!(share < 45, "{share} % of a core used with a quota of 20 %");
    assert!(stats.cpu.throttled_nanos > 0 && stats.cpu.periods >= stats.cpu.throttled_periods);
    cgroup.0.kill_all().unwrap();
    assert_eq!(ended(pid), Exit::Signal(SIGKILL));
    cgroup.0.apply(&cpu(-1, 100_000)).unwrap();
}

fn frozen_processes_stand_still(cgroup: &Cgroup) {
    let pid = child(cgroup, || spin(Duration::from_secs(60)));
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    eventually("the child runs", || ticks() > 2);
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen().unwrap());
    let before = ticks();
    std::thread::sleep(Duration::from_millis(80));
    assert_eq!(ticks(), before);
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen().unwrap());
    eventually("the child runs again", || ticks() > before);
    // A frozen cgroup can be killed, too.
    cgroup.freeze().unwrap();
    cgroup.kill_all().unwrap();
    assert_eq!(ended(pid), Exit::Signal(SIGKILL));
}

fn freeze_and_thaw() {
    frozen_processes_stand_still(&scratch().0);
}

fn freeze_and_thaw_on_v1() {
    if let Some(cgroup) = scratch_in(Version::V1) {
        frozen_processes_stand_still(&cgroup.0);
    }
}

fn freeze_and_thaw_on_v2() {
    if let Some(cgroup) = scratch_in(Version::V2) {
        frozen_processes_stand_still(&cgroup.0);
    }
}

fn joiners_below_a_frozen_cgroup_are_foreseen() {
    for version in [Version::V1, Version::V2] {
        let Some(cgroup) = scratch_in(version) else {
            continue;
        };
        let mut view = (*Hierarchies::of_this_process().unwrap()).clone();
        view.all.retain(|h| h.version == version);
        let path = format!("{}/some/below", cgroup.0.path());
        let below = Cgroup::in_hierarchies(&path, Arc::new(view)).unwrap();
        assert_eq!(below.frozen_at().unwrap(), None);
        cgroup.0.freeze().unwrap();
        let top = cgroup.0.frozen_at().unwrap();
        assert!(
            top.as_ref()
                .is_some_and(|dir| dir.ends_with(&cgroup.0.path()[1..]))
        );
        assert_eq!(below.frozen_at().unwrap(), top, "while it isn't there");
        below.create().unwrap();
        assert!(below.frozen_at().unwrap().is_some());
        assert!(!below.is_frozen().unwrap(), "it wasn't asked to itself");
        cgroup.0.thaw().unwrap();
        eventually("all is thawed", || below.frozen_at().unwrap().is_none());
    }
}

/// Sleepers in a child cgroup (v2 wants none beside it), and a process that replaces itself by its child all the time.
fn everything_dies(cgroup: &Cgroup, below: &Cgroup) {
    below.create().unwrap();
    let sleepers: Vec<i32> = (0..8).map(|_| child(below, sleep_long)).collect();
    child(below, || {
        for _ in 0..100_000 {
            match fork(0, None) {
                Ok(Forked::Parent(_)) => return 0,
                Ok(Forked::Child) => std::thread::sleep(Duration::from_micros(300)),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        0
    });
    eventually("all have joined", || {
        let joined = cgroup.pids(true).unwrap();
        joined.len() > sleepers.len() && sleepers.iter().all(|pid| joined.contains(pid))
    });
    cgroup.kill_all().unwrap();
    for pid in sleepers {
        assert_eq!(ended(pid), Exit::Signal(SIGKILL));
    }
    eventually("nothing is left", || cgroup.pids(true).unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(20));
    assert!(cgroup.pids(true).unwrap().is_empty(), "something forked away");
}

fn kill_all_ends_forking_trees() {
    let cgroup = scratch();
    let below = Cgroup::new(&format!("{}/below", cgroup.0.path()), CgroupDriver::Cgroupfs).unwrap();
    everything_dies(&cgroup.0, &below);
}

fn kill_all_ends_forking_trees_in(version: Version) {
    let Some(cgroup) = scratch_in(version) else { return };
    let mut view = (*Hierarchies::of_this_process().unwrap()).clone();
    view.all.retain(|h| h.version == version);
    let below = Cgroup::in_hierarchies(&format!("{}/below", cgroup.0.path()), Arc::new(view)).unwrap();
    everything_dies(&cgroup.0, &below);
}

fn kill_all_ends_forking_trees_on_v1() {
    kill_all_ends_forking_trees_in(Version::V1);
}

fn kill_all_ends_forking_trees_on_v2() {
    kill_all_ends_forking_trees_in(Version::V2);
}

fn kill_all_finds_a_process_of_another_runtime_in_v1_only() {
    let cgroup = scratch();
    let all = Hierarchies::of_this_process().unwrap();
    if all.is_unified() {
        not_mounted(Version::V1);
        return;
    }
    // runc and crun on a hybrid host may leave a container out of v2.
    let fds = cgroup.0.attach_fds().unwrap();
    let pid = match fork(0, None).unwrap() {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let _ = set_parent_death_signal(SIGKILL);
            let _ = fds.join_v1();
            exit_now(sleep_long())
        }
    };
    eventually("it has joined", || cgroup.0.pids(true).unwrap() == [pid]);
    cgroup.0.kill_all().unwrap();
    assert_eq!(ended(pid), Exit::Signal(SIGKILL));
}

fn a_cgroup_with_live_processes_is_not_removed_and_names_them() {
    let cgroup = scratch();
    let pid = child(&cgroup.0, sleep_long);
    eventually("the child has joined", || cgroup.0.pids(true).unwrap() == [pid]);
    let error = cgroup.0.remove().unwrap_err();
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
    cgroup.0.kill_all().unwrap();
    ended(pid);
    cgroup.0.remove().unwrap();
}

fn removal_waits_for_processes_that_are_ending() {
    let cgroup = scratch();
    child(&cgroup.0, || {
        std::thread::sleep(Duration::from_millis(100));
        0
    });
    cgroup.0.remove().unwrap();
    assert!(!cgroup.0.exists());
}

fn device_rules_decide(cgroup: &Cgroup) {
    let rule = |allow, typ| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .access("rwm")
    };
    let deny_all = rule(false, LinuxDeviceType::A).build().unwrap();
    let resources = LinuxResourcesBuilder::default()
        .devices(vec![deny_all.clone()])
        .build()
        .unwrap();
    cgroup.apply(&resources).unwrap();
    let open = |path: &str| fs::File::open(path).map_or_else(|e| e.raw_os_error().unwrap_or(99), |_| 0);
    let denied = child(cgroup, || open("/dev/kmsg"));
    assert_eq!(ended(denied), Exit::Code(1), "EPERM for the kernel's log");
    let null = child(cgroup, || open("/dev/null"));
    assert_eq!(ended(null), Exit::Code(0));
    let kmsg = rule(true, LinuxDeviceType::C)
        .major(1i64)
        .minor(11i64)
        .build()
        .unwrap();
    let resources = LinuxResourcesBuilder::default()
        .devices(vec![deny_all, kmsg])
        .build()
        .unwrap();
    cgroup.apply(&resources).unwrap();
    let allowed = child(cgroup, || open("/dev/kmsg"));
    assert_eq!(ended(allowed), Exit::Code(0));
}

fn device_rules_allow_and_deny() {
    device_rules_decide(&scratch().0);
}

fn device_rules_allow_and_deny_on_v2() {
    if let Some(cgroup) = scratch_in(Version::V2) {
        device_rules_decide(&cgroup.0);
    }
}

fn statistics_of_a_running_process() {
    let cgroup = scratch();
    let (mut ready, told) = std::io::pipe().unwrap();
    let pid = child(&cgroup.0, move || {
        let eaten = vec![1u8; 8 << 20];
        spin(Duration::from_millis(30));
        let _ = std::io::Write::write(&mut &told, b"x");
        sleep_long() + i32::from(eaten[0])
    });
    ready.read_exact(&mut [0]).unwrap();
    let stats = cgroup.0.stats().unwrap();
    assert_eq!(cgroup.0.pids(true).unwrap(), [pid]);
    assert_eq!(stats.pids.current, 1);
    assert!(stats.memory.rss >= 8 << 20, "{:?}", stats.memory);
    assert!(stats.memory.working_set >= 8 << 20 && stats.memory.available.is_none());
    assert!(stats.cpu_usage_nanos >= 1_000_000, "{} ns", stats.cpu_usage_nanos);
    if std::path::Path::new("/proc/pressure/cpu").exists() && cgroup.0.v2_directory().is_some() {
        assert!(stats.psi.is_some());
    }
}

fn a_limit_that_the_host_can_not_hold_is_an_error_with_its_file() {
    let cgroup = scratch();
    let page = LinuxHugepageLimitBuilder::default()
        .page_size("3KB")
        .limit(4096)
        .build()
        .unwrap();
    let resources = LinuxResourcesBuilder::default()
        .hugepage_limits(vec![page])
        .build()
        .unwrap();
    let error = cgroup.0.apply(&resources).unwrap_err();
    let chain = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(chain.contains("hugetlb.3KB"), "{chain}");
    if Hierarchies::of_this_process().unwrap().of("net_cls").is_none() {
        let network = LinuxNetworkBuilder::default().class_id(5u32).build().unwrap();
        let resources = LinuxResourcesBuilder::default().network(network).build().unwrap();
        match cgroup.0.apply(&resources) {
            Err(CgroupError::MissingController { controller, file }) => {
                assert_eq!(
                    (controller.as_str(), file.as_str()),
                    ("net_cls", "net_cls.classid")
                );
            }
            other => assert!(Hierarchies::of_this_process().unwrap().is_unified(), "{other:?}"),
        }
    }
}

/// Joining after a quiet moment, which is when a runtime does it: prints, and bounds generously.
fn joining_after_idle_is_quick() {
    let cgroup = scratch();
    let mut times = Vec::new();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        let fds = cgroup.0.attach_fds().unwrap();
        let into = cgroup.0.clone_fd();
        let started = Instant::now();
        let pid = child_with(&fds, into.as_ref(), || 0);
        assert_eq!(ended(pid), Exit::Code(0));
        times.push(started.elapsed());
    }
    times.sort();
    eprintln!(
        "  fork, join and wait after 50 ms: median {:?}, worst {:?}",
        times[5], times[9]
    );
    assert!(times[5] < Duration::from_millis(50), "{times:?}");
    assert!(cgroup.0.attach_fds().unwrap().raw_fds().all(|fd| fd > 2));
    let event = cgroup.0.events_file();
    assert_eq!(
        event.is_some_and(|f| f.as_raw_fd() > 2),
        cgroup.0.v2_directory().is_some()
    );
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), $name as fn())),*] };
}

fn main() -> ExitCode {
    let tests = tests![
        create_makes_parents_everywhere_and_remove_leaves_nothing,
        a_half_made_cpuset_is_completed,
        a_child_joins_every_hierarchy_by_open_descriptors,
        a_child_is_cloned_into_v2_and_joins_v1,
        add_pid_moves_a_process,
        a_memory_limit_kills_and_the_kill_is_counted,
        memory_limits_grow_and_shrink_in_place,
        a_pids_limit_stops_forks,
        a_cpu_quota_throttles,
        freeze_and_thaw,
        freeze_and_thaw_on_v1,
        freeze_and_thaw_on_v2,
        joiners_below_a_frozen_cgroup_are_foreseen,
        kill_all_ends_forking_trees,
        kill_all_ends_forking_trees_on_v1,
        kill_all_ends_forking_trees_on_v2,
        kill_all_finds_a_process_of_another_runtime_in_v1_only,
        a_cgroup_with_live_processes_is_not_removed_and_names_them,
        removal_waits_for_processes_that_are_ending,
        device_rules_allow_and_deny,
        device_rules_allow_and_deny_on_v2,
        statistics_of_a_running_process,
        a_limit_that_the_host_can_not_hold_is_an_error_with_its_file,
        joining_after_idle_is_quick,
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|a| a == "--exact");
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| {
        wanted.is_empty()
            || wanted.iter().any(|w| {
                if exact {
                    name == *w
                } else {
                    name.contains(w.as_str())
                }
            })
    };
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| chosen(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored",
        chosen.len() as u32 - failed
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
