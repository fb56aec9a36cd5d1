//! Becoming a shim: away from whoever started it, with nothing open but the listening socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use oci_runtime_cgroups::{Cgroup, CgroupError};
use oci_runtime_sys::footprint::keep_heap_small;
use oci_runtime_sys::stage::close_all_but;
use oci_spec::runtime::LinuxResources;
use rustix::process::{getpid, set_child_subreaper, setsid};

use crate::arguments::Options;
use crate::shim::Shim;

/// Serves the pod until its shutdown.
pub(crate) fn run(options: Options) -> io::Result<()> {
    keep_heap_small();
    let listener = take_listener()?;
    close_all_but(&[listener.as_raw_fd()])?;
    // Fails in a process that leads its group already, as when started by hand: it has a session then.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    // Not below the daemon's folder, which may be unmounted, nor wherever the daemon was started.
    std::env::set_current_dir("/")?;
    let joined = options.cgroup.as_deref().map(join);
    let mut shim = Shim::new(options.state_dir, listener)?;
    if let Some(Err(error)) = joined {
        // It's where it was, which is where the daemon is: it works, until the daemon's cgroup is killed.
        shim.diary.note(format_args!("{error}"));
    }
    shim.diary.note(format_args!(
        "shim of sandbox {} serves, process {}",
        options.sandbox,
        std::process::id()
    ));
    silence()?;
    let result = shim.run();
    match &result {
        Ok(()) => shim.diary.note(format_args!("shim ends as asked")),
        Err(error) => shim.diary.note(format_args!("shim ends: {error}")),
    }
    result
}

/// The listening socket, moved away from standard input.
fn take_listener() -> io::Result<OwnedFd> {
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::net::sockopt::socket_acceptconn(&listener)
        .ok()
        .filter(|listens| *listens)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is not a listening socket",
            )
        })?;
    Ok(listener)
}

fn silence() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn join(path: &str) -> Result<(), String> {
    let joined = Cgroup::named(path).and_then(|cgroup| {
        if cgroup.needs_process() {
            return join_scope(&cgroup);
        }
        cgroup.create_leaf()?;
        cgroup.add_self()
    });
    joined.map_err(|error| crate::stage::failure(cri_shim_protocol::ErrorKind::Failed, &error).message)
}

/// The scope of all shims, which the first one makes around itself. It goes with the last one, maybe just now.
fn join_scope(cgroup: &Cgroup) -> Result<(), CgroupError> {
    const TRIES: usize = 5;
    let mut joined = cgroup.add_self();
    for _ in 0..TRIES {
        if joined.is_ok() {
            break;
        }
        joined = cgroup
            .create_around(getpid().as_raw_nonzero().get(), &LinuxResources::default())
            // Another shim was faster.
            .or_else(|error| cgroup.add_self().map_err(|_| error));
    }
    joined
}
