//! Creating a container.
//!
//! The plan first, which may be refused with nothing to undo. Then the intent on disk, the cgroup, everything that
//! init needs from the host, and the fork. When anything fails, all of it is undone; when this process is killed,
//! init ends by itself at its next word to it, and `delete --force` finds the record of what to remove.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc;
use oci_runtime_cgroups::{Cgroup, CgroupDriver};
use oci_runtime_sys::clone::{self, Forked};
use oci_runtime_sys::{caps, open, process, stage};
use oci_spec::runtime::Spec;

use crate::context::Context as _;
use crate::handshake::{self, Child, Parent, Waits};
use crate::hooks::{self, HookPlan};
use crate::init::{self, InitArguments, Streams};
use crate::keeper::Keeper;
use crate::plan::{InitPlan, ProcessPlan, capability_names};
use crate::seccomp::{self, Filter};
use crate::state::{Phase, Record, Status};
use crate::store::{self, Folder};
use crate::{
    ConfigError, CreateError, CreateOptions, Created, Runtime, Stdio, StepError, cgroup, config, prepare,
    process_table,
};

/// What was made so far, to be undone.
struct Making<'a> {
    folder: &'a Folder,
    cgroup: Option<Cgroup>,
    pid: Option<i32>,
}

pub(crate) fn create(runtime: &Runtime, mut options: CreateOptions) -> Result<Created, CreateError> {
    let bundle = absolute(&options.bundle)?;
    let parsed = match options.config.take() {
        Some(parsed) => parsed,
        None => config::load_spec(&bundle)?,
    };
    let (spec, mut warnings) = (parsed.value, parsed.warnings);
    let plan = InitPlan::new(&spec, &bundle, &mut warnings)?;
    let hooks = HookPlan::new(&spec)?;
    check_terminal(&plan.process, &options.stdio)?;
    warn_of_missing_rights(&plan, &mut warnings);
    let folder = Folder::new(runtime.root(), &options.id)?;
    folder.create()?;
    let mut making = Making {
        folder: &folder,
        cgroup: None,
        pid: None,
    };
    let result = make(runtime, options, (&spec, bundle), plan, hooks, &mut making);
    match result {
        Ok(mut created) => {
            created.warnings.splice(0..0, warnings);
            Ok(created)
        }
        Err(error) => {
            undo(&making);
            Err(error)
        }
    }
}

fn make(
    runtime: &Runtime,
    options: CreateOptions,
    (spec, bundle): (&Spec, PathBuf),
    plan: InitPlan,
    hooks: HookPlan,
    making: &mut Making<'_>,
) -> Result<Created, CreateError> {
    let folder = making.folder;
    let mut record = record((&options.id, bundle), spec, &plan, &hooks, runtime.driver())?;
    folder.write(&record)?;
    let filter = match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(profile) => Some(seccomp::compile_cached(
            profile,
            &runtime.root().join(".seccomp"),
        )?),
        None => None,
    };
    if let Some(filter) = &filter {
        folder.write_filter(filter)?;
    }
    let cgroup = Cgroup::new(&record.cgroup, runtime.driver())?;
    // One that was there and is frozen, or is below one that is, would hold init, and so this process, for ever.
    if let Some(frozen) = cgroup.frozen_at().unwrap_or(None) {
        return Err(StepError::other(format!(
            "container's cgroup unexpectedly frozen: `{}` by `{}`; thaw that, or name another in linux.cgroupsPath",
            cgroup.path(),
            frozen.display()
        ))
        .into());
    }
    making.cgroup = Some(cgroup.clone());
    let keeper = cgroup.needs_process().then(Keeper::fork).transpose()?;
    cgroup.create_around(keeper.as_ref().map_or(0, Keeper::pid), &cgroup::resources(spec))?;
    if let Some(owner) = prepare::cgroup_owner(&plan) {
        cgroup.delegate_to(owner)?;
    }
    let prepared = prepare::open_all(&plan, &cgroup)?;
    let clone_fd = cgroup.clone_fd();
    let arguments = InitArguments {
        id: options.id.clone(),
        prepared,
        streams: streams(options.stdio)?,
        cgroup: cgroup.attach_fds()?,
        in_v2_cgroup: clone_fd.is_some(),
        filter,
        hooks,
        state: record.hook_state(Status::Creating, 0),
        start: listen(folder)?,
        lock: Some(folder.lock()?),
        no_pivot: options.no_pivot,
        new_keyring: !options.no_new_keyring,
        preserve_fds: options.preserve_fds,
        joined: needs_intermediate(&plan),
        plan,
    };
    let (mut channel, child) = handshake::pair()?;
    let forks = Forks {
        clone_parent: options.clone_parent,
        cgroup: clone_fd,
    };
    let (pid, told) = fork_init(arguments, &mut channel, child, &forks)?;
    making.pid = Some(pid);
    let started = process_table::started(pid).ok_or_else(|| StepError::other("init ended at once"))?;
    accompany(&mut channel, pid, &told, &record)?;
    // Init is in the cgroup.
    drop(keeper);
    record.phase = Phase::Made { pid, started };
    folder.write(&record)?;
    if let Some(path) = &options.pid_file {
        store::replace(path, pid.to_string().as_bytes())
            .to(|| format!("write the pid file `{}`", path.display()))?;
    }
    channel.proceed()?;
    Ok(Created {
        pid,
        console: channel.console.take(),
        warnings: std::mem::take(&mut channel.warnings),
    })
}

