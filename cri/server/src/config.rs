//! The daemon's configuration: `orlop-cri.toml` and its drop-ins.
//!
//! Every key has a default, so that an empty file works. [`Config::check`] finds what types can't: it is run at start,
//! by `--validate`, and before a reload. [`Config::reload`] takes over only what is safe to change under running pods.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_shim_protocol::Runtime;
use oci_runtime_cgroups::{Cgroup, CgroupDriver};
use serde::Deserialize;

use crate::apparmor;
use crate::spec::{SpecDefaults, UnsetSeccomp, capability_by_name};

/// The configuration of the CRI server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What survives a reboot: images, records.
    pub root: PathBuf,
    /// What doesn't: namespaces, sockets, bundles.
    pub state: PathBuf,
    /// Where the gRPC services listen.
    pub socket: PathBuf,
    /// The shim's executable; empty: `orlop-shim` beside this program.
    pub shim: PathBuf,
    /// How long calls under way may take to end when the daemon is asked to stop, in seconds.
    pub drain_seconds: u64,
    /// Logs; the server itself doesn't look at it, its main does.
    pub log: LogSettings,
    /// Cgroups.
    pub cgroup: CgroupConfig,
    /// The runtime handler that an empty name means.
    pub default_runtime: String,
    /// Runtime handlers by name.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// Pod networks.
    pub cni: CniSettings,
    /// Images.
    pub images: ImageSettings,
    /// Plugins of the Node Resource Interface.
    pub nri: NriSettings,
    /// What containers get when nobody says otherwise.
    pub containers: ContainerDefaults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/orlop/cri".into(),
            state: "/run/orlop/cri".into(),
            socket: "/run/orlop/cri.sock".into(),
            shim: PathBuf::new(),
            drain_seconds: 10,
            log: LogSettings::default(),
            cgroup: CgroupConfig::default(),
            default_runtime: "orlop".to_owned(),
            runtimes: BTreeMap::new(),
            streaming: StreamingConfig::default(),
            cni: CniSettings::default(),
            images: ImageSettings::default(),
            nri: NriSettings::default(),
            containers: ContainerDefaults::default(),
        }
    }
}

/// Logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// How severe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed and nobody else reports.
    Error,
    /// What is odd.
    Warn,
    /// What an administrator wants to know.
    #[default]
    Info,
    /// Every call and every step.
    Debug,
    /// Everything.
    Trace,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupConfig {
    /// Who makes them.
    pub driver: Driver,
    /// Above pods whose caller names no parent; empty: `/orlop`, with systemd `orlop.slice`.
    pub root: String,
    /// A leaf for all shims, outside the pods' and the daemon's; with systemd also `slice:prefix:name`. Empty: with
    /// systemd the scope `orlop-shims.scope`; otherwise beside the daemon in a cgroup that was delegated to it, or
    /// where it is.
    pub shims: String,
}

impl CgroupConfig {
    /// Above pods whose caller names no parent.
    #[must_use]
    pub fn root(&self) -> &str {
        match self.driver {
            _ if !self.root.is_empty() => &self.root,
            Driver::Cgroupfs => "/orlop",
            Driver::Systemd => "orlop.slice",
        }
    }

    /// The leaf for all shims, if one is configured or usual.
    #[must_use]
    pub fn shims(&self) -> Option<&str> {
        match self.driver {
            _ if !self.shims.is_empty() => Some(&self.shims),
            Driver::Cgroupfs => None,
            Driver::Systemd => Some("system.slice:orlop:shims"),
        }
    }
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self {
            driver: Driver::Cgroupfs,
            root: String::new(),
            shims: String::new(),
        }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Orlop itself.
    Cgroupfs,
    /// systemd.
    Systemd,
}

impl From<Driver> for CgroupDriver {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Cgroupfs => Self::Cgroupfs,
            Driver::Systemd => Self::Systemd,
        }
    }
}

/// One runtime handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeHandler {
    /// A runc-compatible executable; absent: the runtime that is built in.
    pub path: Option<PathBuf>,
}

/// Exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// Where the streaming server listens; port 0: the kernel chooses.
    pub address: SocketAddr,
    /// How long a connection may carry nothing, in seconds.
    pub idle_seconds: u64,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            idle_seconds: 4 * 60 * 60,
        }
    }
}

/// Pod networks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniSettings {
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Results of earlier calls.
    pub cache_dir: PathBuf,
    /// How long one plugin may take, in seconds.
    pub timeout_seconds: u64,
}

