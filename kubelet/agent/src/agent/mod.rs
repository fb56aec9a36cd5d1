//! The kubelet as a whole: its parts made and joined, and run until it is time to stop.
//!
//! [`Agent::prepare`] looks at the machine and the runtime and makes what the node needs once (directories, the cgroup
//! tree, certificates); [`Agent::run`] then runs the tasks: sources, PLEG, prober and sync loop, which tell each other
//! through one channel, and the housekeeping that goes round by the clock. Stopping ends tasks and no pod.

mod adapters;
mod facts;
mod garbage;
mod housekeeping;
mod log_rotation;
mod node_stats;
mod oom_watch;
mod placement;
mod pressure;
mod serving;
mod shutdown;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use cri_api::v1;
use jiff::{SignedDuration, Timestamp};
use kubelet_pods::admission::Node;
use kubelet_pods::cri::userns::{RANGE, UserNamespaces};
use kubelet_volumes::{Seams, Volumes};
use oci_runtime_cgroups::CgroupDriver;
use tokio::sync::mpsc;
use tracing::{info, warn};

use adapters::{CountedCalls, DownwardValues, NodeAdmission, SourceObjects, TreeCgroups};
use facts::Place;

use crate::config::{KubeletConfiguration, configz};
use crate::events::Events;
use crate::hooks::NodeHooks;
use crate::images::{Keyring, Puller};
use crate::last_words::OnDisk;
use crate::metrics::KubeletMetrics;
use crate::node::capacity::{self, Capacity};
use crate::node::cgroups::{self, Cgroups, Kernel, Tree};
use crate::node::cpu::read_machine;
use crate::node::eviction::thresholds_of;
use crate::node::swap;
use crate::pleg;
use crate::probing::{Exec, NodeProbes, Prober};
use crate::runtime::{Cri, socket_path};
use crate::server::authz::Rules;
use crate::server::{CertificateFiles, Server, ServerConfig};
use crate::sources::{self, SourceKind};
use crate::sync::{Context, Input, Registry, Settings, SyncLoop};
use crate::timeline::{Limits, Timelines};

/// What the sync loop may have waiting.
const MAX_INPUTS: usize = 4_096;
/// How long the CRI daemon is waited for at start before that is an error worth a restart.
const CRI_PATIENCE: Duration = Duration::from_secs(300);
/// Between two tries to reach it.
const CRI_RETRY: Duration = Duration::from_millis(100);

/// What the kubelet is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration in force.
    pub config: KubeletConfiguration,
    /// `--root-dir`.
    pub root: PathBuf,
    /// `--cert-dir`.
    pub cert_dir: PathBuf,
    /// `--hostname-override`, or the machine's name.
    pub node_name: Option<String>,
    /// `--node-ip`.
    pub node_ip: Option<String>,
    /// `--node-labels`.
    pub labels: BTreeMap<String, String>,
    /// Static tokens of the server's clients; while there is no such file there are none.
    pub tokens: Option<PathBuf>,
    /// Where the access of the node's own `orlop` is left, if anywhere.
    pub local_client: Option<PathBuf>,
}

