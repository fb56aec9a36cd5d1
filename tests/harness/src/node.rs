//! A node: namespaces, a folder, cgroups, a registry, orlop-cri.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::audit::{self, Snapshot};
use crate::boot::{self, Sandbox};
use crate::cgroup::Subtree;
use crate::crictl::Crictl;
use crate::daemon::{self, Daemon};
use crate::driver::Driver;
use crate::janitor::Janitor;
use crate::registry;
use crate::run::{Finished, finish, piped};
use crate::tools;

/// How long a command in a node may take when nothing else is said.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the daemon may take until it listens. Long, because tests run beside compilers.
const READY: Duration = Duration::from_secs(30);

/// What a node shall be like.
#[derive(Debug, Clone, Default)]
pub struct NodeBuilder {
    config: String,
    environment: BTreeMap<String, String>,
    conflist: Option<String>,
    disk_mib: Option<u64>,
    bare: bool,
    driver: Option<Driver>,
}

impl NodeBuilder {
    /// More of the daemon's configuration, in TOML; it goes into a drop-in.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = format!("{}{toml}\n", self.config);
        self
    }

    /// An environment variable of the daemon.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The pod network, instead of the usual one.
    #[must_use]
    pub fn conflist(mut self, json: &str) -> Self {
        self.conflist = Some(json.to_owned());
        self
    }

    /// The daemon's state is on a disk of that size.
    #[must_use]
    pub fn disk_mib(mut self, mib: u64) -> Self {
        self.disk_mib = Some(mib);
        self
    }

    /// Who makes the pods' cgroups, whatever the environment says.
    #[must_use]
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = Some(driver);
        self
    }

    /// Without orlop-cri and without a registry.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Makes the node and waits until its daemon listens.
    ///
    /// # Errors
    /// Something of it can't be made; what was made is gone again.
    pub fn start(self) -> Result<Node> {
        Node::from(self)
    }
}

/// A node. [`Node::finish`] proves that nothing of it is left; dropping it only cleans up.
#[derive(Debug)]
pub struct Node {
    name: String,
    base: PathBuf,
    machine_before: Snapshot,
    registry: Option<Child>,
    daemon: Option<Daemon>,
    environment: BTreeMap<String, String>,
    driver: Driver,
    // The order matters when a node is dropped: processes end before their cgroups are removed.
    sandbox: Sandbox,
    cgroup: Subtree,
    _janitor: Janitor,
}

