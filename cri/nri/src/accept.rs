//! How plugins come: started from the folder when the daemon starts, or by connecting to the socket at any time.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use crate::connection::{Connection, Incoming};
use crate::error::{JoinError, StartError};
use crate::events::Events;
use crate::launch::{self, Launched};
use crate::plugin::{Plugin, check_name};
use crate::runtime::{MAX_PLUGINS, Nri, Present};
use crate::ttrpc::{self, Status};
use crate::v1alpha1::{
    ConfigureRequest, ConfigureResponse, Empty, RegisterPluginRequest, UpdateContainersRequest,
    UpdateContainersResponse,
};

const SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The NRI that is spoken here, as its Go module numbers it.
const NRI_VERSION: &str = "v0.12.5";

/// Who comes, as far as it is known.
struct Newcomer {
    socket: UnixStream,
    /// Of one that was started here.
    launched: Option<(launch::Found, Launched)>,
}

impl Nri {
    /// Starts the plugins of the folder and waits until they take part or have failed, and then listens for others.
    /// Plugins that fail are left out, with a line in the log.
    ///
    /// # Errors
    /// The socket can't be listened at.
    pub async fn start(self: &Arc<Self>) -> Result<(), StartError> {
        // First, so that a second daemon starts nothing.
        let listener = bind(&self.config.socket).await?;
        let mut starting = JoinSet::new();
        for found in launch::discover(&self.config.plugin_dir) {
            let nri = self.clone();
            starting.spawn(async move {
                let path = found.path.clone();
                if let Err(error) = nri.clone().start_one(found).await {
                    let error = chain(&error);
                    tracing::warn!(path = %path.display(), error, "an NRI plugin is left out");
                }
            });
        }
        starting.join_all().await;
        tokio::spawn(self.clone().accept(listener));
        Ok(())
    }

    async fn start_one(self: Arc<Self>, found: launch::Found) -> Result<(), JoinError> {
        let (process, socket) = launch::launch(&found).await?;
        let launched = Some((found, process));
        self.join(Newcomer { socket, launched }).await
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let nri = self.clone();
                    tokio::spawn(async move {
                        let launched = None;
                        if let Err(error) = nri.join(Newcomer { socket, launched }).await {
                            let error = chain(&error);
                            tracing::warn!(error, "an NRI plugin that connected is refused");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept an NRI plugin");
                    // Out of descriptors, say: not at once again.
                    tokio::time::sleep(self.config.request_timeout).await;
                }
            }
        }
    }