/// Why the kubelet can't run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting that isn't one.
    #[error("{0}")]
    Setting(String),
    /// The CRI daemon can't be reached.
    #[error("failed to reach the CRI daemon at `{endpoint}` within {} s: {reason}", CRI_PATIENCE.as_secs())]
    Runtime {
        /// `containerRuntimeEndpoint`.
        endpoint: String,
        /// The last error.
        reason: String,
    },
    /// Something of the node can't be made.
    #[error("failed to {what}: {reason}")]
    Node {
        /// What was tried.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The server can't serve.
    #[error("failed to serve")]
    Server(#[from] crate::server::ServerError),
}

/// The kubelet, ready to run.
pub struct Agent {
    ctx: Arc<Context>,
    config: KubeletConfiguration,
    prober: Arc<Prober>,
    cgroups: Arc<Cgroups<Kernel>>,
    admission: Arc<NodeAdmission>,
    metrics: KubeletMetrics,
    inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    server: Option<Server>,
    sync_loop: SyncLoop,
    place: Place,
    driver: CgroupDriver,
    capacity: Capacity,
}

impl Agent {
    /// Looks at machine and runtime, and makes what the node needs once.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn prepare(options: Options) -> Result<Self, AgentError> {
        let config = options.config.clone();
        // A kernel without swap has no such file.
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        if let Some(refusal) = swap::refusal(config.fail_swap_on, &swaps) {
            return Err(AgentError::Setting(refusal.to_owned()));
        }
        let metrics = KubeletMetrics::new();
        let cri = reach(&config, &metrics).await?;
        let version = cri
            .version(v1::VersionRequest::default())
            .await
            .map_err(|error| AgentError::Runtime {
                endpoint: config.container_runtime_endpoint.clone(),
                reason: error.to_string(),
            })?;
        let status = cri.status(v1::StatusRequest { verbose: false }).await.ok();
        let driver = cgroups::driver(&config, driver_of(&cri).await);
        let place = place(&options)?;
        let (machine, capacity) = node_capacity(&config, &options.root)?;
        let placement = placement::Placement::new(&config, &machine, &capacity, &options.root)
            .map_err(AgentError::Setting)?;
        let cgroups = Arc::new(cgroup_tree(&config, driver, &capacity)?);
        let facts = facts::node_facts(&config, &place, &capacity, driver, status.as_ref());
        let objects = Arc::new(RwLock::default());
        let registry = Arc::new(Registry::default());
        let now: crate::sync::context::Now = Arc::new(Timestamp::now);
        Volumes::share_root(&options.root).map_err(|error| node("share the kubelet's directory", &error))?;
        let volumes = Volumes::new(
            &options.root,
            Seams {
                objects: Arc::new(SourceObjects {
                    objects: objects.clone(),
                    allocatable_memory: u64::try_from(facts.allocatable.memory).unwrap_or(0),
                }),
                downward: Arc::new(DownwardValues(facts.clone())),
                now: Box::new(Timestamp::now),
                plugins: Vec::new(),
            },
        );
        let volumes = Arc::new(volumes.map_err(|error| node("open the kubelet's directory", &error))?);
        let user_namespaces = recover_user_namespaces(&config, &options.root, &volumes);
        let exec: Arc<dyn Exec> = Arc::new(cri.clone());
        let events = Arc::new(Events::default());
        let inputs = mpsc::channel(MAX_INPUTS);
        let woken = registry.clone();
        let (probes, prober) = NodeProbes::new(
            exec.clone(),
            events.clone(),
            Box::new(move |uid| {
                // A pod that isn't known any more has nothing to look at.
                let _ = woken.wake(uid);
            }),
            place.ips.first().copied(),
            jitter(),
            now.clone(),
            metrics.clone(),
        );
        let admission = Arc::new(NodeAdmission {
            node: RwLock::new(admission_node(
                &config,
                &options,
                &place,
                &capacity,
                &facts.runtime,
            )),
            registry: registry.clone(),
            placement,
            shutting_down: std::sync::atomic::AtomicBool::new(false),
        });
        let parallel = parallel_pulls(&config);
        let ctx = Arc::new(Context {
            puller: Arc::new(Puller::new(cri.clone(), parallel)),
            runtime_name: version.runtime_name,
            volumes,
            cgroups: Arc::new(TreeCgroups(cgroups.clone())),
            allocations: admission.clone(),
            probes,
            hooks: Arc::new(NodeHooks::new(exec)),
            words: OnDisk::new(&options.root),
            facts: RwLock::new(Arc::new(facts)),
            objects,
            node_keyring: RwLock::new(Arc::new(node_keyring(&options.root))),
            events,
            timelines: Timelines::new(Limits::default(), now.clone()),
            registry,
            user_namespaces: Mutex::new(user_namespaces),
            network: RwLock::new(housekeeping::network_of(status.as_ref())),
            settings: settings(&config, &options.root),
            now,
            cri,
        });
        let expected = expected_sources(&config);
        let sync_loop = SyncLoop::new(ctx.clone(), expected);
        let server = serve(&options, &ctx, &place, &sync_loop, &metrics).await?;
        Ok(Self {
            ctx,
            config,
            prober,
            cgroups,
            admission,
            metrics,
            inputs,
            server,
            sync_loop,
            place,
            driver,
            capacity,
        })
    }

    /// Where the server listens, when it is there.
    pub fn secure_address(&self) -> Option<SocketAddr> {
        self.server.as_ref().and_then(Server::secure_address)
    }

    /// Runs until `shutdown` resolves. Pods go on running.
    ///
    /// # Errors
    /// A source that can't be had.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let mut tasks = tokio::task::JoinSet::new();
        let (sender, receiver) = self.inputs;
        self.metrics.node_name.set(&[&self.place.node_name], 1.0);
        sources_of(&self.config, &self.place.node_name, &sender, &mut tasks)?;
        let (events, mut heard) = mpsc::channel(MAX_INPUTS);
        let health = pleg::Health::default();
        tasks.spawn(pleg::run(self.ctx.cri.clone(), health.clone(), events, || {
            Timestamp::now().as_second()
        }));
        let to_loop = sender.clone();
        tasks.spawn(async move {
            while let Some(event) = heard.recv().await {
                if to_loop.send(Input::Pleg(event)).await.is_err() {
                    return;
                }
            }
        });
        tasks.spawn(self.prober.run());
        tasks.spawn(self.sync_loop.run(receiver));
        let garbage = Arc::new(garbage::Garbage::new(
            self.ctx.clone(),
            &self.config,
            self.metrics.clone(),
        ));
        tasks.spawn(garbage.clone().run());
        tasks.spawn(log_rotation::run(self.ctx.clone(), self.config.clone()));
        tasks.spawn(oom_watch::run(self.ctx.clone()));
        let pressure = pressure::Pressure {
            ctx: self.ctx.clone(),
            admission: self.admission.clone(),
            cgroups: self.cgroups.clone(),
            garbage: garbage.clone(),
            metrics: self.metrics.clone(),
            settings: pressure::settings(&self.config)
                .map_err(|error| AgentError::Setting(error.to_string()))?,
        };
        tasks.spawn(pressure.run());
        tasks.spawn(shutdown::run(
            self.ctx.clone(),
            self.admission.clone(),
            self.config.clone(),
        ));
        tasks.spawn(placement::reconcile(
            self.admission.clone(),
            self.ctx.cri.clone(),
            self.config.cpu_manager_reconcile_period.to_std(),
        ));
        tasks.spawn(housekeeping::run(housekeeping::House {
            ctx: self.ctx.clone(),
            config: self.config,
            place: self.place,
            capacity: self.capacity,
            driver: self.driver,
            cgroups: self.cgroups,
            admission: self.admission,
            metrics: self.metrics,
            inputs: sender,
            garbage,
        }));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = self.server.map(|server| {
            tokio::spawn(server.run(async move {
                // Either way it is time.
                let _ = stopped.await;
            }))
        });
        tokio::select! {
            () = shutdown => {}
            ended = tasks.join_next() => {
                if let Some(Err(error)) = ended {
                    return Err(AgentError::Node { what: "go on", reason: error.to_string() });
                }
            }
        }
        info!("the kubelet stops; pods go on running");
        drop(stop);
        tasks.shutdown().await;
        if let Some(serving) = serving {
            // It has a limit of its own for connections that don't end.
            let _ = serving.await;
        }
        Ok(())
    }
}