/// What the runtime needs to know of the plan after init has taken it.
struct Told {
    plan: InitPlan,
    hooks: HookPlan,
}

/// Answers init until it's ready.
fn accompany(channel: &mut Parent, pid: i32, told: &Told, record: &Record) -> Result<(), StepError> {
    loop {
        match channel.next()? {
            Waits::Mapping => {
                if let Some(mappings) = &told.plan.mappings {
                    prepare::write_mappings(pid, mappings)?;
                }
                let mut warnings = Vec::new();
                init::set_limits_of(pid, &told.plan.process, &mut |warning| warnings.push(warning))?;
                channel.warnings.append(&mut warnings);
                channel.proceed()?;
            }
            Waits::Hooks => {
                let state = record.hook_state(Status::Creating, pid);
                hooks::run("prestart", &told.hooks.prestart, &state)?;
                hooks::run("createRuntime", &told.hooks.create_runtime, &state)?;
                channel.proceed()?;
            }
            Waits::Ready => return Ok(()),
            Waits::Gone => {
                return Err(StepError::other(
                    "init ended while the container was being created; was it killed?",
                ));
            }
        }
    }
}

/// How init is forked.
struct Forks {
    clone_parent: bool,
    cgroup: Option<OwnedFd>,
}

/// One clone3 into new namespaces and the cgroup. Where a user namespace is involved with others by path, a child in
/// between joins those first: they have to be entered with the host's rights, and new ones have to belong to the user
/// namespace.
fn needs_intermediate(plan: &InitPlan) -> bool {
    let namespaces = &plan.namespaces;
    let others = namespaces
        .join
        .iter()
        .any(|(flag, _)| *flag != libc::CLONE_NEWPID);
    namespaces.joined(libc::CLONE_NEWUSER).is_some() || (namespaces.is_new(libc::CLONE_NEWUSER) && others)
}

fn fork_init(
    arguments: InitArguments,
    channel: &mut Parent,
    child: Child,
    forks: &Forks,
) -> Result<(i32, Told), StepError> {
    let told = Told {
        plan: arguments.plan.clone(),
        hooks: arguments.hooks.clone(),
    };
    let namespaces = &told.plan.namespaces;
    // The child in between enters it by itself: were it born there, it would tell init's pid as seen in there.
    let back = match namespaces.joined(libc::CLONE_NEWPID) {
        Some(path) if !arguments.joined => enter_pid_namespace(Some(path))?,
        _ => None,
    };
    let parent = if forks.clone_parent {
        libc::CLONE_PARENT as u64
    } else {
        0
    };
    let forked = if arguments.joined {
        fork_through_intermediate(arguments, channel, child, parent)
    } else {
        // The cgroup namespace's root is the cgroup at its making, so it waits until init is there.
        let late = libc::CLONE_NEWCGROUP | crate::plan::CLONE_NEWTIME;
        let flags = (namespaces.new & !late) as u32;
        let result = clone::fork(
            u64::from(flags) | parent,
            forks.cgroup.as_ref().map(OwnedFd::as_fd),
        );
        match result.to(|| "fork init into its namespaces")? {
            Forked::Child => {
                channel.close();
                init::run(arguments, child)
            }
            Forked::Parent(pid) => {
                let InitArguments {
                    cgroup, start, lock, ..
                } = arguments;
                let mut ours = cgroup.into_fds();
                ours.push(start.into());
                ours.extend(lock.map(OwnedFd::from));
                stage::close_together(ours);
                drop(child);
                Ok(pid)
            }
        }
    };
    if let Some(own) = back {
        clone::setns(own.as_fd(), libc::CLONE_NEWPID).to(|| "return to the runtime's PID namespace")?;
    }
    Ok((forked?, told))
}

