//! Making a pod's namespaces and pinning them.
//!
//! The stage child stays in the host's namespaces and forks a *holder*, which unshares:
//!
//! ```text
//!   stage child                               holder
//!        |                                      | unshare(user, net, ipc, uts, pid)
//!        | <------------------------- 'u' ----- |
//!        | writes uid_map and gid_map           |
//!        | -------------------------- 'm' ----> | becomes root of its user namespace
//!        |                                      | hostname, sysctls; forks the pod's init, if any
//!        | <------------- init's pid, or why not|
//!        | binds /proc/<holder>/ns/* to the pins|
//!        | (closes) --------------------------> | ends; the shim, a subreaper, gets the pod's init
//! ```
//!
//! When anything fails, what was pinned is unpinned and the pod's init killed.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use cri_shim_protocol::{ErrorKind, NamespaceKind, PinNamespaces, ShimError};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getpid, setgroups, sethostname, setresgid, setresuid};
use oci_runtime_cgroups::{AttachFds, Cgroup};
use oci_runtime_sys::stage::fork_stage;
use oci_spec::runtime::LinuxResources;

use super::{failed, failure, refuse};

/// Makes and pins the namespaces; returns the pod's own init.
pub(super) fn pin(request: &PinNamespaces) -> Result<Option<i32>, ShimError> {
    check(request)?;
    let pair = UnixStream::pair().map_err(|error| failed(format_args!("make a socket pair"), error))?;
    let (mut ours, theirs) = pair;
    let holder = fork_stage(&[theirs.as_raw_fd()], || {
        let mut stage = &theirs;
        let answer = match hold(request, &theirs) {
            Ok(init) => init.unwrap_or(0).to_string(),
            Err(error) => error.message,
        };
        // Waits for the stage child's word that all is pinned: the end of the stream.
        let told =
            stage.write_all(answer.as_bytes()).is_ok() && theirs.shutdown(std::net::Shutdown::Write).is_ok();
        let waited = told && matches!(stage.read(&mut [0]), Ok(0));
        i32::from(!waited)
    });
    let holder = holder.map_err(|error| failed(format_args!("fork"), error))?;
    drop(theirs);
    let pinned = converse(request, holder, &mut ours);
    drop(ours);
    // Our own child: it ends now that the stream has.
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(holder), None);
    pinned
}

fn converse(request: &PinNamespaces, holder: i32, stream: &mut UnixStream) -> Result<Option<i32>, ShimError> {
    let mut heard = [0; 1];
    let unshared = stream.read_exact(&mut heard);
    if unshared.is_ok() && heard == *b"u" {
        if has(request, NamespaceKind::User) {
            write_mappings(holder, "uid_map", &request.uid_mappings)?;
            write_mappings(holder, "gid_map", &request.gid_mappings)?;
        }
        let told = stream.write_all(b"m");
        told.map_err(|error| failed(format_args!("let the namespaces' holder go on"), error))?;
    }
    let mut answer = Vec::new();
    if unshared.is_ok() && heard != *b"u" {
        answer.extend_from_slice(&heard);
    }
    let read = stream.take(4096).read_to_end(&mut answer);
    read.map_err(|error| failed(format_args!("hear from the namespaces' holder"), error))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let init: i32 = answer.parse().map_err(|_| ShimError {
        kind: ErrorKind::Failed,
        message: if answer.is_empty() {
            "the namespaces' holder died".to_owned()
        } else {
            answer
        },
    })?;
    let init = (init > 0).then_some(init);
    bind_all(request, holder, init)?;
    Ok(init)
}

fn bind_all(request: &PinNamespaces, holder: i32, init: Option<i32>) -> Result<(), ShimError> {
    for (done, (kind, target)) in request.namespaces.iter().enumerate() {
        let source = match (kind, init) {
            (NamespaceKind::Pid, Some(init)) => format!("/proc/{init}/ns/pid"),
            (kind, _) => format!("/proc/{holder}/ns/{}", file_name(*kind)),
        };
        let bound = mount(
            Some(source.as_str()),
            target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        if let Err(error) = bound {
            for (_, target) in &request.namespaces[..done] {
                // Recovery looks for what stays.
                let _ = umount2(target, MntFlags::MNT_DETACH);
            }
            if let Some(init) = init {
                let _ = crate::reap::signal(init, nix::libc::SIGKILL);
            }
            return Err(failed(
                format_args!("pin namespace `{source}` at `{}`", target.display()),
                error,
            ));
        }
    }
    Ok(())
}

fn has(request: &PinNamespaces, kind: NamespaceKind) -> bool {
    request.namespaces.iter().any(|(k, _)| *k == kind)
}

fn file_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::User => "user",
        NamespaceKind::Network => "net",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
    }
}

