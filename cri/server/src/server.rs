//! From a configuration to a daemon that serves, and back.
//!
//! Order matters at start: the lock on the root first (one daemon at a time), then records and images, then shims are
//! found and everything is recovered, and only then the socket appears: whoever can connect finds the truth.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cni_invoke::{Cni, CniConfig};
use cni_types::PluginExec;
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use cri_images::{Images, ImagesConfig, OpenError};
use cri_streaming::{BindError, Limits, StreamServer};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;

use crate::apparmor::AppArmor;
use crate::clock::SystemClock;
use crate::config::{Config, ConfigError};
use crate::deadline::Deadlines;
use crate::lifecycle::KillPoint;
use crate::memory::give_back;
use crate::network::CniNetwork;
use crate::node::{Node, Parts};
use crate::rpc::Service;
use crate::shim::{Shims, ShimsConfig};
use crate::spec::{HostError, HostFacts};
use crate::store::{Store, StoreError, Torn};
use crate::stream_handler::ContainerStreams;

/// The kubelet's own bound for messages.
const MAX_MESSAGE: usize = 16 << 20;
/// How many shim events may wait to be heard.
const SHIM_EVENTS: usize = 1024;

/// Why the daemon can't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder.
    #[error("failed to {what} `{path}`")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another daemon.
    #[error("`{0}` is in use by another orlop-cri; stop it, or give this one another directory")]
    RootInUse(PathBuf),
    /// Another daemon.
    #[error("another server answers at `{0}`; stop it, or choose another socket")]
    SocketInUse(PathBuf),
    /// The records.
    #[error("failed to read the records")]
    Store(#[from] StoreError),
    /// The images.
    #[error(transparent)]
    Images(#[from] OpenError),
    /// The machine.
    #[error("failed to look at this machine")]
    Host(#[from] HostError),
    /// The streaming server.
    #[error(transparent)]
    Streaming(#[from] BindError),
    /// The gRPC server.
    #[error("the gRPC server failed")]
    Grpc(#[source] tonic::transport::Error),
    /// Plugins.
    #[error(transparent)]
    Nri(#[from] cri_nri::StartError),
    /// A task was lost.
    #[error("a task that starts the daemon was lost")]
    Lost,
}

impl ServeError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// What only a main can hand in.
pub struct Environment {
    /// Our own CNI plugins, in this process.
    pub plugins: Option<Arc<dyn PluginExec>>,
    /// Where to die, for tests.
    pub kill: KillPoint,
    /// New configurations, checked.
    pub reloads: mpsc::Receiver<Config>,
    /// Where shims go if the configuration doesn't say: from [`settle`](crate::own_cgroup::settle).
    pub shims_cgroup: Option<String>,
    /// Called once, when the socket answers.
    pub ready: Box<dyn FnOnce() + Send>,
}

/// Serves until `shutdown` is ready and calls under way have ended, or their time is over.
///
/// # Errors
/// When it can't start, or the socket fails.
pub async fn serve(
    config: Config,
    environment: Environment,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let began = Instant::now();
    config.check()?;
    make_folders(&config)?;
    let _lock = lock(&config.root)?;
    refuse_live_socket(&config.socket).await?;
    let (events, heard) = mpsc::channel(SHIM_EVENTS);
    let shims_cgroup = config.cgroup.shims().map(str::to_owned);
    let shims = Shims::new(
        ShimsConfig {
            shim: shim_path(&config)?,
            state_dir: config.state.join("pods"),
            cgroup: shims_cgroup.or(environment.shims_cgroup),
        },
        events,
    );
    let (node, torn) = build(config, environment.plugins, environment.kill, shims).await?;
    tokio::spawn(node.clone().hear(heard));
    let streams = start_streaming(&node).await?;
    node.recover(torn).await;
    // Before anybody can ask for a pod that plugins should have a say in.
    Box::pin(node.begin_nri()).await?;
    tokio::spawn(give_back(node.clone()));
    tokio::spawn(verify_images(node.clone()));
    tokio::spawn(take_reloads(node.clone(), environment.reloads));
    let socket = node.config().socket.clone();
    let listener = bind(&socket)?;
    tracing::info!(
        socket = %socket.display(),
        streaming = %streams.local_addr(),
        millis = began.elapsed().as_millis(),
        "ready"
    );
    (environment.ready)();
    let result = run(&node, listener, shutdown).await;
    node.end_nri().await;
    // Not removed before a successor could have bound it: it would take the successor's away.
    if result.is_ok() {
        let _ = fs::remove_file(&socket);
    }
    result
}

async fn run(
    node: &Arc<Node>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let service = Service::new(node.clone());
    let closing = node.clone();
    let mut closed = node.closing();
    let server = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(Deadlines::new))
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            shutdown.await;
            tracing::info!("stopping; containers go on");
            closing.close();
        });
    let deadline = async {
        // An error means that the node is gone, which is the same news.
        let _ = closed.wait_for(|closed| *closed).await;
        tokio::time::sleep(Duration::from_secs(node.config().drain_seconds)).await;
    };
    tokio::select! {
        result = server => result.map_err(ServeError::Grpc),
        () = deadline => {
            tracing::warn!("calls under way were cut off; a restart finishes or undoes them");
            Ok(())
        }
    }
}

async fn build(
    config: Config,
    plugins: Option<Arc<dyn PluginExec>>,
    kill: KillPoint,
    shims: Shims,
) -> Result<(Arc<Node>, Vec<Torn>), ServeError> {
    let root = config.root.clone();
    let records = tokio::task::spawn_blocking(move || {
        let opened = Store::open(&root)?;
        let host = HostFacts::read()?;
        Ok::<_, ServeError>((opened, host, AppArmor::of_this_machine()))
    });
    let images = Images::open(images_config(&config)).await?;
    let ((store, torn), host, apparmor) = records.await.map_err(|_| ServeError::Lost)??;
    let cni = Cni::new(
        CniConfig {
            conf_dir: config.cni.conf_dir.clone(),
            bin_dirs: config.cni.bin_dirs.clone(),
            cache_dir: config.cni.cache_dir.clone(),
            timeout: config.cni_timeout(),
        },
        plugins,
    );
    let boot = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot).map_err(ServeError::file("read", boot))?;
    let node = Node::new(Parts {
        config,
        store,
        images: Arc::new(images),
        runtime: Arc::new(shims),
        network: Arc::new(CniNetwork::new(cni)),
        clock: Arc::new(SystemClock),
        host,
        apparmor,
        boot_id: boot_id.trim().to_owned(),
        kill,
    });
    Ok((node, torn))
}

fn images_config(config: &Config) -> ImagesConfig {
    let settings = &config.images;
    ImagesConfig {
        hosts_dir: Some(settings.hosts_dir.clone()).filter(|dir| dir.exists()),
        max_parallel_layers: settings.max_parallel_layers,
        max_parallel_pulls: settings.max_parallel_pulls,
        progress_timeout: Duration::from_secs(settings.progress_timeout_seconds),
        pinned: settings.pinned.clone(),
        discard_blobs: settings.discard_blobs,
        ..ImagesConfig::new(config.root.join("images"))
    }
}

/// The shim as configured, or beside this program.
fn shim_path(config: &Config) -> Result<PathBuf, ServeError> {
    if !config.shim.as_os_str().is_empty() {
        return Ok(config.shim.clone());
    }
    let this = std::env::current_exe().map_err(ServeError::file("find", Path::new("/proc/self/exe")))?;
    Ok(this.with_file_name("orlop-shim"))
}

fn make_folders(config: &Config) -> Result<(), ServeError> {
    let folder = |path: &Path, mode| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(ServeError::file("make the folder", path))
    };
    folder(&config.root, 0o711)?;
    // A user namespace's root must get through to its root file system.
    folder(&config.state, 0o711)?;
    for name in ["pods", "bundles", "oci"] {
        folder(&config.state.join(name), 0o711)?;
    }
    match config.socket.parent() {
        Some(parent) => folder(parent, 0o755),
        None => Ok(()),
    }
}