fn node(what: &'static str, error: &dyn std::error::Error) -> AgentError {
    AgentError::Node {
        what,
        reason: adapters::chain(error),
    }
}

/// Connects to the CRI daemon, and waits for it to answer.
async fn reach(config: &KubeletConfiguration, metrics: &KubeletMetrics) -> Result<Cri, AgentError> {
    let endpoint = config.container_runtime_endpoint.clone();
    let runtime = socket_path(&endpoint)
        .map_err(|error| AgentError::Setting(format!("containerRuntimeEndpoint: {error}")))?;
    let images = match config.image_service_endpoint.as_str() {
        "" => runtime.clone(),
        other => socket_path(other)
            .map_err(|error| AgentError::Setting(format!("imageServiceEndpoint: {error}")))?,
    };
    let limit = config.runtime_request_timeout.to_std();
    let cri = Cri::new(&runtime, &images, limit, Arc::new(CountedCalls(metrics.clone())));
    let until = tokio::time::Instant::now() + CRI_PATIENCE;
    let mut told = false;
    loop {
        let Err(error) = cri.version(v1::VersionRequest::default()).await else {
            return Ok(cri);
        };
        if tokio::time::Instant::now() >= until {
            return Err(AgentError::Runtime {
                endpoint,
                reason: error.to_string(),
            });
        }
        if !told {
            warn!(endpoint, "waiting for the CRI daemon: {error}");
            told = true;
        }
        tokio::time::sleep(CRI_RETRY).await;
    }
}