fn flag(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::User => CloneFlags::CLONE_NEWUSER,
        NamespaceKind::Network => CloneFlags::CLONE_NEWNET,
        NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
        NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
        NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
    }
}

/// Refuses what would reach beyond the pod's own namespaces.
fn check(request: &PinNamespaces) -> Result<(), ShimError> {
    let invalid = |message: String| {
        Err(ShimError {
            kind: ErrorKind::Invalid,
            message,
        })
    };
    for (at, (kind, target)) in request.namespaces.iter().enumerate() {
        if request.namespaces[..at].iter().any(|(k, _)| k == kind) {
            return invalid(format!("namespace `{}` is asked for twice", file_name(*kind)));
        }
        if !fs::symlink_metadata(target).is_ok_and(|m| m.is_file()) {
            return invalid(format!(
                "`{}` is not a file to pin a namespace at",
                target.display()
            ));
        }
    }
    if has(request, NamespaceKind::User)
        && (request.uid_mappings.is_empty() || request.gid_mappings.is_empty())
    {
        return invalid("a user namespace needs uid and gid mappings".to_owned());
    }
    if request.hostname.is_some() && !has(request, NamespaceKind::Uts) {
        return invalid("a hostname needs a UTS namespace of the pod's own".to_owned());
    }
    for (name, _) in &request.sysctls {
        let Some((_, kind)) = sysctl(name) else {
            return invalid(format!("sysctl `{name}` does not belong to a namespace"));
        };
        if !has(request, kind) {
            let namespace = file_name(kind);
            return invalid(format!(
                "sysctl `{name}` needs a `{namespace}` namespace of the pod's own"
            ));
        }
    }
    Ok(())
}