impl Node {
    /// A node with a registry, the usual pod network and orlop-cri.
    ///
    /// # Errors
    /// As [`NodeBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// A node that is to be described further.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    fn from(wish: NodeBuilder) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let driver = match wish.driver {
            Some(driver) => driver,
            // What runs there has cgroups of its own making.
            None if wish.bare => Driver::Cgroupfs,
            None => Driver::of_environment()?,
        };
        driver.check()?;
        let name = format!(
            "orlop-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let machine_before = audit::machine(&name)?;
        let base = std::env::temp_dir().join(&name);
        // Hired before and dismissed after everything else.
        let mut janitor = Janitor::hire(&name, &base)?;
        fs::create_dir(&base).with_context(|| format!("failed to create `{}`", base.display()))?;
        let cleanup = RemoveOnError(Some(base.clone()));
        let sandbox = Sandbox::node(driver)?;
        janitor.tell_keeper(sandbox.pid())?;
        let cgroup = Subtree::new(&name, driver)?;
        let on_disk = boot::real_disk(&base)?;
        let keep = tools::folders()?;
        sandbox.namespaces.inside(|| {
            if !on_disk {
                boot::memory_disk(&base)?;
            }
            boot::furnish(&base, &name, &keep, driver)?;
            if let Some(mib) = wish.disk_mib {
                boot::small_disk(mib)?;
            }
            Ok(())
        })?;
        fs::create_dir_all(base.join("log"))?;
        let mut node = Self {
            name,
            base,
            machine_before,
            registry: None,
            daemon: None,
            environment: wish.environment.clone(),
            driver,
            sandbox,
            cgroup,
            _janitor: janitor,
        };
        cleanup.forget();
        node.run("ip", &["link", "set", "lo", "up"])?.ok()?;
        if !wish.bare {
            node.write_configuration(&wish)?;
            node.start_registry()?;
            node.start_daemon()?;
        }
        Ok(node)
    }

    fn write_configuration(&self, wish: &NodeBuilder) -> Result<()> {
        let crictl = format!(
            "runtime-endpoint: unix://{0}\nimage-endpoint: unix://{0}\ntimeout: 100\ndebug: false\n",
            daemon::SOCKET
        );
        let main = format!(
            "shim = \"{}\"\n\n{}",
            tools::ours("orlop-shim")?.display(),
            self.driver.configuration(&self.name),
        );
        let conflist = wish.conflist.clone().unwrap_or_else(usual_network);
        self.write("/etc/crictl.yaml", &crictl)?;
        self.write(daemon::CONFIG, &main)?;
        self.write(&format!("{}.d/50-test.toml", daemon::CONFIG), &wish.config)?;
        self.write(
            "/etc/orlop/registries.d/_default/hosts.toml",
            &registry::hosts_toml(),
        )?;
        self.write("/etc/cni/net.d/10-orlop.conflist", &conflist)
    }

    /// Starts the registry on the node's loopback interface. A node that isn't bare has it already.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn start_registry(&mut self) -> Result<()> {
        self.registry = Some(registry::start(&self.sandbox.namespaces, &self.base.join("log"))?);
        Ok(())
    }

    /// The node's name, which is also its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who makes its pods' cgroups.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The parent of all its cgroups.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        self.cgroup.path()
    }

    /// What a cgroup right below that is called by who makes it: a pod's is called by the pod's ID.
    #[must_use]
    pub fn child_cgroup(&self, name: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => self.child_cgroup_path(name),
            Driver::Systemd => Driver::slice(&self.name).replace(".slice", &format!("-{name}.slice")),
        }
    }

    /// Where it is, from the hierarchies' roots.
    #[must_use]
    pub fn child_cgroup_path(&self, name: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => format!("{}/{name}", self.cgroup_parent()),
            Driver::Systemd => format!("{}/{}", self.cgroup_parent(), self.child_cgroup(name)),
        }
    }

    /// Where a path of the node is for this process.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.sandbox.pid()))
    }

    /// Where the daemon listens, for this process.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path(daemon::SOCKET)
    }

    /// A folder for temporary files; the same path inside and outside, unless the machine's disk is an overlay.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.base.join("tmp")
    }

    /// A process that is in the node's namespaces.
    #[must_use]
    pub fn keeper(&self) -> u32 {
        self.sandbox.pid()
    }

    /// Writes a file in the node, with the folders above it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.inside(|| {
            let path = Path::new(path);
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
            }
            fs::write(path, content).with_context(|| format!("failed to write `{}`", path.display()))
        })
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(&self, path: &str) -> Result<String> {
        self.inside(|| fs::read_to_string(path).with_context(|| format!("failed to read `{path}`")))
    }

    /// Calls `work` in a thread that is in the node's namespaces.
    ///
    /// # Errors
    /// Entering failed, or `work` did.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.sandbox.namespaces.inside(work)
    }

    /// Starts a command in the node. It ends with the node at the latest.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.sandbox.namespaces.spawn(command.env("TMPDIR", self.tmp()))
    }

    /// Runs a command in the node to its end.
    ///
    /// # Errors
    /// It can't be started or doesn't end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        self.run_within(LIMIT, Command::new(program).args(args))
    }

    /// Runs a command in the node that must end within `limit`.
    ///
    /// # Errors
    /// It can't be started or doesn't end.
    pub fn run_within(&self, limit: Duration, command: &mut Command) -> Result<Finished> {
        let what = std::iter::once(command.get_program()).chain(command.get_args());
        let what = what
            .map(|part| part.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        let child = self.spawn(piped(command))?;
        finish(&what, child, limit)
    }

    /// crictl in the node.
    ///
    /// # Errors
    /// It can't be built.
    pub fn crictl(&self) -> Result<Crictl<'_>> {
        Crictl::new(self)
    }

    /// The daemon.
    ///
    /// # Errors
    /// There is none.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon
            .as_mut()
            .context("the node has no daemon at the moment")
    }

    /// Starts the daemon and waits until it listens; how long that took.
    ///
    /// # Errors
    /// It ends, or doesn't listen.
    pub fn start_daemon(&mut self) -> Result<Duration> {
        self.launch_daemon()?;
        let socket = self.socket();
        self.daemon()?.ready(&socket, READY)
    }

    /// Starts the daemon without waiting.
    ///
    /// # Errors
    /// It can't be started.
    pub fn launch_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the node's daemon runs already");
        let tmp = self.tmp();
        self.daemon = Some(Daemon::spawn(
            &self.sandbox.namespaces,
            &self.base,
            &self.environment,
            &tmp,
        )?);
        Ok(())
    }

    /// Sets or clears an environment variable for the daemon's next start.
    pub fn set_env(&mut self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => self.environment.insert(key.to_owned(), value.to_owned()),
            None => self.environment.remove(key),
        };
    }

    /// SIGKILL to the daemon.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon()?.kill()?;
        self.daemon = None;
        Ok(())
    }

    /// The daemon ended by itself: forgets it, so that another can be started.
    ///
    /// # Errors
    /// It hasn't ended within a while.
    pub fn await_daemons_end(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let status = self.daemon()?.wait(limit)?;
        self.daemon = None;
        Ok(status)
    }

    /// SIGKILL and a new start; the time until it listened.
    ///
    /// # Errors
    /// It doesn't come back.
    pub fn restart_daemon(&mut self) -> Result<Duration> {
        self.kill_daemon()?;
        self.start_daemon()
    }

    /// All that could leak, as it is now.
    ///
    /// # Errors
    /// Something can't be looked at.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let cgroups = self.cgroup.children();
        let residents = self.sandbox.residents(&self.cgroup)?;
        let expected = ["orlop-cri", "docker-registry"];
        self.inside(|| Snapshot::take(cgroups, &residents, &expected))
    }

    /// Fails when there is more than there was at `before`, after giving it a moment to go away; what is in the image
    /// store's trash gets longer, because it is deleted in the background.
    ///
    /// # Errors
    /// Names what leaked.
    pub fn assert_no_leaks(&self, before: &Snapshot) -> Result<()> {
        let mut leaks = Vec::new();
        for round in 0..100 {
            leaks = before.leaks(&self.snapshot()?);
            if leaks.is_empty() {
                return Ok(());
            }
            if round >= 20 && !leaks.iter().all(|leak| audit::is_on_its_way_out(leak)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("leaked:\n  {}", leaks.join("\n  "))
    }

    /// Where the daemon's output goes; the same file for all daemons of the node.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.base.join("log/orlop-cri.log")
    }

    /// Copies the logs of the daemon and of the registry into a folder.
    ///
    /// # Errors
    /// They can't be copied.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        for name in ["orlop-cri.log", "registry.log"] {
            let to = folder.join(name);
            fs::copy(self.base.join("log").join(name), &to)
                .with_context(|| format!("failed to write `{}`", to.display()))?;
        }
        Ok(())
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.daemon
            .as_ref()
            .map_or_else(String::new, |daemon| daemon.log_tail(lines))
    }

    /// Ends the node, and proves that it left nothing on the machine. Cgroups must have been removed by whoever made
    /// them: pods that still ran are a failure of the test.
    ///
    /// # Errors
    /// Names what is left.
    pub fn finish(mut self) -> Result<()> {
        let mut left = Vec::new();
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        if let Some(mut registry) = self.registry.take() {
            registry.kill()?;
            registry.wait()?;
        }
        left.extend(
            self.cgroup
                .children()
                .into_iter()
                .filter(|c| !(c.ends_with(":shims") || c.ends_with("shims.scope")))
                .map(|c| format!("cgroup {c}")),
        );
        self.cgroup.kill()?;
        self.sandbox.end()?;
        self.cgroup.remove()?;
        fs::remove_dir_all(&self.base)
            .with_context(|| format!("failed to remove `{}`", self.base.display()))?;
        left.extend(self.machine_before.leaks(&audit::machine(&self.name)?));
        ensure!(left.is_empty(), "the node left:\n  {}", left.join("\n  "));
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of orlop-cri's log\n{}\n---", self.log_tail(60));
        }
        // All of this was done already if the node was finished; an error could only hide the test's own.
        for child in self.registry.iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
        }
        let _ = self.cgroup.kill();
        let _ = self.sandbox.end();
        let _ = self.cgroup.remove();
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// A folder that goes again when a node can't be made.
struct RemoveOnError(Option<PathBuf>);

impl RemoveOnError {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnError {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The error that led here is the one to be told.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// A bridge with addresses of both families, masquerade, port mappings, bandwidth and firewall.
#[must_use]
pub fn usual_network() -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "orlop",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "orlop0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "firewall" },
        ],
    })
    .to_string()
}
