//! On a machine with systemd and cgroup v2 alone, with both cgroup drivers: limits, freezing, killing, delegation.
//!
//! Such a machine is a guest of `hack/vm`, where `hack/test --vm` runs this. Elsewhere there is nothing to test, and it
//! says so. It reports like libtest does; names on its command line select tests.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bundle::{Bundle, texts, wait_until};
use serde_json::{Value, json};

/// A bundle whose cgroup one of the drivers makes.
struct Case {
    bundle: Bundle,
    /// The slice and the scope, with systemd.
    units: Option<(String, String)>,
}

impl Case {
    fn new(script: &str, systemd: bool) -> Self {
        let mut bundle = Bundle::new(script);
        let mut units = None;
        if systemd {
            let slice = format!("orlop_{}.slice", bundle.id.replace('-', "_"));
            bundle.config["linux"]["cgroupsPath"] = json!(format!("{slice}:oci:{}", bundle.id));
            units = Some((slice, format!("oci-{}.scope", bundle.id)));
        }
        // The container sees its own cgroup, and may change it.
        bundle.namespace("cgroup", None);
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        bundle.mount(
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev"] }),
        );
        Self { bundle, units }
    }

    fn resources(&mut self, resources: Value) -> &mut Self {
        for (key, value) in resources.as_object().unwrap() {
            self.bundle.config["linux"]["resources"][key] = value.clone();
        }
        self
    }

    fn create(&self) {
        let bundle = &self.bundle;
        let out = fs::File::create(bundle.folder.join("out")).unwrap();
        let mut arguments = vec!["create", "--bundle", bundle.folder.to_str().unwrap(), &bundle.id];
        if self.units.is_some() {
            arguments.insert(0, "--systemd-cgroup");
        }
        let mut command = bundle.command(&arguments);
        let status = command
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        assert!(status.success(), "create: {}", bundle.output());
    }

    fn start(&self) {
        self.create();
        self.bundle.good(&["start", &self.bundle.id]);
    }

    fn directory(&self) -> PathBuf {
        let top = Path::new("/sys/fs/cgroup");
        match &self.units {
            Some((slice, scope)) => top.join(slice).join(scope),
            None => top.join(&self.bundle.cgroup[1..]).join("c"),
        }
    }

    fn read(&self, file: &str) -> String {
        let path = self.directory().join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    }

    fn exec(&self, script: &str) -> String {
        self.bundle
            .good(&["exec", &self.bundle.id, "/bin/sh", "-c", script])
    }

    fn property(&self, name: &str) -> String {
        let (_, scope) = self.units.as_ref().unwrap();
        systemctl(&["show", "--value", "--property", name, scope])
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let deleted = self.bundle.call(&["delete", "--force", &self.bundle.id]);
        let directory = self.directory();
        let left = directory.exists();
        if let Some((slice, scope)) = &self.units {
            let state = systemctl(&["show", "--value", "--property", "LoadState", scope]);
            let _ = Command::new("systemctl").args(["stop", slice]).status();
            if !std::thread::panicking() {
                assert_eq!(state, "not-found", "{scope} is left");
            }
        }
        if !std::thread::panicking() {
            assert!(deleted.status.success(), "{:?}", texts(&deleted));
            assert!(!left, "{} is left", directory.display());
        }
    }
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {:?}", texts(&output));
    texts(&output).0.trim().to_owned()
}

fn both(test: impl Fn(bool)) {
    test(false);
    test(true);
}

fn limits_reach_the_kernel_and_outlive_a_reload_of_systemd() {
    both(|systemd| {
        let mut case = Case::new("sleep 1000", systemd);
        let disk = fs::read_to_string("/sys/block/vda/dev").unwrap();
        let (major, minor) = disk.trim().split_once(':').unwrap();
        let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
        case.resources(json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 80 << 20 },
            "cpu": { "shares": 512, "quota": 25_500, "period": 50_000, "cpus": "0", "mems": "0" },
            "pids": { "limit": 77 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }],
            "blockIO": { "throttleReadBpsDevice": [{ "major": major, "minor": minor, "rate": 1_048_576 }] },
            "unified": { "memory.high": "50331648", "memory.min": "4194304", "memory.oom.group": "1" }
        }));
        case.start();
        let check = |pids: &str| {
            for (file, value) in [
                ("memory.max", "67108864"),
                ("memory.low", "33554432"),
                ("memory.high", "50331648"),
                ("memory.min", "4194304"),
                ("memory.swap.max", "16777216"),
                ("memory.oom.group", "1"),
                ("cpu.weight", "59"),
                ("cpu.max", "25500 50000"),
                ("cpuset.cpus", "0"),
                ("cpuset.mems", "0"),
                ("pids.max", pids),
                ("hugetlb.2MB.max", "4194304"),
            ] {
                // systemd 252 writes it with a unit's other limits, as 0.
                if !systemd || file != "memory.oom.group" {
                    assert_eq!(case.read(file), value, "{file}, systemd: {systemd}");
                }
            }
            let io = case.read("io.max");
            assert!(io.contains("rbps=1048576"), "{io}");
        };
        check("77");
        case.bundle
            .good(&["update", "--pids-limit", "88", &case.bundle.id]);
        check("88");
        if systemd {
            systemctl(&["daemon-reload"]);
            check("88");
            assert_eq!(case.property("TasksMax"), "88");
            assert_eq!(case.property("Delegate"), "yes");
            assert_eq!(case.property("CPUQuotaPerSecUSec"), "510ms");
        }
    });
}