/// The driver of cgroups that the runtime uses, where it tells.
async fn driver_of(cri: &Cri) -> Option<CgroupDriver> {
    let answer = cri.runtime_config(v1::RuntimeConfigRequest {}).await.ok()?;
    Some(match answer.linux?.cgroup_driver() {
        v1::CgroupDriver::Systemd => CgroupDriver::Systemd,
        v1::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
    })
}

fn place(options: &Options) -> Result<Place, AgentError> {
    let name = options.node_name.clone().unwrap_or_else(facts::hostname);
    Ok(Place {
        root: options.root.display().to_string(),
        node_name: name.trim().to_lowercase(),
        ips: facts::addresses(options.node_ip.as_deref()).map_err(AgentError::Setting)?,
    })
}

/// What the node has and gives to pods.
fn node_capacity(
    config: &KubeletConfiguration,
    root: &Path,
) -> Result<(crate::node::cpu::Machine, Capacity), AgentError> {
    let memory = facts::meminfo("MemTotal");
    let machine = read_machine(Path::new("/sys"), memory)
        .map_err(|error| node("read the machine's topology", &error))?;
    make_root(root).map_err(|error| node("make the kubelet's directory", &error))?;
    let disk = nix::sys::statvfs::statvfs(root)
        .map_err(|error| node("measure the kubelet's file system", &error))?;
    let pids = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let observed = capacity::Observed {
        machine,
        memory,
        ephemeral_storage: disk.blocks() * disk.fragment_size(),
        pids: pids.trim().parse().unwrap_or(32_768),
    };
    let hard: Vec<_> = thresholds_of(config)
        .map_err(|error| AgentError::Setting(error.to_string()))?
        .into_iter()
        .filter(crate::node::eviction::Threshold::is_hard)
        .collect();
    let capacity = capacity::capacity(config, &observed, &hard)
        .map_err(|error| AgentError::Setting(error.to_string()))?;
    Ok((observed.machine, capacity))
}

/// Makes the kubelet's directory, for root and its group alone as upstream; one that is there stays as it is.
fn make_root(root: &Path) -> std::io::Result<()> {
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(root)
}

fn cgroup_tree(
    config: &KubeletConfiguration,
    driver: CgroupDriver,
    capacity: &Capacity,
) -> Result<Cgroups<Kernel>, AgentError> {
    let tree =
        Tree::new(driver, &config.cgroup_root).map_err(|error| AgentError::Setting(error.to_string()))?;
    let settings = cgroups::Settings::of(config, facts::huge_page_bytes());
    let cgroups = Cgroups::new(tree, settings, Kernel);
    cgroups
        .start(capacity)
        .map_err(|error| node("make the cgroups of pods", &error))?;
    Ok(cgroups)
}

