//! The runtime's side: who takes part, and what the runtime must be able to do for plugins.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio::task::JoinSet;

use crate::plugin::Plugin;
use crate::turn::Turn;
use crate::v1alpha1::{Container, ContainerEviction, ContainerUpdate, Empty, PodSandbox};

/// Plugins at a time, those that are only registering included.
pub(crate) const MAX_PLUGINS: usize = 64;

/// How plugins are served.
#[derive(Debug, Clone)]
pub struct NriConfig {
    /// What the runtime calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where plugins connect.
    pub socket: PathBuf,
    /// Executables to start as plugins.
    pub plugin_dir: PathBuf,
    /// Their configurations.
    pub config_dir: PathBuf,
    /// How long a plugin may take to register, and then to synchronize.
    pub registration_timeout: Duration,
    /// How long it may take for any other request.
    pub request_timeout: Duration,
}

/// All pods and containers that plugins should know of.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Pods.
    pub pods: Vec<PodSandbox>,
    /// Containers.
    pub containers: Vec<Container>,
}

/// What plugins can ask of a runtime.
#[async_trait::async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What there is. Called while no event is under way, so it must not begin one.
    async fn state(&self) -> State;

    /// Changes limits; returns what could not be changed.
    async fn update(&self, plugin: &str, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate>;

    /// Stops containers.
    async fn evict(&self, plugin: &str, evictions: Vec<ContainerEviction>);
}

/// The plugins of a node.
pub struct Nri {
    pub(crate) config: NriConfig,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// In the order in which they are asked. Whoever holds the lock has the word: events reach all plugins one after
    /// the other, and a plugin that joins misses none.
    pub(crate) plugins: Arc<Mutex<Vec<Arc<Plugin>>>>,
    /// The word, once the runtime ends.
    ended: OnceLock<OwnedMutexGuard<Vec<Arc<Plugin>>>>,
    pub(crate) places: Arc<Semaphore>,
    /// How many take part or are about to be told what there is.
    present: RwLock<usize>,
}

impl Nri {
    /// Without plugins yet; see [`Nri::start`].
    pub fn new(config: NriConfig, runtime: Arc<dyn Runtime>) -> Arc<Self> {
        Arc::new(Self {
            config,
            runtime,
            plugins: Arc::default(),
            ended: OnceLock::new(),
            places: Arc::new(Semaphore::new(MAX_PLUGINS)),
            present: RwLock::default(),
        })
    }

    /// Whether nobody is there to be told anything. If so, `note` has run, and whoever joins finds what it noted in its
    /// list. This costs as good as nothing, and waits for nobody's answer.
    pub fn is_alone(&self, note: impl FnOnce()) -> bool {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        let alone = *present == 0;
        if alone {
            note();
        }
        alone
    }

    /// From now on everything waits for the word, until the guard goes.
    pub(crate) fn enter(self: &Arc<Self>) -> Present {
        *self.present.write().unwrap_or_else(PoisonError::into_inner) += 1;
        Present(self.clone())
    }

    /// Waits for the word. What is noted while it is held, a plugin that joins later is told of; what happens later,
    /// it is asked about.
    pub async fn turn(&self) -> Turn<'_> {
        Turn::new(self.plugins.lock().await)
    }

    /// Tells all plugins that the runtime ends, and disconnects them. Bounded by one request's timeout. Nobody has the
    /// word again: what still is under way must not go on without their say.
    pub async fn shut_down(&self) {
        let limit = self.config.request_timeout;
        let told = async {
            let plugins = self.plugins.clone().lock_owned().await;
            let all = plugins.clone();
            // The first end is the only one.
            let _ = self.ended.set(plugins);
            let mut telling = JoinSet::new();
            for plugin in all {
                telling.spawn(async move {
                    let told = plugin
                        .connection
                        .call::<Empty>("Shutdown", &Empty {}, limit)
                        .await;
                    tracing::debug!(plugin = plugin.title(), ok = told.is_ok(), "told to shut down");
                    plugin.connection.close();
                });
            }
            telling.join_all().await;
        };
        // Whoever is slow is cut off with the daemon's end.
        let _ = tokio::time::timeout(limit, told).await;
    }
}

/// Somebody takes part, or is about to.
pub(crate) struct Present(Arc<Nri>);

impl Drop for Present {
    fn drop(&mut self) {
        *self.0.present.write().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}