fn too_much_memory_kills_and_the_cgroup_counts_it() {
    both(|systemd| {
        let hog = "sleep 0.2; exec dd if=/dev/zero of=/dev/null bs=64M count=1";
        let mut case = Case::new(&format!("/bin/sh -c '{hog}'; sleep 1000"), systemd);
        case.resources(json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } }));
        case.start();
        assert_eq!(case.read("memory.swap.max"), "0", "nothing is left for swap");
        wait_until("the OOM killer", || {
            case.read("memory.events").contains("oom_kill 1")
        });
        assert_eq!(case.bundle.status(), "running", "only the child was killed");
    });
}

fn devices_are_denied_before_and_after_a_reload_of_systemd() {
    both(|systemd| {
        let mut case = Case::new("sleep 1000", systemd);
        for set in ["bounding", "effective", "permitted"] {
            let set = case.bundle.config["process"]["capabilities"][set].as_array_mut();
            set.unwrap().push(json!("CAP_MKNOD"));
        }
        case.start();
        let tried =
            || case.exec("test -e /dev/kmsg || mknod /dev/kmsg c 1 11; (: > /dev/kmsg) 2>&1 || echo refused");
        let refused = tried();
        assert!(
            refused.contains("not permitted") && refused.contains("refused"),
            "{refused}"
        );
        if systemd {
            systemctl(&["daemon-reload"]);
            assert!(tried().contains("refused"));
        }
        assert_eq!(case.exec(": > /dev/null && echo fine").trim(), "fine");
    });
}

fn a_paused_container_stands_still_and_goes_on() {
    both(|systemd| {
        let case = Case::new("sleep 1000", systemd);
        case.start();
        case.bundle.good(&["pause", &case.bundle.id]);
        assert!(case.read("cgroup.events").contains("frozen 1"));
        assert_eq!(case.bundle.status(), "paused");
        case.bundle.good(&["resume", &case.bundle.id]);
        assert!(case.read("cgroup.events").contains("frozen 0"));
    });
}

const INNER: &str = "mkdir /sys/fs/cgroup/init /sys/fs/cgroup/other && echo $$ > /sys/fs/cgroup/init/cgroup.procs && \
    echo +memory > /sys/fs/cgroup/cgroup.subtree_control; sleep 1000";

fn exec_joins_init_where_the_container_s_cgroup_takes_no_process() {
    both(|systemd| {
        let case = Case::new(INNER, systemd);
        case.start();
        wait_until("sub-cgroups", || case.read("cgroup.subtree_control") == "memory");
        assert_eq!(case.exec("cat /proc/self/cgroup").trim(), "0::/init");
        let sub = case.bundle.good(&[
            "exec",
            "--cgroup",
            "other",
            &case.bundle.id,
            "/bin/cat",
            "/proc/self/cgroup",
        ]);
        assert_eq!(sub.trim(), "0::/other");
        // Deleted with all below, see Drop.
    });
}

fn kill_and_delete_end_a_tree_that_forks() {
    both(|systemd| {
        let case = Case::new("while true; do (sleep 0.05 &) ; sleep 0.01; done", systemd);
        case.start();
        case.bundle.good(&["kill", "--all", &case.bundle.id, "KILL"]);
        case.bundle.wait_for("stopped");
    });
}