impl Default for CniSettings {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: "/var/lib/cni".into(),
            timeout_seconds: 60,
        }
    }
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSettings {
    /// `<registry>/hosts.toml` files: mirrors, plain-HTTP hosts, certificates.
    pub hosts_dir: PathBuf,
    /// Layers downloaded and unpacked at a time.
    pub max_parallel_layers: usize,
    /// Images pulled at a time.
    pub max_parallel_pulls: usize,
    /// How long a download may stand still, in seconds.
    pub progress_timeout_seconds: u64,
    /// Images that a garbage collector must leave alone.
    pub pinned: Vec<String>,
    /// Drop layers as the registry sent them once they are unpacked.
    pub discard_blobs: bool,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            hosts_dir: "/etc/orlop/registries.d".into(),
            max_parallel_layers: 4,
            max_parallel_pulls: 16,
            progress_timeout_seconds: 60,
            pinned: Vec::new(),
            discard_blobs: false,
        }
    }
}

/// Plugins of the Node Resource Interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NriSettings {
    /// Whether plugins are served at all.
    pub enabled: bool,
    /// Where they connect.
    pub socket: PathBuf,
    /// Executables that are started as plugins.
    pub plugin_dir: PathBuf,
    /// Configurations of those that are started.
    pub plugin_config_dir: PathBuf,
    /// How long a plugin may take to register, and then to take in what there is, in seconds.
    pub registration_timeout_seconds: u64,
    /// How long it may take for any other request, in seconds.
    pub request_timeout_seconds: u64,
}

impl Default for NriSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_dir: "/opt/nri/plugins".into(),
            plugin_config_dir: "/etc/nri/conf.d".into(),
            registration_timeout_seconds: 5,
            request_timeout_seconds: 2,
        }
    }
}

/// What containers get when nobody says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerDefaults {
    /// Names of capabilities, with or without `CAP_`; absent: the field's usual fourteen.
    pub capabilities: Option<Vec<String>>,
    /// What a container without a seccomp profile gets.
    pub unset_seccomp: UnsetSeccompSetting,
    /// The AppArmor profile that RuntimeDefault means, which must be loaded, or `unconfined`; absent: `orlop-default`,
    /// which the daemon loads itself.
    pub apparmor_profile: Option<String>,
    /// The most processes in a container.
    pub pids_limit: Option<i64>,
    /// Privileged containers don't get the host's devices.
    pub privileged_without_host_devices: bool,
    /// A longer log line is split, in bytes; absent: 16384.
    pub max_log_line: Option<u32>,
}

/// What a container without a seccomp profile gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnsetSeccompSetting {
    /// No filter.
    #[default]
    Unconfined,
    /// The default filter.
    RuntimeDefault,
}

/// Something in the configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("configuration key `{key}`: {problem}")]
pub struct ConfigError {
    /// Which key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// The runtime handler that needs no configuration.
pub const BUILTIN: &str = "orlop";

impl Config {
    /// The handler of that name, with empty meaning the default; `None`: there is no such handler.
    pub fn runtime(&self, name: &str) -> Option<RuntimeHandler> {
        let name = if name.is_empty() {
            &self.default_runtime
        } else {
            name
        };
        match self.runtimes.get(name) {
            Some(handler) => Some(handler.clone()),
            None if name == BUILTIN => Some(RuntimeHandler::default()),
            None => None,
        }
    }

    /// The handler of that name as the shim is told it.
    pub fn oci_runtime(&self, name: &str) -> Option<Runtime> {
        let systemd_cgroup = self.cgroup.driver == Driver::Systemd;
        Some(match self.runtime(name)?.path {
            None => Runtime::Builtin { systemd_cgroup },
            Some(path) => Runtime::Command { path, systemd_cgroup },
        })
    }

    /// All handlers' names, the empty one for the default first.
    pub fn runtime_names(&self) -> Vec<String> {
        let mut names = vec![String::new()];
        if !self.runtimes.contains_key(BUILTIN) {
            names.push(BUILTIN.to_owned());
        }
        names.extend(self.runtimes.keys().cloned());
        names
    }