/// Children go to the PID namespace given by path; the way back is returned.
fn enter_pid_namespace(path: Option<&Path>) -> Result<Option<OwnedFd>, StepError> {
    let Some(path) = path else { return Ok(None) };
    let target = init::open_namespace(path)?;
    let own = init::open_namespace(Path::new("/proc/self/ns/pid"))?;
    clone::setns(target.as_fd(), libc::CLONE_NEWPID)
        .to(|| format!("join the namespace `{}`", path.display()))?;
    Ok(Some(own))
}

fn fork_through_intermediate(
    mut arguments: InitArguments,
    channel: &mut Parent,
    child: Child,
    parent: u64,
) -> Result<i32, StepError> {
    // Through the child in between, the cgroup is joined by init itself: the flag would need its rights there.
    arguments.in_v2_cgroup = false;
    // Init becomes its sibling, so whose child it is decides whose child init is, from the first moment.
    match clone::fork(parent, None).to(|| "fork a stage child")? {
        Forked::Child => {
            channel.close();
            let result = intermediate(arguments, &child);
            if let Err(error) = result {
                child.failed(error);
                clone::exit_now(1);
            }
            clone::exit_now(0)
        }
        Forked::Parent(pid) => {
            drop((arguments, child));
            let forked = channel.forked();
            if parent == 0 {
                let _ = process::wait(pid, true);
            }
            forked
        }
    }
}

fn intermediate(arguments: InitArguments, child: &Child) -> Result<(), StepError> {
    process::set_dumpable(false).to(|| "make the stage child undumpable")?;
    init::join_cgroup(&arguments.cgroup, false)?;
    let plan = &arguments.plan;
    if !plan.namespaces.is_new(libc::CLONE_NEWUSER) {
        // With a user namespace by path, no later moment has the host's rights.
        init::set_limits(&plan.process, |warning| child.warn(warning))?;
    }
    // For children only, so that the clone below still tells the runtime's view of the pid.
    enter_pid_namespace(plan.namespaces.joined(libc::CLONE_NEWPID))?;
    init::join_namespaces(plan)?;
    if plan.namespaces.joined(libc::CLONE_NEWUSER).is_some() {
        init::become_mapped_root()?;
    }
    let late = libc::CLONE_NEWCGROUP | crate::plan::CLONE_NEWTIME;
    let flags = (plan.namespaces.new & !late) as u32;
    // A sibling: the runtime is its parent, and this process is soon gone.
    let flags = u64::from(flags) | libc::CLONE_PARENT as u64;
    let socket = child.socket().try_clone_to_owned().to(|| "copy the socket")?;
    match clone::fork(flags, None).to(|| "fork init into its namespaces")? {
        Forked::Child => init::run(arguments, Child::from_socket(socket)),
        Forked::Parent(pid) => child.forked(pid),
    }
}

