//! The chain of plugins: ADD forward, DEL backward, CHECK, GC, STATUS, VERSION.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use cni_types::{
    AddResult, CniError, Command, ErrorCode, ExecError, Invocation, NetworkList, PluginConfig, PluginExec,
    RuntimeConfig, ValidAttachment, Version, check_container_id, check_ifname,
};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde_json::{Map, Value, json};

use crate::{
    Attachment, NetworkError,
    cache::{Cache, Cached},
    conf_dir::{LoadError, load_network},
    runner::Runner,
};

/// Where things are.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Network configurations, normally `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Plugins, normally `/opt/cni/bin`.
    pub bin_dirs: Vec<PathBuf>,
    /// The parent of `results`, normally `/var/lib/cni`.
    pub cache_dir: PathBuf,
    /// How long one plugin may take.
    pub timeout: Duration,
}

/// The network as the daemon sees it. Every call blocks for at most a plugin's time limit times the chain's length.
pub struct Cni {
    config: CniConfig,
    runner: Runner,
    cache: Cache,
    /// GC runs alone: an ADD under way looks to it like a leftover.
    gate: RwLock<()>,
}

/// The keys under which GC's list of valid attachments travels.
const VALID_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

impl Cni {
    /// `builtin` runs our own plugins in this process; without it everything is executed.
    pub fn new(config: CniConfig, builtin: Option<Arc<dyn PluginExec>>) -> Self {
        let runner = Runner::new(config.bin_dirs.clone(), config.timeout, builtin);
        let cache = Cache::new(&config.cache_dir);
        Cni {
            config,
            runner,
            cache,
            gate: RwLock::new(()),
        }
    }

    /// The network that ADD would use now.
    pub fn load(&self) -> Result<NetworkList, LoadError> {
        load_network(&self.config.conf_dir)
    }

    /// Attaches a container and returns the final result. `lo` is up afterwards too. On failure what ran is undone.
    pub fn add(&self, attachment: &Attachment) -> Result<AddResult, NetworkError> {
        check_names(attachment)?;
        if !is_netns(&attachment.netns) {
            return Err(NetworkError::NotNetns(attachment.netns.clone()));
        }
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let list = self.load()?;
        self.cache.write(&list, attachment, None)?;
        match self.run_add(&list, attachment) {
            Ok(json) => {
                let result = AddResult::from_json(&json).map_err(|source| NetworkError::Result {
                    plugin: list.plugins.last().map(|p| p.plugin.clone()).unwrap_or_default(),
                    source,
                });
                let kept = match result {
                    Ok(result) => self
                        .cache
                        .write(&list, attachment, Some(&json))
                        .map(|()| result)
                        .map_err(NetworkError::from),
                    Err(error) => Err(error),
                };
                kept.inspect_err(|_| drop(self.undo(&list, attachment, list.plugins.len())))
            }
            Err((index, source)) => {
                // One that could not even be started has done nothing.
                let started = !matches!(
                    source,
                    ExecError::NotFound { .. } | ExecError::Run { what: "start", .. }
                );
                let undo = self
                    .undo(&list, attachment, index + usize::from(started))
                    .err()
                    .map(Box::new);
                let container_id = attachment.container_id.clone();
                Err(NetworkError::Add {
                    network: list.name,
                    container_id,
                    source: Box::new(source),
                    undo,
                })
            }
        }
    }

    fn run_add(&self, list: &NetworkList, attachment: &Attachment) -> Result<Value, (usize, ExecError)> {
        self.loopback(attachment).map_err(|error| (0, error))?;
        let runtime = attachment.runtime.to_map();
        let mut previous = None;
        for (index, plugin) in list.plugins.iter().enumerate() {
            let config = plugin.with_runtime(list, &runtime, previous.clone());
            let answer = self
                .exec(plugin, Command::Add, attachment, config)
                .map_err(|error| (index, error))?;
            let missing = || ExecError::Answer {
                plugin: plugin.plugin.clone(),
                command: Command::Add,
                what: "nothing; a result is required".into(),
            };
            previous = Some(answer.ok_or_else(missing).map_err(|error| (index, error))?);
        }
        // A chain always has a plugin, so there is a last result.
        previous.ok_or_else(|| {
            (
                0,
                ExecError::NotFound {
                    plugin: String::new(),
                    dirs: String::new(),
                },
            )
        })
    }

    /// Every sandbox has a loopback interface that is up; no configuration says so, the runtime sees to it.
    fn loopback(&self, attachment: &Attachment) -> Result<(), ExecError> {
        let config = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
        let invocation = Invocation {
            ifname: "lo".into(),
            ..self.invocation(Command::Add, attachment, config)
        };
        self.runner.exec("loopback", &invocation, &self.runner).map(drop)
    }

    /// DEL for the first `count` plugins, last first; the cache entry goes when all agreed.
    fn undo(&self, list: &NetworkList, attachment: &Attachment, count: usize) -> Result<(), ExecError> {
        self.run_del(list, attachment, &attachment.runtime, None, count)?;
        self.cache
            .remove(&list.name, &attachment.container_id, &attachment.ifname)
            .inspect_err(|error| tracing::warn!(%error, "a CNI cache entry stays"))
            .ok();
        Ok(())
    }

