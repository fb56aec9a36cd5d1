//! The daemons under measurement: a registry with the image, ours, and containerd where it is installed.
//!
//! All state is in one temporary folder and the benchmark's own namespaces: `/run` and the CNI folders are mounts that
//! end with them.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

const REGISTRY: &str = "127.0.0.1:5000";
const IMAGE: &str = "127.0.0.1:5000/e2e-test-images/busybox:1.29-2";
const PAUSE: &str = "127.0.0.1:5000/pause:3.9";

/// A daemon that runs.
pub(crate) struct Daemon {
    /// What it is called in the tables.
    pub(crate) name: String,
    /// Its CRI socket.
    pub(crate) socket: PathBuf,
    /// When it was started last.
    pub(crate) begun: Instant,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Child,
}

/// Proportional set sizes, in KiB.
pub(crate) struct Pss {
    /// The daemon's own.
    pub(crate) daemon: u64,
    /// How many shims or monitors there are.
    pub(crate) helpers: usize,
    /// All of theirs.
    pub(crate) helpers_total: u64,
    /// The largest of theirs.
    pub(crate) helper_largest: u64,
}

/// The registry and the daemons; all ended when dropped.
pub(crate) struct Bed {
    /// Ours first.
    pub(crate) daemons: Vec<Daemon>,
    registry: Child,
    cgroup: String,
    dir: TempDir,
}

impl Bed {
    /// Starts everything. `layout` is the image layout to serve.
    pub(crate) fn new(layout: &Path) -> Result<Self> {
        let ours = fs::canonicalize("target/orlop/orlop-cri")
            .context("`target/orlop/orlop-cri` doesn't exist: run `hack/build`")?;
        let dir = TempDir::with_prefix("orlop-bench-")?;
        prepare_namespace(dir.path())?;
        let registry = start_registry(dir.path())?;
        let cgroup = std::env::var(crate::INSIDE).context("the cgroup is named outside of the namespaces")?;
        let cgroup = format!("/{cgroup}");
        let mut bed = Self {
            daemons: Vec::new(),
            registry,
            cgroup,
            dir,
        };
        wait_for_port(REGISTRY)?;
        tests_images::push::push(REGISTRY, layout)?;
        bed.daemons.push(start_ours(&ours, bed.dir.path(), &bed.cgroup)?);
        if let Some(path) = installed("containerd") {
            bed.daemons.push(start_containerd(&path, bed.dir.path())?);
        }
        ensure!(
            bed.daemons.len() > 1,
            "containerd isn't installed: nothing to compare with (`hack/deps`)"
        );
        Ok(bed)
    }

    /// The image that the containers run.
    pub(crate) fn image(&self) -> &str {
        IMAGE
    }

    /// The parent of the pods' cgroups.
    pub(crate) fn cgroup_parent(&self) -> String {
        self.cgroup.clone()
    }

    /// A pod's log folder.
    pub(crate) fn log_dir(&self, daemon: &str, pod: &str) -> String {
        self.dir
            .path()
            .join("logs")
            .join(daemon)
            .join(pod)
            .display()
            .to_string()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            end(&mut daemon.child);
        }
        end(&mut self.registry);
    }
}

impl Daemon {
    fn start(name: &str, program: &Path, config: &Path, log: &Path, socket: PathBuf) -> Result<Self> {
        let begun = Instant::now();
        Ok(Self {
            name: name.to_owned(),
            socket,
            begun,
            program: program.to_owned(),
            config: config.to_owned(),
            log: log.to_owned(),
            child: spawn(Command::new(program).arg("--config").arg(config), log)?,
        })
    }

    /// Kills it as a crash would, and starts it again.
    pub(crate) fn crash_and_start(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.begun = Instant::now();
        self.child = spawn(
            Command::new(&self.program).arg("--config").arg(&self.config),
            &self.log,
        )?;
        Ok(())
    }

    /// The processor time that the daemon, its helpers and the processes that these have waited for have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut ticks = ticks_of(self.child.id())?;
        for pid in self.helpers()? {
            ticks += ticks_of(pid)?;
        }
        Ok(Duration::from_millis(ticks * 10))
    }

    /// The memory of the daemon and of its helpers.
    pub(crate) fn pss(&self) -> Result<Pss> {
        let mut pss = Pss {
            daemon: pss_of(self.child.id())?,
            helpers: 0,
            helpers_total: 0,
            helper_largest: 0,
        };
        for pid in self.helpers()? {
            let one = pss_of(pid)?;
            pss.helpers += 1;
            pss.helpers_total += one;
            pss.helper_largest = pss.helper_largest.max(one);
        }
        Ok(pss)
    }

    /// Shims and monitors, by the names of their executables.
    fn helpers(&self) -> Result<Vec<u32>> {
        let helper = if self.name == "orlop" {
            "orlop-shim"
        } else {
            "containerd-shim"
        };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let program = command.split(|b| *b == 0).next().unwrap_or_default();
            if String::from_utf8_lossy(program).contains(helper) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

/// Hundredths of a second, as the kernel counts them for programs.
fn ticks_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
    parse_ticks(&text).with_context(|| format!("`{path}` has no times"))
}

