//! The process that becomes the container's init, from its first instruction to `execve`.
//!
//! It starts as a fork of the runtime, in the new namespaces already. It joins its cgroup, then the namespaces that
//! are given by path, builds the root file system, pivots into it, says that it is ready and waits for start. Nothing
//! of the container's is executed before. From the first moment it is not dumpable, so nobody in a namespace that it
//! enters can look at its memory or descriptors.

mod console;
mod devices;
mod finish;
mod mask;
mod rootfs;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::libc;
use nix::unistd;
use oci_runtime_cgroups::AttachFds;
use oci_runtime_sys::{clone, net, open, process, stage};

pub(crate) use console::Streams;
use finish::{become_process, find_program};
pub(crate) use finish::{open_apparmor, set_limits, set_limits_of, write_apparmor};
pub(crate) use rootfs::{CgroupTree, Prepared, finish_mount};

use crate::context::Context as _;
use crate::handshake::Child;
use crate::hooks::HookPlan;
use crate::plan::{CLONE_NEWTIME, InitPlan, ProcessPlan};
use crate::seccomp::Filter;
use crate::{ErrorKind, StepError};

/// All that init is given.
pub(crate) struct InitArguments {
    pub(crate) id: String,
    pub(crate) plan: InitPlan,
    /// Bind mounts and the like, opened by the runtime.
    pub(crate) prepared: Prepared,
    pub(crate) streams: Streams,
    pub(crate) cgroup: AttachFds,
    /// Init was cloned right into the v2 cgroup.
    pub(crate) in_v2_cgroup: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) hooks: HookPlan,
    /// The state as hooks get it, before start.
    pub(crate) state: String,
    /// Accepts one connection: start.
    pub(crate) start: UnixListener,
    /// Held locked until `execve`: that is how others know that it hasn't come yet.
    pub(crate) lock: Option<File>,
    pub(crate) no_pivot: bool,
    pub(crate) new_keyring: bool,
    pub(crate) preserve_fds: u32,
    /// The intermediate child has joined the namespaces given by path.
    pub(crate) joined: bool,
}

/// Never returns to the runtime's code.
pub(crate) fn run(mut arguments: InitArguments, channel: Child) -> ! {
    if !arguments.hooks.create_container.is_empty() || !arguments.hooks.start_container.is_empty() {
        // The host's procfs knows this process by the pid that hooks of the host know it by.
        let pid = std::fs::read_link("/proc/self").unwrap_or_default();
        let pid = format!("\"pid\":{}", pid.display());
        arguments.state = arguments.state.replacen("\"pid\":0", &pid, 1);
    }
    let lock = arguments.lock.take();
    let ready = prepare(&arguments, &channel)
        .and_then(|()| Ready::new(arguments, &channel, lock.as_ref()))
        .and_then(|ready| {
            channel.ready()?;
            let (stream, _) = ready.start.accept().to(|| "wait for start")?;
            Ok((ready, stream))
        });
    let (ready, mut stream) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            channel.failed(error);
            clone::exit_now(1);
        }
    };
    // The runtime that created the container may be long gone; from here on whoever starts it is told.
    drop(channel);
    let error = start(ready);
    if let Ok(bytes) = serde_json::to_vec(&error) {
        let _ = stream.write_all(&bytes);
    }
    drop(lock);
    clone::exit_now(1)
}

/// What init keeps from being ready until `execve`.
struct Ready {
    plan: InitPlan,
    filter: Option<Filter>,
    hooks: HookPlan,
    state: String,
    start: UnixListener,
    preserve_fds: u32,
}

impl Ready {
    /// Closes every other descriptor, in a few calls: those of building, and whatever this process was started with.
    fn new(arguments: InitArguments, channel: &Child, lock: Option<&File>) -> Result<Self, StepError> {
        let InitArguments {
            plan,
            filter,
            hooks,
            state,
            start,
            preserve_fds,
            prepared,
            streams,
            cgroup,
            ..
        } = arguments;
        let mut keep = vec![channel.socket().as_raw_fd(), start.as_raw_fd()];
        keep.extend(lock.map(File::as_raw_fd));
        keep.extend((3..).take(preserve_fds as usize));
        // Closed by their numbers below.
        let _built_with = std::mem::ManuallyDrop::new((prepared, streams, cgroup));
        stage::close_all_but(&keep).to(|| "close the descriptors that built the container")?;
        Ok(Self {
            plan,
            filter,
            hooks,
            state,
            start,
            preserve_fds,
        })
    }
}

/// Leaves a descriptor to be closed with all others when init is ready, see [`Ready`]. A high number is closed at once,
/// so that a container with hundreds of mounts needs no more descriptors than one with few.
fn leave_open(fd: OwnedFd) {
    const FEW: i32 = 128;
    if fd.as_raw_fd() < FEW {
        let _ = fd.into_raw_fd();
    }
}

