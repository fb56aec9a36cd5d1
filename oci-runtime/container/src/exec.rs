//! Running one more process in a container: one clone into the container's cgroup and PID namespace, one setns through
//! init's pidfd for all the rest.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::unistd;
use oci_runtime_cgroups::{AttachFds, Cgroup};
use oci_runtime_sys::clone::{self, Forked};
use oci_runtime_sys::process;

use crate::context::Context as _;
use crate::create::{check_terminal, filter_of, streams};
use crate::handshake::{self, Child, Waits};
use crate::init::{self, Streams};
use crate::plan::ProcessPlan;
use crate::process_table::{self, Alive};
use crate::seccomp::Filter;
use crate::state::{Record, Status};
use crate::store::{self, Folder};
use crate::{ExecError, ExecOptions, Execed, Runtime, StepError};

/// What the child is given.
struct ExecArguments {
    plan: ProcessPlan,
    streams: Streams,
    filter: Option<Filter>,
    cgroup: AttachFds,
    in_v2_cgroup: bool,
    init: OwnedFd,
    namespaces: i32,
    preserve_fds: u32,
    personality: Option<u64>,
}

pub(crate) fn exec(runtime: &Runtime, options: ExecOptions) -> Result<Execed, ExecError> {
    let folder = Folder::new(runtime.root(), &options.id)?;
    let record = folder.read()?;
    let init = running_init(runtime, &folder, &record, options.ignore_paused)?;
    let mut warnings = Vec::new();
    let plan = ProcessPlan::new(&options.process, record.has_seccomp, &mut warnings)?;
    check_terminal(&plan, &options.stdio)?;
    let own = Cgroup::named(&record.cgroup)?;
    let cgroup = own.below(&options.sub_cgroup)?;
    // Where init is may be below, if the container has made cgroups of its own.
    let fallback = options
        .sub_cgroup
        .is_empty()
        .then(|| {
            record
                .init()
                .and_then(|(pid, _)| Cgroup::of_process(pid.unsigned_abs()))
        })
        .flatten();
    let clone_fd = cgroup.clone_fd();
    let arguments = ExecArguments {
        plan,
        streams: streams(options.stdio)?,
        filter: filter_of(&folder, &record)?,
        cgroup: cgroup.attach_fds()?,
        in_v2_cgroup: clone_fd.is_some(),
        init: init.pidfd,
        namespaces: record.namespaces,
        preserve_fds: options.preserve_fds,
        personality: record.personality,
    };
    let (mut channel, child) = handshake::pair()?;
    let parent = if options.clone_parent {
        libc::CLONE_PARENT as u64
    } else {
        0
    };
    let pid = fork(arguments, child, parent, (clone_fd, fallback))?;
    let executed = match channel.next() {
        Ok(Waits::Gone) => Ok(()),
        Ok(other) => Err(StepError::other(format!(
            "the process waits for {other:?}, which it never should"
        ))),
        Err(error) => Err(error),
    };
    let written = executed.and_then(|()| match &options.pid_file {
        Some(path) => store::replace(path, pid.to_string().as_bytes())
            .to(|| format!("write the pid file `{}`", path.display())),
        None => Ok(()),
    });
    if let Err(error) = written {
        end(pid, options.clone_parent);
        return Err(error.into());
    }
    warnings.append(&mut channel.warnings);
    Ok(Execed {
        pid,
        console: channel.console.take(),
        warnings,
    })
}

fn running_init(
    runtime: &Runtime,
    folder: &Folder,
    record: &Record,
    ignore_paused: bool,
) -> Result<Alive, ExecError> {
    let status = runtime.status_of(folder, record);
    let allowed = match status {
        Status::Created | Status::Running => true,
        Status::Paused => ignore_paused,
        Status::Creating | Status::Stopped => false,
    };
    let alive = record
        .init()
        .and_then(|(pid, started)| process_table::alive(pid, started));
    match alive {
        Some(alive) if allowed => Ok(alive),
        Some(_) => Err(ExecError::WrongState { status }),
        None => Err(ExecError::WrongState {
            status: if status == Status::Creating {
                status
            } else {
                Status::Stopped
            },
        }),
    }
}

fn fork(
    mut arguments: ExecArguments,
    child: Child,
    parent: u64,
    (clone_fd, fallback): (Option<OwnedFd>, Option<Cgroup>),
) -> Result<i32, StepError> {
    let pid_namespace = arguments.namespaces & libc::CLONE_NEWPID != 0;
    let mut back = None;
    if pid_namespace {
        back = Some(init::open_namespace(Path::new("/proc/self/ns/pid"))?);
        clone::setns(arguments.init.as_fd(), libc::CLONE_NEWPID)
            .to(|| "join the container's PID namespace")?;
    }
    let mut forked = clone::fork(parent, clone_fd.as_ref().map(OwnedFd::as_fd));
    if let (Err(error), Some(cgroup)) = (&forked, &fallback)
        && is_inner(error)
    {
        arguments.cgroup = cgroup
            .attach_fds()
            .map_err(|e| StepError::chain(crate::ErrorKind::Other, &e))?;
        let clone_fd = cgroup.clone_fd();
        arguments.in_v2_cgroup = clone_fd.is_some();
        forked = clone::fork(parent, clone_fd.as_ref().map(OwnedFd::as_fd));
    }
    match forked.to(|| "fork into the container")? {
        Forked::Child => {
            let error = run(&arguments, &child).map_or_else(
                |error| error,
                |()| {
                    init::finish_exec(
                        &arguments.plan,
                        &arguments.streams,
                        arguments.filter.as_ref(),
                        arguments.preserve_fds,
                        &child,
                    )
                },
            );
            child.failed(error);
            clone::exit_now(255)
        }
        Forked::Parent(pid) => {
            drop((arguments, child));
            if let Some(own) = back {
                clone::setns(own.as_fd(), libc::CLONE_NEWPID)
                    .to(|| "return to the runtime's PID namespace")?;
            }
            Ok(pid)
        }
    }
}

/// A v2 cgroup whose controllers are for its sub-cgroups takes no process itself (EBUSY); nor does one of threads.
fn is_inner(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP))
}

fn run(arguments: &ExecArguments, channel: &Child) -> Result<(), StepError> {
    process::set_dumpable(false).to(|| "make the stage child undumpable")?;
    unistd::setsid().to(|| "make a session")?;
    init::join_cgroup(&arguments.cgroup, arguments.in_v2_cgroup)?;
    init::set_limits(&arguments.plan, |warning| channel.warn(warning))?;
    let attribute = init::open_apparmor(&arguments.plan)?;
    let others = arguments.namespaces & !libc::CLONE_NEWPID;
    clone::setns(arguments.init.as_fd(), others).to(|| "join the container's namespaces")?;
    if others & libc::CLONE_NEWUSER != 0 {
        init::become_mapped_root()?;
    }
    if let Some(domain) = arguments.personality {
        process::set_personality(domain).to(|| "set the personality")?;
    }
    init::write_apparmor(&arguments.plan, attribute)
}

/// A process that failed is waited for; one whose pid could not be told must not go on unknown.
fn end(pid: i32, sibling: bool) {
    if let Ok(pidfd) = process::pidfd_open(pid) {
        let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    if !sibling {
        let _ = process::wait(pid, true);
    }
}