    /// Detaches a container; fine when it isn't attached, when its namespace is gone, and when the configuration has
    /// changed or vanished since ADD.
    pub fn del(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        check_names(attachment)?;
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let current = self.load();
        let likely = current.as_ref().ok().map(|list| list.name.clone());
        match self
            .cache
            .find(likely.as_deref(), &attachment.container_id, &attachment.ifname)?
        {
            Some(cached) => self.del_cached(&merged(cached, attachment)),
            // Not in the cache: nothing of ours was ever begun, or a power cut took what the entry said. A chain that
            // is configured may still clean up, and what is left of an entry goes.
            None => match current {
                Ok(list) => {
                    self.run_del(&list, attachment, &attachment.runtime, None, list.plugins.len())
                        .map_err(|source| exec_error("remove the container from", &list, source))?;
                    self.cache
                        .remove(&list.name, &attachment.container_id, &attachment.ifname)?;
                    Ok(())
                }
                Err(_) => Ok(()),
            },
        }
    }

    fn del_cached(&self, cached: &Cached) -> Result<(), NetworkError> {
        let (list, attachment) = (&cached.network, &cached.attachment);
        self.run_del(
            list,
            attachment,
            &attachment.runtime,
            cached.result.as_ref(),
            list.plugins.len(),
        )
        .map_err(|source| exec_error("remove the container from", list, source))?;
        self.cache
            .remove(&list.name, &attachment.container_id, &attachment.ifname)?;
        Ok(())
    }

