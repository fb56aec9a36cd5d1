//! `bench oci`: the life of a container through each runtime's command line.
//!
//! Everything happens in mount and network namespaces of the benchmark's own, with cgroups below one folder that it
//! removes. Each round runs every operation once with every runtime in turn; a second pass leaves the machine idle
//! for 50 ms before each operation, because that is when attaching to a cgroup is slow.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use tempfile::TempDir;

use crate::report::{Samples, print_row};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of each pass
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Milliseconds of quiet before each operation in the second pass
    #[arg(long, default_value_t = 50)]
    idle_ms: u64,
    /// A static busybox for the root file system
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
}

struct Contestant {
    name: String,
    path: PathBuf,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    hide_hybrid_v2()?;
    let contestants = contestants()?;
    let bed = Bed::new(&options.busybox)?;
    println!(
        "runtimes: {}",
        contestants
            .iter()
            .map(|c| c.path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    );
    for (label, quiet) in [("hot", 0), ("idle", options.idle_ms)] {
        for seccomp in [false, true] {
            let title = format!("{label}, {}", if seccomp { "seccomp" } else { "no seccomp" });
            println!("\n{title}: {} rounds, ms", options.rounds);
            pass(
                &bed,
                &contestants,
                options.rounds,
                Duration::from_millis(quiet),
                seccomp,
            )?;
        }
    }
    println!("\npeak resident set of `run` with seccomp, KiB");
    for contestant in &contestants {
        println!("  {:<10} {}", contestant.name, bed.peak_rss(contestant)?);
    }
    Ok(())
}

/// Runs a command and prints the peak resident set of it and its children.
pub(crate) fn print_rss(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("no command given")?;
    let status = Command::new(program).args(args).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "`{program}` failed: {status}");
    eprintln!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}

fn contestants() -> Result<Vec<Contestant>> {
    let ours = PathBuf::from("target/orlop/orlop-oci");
    ensure!(
        ours.exists(),
        "`{}` doesn't exist: run `hack/build orlop-oci`",
        ours.display()
    );
    let mut found = vec![Contestant {
        name: "orlop".into(),
        path: fs::canonicalize(ours)?,
    }];
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["runc", "crun"] {
        if let Some(path) = std::env::split_paths(&path)
            .map(|d| d.join(name))
            .find(|p| p.is_file())
        {
            found.push(Contestant {
                name: name.into(),
                path,
            });
        }
    }
    ensure!(
        found.len() > 1,
        "neither runc nor crun is installed: nothing to compare with (`hack/deps`)"
    );
    Ok(found)
}

/// crun refuses a host with both v1 and v2 mounted; in our own mount namespace nobody sees such a v2.
fn hide_hybrid_v2() -> Result<()> {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    if Path::new(UNIFIED).join("cgroup.procs").exists() {
        let status = Command::new("umount")
            .arg(UNIFIED)
            .status()
            .context("failed to run `umount`")?;
        ensure!(status.success(), "`umount {UNIFIED}` failed: {status}");
    }
    Ok(())
}

const OPERATIONS: [&str; 6] = ["run", "create", "start", "exec", "state", "delete"];

fn pass(bed: &Bed, contestants: &[Contestant], rounds: u32, quiet: Duration, seccomp: bool) -> Result<()> {
    let mut samples = vec![vec![Samples::default(); contestants.len()]; OPERATIONS.len()];
    for round in 0..rounds {
        for (c, contestant) in contestants.iter().enumerate() {
            let times = bed
                .one_life(contestant, round, quiet, seccomp)
                .with_context(|| format!("{} failed in round {round}", contestant.name))?;
            for (operation, time) in times.into_iter().enumerate() {
                samples[operation][c].push(time);
            }
        }
    }
    for (operation, row) in OPERATIONS.iter().zip(samples) {
        let named: Vec<_> = contestants.iter().map(|c| c.name.clone()).zip(row).collect();
        print_row(operation, &named);
    }
    Ok(())
}

/// Bundles, roots and cgroups of the benchmark; gone when dropped.
struct Bed {
    dir: TempDir,
    cgroup: String,
}