    /// The part that makes OCI specifications.
    ///
    /// # Errors
    /// A capability that doesn't exist.
    pub fn spec_defaults(&self) -> Result<SpecDefaults, ConfigError> {
        let mut defaults = SpecDefaults::default();
        if let Some(names) = &self.containers.capabilities {
            defaults.capabilities = names
                .iter()
                .map(|name| {
                    capability_by_name(name).ok_or_else(|| {
                        wrong("containers.capabilities", format!("`{name}` is not a capability"))
                    })
                })
                .collect::<Result<_, _>>()?;
        }
        defaults.unset_seccomp = match self.containers.unset_seccomp {
            UnsetSeccompSetting::Unconfined => UnsetSeccomp::Unconfined,
            UnsetSeccompSetting::RuntimeDefault => UnsetSeccomp::RuntimeDefault,
        };
        let profile = self.containers.apparmor_profile.as_deref();
        if profile.is_some_and(|name| name.trim().is_empty()) {
            let problem = "must name a profile, or be `unconfined`".to_owned();
            return Err(wrong("containers.apparmor_profile", problem));
        }
        defaults.apparmor_profile = Some(profile.unwrap_or(apparmor::DEFAULT).to_owned());
        defaults.pids_limit = self.containers.pids_limit;
        defaults.privileged_without_host_devices = self.containers.privileged_without_host_devices;
        Ok(defaults)
    }

    /// How long one CNI plugin may take.
    pub fn cni_timeout(&self) -> Duration {
        Duration::from_secs(self.cni.timeout_seconds)
    }

    /// Finds what types can't.
    ///
    /// # Errors
    /// The first mistake, naming the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let absolute: [(&str, &Path); 8] = [
            ("root", &self.root),
            ("state", &self.state),
            ("socket", &self.socket),
            ("cni.conf_dir", &self.cni.conf_dir),
            ("cni.cache_dir", &self.cni.cache_dir),
            ("nri.socket", &self.nri.socket),
            ("nri.plugin_dir", &self.nri.plugin_dir),
            ("nri.plugin_config_dir", &self.nri.plugin_config_dir),
        ];
        for (key, path) in absolute {
            if !path.is_absolute() {
                return Err(wrong(
                    key,
                    format!("`{}` must be an absolute path", path.display()),
                ));
            }
        }
        if self.root.starts_with(&self.state) || self.state.starts_with(&self.root) {
            return Err(wrong(
                "state",
                "must not lie in `root`, nor `root` in it".to_owned(),
            ));
        }
        check_root(self.cgroup.root(), self.cgroup.driver)?;
        if let Some(shims) = self.cgroup.shims() {
            Cgroup::path_of(shims).map_err(|error| wrong("cgroup.shims", error.to_string()))?;
        }
        if self.runtime("").is_none() {
            let problem = format!("`{}` is not among `runtimes`", self.default_runtime);
            return Err(wrong("default_runtime", problem));
        }
        for (name, handler) in &self.runtimes {
            if let Some(path) = handler.path.as_ref().filter(|p| !p.is_absolute()) {
                let problem = format!("`{}` must be an absolute path", path.display());
                return Err(wrong(&format!("runtimes.{name}.path"), problem));
            }
        }
        check_positive("cni.timeout_seconds", self.cni.timeout_seconds)?;
        check_positive("drain_seconds", self.drain_seconds)?;
        check_positive(
            "nri.registration_timeout_seconds",
            self.nri.registration_timeout_seconds,
        )?;
        check_positive("nri.request_timeout_seconds", self.nri.request_timeout_seconds)?;
        check_positive(
            "images.max_parallel_layers",
            self.images.max_parallel_layers as u64,
        )?;
        check_positive("images.max_parallel_pulls", self.images.max_parallel_pulls as u64)?;
        self.spec_defaults().map(drop)
    }

    /// Whether pods stay out of the unit that systemd delegated to the daemon: with controllers for them there, systemd
    /// could not start the daemon in its unit again.
    ///
    /// # Errors
    /// When `cgroup.root` is the unit's cgroup, or below it.
    pub fn check_unit(&self, unit: &str) -> Result<(), ConfigError> {
        let root = self.cgroup.root();
        match self.cgroup.driver {
            Driver::Cgroupfs if Path::new(&root).starts_with(unit) => {
                let problem = format!(
                    "`{root}` is in the daemon's own unit, `{unit}`, which systemd could not start again with pods below; \
                     set it to a path elsewhere, like `/orlop`, or the driver to `systemd`"
                );
                Err(wrong("cgroup.root", problem))
            }
            _ => Ok(()),
        }
    }

    /// Takes over from `new` what may change while running, and names the keys that differ but need a restart.
    #[must_use]
    pub fn reload(&self, new: Self) -> (Self, Vec<&'static str>) {
        let mut next = self.clone();
        next.default_runtime = new.default_runtime;
        next.runtimes = new.runtimes;
        next.containers = new.containers;
        next.drain_seconds = new.drain_seconds;
        next.log = new.log;
        let mut stay = Vec::new();
        let mut kept = |same: bool, key| {
            if !same {
                stay.push(key);
            }
        };
        kept(new.root == self.root, "root");
        kept(new.state == self.state, "state");
        kept(new.socket == self.socket, "socket");
        kept(new.shim == self.shim, "shim");
        kept(new.cgroup == self.cgroup, "cgroup");
        kept(new.streaming == self.streaming, "streaming");
        kept(new.cni == self.cni, "cni");
        kept(new.images == self.images, "images");
        kept(new.nri == self.nri, "nri");
        (next, stay)
    }
}