    /// Has a newcomer register, configure itself and synchronize; from then on it takes part.
    async fn join(self: Arc<Self>, newcomer: Newcomer) -> Result<(), JoinError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| JoinError::TooMany(MAX_PLUGINS))?;
        let (connection, mut incoming) = Connection::open(newcomer.socket);
        // Whatever fails from here on, the connection must not stay.
        let closing = Closing(Some(connection.clone()));
        let wait = self.config.registration_timeout;
        let registered = register(
            &connection,
            &mut incoming,
            newcomer.launched.as_ref().map(|(f, _)| f),
        );
        let (index, name) = tokio::time::timeout(wait, registered)
            .await
            .map_err(|_| JoinError::Late(wait.as_millis()))??;
        let configured = self.configure(&connection, &index, &name, newcomer.launched.is_some());
        let configured = configured.await?;
        let plugin = Arc::new(Plugin {
            events: Events::of(&configured).map_err(JoinError::Events)?,
            policy: configured.failure_policy.unwrap_or_default(),
            limit: self.config.request_timeout,
            connection,
            process: newcomer.launched.map(|(_, process)| process),
            plain: AtomicU32::new(0),
            index,
            name,
        });
        // It may ask for updates as soon as it is configured.
        let stay = (place, self.enter());
        tokio::spawn(self.clone().serve(plugin.clone(), incoming, stay));
        self.synchronize(&plugin).await?;
        closing.keep();
        Ok(())
    }

    async fn configure(
        &self,
        connection: &Connection,
        index: &str,
        name: &str,
        launched: bool,
    ) -> Result<ConfigureResponse, JoinError> {
        let config = if launched {
            launch::configuration(&self.config.config_dir, index, name).map_err(JoinError::Launch)?
        } else {
            String::new()
        };
        let millis = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config,
            runtime_name: self.config.name.clone(),
            runtime_version: self.config.version.clone(),
            registration_timeout: millis(self.config.registration_timeout),
            request_timeout: millis(self.config.request_timeout),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer = connection.call("Configure", &request, self.config.request_timeout);
        answer.await.map_err(JoinError::Configure)
    }

    /// Tells it what there is, while nothing new can happen, and lets it take part.
    async fn synchronize(&self, plugin: &Arc<Plugin>) -> Result<(), JoinError> {
        let updates = {
            let mut plugins = self.plugins.lock().await;
            let state = self.runtime.state().await;
            let (pods, containers) = (state.pods.len(), state.containers.len());
            let limit = self.config.registration_timeout;
            let updates = plugin.synchronize(state.pods, state.containers, limit);
            let updates = updates
                .await
                .map_err(JoinError::Synchronize)?
                .ok_or(JoinError::Parts)?;
            plugins.push(plugin.clone());
            // Stable: of the same index, who came first is asked first.
            plugins.sort_by(|a, b| a.index.cmp(&b.index));
            tracing::info!(
                plugin = plugin.title(),
                pods,
                containers,
                started_here = plugin.process.is_some(),
                "an NRI plugin takes part"
            );
            updates
        };
        if !updates.is_empty() {
            self.runtime.update(&plugin.title(), updates).await;
        }
        Ok(())
    }

    /// Answers what a plugin asks for, until it is gone.
    async fn serve(
        self: Arc<Self>,
        plugin: Arc<Plugin>,
        mut incoming: mpsc::Receiver<Incoming>,
        _stay: (OwnedSemaphorePermit, Present),
    ) {
        loop {
            let asked = tokio::select! {
                asked = incoming.recv() => asked,
                () = plugin.connection.closed() => None,
            };
            let Some(asked) = asked else { break };
            let answer = match (asked.request.service.as_str(), asked.request.method.as_str()) {
                (SERVICE, "UpdateContainers") => self.update(&plugin, &asked.request.payload).await,
                (SERVICE, "RegisterPlugin") => Err(Status {
                    code: ttrpc::FAILED_PRECONDITION,
                    message: "the plugin is registered already".to_owned(),
                }),
                (service, method) => Err(Status {
                    code: ttrpc::UNIMPLEMENTED,
                    message: format!("there is no method `{service}/{method}`"),
                }),
            };
            plugin.connection.answer(&asked, answer).await;
        }
        let mut plugins = self.plugins.lock().await;
        plugins.retain(|other| !Arc::ptr_eq(other, &plugin));
        tracing::info!(plugin = plugin.title(), "an NRI plugin is gone");
    }

    async fn update(&self, plugin: &Plugin, payload: &[u8]) -> Result<Vec<u8>, Status> {
        let request = UpdateContainersRequest::decode(payload).map_err(|error| Status {
            code: ttrpc::INVALID_ARGUMENT,
            message: error.to_string(),
        })?;
        let title = plugin.title();
        let failed = self.runtime.update(&title, request.update).await;
        if !request.evict.is_empty() {
            self.runtime.evict(&title, request.evict).await;
        }
        Ok(UpdateContainersResponse { failed }.encode_to_vec())
    }
}

/// Closes a connection that didn't become a plugin's.
struct Closing(Option<Connection>);

impl Closing {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.close();
        }
    }
}

/// Waits until it registers: its index and name, which for one that was started here are its file's.
async fn register(
    connection: &Connection,
    incoming: &mut mpsc::Receiver<Incoming>,
    found: Option<&launch::Found>,
) -> Result<(String, String), JoinError> {
    while let Some(asked) = incoming.recv().await {
        if (asked.request.service.as_str(), asked.request.method.as_str()) != (SERVICE, "RegisterPlugin") {
            let status = Status {
                code: ttrpc::FAILED_PRECONDITION,
                message: "the plugin must register first".to_owned(),
            };
            connection.answer(&asked, Err(status)).await;
            continue;
        }
        let request = RegisterPluginRequest::decode(asked.request.payload.as_slice());
        let checked = request.map_err(|error| error.to_string()).and_then(|r| {
            let (index, name) = match found {
                Some(found) => (found.index.clone(), found.name.clone()),
                None => (r.plugin_idx, r.plugin_name),
            };
            check_name(&index, &name).map(|()| (index, name))
        });
        return match checked {
            Ok(names) => {
                connection.answer(&asked, Ok(Empty {}.encode_to_vec())).await;
                Ok(names)
            }
            Err(message) => {
                let status = Status {
                    code: ttrpc::INVALID_ARGUMENT,
                    message: message.clone(),
                };
                connection.answer(&asked, Err(status)).await;
                Err(JoinError::Name(message))
            }
        };
    }
    Err(JoinError::Closed)
}

/// Binds under another name and renames, so that nobody meets a socket that refuses or that all may open.
async fn bind(socket: &Path) -> Result<UnixListener, StartError> {
    let fail = |what| {
        move |source| StartError::Socket {
            what,
            path: socket.to_owned(),
            source,
        }
    };
    if UnixStream::connect(socket).await.is_ok() {
        return Err(StartError::InUse(socket.to_owned()));
    }
    if let Some(folder) = socket.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(folder);
        made.map_err(fail("make the folder of"))?;
    }
    let mut name = socket.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("listen at")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(fail("listen at"))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(fail("protect"))?;
    fs::rename(&new, socket).map_err(fail("listen at"))?;
    Ok(listener)
}

/// The message with all causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