impl Bed {
    fn new(busybox: &Path) -> Result<Self> {
        let dir = TempDir::with_prefix("orlop-bench-")?;
        let tag = dir
            .path()
            .file_name()
            .and_then(|n| n.to_str())
            .context("a temporary folder has a name")?;
        let cgroup = format!("/{tag}");
        for (bundle, args, seccomp) in [
            ("true", json!(["/bin/true"]), false),
            ("true-seccomp", json!(["/bin/true"]), true),
            ("sleep", json!(["/bin/sleep", "1000"]), false),
            ("sleep-seccomp", json!(["/bin/sleep", "1000"]), true),
        ] {
            let bundle = dir.path().join(bundle);
            let bin = bundle.join("rootfs/bin");
            fs::create_dir_all(&bin)?;
            for sub in ["proc", "sys", "dev"] {
                fs::create_dir_all(bundle.join("rootfs").join(sub))?;
            }
            fs::copy(busybox, bin.join("busybox")).with_context(|| {
                format!(
                    "failed to copy `{}`: install busybox-static or give --busybox",
                    busybox.display()
                )
            })?;
            for applet in ["true", "sleep"] {
                fs::hard_link(bin.join("busybox"), bin.join(applet))?;
            }
            fs::write(bundle.join("config.json"), config(&args, seccomp, &cgroup)?)?;
        }
        Ok(Self { dir, cgroup })
    }

    fn command(&self, contestant: &Contestant) -> Command {
        let mut command = Command::new(&contestant.path);
        command
            .arg("--root")
            .arg(self.dir.path().join(format!("root-{}", contestant.name)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// One container through all of [`OPERATIONS`], each timed.
    fn one_life(&self, c: &Contestant, round: u32, quiet: Duration, seccomp: bool) -> Result<Vec<Duration>> {
        let id = format!("bench-{}-{round}", c.name);
        let suffix = if seccomp { "-seccomp" } else { "" };
        let bundle = |name: &str| self.dir.path().join(format!("{name}{suffix}"));
        let timed = |args: &[&str], bundle: Option<PathBuf>| -> Result<Duration> {
            std::thread::sleep(quiet);
            let mut command = self.command(c);
            command.arg(args[0]);
            if let Some(bundle) = bundle {
                command.arg("--bundle").arg(bundle);
            }
            command.args(&args[1..]);
            let begun = Instant::now();
            let status = command.status()?;
            let time = begun.elapsed();
            ensure!(
                status.success(),
                "`{} {}` failed: {status}",
                c.name,
                args.join(" ")
            );
            Ok(time)
        };
        let mut times = vec![timed(&["run", &id], Some(bundle("true")))?];
        times.push(timed(&["create", &id], Some(bundle("sleep")))?);
        times.push(timed(&["start", &id], None)?);
        times.push(timed(&["exec", &id, "/bin/true"], None)?);
        times.push(timed(&["state", &id], None)?);
        let killed = self.command(c).args(["kill", &id, "KILL"]).status()?;
        ensure!(killed.success(), "`{} kill` failed: {killed}", c.name);
        self.wait_stopped(c, &id)?;
        times.push(timed(&["delete", &id], None)?);
        Ok(times)
    }

    fn wait_stopped(&self, c: &Contestant, id: &str) -> Result<()> {
        for _ in 0..500 {
            let out = self
                .command(c)
                .stdout(Stdio::piped())
                .args(["state", id])
                .output()?;
            let state: serde_json::Value = serde_json::from_slice(&out.stdout)?;
            if state["status"] == "stopped" {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("{} still runs container {id} a second after SIGKILL", c.name)
    }

    fn peak_rss(&self, c: &Contestant) -> Result<String> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["rss", "--"])
            .arg(&c.path)
            .arg("--root")
            .arg(self.dir.path().join(format!("root-{}", c.name)))
            .args(["run", "--bundle"])
            .arg(self.dir.path().join("true-seccomp"))
            .arg(format!("rss-{}", c.name))
            .stderr(Stdio::piped())
            .spawn()?;
        let mut text = String::new();
        child
            .stderr
            .take()
            .context("stderr was asked for")?
            .read_to_string(&mut text)?;
        ensure!(child.wait()?.success(), "measuring {} failed: {text}", c.name);
        Ok(text.lines().last().unwrap_or_default().to_owned())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Empty folders of our own name only: what a runtime left inside stays visible.
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        let below = self.cgroup.trim_start_matches('/');
        for hierarchy in hierarchies.flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(below));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(below));
    }
}

/// The same container for everybody: six namespaces, masked paths, memory, cpu and devices cgroups.
fn config(args: &serde_json::Value, seccomp: bool, cgroup: &str) -> Result<String> {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
            "env": ["PATH=/bin"], "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("{cgroup}/CONTAINER"),
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 256 << 20},
                "cpu": {"shares": 512, "quota": 100_000, "period": 100_000},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                            "/sys/firmware"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                              "/proc/sysrq-trigger"],
        },
    });
    if seccomp {
        let profile =
            cri_server::seccomp_default::runtime_default(&capabilities.map(str::to_owned), "x86_64");
        config["linux"]["seccomp"] = serde_json::to_value(profile)?;
    }
    Ok(serde_json::to_string(&config)?)
}
