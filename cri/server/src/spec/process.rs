//! The container's process, and processes run in it later.
//!
//! What runs: the container's `command` replaces the image's entrypoint, its `args` replace the image's cmd, and the
//! image's cmd belongs to the image's entrypoint only. The environment is built in layers, each over the one below:
//! what every process needs, the image's, the container's. Order is kept, because shells show it.

use cri_api::v1;
use oci_spec::image::Config;
use oci_spec::runtime::{Process, ProcessBuilder, Spec, UserBuilder};

use super::{SpecError, SpecInput, capabilities, resources, security};

/// Where programs are looked for when nobody says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The container's process.
pub(super) fn container_process(input: &SpecInput<'_>) -> Result<Process, SpecError> {
    let image = input.image.config().as_ref();
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.additional_gids.clone())
        .build()?;
    let mut process = ProcessBuilder::default()
        .terminal(input.container.tty)
        .user(user)
        .args(container_args(input.container, image)?)
        .env(environment(input, image)?)
        .cwd(working_dir(input.container, image)?)
        .capabilities(capabilities::capabilities(input)?)
        .no_new_privileges(input.security().is_some_and(|s| s.no_new_privs))
        .build()?;
    // oci-spec's own default is a limit of 1024 files; a container gets what the daemon has.
    process
        .set_rlimits(None)
        .set_oom_score_adj(resources::oom_score_adj(input)?)
        .set_apparmor_profile(security::apparmor(input)?)
        .set_selinux_label(security::process_label(input));
    Ok(process)
}

/// The process of an exec: the container's own (of `config.json`) with another command, and a terminal or none.
///
/// # Errors
/// [`SpecError::NoExecCommand`] when `cmd` is empty.
pub fn exec_process(container: &Spec, cmd: &[String], tty: bool) -> Result<Process, SpecError> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoExecCommand);
    }
    refuse_nul("exec command", cmd)?;
    let mut process = container.process().clone().ok_or(SpecError::Inconsistent(
        "the container's specification has no process",
    ))?;
    process
        .set_args(Some(cmd.to_vec()))
        .set_terminal(Some(tty))
        .set_console_size(None);
    if tty {
        let mut env = Environment::from(process.env().clone().unwrap_or_default());
        env.default("TERM", "xterm");
        process.set_env(Some(env.0));
    }
    Ok(process)
}

/// The command line of a container.
///
/// # Errors
/// [`SpecError::NoCommand`] when neither the container nor its image has one.
pub fn container_args(
    container: &v1::ContainerConfig,
    image: Option<&Config>,
) -> Result<Vec<String>, SpecError> {
    let list = |field: Option<&Option<Vec<String>>>| field.and_then(Option::clone).unwrap_or_default();
    let (mut args, rest) = if container.command.is_empty() {
        let entrypoint = list(image.map(Config::entrypoint));
        let rest = if container.args.is_empty() {
            list(image.map(Config::cmd))
        } else {
            container.args.clone()
        };
        (entrypoint, rest)
    } else {
        (container.command.clone(), container.args.clone())
    };
    args.extend(rest);
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    refuse_nul("argument", &args)?;
    Ok(args)
}

fn working_dir(container: &v1::ContainerConfig, image: Option<&Config>) -> Result<String, SpecError> {
    let image = image.and_then(|c| c.working_dir().as_deref()).unwrap_or_default();
    let path = if !container.working_dir.is_empty() {
        container.working_dir.clone()
    } else if image.is_empty() || image.starts_with('/') {
        image.to_owned()
    } else {
        // Old image builders wrote paths relative to the root.
        format!("/{image}")
    };
    let path = if path.is_empty() { "/".to_owned() } else { path };
    if !path.starts_with('/') {
        return Err(SpecError::WorkingDir { path });
    }
    refuse_nul("working directory", std::slice::from_ref(&path))?;
    Ok(path)
}

/// `NAME=value` in order, each name once.
struct Environment(Vec<String>);

impl From<Vec<String>> for Environment {
    fn from(variables: Vec<String>) -> Self {
        Self(variables)
    }
}

impl Environment {
    fn place(&self, name: &str) -> Option<usize> {
        let is = |v: &String| v.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        self.0.iter().position(is)
    }

    /// Sets a variable, in its old place if it has one.
    fn set(&mut self, name: &str, value: &str) {
        let variable = format!("{name}={value}");
        match self.place(name) {
            Some(at) => self.0[at] = variable,
            None => self.0.push(variable),
        }
    }

    /// Sets a variable that isn't set.
    fn default(&mut self, name: &str, value: &str) {
        if self.place(name).is_none() {
            self.set(name, value);
        }
    }
}

fn environment(input: &SpecInput<'_>, image: Option<&Config>) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::from(vec![DEFAULT_PATH.to_owned()]);
    if !input.sandbox.hostname.is_empty() {
        env.set("HOSTNAME", &input.sandbox.hostname);
    }
    for variable in image.and_then(|c| c.env().as_deref()).unwrap_or_default() {
        // An image may hold a variable without value; it counts as empty, as with docker.
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        check_name(name)?;
        env.set(name, value);
    }
    for variable in &input.container.envs {
        let name = &variable.key;
        check_name(name)?;
        let value =
            str::from_utf8(&variable.value).map_err(|_| SpecError::EnvValue { name: name.clone() })?;
        env.set(name, value);
    }
    if input.container.tty {
        env.default("TERM", "xterm");
    }
    if let Some(home) = &input.user.home {
        env.default("HOME", home);
    }
    refuse_nul("environment variable", &env.0)?;
    Ok(env.0)
}

fn check_name(name: &str) -> Result<(), SpecError> {
    if name.is_empty() || name.contains('=') {
        return Err(SpecError::EnvName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn refuse_nul(place: &'static str, texts: &[String]) -> Result<(), SpecError> {
    match texts.iter().find(|t| t.contains('\0')) {
        Some(text) => Err(SpecError::Nul {
            place,
            text: text.replace('\0', "\\0"),
        }),
        None => Ok(()),
    }
}