fn record(
    (id, bundle): (&str, PathBuf),
    spec: &Spec,
    plan: &InitPlan,
    hooks: &HookPlan,
    driver: CgroupDriver,
) -> Result<Record, ConfigError> {
    let annotations: BTreeMap<String, String> = spec
        .annotations()
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let process = spec.process().clone();
    Ok(Record {
        id: id.to_owned(),
        bundle,
        rootfs: plan.rootfs.clone(),
        created: crate::state::now(),
        annotations,
        cgroup: cgroup::path(spec, id, driver),
        phase: Phase::Creating,
        namespaces: plan.namespaces.all(),
        own_pid_namespace: plan.namespaces.is_new(libc::CLONE_NEWPID),
        has_seccomp: plan.process.has_seccomp,
        personality: plan.personality,
        poststart: hooks.poststart.clone(),
        poststop: hooks.poststop.clone(),
        process: process.ok_or_else(|| ConfigError::invalid("process", "is missing"))?,
    })
}

fn absolute(bundle: &Path) -> Result<PathBuf, ConfigError> {
    std::fs::canonicalize(bundle).map_err(|source| ConfigError::Read {
        path: bundle.to_owned(),
        source,
    })
}

pub(crate) fn check_terminal(process: &ProcessPlan, stdio: &Stdio) -> Result<(), ConfigError> {
    let wants = matches!(stdio, Stdio::ConsoleSocket(_) | Stdio::ConsoleFd);
    match (process.terminal.is_some(), wants) {
        (true, false) => Err(ConfigError::invalid(
            "process.terminal",
            "is set, but there is nobody to take the terminal: give a console socket",
        )),
        (false, true) => Err(ConfigError::invalid(
            "process.terminal",
            "is not set, but a console socket is given: leave it out",
        )),
        _ => Ok(()),
    }
}

/// Capabilities that this runtime doesn't have itself.
fn warn_of_missing_rights(plan: &InitPlan, warnings: &mut Vec<String>) {
    if plan.namespaces.all() & libc::CLONE_NEWUSER != 0 {
        return;
    }
    let asked = plan.process.credentials.capabilities;
    let missing = caps::read().map_or(0, |have| (asked.bounding | asked.permitted) & !have.permitted);
    if missing != 0 {
        warnings.push(format!(
            "process.capabilities: the runtime itself lacks {}; the container runs without",
            capability_names(missing)
        ));
    }
}

pub(crate) fn streams(stdio: Stdio) -> Result<Streams, StepError> {
    Ok(match stdio {
        Stdio::Inherit => Streams::Inherit,
        Stdio::Fds(fds) => Streams::Given(fds),
        Stdio::ConsoleFd => Streams::ToRuntime,
        Stdio::ConsoleSocket(path) => {
            let socket = UnixStream::connect(&path)
                .to(|| format!("connect to the console socket `{}`", path.display()))?;
            Streams::ToSocket(socket.into())
        }
    })
}

fn listen(folder: &Folder) -> Result<UnixListener, StepError> {
    let what = || format!("listen in `{}`", folder.path().display());
    at_start_socket(folder, |path| UnixListener::bind(path)).to(what)
}

/// Does something with the path of the socket that init waits at. Such a path must be short, and containers' names may
/// be long: through the folder's descriptor it always is.
pub(crate) fn at_start_socket<T>(folder: &Folder, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    /// The kernel's `sun_path`, with its NUL.
    const LONGEST: usize = 107;
    let path = folder.start_socket();
    if path.as_os_str().len() <= LONGEST {
        return act(&path);
    }
    let opened = open::place(folder.path())?;
    let name = path.file_name().unwrap_or_default();
    act(&PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name))
}

/// Best effort, in an order that leaves the record until everything else is gone.
fn undo(making: &Making<'_>) {
    if let Some(pid) = making.pid {
        if let Ok(pidfd) = process::pidfd_open(pid) {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = process::wait_readable(pidfd.as_fd(), Some(5000));
        }
        // A child of ours, or of our parent's, which then waits for it.
        let _ = process::wait(pid, false);
    }
    if let Some(cgroup) = &making.cgroup {
        let _ = cgroup.kill_all();
        if cgroup.remove().is_err() {
            return;
        }
    }
    let _ = making.folder.remove();
}

/// The filter of a created container, for a process that joins it.
pub(crate) fn filter_of(folder: &Folder, record: &Record) -> Result<Option<Filter>, crate::StoreError> {
    if record.has_seccomp {
        folder.read_filter().map(Some)
    } else {
        Ok(None)
    }
}