fn the_cgroup_belongs_to_the_root_of_the_user_namespace() {
    both(|systemd| {
        let mut case = Case::new("mkdir /sys/fs/cgroup/mine && echo made; sleep 1000", systemd);
        case.bundle.namespace("user", None);
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        case.bundle.config["linux"]["uidMappings"] = map.clone();
        case.bundle.config["linux"]["gidMappings"] = map;
        // Whose root may look into its own.
        let owned = Command::new("chown")
            .args(["-R", "100000:100000"])
            .arg(case.bundle.rootfs())
            .status();
        assert!(owned.unwrap().success());
        for folder in [case.bundle.folder.clone(), case.bundle.rootfs()] {
            let mode = Command::new("chmod").arg("755").arg(folder).status();
            assert!(mode.unwrap().success());
        }
        case.start();
        wait_until("output", || !case.bundle.output().is_empty());
        assert_eq!(case.bundle.output().trim(), "made");
        let owner = |file: &str| {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(case.directory().join(file)).unwrap().uid()
        };
        assert_eq!(owner("cgroup.procs"), 100_000);
        assert_eq!(owner("cgroup.subtree_control"), 100_000);
        assert_eq!(owner("memory.max"), 0, "limits stay the host's");
    });
}

fn a_score_below_zero_and_higher_limits_are_the_root_s_right() {
    let mut case = Case::new("cat /proc/self/oom_score_adj; sleep 1000", false);
    case.bundle.config["process"]["oomScoreAdj"] = json!(-500);
    case.start();
    wait_until("output", || case.bundle.output().trim() == "-500");
}

fn a_scope_s_name_is_free_again_at_once() {
    let case = Case::new("true", true);
    for _ in 0..5 {
        let out = case.bundle.call(&["--systemd-cgroup", "run", &case.bundle.id]);
        assert!(out.status.success(), "{:?}", texts(&out));
    }
}

fn without_systemd_the_driver_says_what_is_missing() {
    let case = Case::new("true", true);
    let hidden = "mount -t tmpfs tmpfs /run; exec \"$@\"";
    let output = case
        .bundle
        .command_in(hidden, &["--systemd-cgroup", "run", &case.bundle.id])
        .output()
        .unwrap();
    let (_, error) = texts(&output);
    assert!(!output.status.success());
    assert!(
        error.contains("failed to reach systemd") && error.contains("cgroupfs"),
        "{error}"
    );
}

fn a_path_in_the_other_driver_s_form_is_refused() {
    let mut case = Case::new("true", false);
    let error = case.bundle.bad(&["--systemd-cgroup", "run", &case.bundle.id]);
    assert!(error.contains("slice:prefix:name"), "{error}");
    case.resources(json!({ "unified": { "../memory.max": "1" } }));
    let error = case.bundle.bad(&["run", &case.bundle.id]);
    assert!(error.contains("without a slash"), "{error}");
}

const TESTS: &[(&str, fn())] = &[
    (
        "limits_reach_the_kernel_and_outlive_a_reload_of_systemd",
        limits_reach_the_kernel_and_outlive_a_reload_of_systemd,
    ),
    (
        "too_much_memory_kills_and_the_cgroup_counts_it",
        too_much_memory_kills_and_the_cgroup_counts_it,
    ),
    (
        "devices_are_denied_before_and_after_a_reload_of_systemd",
        devices_are_denied_before_and_after_a_reload_of_systemd,
    ),
    (
        "a_paused_container_stands_still_and_goes_on",
        a_paused_container_stands_still_and_goes_on,
    ),
    (
        "exec_joins_init_where_the_container_s_cgroup_takes_no_process",
        exec_joins_init_where_the_container_s_cgroup_takes_no_process,
    ),
    (
        "kill_and_delete_end_a_tree_that_forks",
        kill_and_delete_end_a_tree_that_forks,
    ),
    (
        "the_cgroup_belongs_to_the_root_of_the_user_namespace",
        the_cgroup_belongs_to_the_root_of_the_user_namespace,
    ),
    (
        "a_score_below_zero_and_higher_limits_are_the_root_s_right",
        a_score_below_zero_and_higher_limits_are_the_root_s_right,
    ),
    (
        "a_scope_s_name_is_free_again_at_once",
        a_scope_s_name_is_free_again_at_once,
    ),
    (
        "without_systemd_the_driver_says_what_is_missing",
        without_systemd_the_driver_says_what_is_missing,
    ),
    (
        "a_path_in_the_other_driver_s_form_is_refused",
        a_path_in_the_other_driver_s_form_is_refused,
    ),
];

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() || !Path::new("/run/systemd/private").exists()
    {
        println!(
            "\nunified: no test was run: they need cgroup v2 alone and systemd; `hack/test --vm` has both\n"
        );
        return ExitCode::SUCCESS;
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| chosen(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored",
        chosen.len() - failed
    );
    ExitCode::from(u8::from(failed > 0))
}