fn prepare(arguments: &InitArguments, channel: &Child) -> Result<(), StepError> {
    let plan = &arguments.plan;
    process::set_dumpable(false).to(|| "make init undumpable")?;
    let _ = process::set_name("orlop:init");
    unistd::setsid().to(|| "make a session")?;
    join_cgroup(&arguments.cgroup, arguments.in_v2_cgroup)?;
    // As a mapped user, an undumpable process can't open it any more.
    let offsets = match plan.time_offsets.is_empty() {
        true => None,
        false => Some(open_proc("self/timens_offsets").to(|| "open /proc/self/timens_offsets")?),
    };
    if plan.namespaces.is_new(libc::CLONE_NEWUSER) {
        channel.needs_mapping()?;
        become_mapped_root()?;
    } else if !arguments.joined {
        set_limits(&plan.process, |warning| channel.warn(warning))?;
    }
    if !arguments.joined {
        join_namespaces(plan)?;
    }
    if plan.namespaces.joined(libc::CLONE_NEWUSER).is_some() {
        become_mapped_root()?;
    }
    make_late_namespaces(plan, arguments.joined, offsets)?;
    if arguments.new_keyring {
        new_keyring(&arguments.id)?;
    }
    if plan.namespaces.is_new(libc::CLONE_NEWNET)
        && let Err(error) = net::loopback_up()
    {
        channel.warn(format!("failed to bring the loopback interface up: {error}"));
    }
    set_names(plan)?;
    write_sysctls(plan)?;
    if let Some(domain) = plan.personality {
        process::set_personality(domain).to(|| "set the personality")?;
    }
    let attribute = finish::open_apparmor(&plan.process)?;
    if plan.namespaces.is_new(libc::CLONE_NEWNS) {
        rootfs::build(arguments, channel)?;
    } else {
        // Somebody else's mount namespace, with a root of its own.
        arguments.streams.install(&plan.process, None, channel)?;
        run_hooks(arguments, channel)?;
        unistd::chdir("/").to(|| "enter the root folder")?;
    }
    finish::write_apparmor(&plan.process, attribute)?;
    find_program(&plan.process).map(drop)
}

/// The runtime's hooks, then those that run in here before the root changes.
fn run_hooks(arguments: &InitArguments, channel: &Child) -> Result<(), StepError> {
    if arguments.hooks.runtime {
        channel.needs_hooks()?;
    }
    crate::hooks::run(
        "createContainer",
        &arguments.hooks.create_container,
        &arguments.state,
    )
}

pub(crate) fn join_cgroup(cgroup: &AttachFds, in_v2: bool) -> Result<(), StepError> {
    let joined = if in_v2 { cgroup.join_v1() } else { cgroup.join() };
    joined.map_err(|failure| StepError::chain(ErrorKind::Other, &cgroup.explain(failure)))
}

/// In a user namespace whose mappings are there: its root, without the host's groups.
pub(crate) fn become_mapped_root() -> Result<(), StepError> {
    match unistd::setgroups(&[]) {
        // Denied for this user namespace, by /proc/PID/setgroups.
        Ok(()) | Err(nix::Error::EPERM) => {}
        Err(e) => return Err(StepError::io("drop the host's groups", e)),
    }
    let (uid, gid) = (unistd::Uid::from_raw(0), unistd::Gid::from_raw(0));
    unistd::setresgid(gid, gid, gid).to(|| "become group 0 of the user namespace; is it mapped?")?;
    unistd::setresuid(uid, uid, uid).to(|| "become user 0 of the user namespace; is it mapped?")?;
    // The change of user has made it dumpable or not, as the kernel likes.
    process::set_dumpable(false).to(|| "make init undumpable")
}

/// Joins what is given by path; the PID namespace is the runtime's to choose, since it is for children.
pub(crate) fn join_namespaces(plan: &InitPlan) -> Result<(), StepError> {
    let mut opened = Vec::new();
    for (flag, path) in &plan.namespaces.join {
        if *flag != libc::CLONE_NEWPID {
            opened.push((*flag, path, open_namespace(path)?));
        }
    }
    // The user namespace last: with the host's rights every other one can be joined. The mount namespace before it,
    // after which paths mean something else, so all were opened first.
    opened.sort_by_key(|(flag, ..)| match *flag {
        libc::CLONE_NEWUSER => 2,
        libc::CLONE_NEWNS => 1,
        _ => 0,
    });
    for (flag, path, file) in opened {
        clone::setns(file.as_fd(), flag).to(|| format!("join the namespace `{}`", path.display()))?;
    }
    Ok(())
}