/// The sum of its own user and system time and of those of its children.
fn parse_ticks(stat: &str) -> Option<u64> {
    // Behind the name, which may hold anything, the third field comes first; times are the 14th to 17th.
    let (_, fields) = stat.rsplit_once(") ")?;
    let times: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(4)
        .map_while(|f| f.parse().ok())
        .collect();
    (times.len() == 4).then(|| times.iter().sum())
}

fn pss_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
    text.lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .and_then(|l| l.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse().ok())
        .with_context(|| format!("`{path}` has no Pss line"))
}

fn prepare_namespace(dir: &Path) -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .context("failed to turn on ip_forward in our namespace")?;
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
    for (name, at) in [("cni-state", "/var/lib/cni"), ("cni-conf", "/etc/cni")] {
        fs::create_dir_all(at)?;
        let source = dir.join(name);
        fs::create_dir_all(&source)?;
        run("mount", &["--bind", &source.display().to_string(), at])?;
    }
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::write(
        "/etc/cni/net.d/10-bench.conflist",
        r#"{"cniVersion": "1.0.0", "name": "bench", "plugins": [
            {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]],
                      "routes": [{"dst": "0.0.0.0/0"}]}}]}"#,
    )?;
    Ok(())
}

fn start_registry(dir: &Path) -> Result<Child> {
    let program = installed("docker-registry")
        .context("docker-registry isn't installed: the image has to come from somewhere (`hack/deps`)")?;
    let config = dir.join("registry.yml");
    let root = dir.join("registry");
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
            root.display()
        ),
    )?;
    spawn(
        Command::new(program).arg("serve").arg(&config),
        &dir.join("registry.log"),
    )
}

fn start_ours(program: &Path, dir: &Path, cgroup: &str) -> Result<Daemon> {
    let own = dir.join("orlop");
    fs::create_dir_all(&own)?;
    let socket = PathBuf::from("/run/orlop-bench.sock");
    let config = own.join("orlop-cri.toml");
    let mut file = fs::File::create(&config)?;
    writeln!(file, "root = {:?}", own.join("root"))?;
    writeln!(file, "state = \"/run/orlop-bench\"")?;
    writeln!(file, "socket = {socket:?}")?;
    writeln!(file, "[cgroup]\nroot = {cgroup:?}\nshims = \"{cgroup}/shims\"")?;
    Daemon::start("orlop", program, &config, &dir.join("orlop.log"), socket)
}

/// Without the capability to do so, runc fails to give the pause container the low score for the OOM killer that
/// containerd asks for, unless it is told to ask for no lower one than it has itself.
fn start_containerd(program: &Path, dir: &Path) -> Result<Daemon> {
    let own = dir.join("containerd");
    fs::create_dir_all(&own)?;
    let socket = PathBuf::from("/run/containerd-bench.sock");
    let config = own.join("config.toml");
    fs::write(
        &config,
        format!(
            "version = 2\nroot = {:?}\nstate = \"/run/containerd-bench\"\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"/etc/cni/net.d\"\n",
            own.join("root")
        ),
    )?;
    Daemon::start(
        "containerd",
        program,
        &config,
        &dir.join("containerd.log"),
        socket,
    )
}

fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|d| d.join(name))
        .find(|p| p.is_file())
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file = fs::File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("failed to start {:?}", command.get_program()))
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("failed to run `{program}`"))?;
    ensure!(
        status.success(),
        "`{program} {}` failed: {status}",
        args.join(" ")
    );
    Ok(())
}

fn wait_for_port(address: &str) -> Result<()> {
    for _ in 0..1000 {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("nothing answered on {address} in 10 s")
}

/// Asks a child to end, and makes it after five seconds.
fn end(child: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    for _ in 0..500 {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 200 3 4 11 22 33 44 20 0 1 0 500 1000 10";
        assert_eq!(parse_ticks(stat), Some(110));
        assert_eq!(parse_ticks("7 (a) S 1"), None);
        assert_eq!(parse_ticks(""), None);
        assert!(ticks_of(std::process::id()).is_ok());
    }
}