fn wrong(key: &str, problem: String) -> ConfigError {
    ConfigError {
        key: key.to_owned(),
        problem,
    }
}

fn check_root(root: &str, driver: Driver) -> Result<(), ConfigError> {
    let (fits, wanted) = match driver {
        Driver::Cgroupfs => (root.starts_with('/'), "a path like `/orlop`, below the root"),
        Driver::Systemd => (
            root.ends_with(".slice") && !root.contains(':') && root != "-.slice",
            "the name of a slice, like `orlop.slice`",
        ),
    };
    match Cgroup::path_of(root) {
        Ok(_) if fits => Ok(()),
        _ => Err(wrong("cgroup.root", format!("`{root}` must be {wanted}"))),
    }
}

fn check_positive(key: &str, value: u64) -> Result<(), ConfigError> {
    if value == 0 {
        return Err(wrong(key, "must be at least 1".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn nothing_is_a_configuration() {
        let config = parse("");
        assert_eq!(config, Config::default());
        config.check().unwrap();
        assert!(config.runtime("").unwrap().path.is_none());
        assert!(config.runtime("orlop").is_some());
        assert!(config.runtime("runc").is_none());
    }

    #[test]
    fn pods_stay_out_of_the_daemon_s_own_unit() {
        let unit = "/system.slice/orlop-cri.service";
        let check = |root: &str| parse(&format!("[cgroup]\nroot = '{root}'")).check_unit(unit);
        for fine in ["/orlop", "/system.slice", "/system.slice/orlop-cri.service2"] {
            check(fine).unwrap();
        }
        for bad in [unit, "/system.slice/orlop-cri.service/pods"] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("cgroup.root"), "{error}");
        }
        let systemd = parse("[cgroup]\ndriver = 'systemd'\nroot = 'orlop.slice'");
        systemd.check_unit(unit).unwrap();
    }

    #[test]
    fn handlers_by_name() {
        let config =
            parse("default_runtime = 'runc'\n[runtimes.runc]\npath = '/usr/sbin/runc'\n[runtimes.b]");
        config.check().unwrap();
        assert_eq!(config.runtime("").unwrap().path, Some("/usr/sbin/runc".into()));
        assert_eq!(config.runtime("b").unwrap().path, None);
        assert_eq!(config.runtime_names(), ["", "orlop", "b", "runc"]);
    }

    #[test]
    fn mistakes_name_their_key() {
        for (text, key) in [
            ("root = 'x'", "root"),
            ("state = '/var/lib/orlop/cri/state'", "state"),
            ("default_runtime = 'x'", "default_runtime"),
            ("[runtimes.x]\npath = 'runc'", "runtimes.x.path"),
            ("[cgroup]\nroot = 'orlop'", "cgroup.root"),
            ("[cgroup]\nroot = '/'", "cgroup.root"),
            ("[cgroup]\nshims = '/a/../b'", "cgroup.shims"),
            ("[cgroup]\ndriver = 'systemd'\nroot = '/orlop'", "cgroup.root"),
            ("[cgroup]\ndriver = 'systemd'\nshims = 'a:b'", "cgroup.shims"),
            ("[cni]\ntimeout_seconds = 0", "cni.timeout_seconds"),
            ("[images]\nmax_parallel_layers = 0", "images.max_parallel_layers"),
            (
                "[containers]\ncapabilities = ['CHOWN', 'FLY']",
                "containers.capabilities",
            ),
        ] {
            assert_eq!(parse(text).check().unwrap_err().key, key, "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        for text in [
            "rot = '/'",
            "[cni]\nconfdir = '/'",
            "[runtimes.runc]\nbinary = '/x'",
            "[containers]\npids = 1",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reload_takes_what_is_safe_and_names_the_rest() {
        let old = Config::default();
        let new = parse(
            "root = '/elsewhere'\n[runtimes.runc]\npath = '/usr/sbin/runc'\n[containers]\npids_limit = 5",
        );
        let (next, stay) = old.reload(new);
        assert_eq!(stay, ["root"]);
        assert_eq!(next.root, old.root);
        assert!(next.runtime("runc").is_some());
        assert_eq!(next.containers.pids_limit, Some(5));
    }
}