/// Opens a namespace's file, and nothing else.
pub(crate) fn open_namespace(path: &Path) -> Result<OwnedFd, StepError> {
    let file = File::open(path).to(|| format!("open the namespace `{}`", path.display()))?;
    let magic = open::magic(file.as_fd()).to(|| format!("look at `{}`", path.display()))?;
    // A process's namespace opens as a file of nsfs; so does a pinned one.
    if magic != open::NSFS_MAGIC {
        return Err(StepError::new(
            ErrorKind::Invalid,
            format!("linux.namespaces: `{}` is not a namespace", path.display()),
        ));
    }
    Ok(file.into())
}

/// What could not be made by the clone: after joining the cgroup, or after joining a user namespace by path.
fn make_late_namespaces(plan: &InitPlan, joined: bool, offsets: Option<File>) -> Result<(), StepError> {
    let mut late = plan.namespaces.new & (libc::CLONE_NEWCGROUP | CLONE_NEWTIME);
    if !joined && plan.namespaces.joined(libc::CLONE_NEWUSER).is_some() {
        late = plan.namespaces.new & !libc::CLONE_NEWPID;
    }
    if late & CLONE_NEWTIME != 0 {
        // A process enters a new time namespace by fork or exec only, and offsets are written before that.
        clone::unshare(CLONE_NEWTIME).to(|| "make a time namespace")?;
        let text: String = plan
            .time_offsets
            .iter()
            .map(|(clock, seconds, nanos)| format!("{clock} {seconds} {nanos}\n"))
            .collect();
        if let Some(mut offsets) = offsets {
            offsets
                .write_all(text.as_bytes())
                .to(|| format!("shift the clocks by linux.timeOffsets ({})", text.trim()))?;
        }
        let own = Path::new("/proc/self/ns/time_for_children");
        let file = open_namespace(own)?;
        clone::setns(file.as_fd(), CLONE_NEWTIME).to(|| "enter the new time namespace")?;
    }
    let others = late & !CLONE_NEWTIME;
    if others != 0 {
        clone::unshare(others).to(|| "make namespaces")?;
    }
    Ok(())
}

fn new_keyring(id: &str) -> Result<(), StepError> {
    match process::new_session_keyring(&format!("_ses.{id}")) {
        Ok(()) => Ok(()),
        // A kernel without keys, a profile that forbids them, a quota that is used up: no reason not to run.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOSYS | libc::EDQUOT | libc::EPERM | libc::EACCES)
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(StepError::io("join a new session keyring", e)),
    }
}

fn set_names(plan: &InitPlan) -> Result<(), StepError> {
    if let Some(name) = &plan.hostname {
        unistd::sethostname(name).to(|| format!("set the hostname `{name}`"))?;
    }
    if let Some(name) = &plan.domainname {
        write_proc("sys/kernel/domainname", name)?;
    }
    Ok(())
}

fn write_sysctls(plan: &InitPlan) -> Result<(), StepError> {
    plan.sysctls
        .iter()
        .try_for_each(|(path, value)| write_proc(&format!("sys/{path}"), value))
}

/// Writes to a file of the host's procfs, after making sure that it is one.
fn write_proc(path: &str, value: &str) -> Result<(), StepError> {
    let what = || format!("write `{value}` to `/proc/{path}`");
    open_proc(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .to(what)
}

fn open_proc(path: &str) -> std::io::Result<File> {
    let proc = open::procfs()?;
    open::procfs_file(proc.as_fd(), Path::new(path), libc::O_WRONLY).map(File::from)
}

/// After start was asked for. Only returns when it failed.
fn start(ready: Ready) -> StepError {
    let Ready {
        plan,
        filter,
        mut hooks,
        state,
        start,
        preserve_fds,
    } = ready;
    // Whoever asks to start it once more is refused.
    drop(start);
    let state = state.replacen("\"creating\"", "\"created\"", 1);
    // They run in the container, and so as its process would.
    for hook in &mut hooks.start_container {
        hook.inherit(plan.process.env.iter().filter_map(|entry| entry.to_str().ok()));
    }
    if let Err(error) = crate::hooks::run("startContainer", &hooks.start_container, &state) {
        return error;
    }
    become_process(&plan.process, filter.as_ref(), preserve_fds)
}

/// Reads a small file of the container's, already inside its root.
pub(crate) fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The process that runs in a running container, after it has joined.
pub(crate) fn finish_exec(
    plan: &ProcessPlan,
    streams: &Streams,
    filter: Option<&Filter>,
    preserve_fds: u32,
    channel: &Child,
) -> StepError {
    let root = match open::place(Path::new("/")) {
        Ok(root) => root,
        Err(e) => return StepError::io("open the container's root", e),
    };
    if let Err(error) = streams.install(plan, Some(root.as_fd()), channel) {
        return error;
    }
    drop(root);
    become_process(plan, filter, preserve_fds)
}
