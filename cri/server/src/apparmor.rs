//! AppArmor profiles: the one that `RuntimeDefault` means, and whether one that somebody names is there.
//!
//! The kernel lists what is loaded in securityfs, but takes only compiled policy, so that the default profile goes
//! through `apparmor_parser`, as with other CRI servers. It is loaded when the first container asks for it, and again if
//! somebody has unloaded it since: the list is read for every container that is to be confined. Where there is no
//! `apparmor_parser`, the default confines nothing, and says so once.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The profile that the daemon itself loads.
pub const DEFAULT: &str = "orlop-default";

/// No profile at all, as AppArmor calls it.
const UNCONFINED: &str = "unconfined";
/// What is loaded, one `name (mode)` a line.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where the parser may be.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// The profile that this process runs under.
const OWN_LABEL: &str = "/proc/self/attr/current";

/// Why a container can't have its profile.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// Nobody has loaded it.
    #[error("AppArmor profile `{profile}` is not loaded on this node: load it with `apparmor_parser`")]
    NotLoaded {
        /// Its name.
        profile: String,
    },
    /// The list of profiles can't be read.
    #[error("failed to read `{path}`")]
    List {
        /// The list.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The parser can't be run.
    #[error("failed to run `{parser}`")]
    Run {
        /// The parser.
        parser: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The parser didn't load it.
    #[error("`{parser}` did not load the profile `{DEFAULT}`: {message}")]
    Refused {
        /// The parser.
        parser: PathBuf,
        /// What it said.
        message: String,
    },
}

/// What is to be done for a container that is to run under a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// It is there.
    Use,
    /// It is the default and not there yet.
    Load,
    /// It is the default, and can't be loaded here.
    Without,
    /// It is somebody else's, and not there.
    Refuse,
}

fn plan(profile: &str, listed: &str, has_parser: bool) -> Plan {
    if is_listed(profile, listed) {
        return Plan::Use;
    }
    match (profile == DEFAULT, has_parser) {
        (false, _) => Plan::Refuse,
        (true, true) => Plan::Load,
        (true, false) => Plan::Without,
    }
}

/// Whether the kernel's list has a profile. Names may have blanks; the mode in parentheses ends the line.
fn is_listed(profile: &str, listed: &str) -> bool {
    listed
        .lines()
        .any(|line| line.rsplit_once(" (").map_or(line, |(name, _)| name) == profile)
}

/// The profiles of this machine.
#[derive(Debug)]
pub struct AppArmor {
    list: PathBuf,
    parser: Option<PathBuf>,
    /// Held while the default is loaded, so that this happens once.
    loading: Mutex<()>,
    /// Somebody was told that the default confines nothing.
    told: AtomicBool,
}

impl AppArmor {
    /// This machine's. Blocking.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let parser = PARSERS.iter().map(PathBuf::from).find(|path| path.is_file());
        Self::new(PROFILES.into(), parser)
    }

    fn new(list: PathBuf, parser: Option<PathBuf>) -> Self {
        Self {
            list,
            parser,
            loading: Mutex::new(()),
            told: AtomicBool::new(false),
        }
    }

    /// Sees to it that a profile is there; `false`: it is the default, and this machine can't have it. Blocking.
    ///
    /// # Errors
    /// It isn't loaded, or the default can't be.
    pub fn provide(&self, profile: &str) -> Result<bool, AppArmorError> {
        if self.plan(profile)? == Plan::Use {
            return Ok(true);
        }
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another container's creation may have loaded it meanwhile.
        match (self.plan(profile)?, &self.parser) {
            (Plan::Use, _) => Ok(true),
            (Plan::Load, Some(parser)) => load(parser, &default_profile(&own_label())).map(|()| true),
            (Plan::Load | Plan::Without, _) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!("containers are not confined by AppArmor: there is no apparmor_parser");
                }
                Ok(false)
            }
            (Plan::Refuse, _) => Err(AppArmorError::NotLoaded {
                profile: profile.to_owned(),
            }),
        }
    }

    fn plan(&self, profile: &str) -> Result<Plan, AppArmorError> {
        if profile == UNCONFINED {
            return Ok(Plan::Use);
        }
        let listed = fs::read_to_string(&self.list).map_err(|source| AppArmorError::List {
            path: self.list.clone(),
            source,
        })?;
        Ok(plan(profile, &listed, self.parser.is_some()))
    }
}

/// Whether the kernel confines by AppArmor, and lets this process see its profiles. Blocking.
#[must_use]
pub fn is_enabled() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.trim() == "Y") && Path::new(PROFILES).exists()
}

/// Hands a profile to the parser, which compiles and loads it; its cache is left alone.
fn load(parser: &Path, profile: &str) -> Result<(), AppArmorError> {
    let failed = |source| AppArmorError::Run {
        parser: parser.to_owned(),
        source,
    };
    let mut child = Command::new(parser)
        .args(["-K", "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // Far less than a pipe holds; dropped, so that the parser sees its end.
    let sent = child
        .stdin
        .take()
        .map(|mut pipe| pipe.write_all(profile.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(AppArmorError::Refused {
            parser: parser.to_owned(),
            message: format!(
                "{} ({})",
                String::from_utf8_lossy(&output.stderr).trim(),
                output.status
            ),
        });
    }
    sent.transpose().map(drop).map_err(failed)
}

/// The profile that this process, and with it the shims, run under; they signal containers.
fn own_label() -> String {
    let text = fs::read_to_string(OWN_LABEL).unwrap_or_default();
    let label = text.trim_end_matches(['\n', '\0']);
    let label = label.rsplit_once(" (").map_or(label, |(name, _)| name);
    if label.is_empty() { UNCONFINED } else { label }.to_owned()
}

/// The default profile, for a daemon that runs under `daemon`.
///
/// What containers rely on stays allowed: files, the network, the capabilities that they were given, unmounting. Denied
/// is what a container that got hold of more rights than planned would attack the host with: mounting, the kernel's
/// knobs in /proc and /sys, processes that aren't its own. AppArmor knows no "all but", hence the patterns that spell a
/// name's first letters.
fn default_profile(daemon: &str) -> String {
    format!(
        r#"profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  file,
  network,
  capability,
  umount,

  # Stopping a container: from the host, from the daemon's shims, from a runtime's command line.
  signal (receive) peer=unconfined,
  signal (receive) peer="{daemon}",
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  # Processes of containers among themselves; namespaces keep those of others away.
  signal (send, receive) peer={DEFAULT},
  ptrace (trace, tracedby, read, readby) peer={DEFAULT},

  deny mount,

  # /proc: what belongs to a process, whose folder is a number, and of the kernel's own settings shared memory's.
  deny /proc/* w,
  deny /proc/{{[^0-9s]*,s[^y]*,sy[^s]*,sys?*}}/** w,
  deny /proc/sys/{{[^k]**,k[^e]**}} w,
  deny /proc/sys/kernel/{{[^s]**,s[^h]**,sh[^m]**,?,??}} w,
  deny /proc/{{sysrq-trigger,mem,kmem,kcore}} rwklx,

  # /sys: cgroups, which namespaces and mounts guard.
  deny /sys/{{[^f]*,f[^s]*,fs?*}}/** wklx,
  deny /sys/fs/{{[^c]*,c[^g]*,cg[^r]*}}/** wklx,
  deny /sys/{{firmware,devices/virtual/powercap,kernel/security}}/** rwklx,
}}
"#
    )
}

#[cfg(test)]
mod tests;