    /// The chain backward. It stops at the first failure: a port mapping must not outlive the address it leads to.
    fn run_del(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        runtime: &RuntimeConfig,
        previous: Option<&Value>,
        count: usize,
    ) -> Result<(), ExecError> {
        let runtime = runtime.to_map();
        let previous = previous.filter(|_| list.version.has_check());
        for plugin in list.plugins.iter().take(count).rev() {
            let config = plugin.with_runtime(list, &runtime, previous.cloned());
            match self.exec(plugin, Command::Del, attachment, config) {
                Err(ExecError::Plugin { source, .. }) if source.code == ErrorCode::UNKNOWN_CONTAINER => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Verifies an attachment. A network with `disableCheck` is always fine.
    pub fn check(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        check_names(attachment)?;
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let likely = self.load().ok().map(|list| list.name);
        let cached = self
            .cache
            .find(likely.as_deref(), &attachment.container_id, &attachment.ifname)?;
        let Some((cached, result)) = cached.and_then(|c| c.result.clone().map(|result| (c, result))) else {
            return Err(NetworkError::NotAttached {
                network: likely.unwrap_or_default(),
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
            });
        };
        let list = &cached.network;
        if list.disable_check {
            return Ok(());
        }
        if !list.version.has_check() {
            return Err(NetworkError::NoCheck {
                network: list.name.clone(),
                version: list.version,
            });
        }
        let cached = merged(cached.clone(), attachment);
        let runtime = cached.attachment.runtime.to_map();
        for plugin in &list.plugins {
            let config = plugin.with_runtime(list, &runtime, Some(result.clone()));
            self.exec(plugin, Command::Check, &cached.attachment, config)
                .map_err(|source| exec_error("check the container's interface on", list, source))?;
        }
        Ok(())
    }

    /// Removes every attachment of this runtime that isn't in `valid` (container id, interface): those in the cache by
    /// DEL, then whatever the plugins themselves still hold for nobody: from CNI 1.1 on all of them are asked, before it
    /// only the built-in ones, which know the command in every version. The caller lists every sandbox that it intends
    /// to keep or to create; no ADD runs meanwhile.
    ///
    /// Attachments that another runtime has in the same cache stay. While it has any of this network, the plugins aren't
    /// asked to clear up: libcni writes an entry only when an ADD has succeeded, so an attachment in the making would
    /// seem to be nobody's. What remains open is another runtime's very first ADD on the network.
    pub fn gc(&self, valid: &[(String, String)]) -> Result<(), NetworkError> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.cache.sweep(booted());
        let keep: BTreeSet<(&str, &str)> = valid.iter().map(|(id, ifname)| (&**id, &**ifname)).collect();
        let mut failures = Vec::new();
        for cached in self.cache.all()?.iter().filter(|cached| cached.ours) {
            let a = &cached.attachment;
            if !keep.contains(&(a.container_id.as_str(), a.ifname.as_str()))
                && let Err(error) = self.del_cached(cached)
            {
                failures.push(format!("container {}: {}", a.container_id, chain_text(&error)));
            }
        }
        if let Ok(list) = self.load()
            && !list.disable_gc
        {
            if self.cache.foreign_networks()?.contains(&list.name) {
                tracing::debug!(network = %list.name, "another runtime uses the network: its plugins are not asked for GC");
            } else {
                failures.extend(self.gc_plugins(&list, valid));
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(NetworkError::Gc { failures })
        }
    }

    fn gc_plugins(&self, list: &NetworkList, valid: &[(String, String)]) -> Vec<String> {
        let valid: Vec<ValidAttachment> = valid
            .iter()
            .map(|(id, ifname)| ValidAttachment {
                container_id: id.clone(),
                ifname: ifname.clone(),
            })
            .collect();
        let nobody = Attachment::default();
        let mut failures = Vec::new();
        let is_asked = |plugin: &&PluginConfig| {
            list.version.has_gc_and_status() || self.runner.is_builtin(&plugin.plugin)
        };
        for plugin in list.plugins.iter().filter(is_asked) {
            let mut config = plugin.with_runtime(list, &Map::new(), None);
            for key in VALID_KEYS {
                config[key] = json!(valid);
            }
            if let Err(error) = self.exec(plugin, Command::Gc, &nobody, config) {
                failures.push(format!("network {}: {}", list.name, chain_text(&error)));
            }
        }
        failures
    }

    /// Whether ADD could be served: there is a configuration, its plugins are there and (from 1.1 on) say yes.
    pub fn status(&self) -> Result<(), NetworkError> {
        let list = self.load()?;
        let nobody = Attachment::default();
        for plugin in &list.plugins {
            let result = if !self.runner.provides(&plugin.plugin) {
                Err(ExecError::NotFound {
                    plugin: plugin.plugin.clone(),
                    dirs: self.bin_dirs(),
                })
            } else if list.version.has_gc_and_status() {
                let config = plugin.with_runtime(&list, &Map::new(), None);
                self.exec(plugin, Command::Status, &nobody, config).map(drop)
            } else {
                Ok(())
            };
            result.map_err(|source| exec_error("find the status of", &list, source))?;
        }
        Ok(())
    }

    /// The versions that a plugin says it speaks; unknown ones are left out.
    pub fn versions(&self, plugin: &str) -> Result<Vec<Version>, ExecError> {
        let config = json!({"cniVersion": Version::LATEST});
        let invocation = self.invocation(Command::Version, &Attachment::default(), config);
        let answer = self
            .runner
            .exec(plugin, &invocation, &self.runner)?
            .unwrap_or(Value::Null);
        let listed = answer["supportedVersions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok(listed.iter().filter_map(|v| v.as_str()?.parse().ok()).collect())
    }

    /// Every attachment of this runtime that was begun and not yet removed, as far as the cache knows.
    pub fn cached(&self) -> Result<Vec<Attachment>, NetworkError> {
        Ok(self
            .cache
            .all()?
            .into_iter()
            .filter(|cached| cached.ours)
            .map(|cached| cached.attachment)
            .collect())
    }

    fn bin_dirs(&self) -> String {
        self.config
            .bin_dirs
            .iter()
            .map(|d| d.display().to_string())
            .collect::<Vec<_>>()
            .join(":")
    }

    fn exec(
        &self,
        plugin: &PluginConfig,
        command: Command,
        attachment: &Attachment,
        config: Value,
    ) -> Result<Option<Value>, ExecError> {
        let invocation = self.invocation(command, attachment, config);
        self.runner.exec(&plugin.plugin, &invocation, &self.runner)
    }

    fn invocation(&self, command: Command, attachment: &Attachment, config: Value) -> Invocation {
        // A namespace that is gone is named to no plugin: DEL then cleans up what is outside of it.
        let netns = Some(attachment.netns.clone()).filter(|path| is_netns(path));
        Invocation {
            command,
            container_id: attachment.container_id.clone(),
            netns,
            ifname: attachment.ifname.clone(),
            args: attachment.args.clone(),
            path: self.runner.bin_dirs().to_vec(),
            config,
        }
    }
}

fn exec_error(what: &'static str, list: &NetworkList, source: ExecError) -> NetworkError {
    NetworkError::Exec {
        what,
        network: list.name.clone(),
        source: Box::new(source),
    }
}

fn chain_text(error: &dyn std::error::Error) -> String {
    CniError::new(ErrorCode::INTERNAL, "").because(error).details
}

fn check_names(attachment: &Attachment) -> Result<(), NetworkError> {
    check_container_id(&attachment.container_id)?;
    check_ifname(&attachment.ifname)?;
    Ok(())
}

/// What the caller says now goes before what was said at ADD; what it leaves out is taken from then.
fn merged(mut cached: Cached, now: &Attachment) -> Cached {
    if !now.netns.as_os_str().is_empty() {
        cached.attachment.netns = now.netns.clone();
    }
    if !now.args.is_empty() {
        cached.attachment.args = now.args.clone();
    }
    if now.runtime != RuntimeConfig::default() {
        cached.attachment.runtime = now.runtime.clone();
    }
    cached
}

fn is_netns(path: &Path) -> bool {
    // A pin whose mount is gone (after a reboot, say) is an ordinary file, not one of nsfs.
    !path.as_os_str().is_empty() && statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}
/// When this machine was started, by the clock as it stands; the beginning of time where that can't be told.
fn booted() -> SystemTime {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().and_then(|word| word.parse().ok());
    seconds
        .and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok())
        .and_then(|up| SystemTime::now().checked_sub(up))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