/// The ranges of user IDs, with those that pods on the disk have.
fn recover_user_namespaces(config: &KubeletConfiguration, root: &Path, volumes: &Volumes) -> UserNamespaces {
    let limit = usize::try_from(config.max_pods).unwrap_or(0).max(1);
    let mut ranges = UserNamespaces::new(RANGE, u32::MAX - (RANGE - 1), limit);
    for uid in volumes.present().unwrap_or_default() {
        let Some(range) = crate::sync::belongings::noted_user_namespace(root, &uid) else {
            continue;
        };
        if let Err(error) = ranges.record(&uid, range) {
            warn!(pod_uid = uid, %error, "a pod's user IDs aren't the node's to give");
        }
    }
    ranges
}

fn node_keyring(root: &Path) -> Keyring {
    let mut keyring = Keyring::default();
    for wrong in keyring.add_node_files(root) {
        warn!("{wrong}");
    }
    keyring
}

fn admission_node(
    config: &KubeletConfiguration,
    options: &Options,
    place: &Place,
    capacity: &Capacity,
    runtime: &kubelet_pods::cri::RuntimeFacts,
) -> Node {
    Node {
        name: place.node_name.clone(),
        labels: adapters::node_labels(&place.node_name, &options.labels),
        taints: Vec::new(),
        allocatable: capacity
            .allocatable
            .iter()
            .map(|(name, amount)| (name.clone(), Quantity(amount.to_string())))
            .collect(),
        pressure: BTreeSet::new(),
        allowed_sysctls: config.allowed_unsafe_sysctls.clone(),
        app_armor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        strict_groups: runtime.supplemental_groups_policy,
    }
}

fn parallel_pulls(config: &KubeletConfiguration) -> usize {
    if config.serialize_image_pulls.unwrap_or(true) {
        return 1;
    }
    let most = config
        .max_parallel_image_pulls
        .and_then(|most| usize::try_from(most).ok());
    most.unwrap_or(tokio::sync::Semaphore::MAX_PERMITS)
}

fn settings(config: &KubeletConfiguration, root: &Path) -> Settings {
    Settings {
        sync_frequency: config.sync_frequency.to_std(),
        max_restart_period: config
            .crash_loop_back_off
            .max_container_restart_period
            .map(|period| period.to_std()),
        root: root.to_owned(),
        container_logs: Some(PathBuf::from("/var/log/containers")),
        hosts_file: PathBuf::from("/etc/hosts"),
    }
}