/// Held for the life of the daemon; the kernel lets go of it, however the daemon ends.
fn lock(root: &Path) -> Result<Flock<File>, ServeError> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(ServeError::file("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ServeError::RootInUse(root.to_owned()))
}

async fn refuse_live_socket(socket: &Path) -> Result<(), ServeError> {
    match UnixStream::connect(socket).await {
        Ok(_) => Err(ServeError::SocketInUse(socket.to_owned())),
        Err(_) => Ok(()),
    }
}

/// Binds under another name and renames, so that nobody meets a socket that refuses or that all may open.
fn bind(socket: &Path) -> Result<UnixListener, ServeError> {
    let mut name = socket.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ServeError::file("remove", &new)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(ServeError::file("listen on", &new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o660))
        .map_err(ServeError::file("change the mode of", &new))?;
    fs::rename(&new, socket).map_err(ServeError::file("listen on", socket))?;
    Ok(listener)
}

async fn start_streaming(node: &Arc<Node>) -> Result<Arc<StreamServer>, ServeError> {
    let settings = node.config().streaming.clone();
    let limits = Limits {
        idle: Duration::from_secs(settings.idle_seconds),
        ..Limits::default()
    };
    let handler = Arc::new(ContainerStreams::new(node.clone()));
    let server = Arc::new(StreamServer::bind(settings.address, handler, limits).await?);
    // Set once: this is the only place.
    let _ = node.streams.set(server.clone());
    let (running, mut closed) = (server.clone(), node.closing());
    tokio::spawn(async move {
        let shutdown = async move {
            let _ = closed.wait_for(|closed| *closed).await;
        };
        running.run(shutdown).await;
    });
    Ok(server)
}

async fn verify_images(node: Arc<Node>) {
    match node.images.verify().await {
        Ok(report) if report.repaired.is_empty() && report.lost.is_empty() => {
            tracing::debug!(checked = report.checked, "all image layers are whole");
        }
        Ok(report) => tracing::warn!(
            checked = report.checked,
            repaired = report.repaired.len(),
            lost = report.lost.len(),
            "image layers were damaged; lost ones must be pulled again"
        ),
        Err(error) => tracing::warn!(%error, "failed to verify image layers"),
    }
}

async fn take_reloads(node: Arc<Node>, mut reloads: mpsc::Receiver<Config>) {
    while let Some(new) = reloads.recv().await {
        let (next, stay) = node.config().reload(new);
        node.set_config(next);
        if stay.is_empty() {
            tracing::info!("configuration reloaded");
        } else {
            let keys = stay.join(", ");
            tracing::warn!(keys, "configuration reloaded; these keys need a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cri.sock");
        refuse_live_socket(&socket).await.unwrap();
        let first = bind(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        let refused = refuse_live_socket(&socket).await;
        assert!(matches!(refused, Err(ServeError::SocketInUse(_))));
        drop(first);
        refuse_live_socket(&socket).await.unwrap();
        let _second = bind(&socket).unwrap();
        UnixStream::connect(&socket).await.unwrap();
    }

    #[test]
    fn one_daemon_per_root() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(ServeError::RootInUse(_))));
        drop(held);
        lock(dir.path()).unwrap();
    }
}