/// The file of a sysctl and the kind of namespace that it belongs to; `None` for the host's own.
fn sysctl(name: &str) -> Option<(PathBuf, NamespaceKind)> {
    // The first separator says which form it is; in the dotted form a slash stands for a dot in a name.
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path: String = if dotted {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let parts: Vec<&str> = path.split('/').collect();
    if parts
        .iter()
        .any(|part| part.is_empty() || *part == "." || *part == "..")
    {
        return None;
    }
    let kind = match parts[..] {
        ["net", _, ..] => NamespaceKind::Network,
        ["fs", "mqueue", _] => NamespaceKind::Ipc,
        ["kernel", "sem" | "auto_msgmni"] => NamespaceKind::Ipc,
        ["kernel", name] if name.starts_with("shm") || name.starts_with("msg") => NamespaceKind::Ipc,
        ["kernel", "hostname" | "domainname"] => NamespaceKind::Uts,
        _ => return None,
    };
    Some((Path::new("/proc/sys").join(path), kind))
}

fn write_mappings(pid: i32, file: &str, mappings: &[(u32, u32, u32)]) -> Result<(), ShimError> {
    let path = format!("/proc/{pid}/{file}");
    let line = |(inside, outside, count): &(u32, u32, u32)| format!("{inside} {outside} {count}\n");
    let text: String = mappings.iter().map(line).collect();
    fs::write(&path, text).map_err(|error| failed(format_args!("write `{path}`"), error))
}

/// The holder's part up to where everything exists.
fn hold(request: &PinNamespaces, mut stage: &UnixStream) -> Result<Option<i32>, ShimError> {
    // The kernel makes a user namespace before the others of the same call, so it owns them.
    let flags = request.namespaces.iter().map(|(kind, _)| flag(*kind));
    // Opened while this process is still the host's root: the root of a user namespace may not.
    let cgroup = open_cgroup(request)?;
    let flags = flags.fold(CloneFlags::empty(), |all, flag| all | flag);
    unshare(flags).map_err(|error| failed(format_args!("unshare {flags:?}"), error))?;
    let spoken = stage.write_all(b"u").and_then(|()| stage.read_exact(&mut [0]));
    spoken.map_err(|error| failed(format_args!("wait for the user namespace's mappings"), error))?;
    if has(request, NamespaceKind::User) {
        become_root().map_err(|error| failed(format_args!("become root of the user namespace"), error))?;
    }
    if let Some(hostname) = &request.hostname {
        sethostname(hostname)
            .map_err(|error| failed(format_args!("set the hostname `{hostname}`"), error))?;
    }
    for (name, value) in &request.sysctls {
        write_sysctl(name, value)
            .map_err(|error| failed(format_args!("set sysctl `{name}` to `{value}`"), error))?;
    }
    if has(request, NamespaceKind::Pid) {
        return start_init(cgroup).map(Some);
    }
    Ok(None)
}

fn become_root() -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    let (path, _) = sysctl(name).ok_or(io::ErrorKind::InvalidInput)?;
    // Never created: a sysctl that doesn't exist is an error.
    File::options()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

fn open_cgroup(request: &PinNamespaces) -> Result<Option<AttachFds>, ShimError> {
    let path = request.init_cgroup.as_deref();
    let Some(path) = path.filter(|_| has(request, NamespaceKind::Pid)) else {
        return Ok(None);
    };
    // A scope is made around this process; the pod's init, its child, stays when it ends.
    let opened = Cgroup::named(path).and_then(|cgroup| {
        cgroup.create_around(getpid().as_raw(), &LinuxResources::default())?;
        cgroup.attach_fds()
    });
    opened
        .map(Some)
        .map_err(|error| failure(ErrorKind::Failed, &error))
}

/// Forks the first process of the new PID namespace, which becomes the pod's init.
fn start_init(cgroup: Option<AttachFds>) -> Result<i32, ShimError> {
    let (ready, theirs) =
        UnixStream::pair().map_err(|error| failed(format_args!("make a socket pair"), error))?;
    let mut keep = vec![theirs.as_raw_fd()];
    keep.extend(cgroup.iter().flat_map(AttachFds::raw_fds));
    let init = fork_stage(&keep, || {
        let error = match cgroup.as_ref().map_or(Ok(()), AttachFds::join) {
            Ok(()) => {
                // The descriptor closes with the successful execve: an empty answer is a good one.
                let mut command = std::process::Command::new("/proc/self/exe");
                let error = command.arg0("orlop-pod-init").arg("pod-init").env_clear().exec();
                format!("failed to execute the pod's init: {error}")
            }
            Err(error) => match &cgroup {
                Some(cgroup) => failure(ErrorKind::Failed, &cgroup.explain(error)).message,
                None => String::new(),
            },
        };
        // Whoever doesn't hear this sees the process end.
        let _ = (&theirs).write_all(error.as_bytes());
        127
    });
    let init = init.map_err(|error| failed(format_args!("fork the pod's init"), error))?;
    drop(theirs);
    let mut answer = String::new();
    let read = ready.take(4096).read_to_string(&mut answer);
    read.map_err(|error| failed(format_args!("hear from the pod's init"), error))?;
    if answer.is_empty() {
        Ok(init)
    } else {
        Err(refuse(ErrorKind::Failed, format_args!("{answer}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_belong_to_a_namespace_or_are_refused() {
        let of = |name| sysctl(name).map(|(path, kind)| (path.display().to_string(), kind));
        let file = |path: &str, kind| Some((format!("/proc/sys/{path}"), kind));
        assert_eq!(
            of("net.ipv4.ip_forward"),
            file("net/ipv4/ip_forward", NamespaceKind::Network)
        );
        assert_eq!(
            of("net/ipv4/conf/eth0.1/forwarding"),
            file("net/ipv4/conf/eth0.1/forwarding", NamespaceKind::Network)
        );
        assert_eq!(
            of("net.ipv4.conf.eth0/1.forwarding"),
            file("net/ipv4/conf/eth0.1/forwarding", NamespaceKind::Network)
        );
        assert_eq!(
            of("kernel.shm_rmid_forced"),
            file("kernel/shm_rmid_forced", NamespaceKind::Ipc)
        );
        assert_eq!(
            of("fs.mqueue.msg_max"),
            file("fs/mqueue/msg_max", NamespaceKind::Ipc)
        );
        for host in [
            "kernel.panic",
            "vm.swappiness",
            "net",
            "net/../kernel/panic",
            "net//x",
            "",
        ] {
            assert_eq!(of(host), None, "{host}");
        }
    }

    #[test]
    fn what_would_reach_the_host_is_refused() {
        let request = PinNamespaces {
            namespaces: Vec::new(),
            hostname: Some("h".to_owned()),
            sysctls: Vec::new(),
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            init_cgroup: None,
        };
        assert_eq!(check(&request).unwrap_err().kind, ErrorKind::Invalid);
        let request = PinNamespaces {
            hostname: None,
            sysctls: vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())],
            ..request
        };
        assert_eq!(check(&request).unwrap_err().kind, ErrorKind::Invalid);
    }
}