/// A random part of a probe's period, so that probes of one kubelet's start don't all run at once.
fn jitter() -> crate::probing::Jitter {
    let random = RandomState::new();
    let counter = std::sync::atomic::AtomicU64::new(0);
    Box::new(move |period: SignedDuration| {
        let number = random.hash_one(counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let share = i64::try_from(number % 1_000).unwrap_or(0);
        let millis = i64::try_from(period.as_millis()).unwrap_or(0);
        SignedDuration::from_millis(millis.saturating_mul(share) / 1_000)
    })
}

fn expected_sources(config: &KubeletConfiguration) -> BTreeSet<SourceKind> {
    let mut expected = BTreeSet::new();
    if !config.static_pod_path.is_empty() {
        expected.insert(SourceKind::File);
    }
    if !config.static_pod_url.is_empty() {
        expected.insert(SourceKind::Http);
    }
    expected
}

/// Starts the sources that the configuration names.
fn sources_of(
    config: &KubeletConfiguration,
    node_name: &str,
    inputs: &mpsc::Sender<Input>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<(), AgentError> {
    let (updates, mut heard) = mpsc::channel(4);
    if !config.static_pod_path.is_empty() {
        let folder = sources::Folder::new(Path::new(&config.static_pod_path), node_name);
        tasks.spawn(folder.run(
            config.file_check_frequency.to_std(),
            updates.clone(),
            Timestamp::now,
        ));
    }
    if !config.static_pod_url.is_empty() {
        let url = sources::Url::new(&config.static_pod_url, &config.static_pod_url_header, node_name)
            .map_err(|error| AgentError::Setting(error.to_string()))?;
        tasks.spawn(url.run(
            config.http_check_frequency.to_std(),
            updates.clone(),
            Timestamp::now,
        ));
    }
    let inputs = inputs.clone();
    tasks.spawn(async move {
        // Held here, so that a kubelet without sources goes on.
        let _updates = updates;
        while let Some(update) = heard.recv().await {
            if inputs.send(Input::Source(update)).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Binds the server, unless the configuration wants none.
async fn serve(
    options: &Options,
    ctx: &Arc<Context>,
    place: &Place,
    sync_loop: &SyncLoop,
    metrics: &KubeletMetrics,
) -> Result<Option<Server>, AgentError> {
    let config = &options.config;
    if !config.enable_server {
        return Ok(None);
    }
    let kubelet = Arc::new(serving::Serving {
        ctx: ctx.clone(),
        config: configz(config),
        pulse: sync_loop.pulse(),
        stats: node_stats::NodeStatsReader::default(),
    });
    let wanted = server_config(options, place)?;
    Ok(Some(Server::bind(wanted, kubelet, metrics.clone()).await?))
}

fn server_config(options: &Options, place: &Place) -> Result<ServerConfig, AgentError> {
    let config = &options.config;
    let address = |text: &str, name: &str| {
        text.parse::<IpAddr>()
            .map_err(|_| AgentError::Setting(format!("{name}: `{text}` is no address")))
    };
    let port = |number: i32, name: &str| {
        u16::try_from(number).map_err(|_| AgentError::Setting(format!("{name}: {number} is no port")))
    };
    let listen = address(&config.address, "address")?;
    let authorizer: Arc<dyn crate::server::authz::Authorizer> = match config.authorization.mode.as_str() {
        "AlwaysAllow" => Arc::new(crate::server::authz::AlwaysAllow),
        _ => Arc::new(Rules::default()),
    };
    let mut wanted = ServerConfig::new(options.root.clone(), authorizer);
    wanted.listen = SocketAddr::new(listen, port(config.port, "port")?);
    if config.read_only_port > 0 {
        wanted.read_only = Some(SocketAddr::new(
            listen,
            port(config.read_only_port, "readOnlyPort")?,
        ));
    }
    wanted.healthz = if config.healthz_port > 0 {
        let bind = address(&config.healthz_bind_address, "healthzBindAddress")?;
        Some(SocketAddr::new(bind, port(config.healthz_port, "healthzPort")?))
    } else {
        None
    };
    wanted.cert_dir.clone_from(&options.cert_dir);
    wanted.local_client.clone_from(&options.local_client);
    if !config.tls_cert_file.is_empty() && !config.tls_private_key_file.is_empty() {
        wanted.certificate = Some(CertificateFiles {
            certificate: PathBuf::from(&config.tls_cert_file),
            key: PathBuf::from(&config.tls_private_key_file),
        });
    }
    wanted.names = std::iter::once(place.node_name.clone())
        .chain(place.ips.iter().map(ToString::to_string))
        .chain(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])
        .collect();
    let ca = &config.authentication.x509.client_ca_file;
    wanted.client_ca = (!ca.is_empty()).then(|| PathBuf::from(ca));
    wanted.tokens.clone_from(&options.tokens);
    wanted.tls = config.tls_version().unwrap_or_default();
    wanted.anonymous = config.authentication.anonymous.enabled;
    wanted.debugging = config.enable_debugging_handlers;
    wanted.system_logs = config.enable_system_log_handler;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_kubelets_directory_is_for_root_and_its_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("lib/kubelet");
        make_root(&root).expect("made");
        let mode = |path: &Path| {
            let found = std::fs::metadata(path).expect("there");
            found.permissions().mode() & 0o777
        };
        assert_eq!(
            mode(&root) & 0o027,
            0,
            "the group doesn't write, others do nothing"
        );
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).expect("changed");
        make_root(&root).expect("it is there");
        assert_eq!(mode(&root), 0o755, "the administrator's choice stays");
    }
}
