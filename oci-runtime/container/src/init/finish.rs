//! The last steps before `execve`, the same for init and for a process that joins.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{self, Gid, Uid};
use oci_runtime_sys::{caps, open, process, sched, seccomp};

use crate::context::Context as _;
use crate::plan::{Credentials, ProcessPlan};
use crate::seccomp::Filter;
use crate::{ErrorKind, StepError};

/// Limits that only the host's root may set: before a user namespace is entered.
pub(crate) fn set_limits(plan: &ProcessPlan, mut warn: impl FnMut(String)) -> Result<(), StepError> {
    set_limits_of(0, plan, &mut warn)
}

/// The same for another process.
pub(crate) fn set_limits_of(
    pid: i32,
    plan: &ProcessPlan,
    warn: &mut dyn FnMut(String),
) -> Result<(), StepError> {
    for limit in &plan.rlimits {
        let read = || sched::limit(pid, limit.resource).to(|| format!("read {}", limit.name));
        // Building takes descriptors, so their number is only raised here; see `limit_open_files`.
        let least = match limit.resource == libc::RLIMIT_NOFILE {
            true => read()?,
            false => (0, 0),
        };
        let (soft, hard) = (limit.soft.max(least.0), limit.hard.max(least.1));
        let failed = match sched::set_limit(pid, limit.resource, soft, hard) {
            Ok(()) => continue,
            Err(e) => e,
        };
        if failed.raw_os_error() != Some(libc::EPERM) {
            return Err(StepError::io(format!("set {}", limit.name), failed));
        }
        // Not even the host's root may raise it here (no CAP_SYS_RESOURCE): as near as can be.
        let hard = read()?.1.min(hard);
        sched::set_limit(pid, limit.resource, soft.min(hard), hard).to(|| format!("set {}", limit.name))?;
        warn(format!(
            "{} is {hard}, not {}: raising it needs CAP_SYS_RESOURCE",
            limit.name, limit.hard
        ));
    }
    if let Some(score) = plan.oom_score_adj {
        match write_oom_score(pid, score) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EACCES) || e.raw_os_error() == Some(libc::EPERM) => {
                warn(format!(
                    "oom_score_adj is not {score}: lowering it needs CAP_SYS_RESOURCE"
                ));
            }
            Err(e) => return Err(StepError::io(format!("set oom_score_adj to {score}"), e)),
        }
    }
    if let (0, Some(scheduler)) = (pid, &plan.scheduler) {
        sched::set_scheduler(scheduler.0).to(|| "set the scheduler")?;
    }
    if let (0, Some((class, level))) = (pid, plan.io_priority) {
        sched::set_io_priority(class, level).to(|| "set the I/O priority")?;
    }
    Ok(())
}

/// The limit of open files as it was asked for, when nothing more is to be opened.
fn limit_open_files(plan: &ProcessPlan) -> Result<(), StepError> {
    for limit in plan
        .rlimits
        .iter()
        .filter(|limit| limit.resource == libc::RLIMIT_NOFILE)
    {
        let what = || format!("set {}", limit.name);
        // Where raising it failed there was a warning.
        let most = sched::limit(0, limit.resource).to(what)?.1;
        sched::set_limit(0, limit.resource, limit.soft.min(most), limit.hard.min(most)).to(what)?;
    }
    Ok(())
}

fn write_oom_score(pid: i32, score: i32) -> io::Result<()> {
    let proc = open::procfs()?;
    let path = if pid == 0 {
        "self/oom_score_adj".to_owned()
    } else {
        format!("{pid}/oom_score_adj")
    };
    let file = open::procfs_file(proc.as_fd(), Path::new(&path), libc::O_WRONLY)?;
    File::from(file).write_all(score.to_string().as_bytes())
}

/// The attribute that a later exec's AppArmor profile is written to, opened while the host's procfs is there.
pub(crate) fn open_apparmor(plan: &ProcessPlan) -> Result<Option<OwnedFd>, StepError> {
    let Some(profile) = plan.apparmor.as_deref().filter(|name| *name != "unconfined") else {
        return Ok(None);
    };
    let enabled =
        std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    if !enabled {
        return Err(StepError::new(
            ErrorKind::Unsupported,
            format!("process.apparmorProfile is `{profile}`, but this kernel has no AppArmor"),
        ));
    }
    let what = || "open the AppArmor attribute";
    let proc = open::procfs().to(what)?;
    for path in ["self/attr/apparmor/exec", "self/attr/exec"] {
        match open::procfs_file(proc.as_fd(), Path::new(path), libc::O_WRONLY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.to(what).map(Some),
        }
    }
    Err(StepError::other(
        "failed to find the AppArmor attribute in procfs",
    ))
}

pub(crate) fn write_apparmor(plan: &ProcessPlan, attribute: Option<OwnedFd>) -> Result<(), StepError> {
    let (Some(profile), Some(attribute)) = (&plan.apparmor, attribute) else {
        return Ok(());
    };
    let text = format!("exec {profile}");
    File::from(attribute)
        .write_all(text.as_bytes())
        .to(|| format!("apply the AppArmor profile `{profile}`"))
}

/// The program's file, as `execve` will be asked for it.
pub(crate) fn find_program(plan: &ProcessPlan) -> Result<PathBuf, StepError> {
    let name = plan.program();
    if name.as_os_str().as_bytes().contains(&b'/') {
        let path = plan.cwd.join(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(e) => Err(not_executable(
                name,
                &format!("stat {}: {}", name.display(), text_of(&e)),
                &e,
            )),
        };
    }
    let mut refused = None;
    let search = plan.variable("PATH").unwrap_or_default();
    for folder in search.split(|b| *b == b':') {
        let path = plan.cwd.join(OsStr::from_bytes(folder)).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => refused = Some(e),
            Err(_) => {}
        }
    }
    let missing = io::Error::from_raw_os_error(libc::ENOENT);
    match refused {
        Some(e) => Err(not_executable(name, "permission denied", &e)),
        None => Err(not_executable(
            name,
            "executable file not found in $PATH",
            &missing,
        )),
    }
}

fn executable(path: &Path) -> io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// The words that callers of every runtime look for.
fn text_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn not_executable(name: &Path, why: &str, error: &io::Error) -> StepError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => ErrorKind::CommandNotFound,
        Some(libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR) => ErrorKind::CommandNotExecutable,
        _ => ErrorKind::Other,
    };
    StepError::new(kind, format!("exec: {:?}: {why}", name.display().to_string()))
}

/// Gives up every right that the process is not to have, and executes its program. Only returns when it failed.
pub(crate) fn become_process(plan: &ProcessPlan, filter: Option<&Filter>, preserve_fds: u32) -> StepError {
    match try_become(plan, filter, preserve_fds) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

enum Never {}

fn try_become(plan: &ProcessPlan, filter: Option<&Filter>, preserve_fds: u32) -> Result<Never, StepError> {
    let env = environment(plan);
    // Nothing that is open by accident may reach the program, nor be its way out (a folder of the host as cwd).
    process::close_on_exec_from(3u32.saturating_add(preserve_fds)).to(|| "close descriptors at exec")?;
    let entered = enter_cwd(plan)?;
    // Before the filter, which may not allow asking.
    verify_cwd()?;
    limit_open_files(plan)?;
    if plan.no_new_privileges {
        process::set_no_new_privs().to(|| "set no_new_privs")?;
    } else if let Some(filter) = filter {
        // Without no_new_privs it takes rights that are about to be given up.
        load(filter)?;
    }
    set_credentials(&plan.credentials)?;
    if !entered {
        unistd::chdir(&plan.cwd).to(|| format!("enter process.cwd `{}`", plan.cwd.display()))?;
        verify_cwd()?;
    }
    let program = find_program(plan)?;
    let path = CString::new(program.as_os_str().as_bytes()).map_err(|e| StepError::other(e.to_string()))?;
    process::restore_signals();
    if let (true, Some(filter)) = (plan.no_new_privileges, filter) {
        load(filter)?;
    }
    let error = process::execve(&path, &plan.args, &env);
    Err(not_executable(plan.program(), &text_of(&error), &error))
}

fn load(filter: &Filter) -> Result<(), StepError> {
    seccomp::load(&filter.program, filter.flags).to(|| "load the seccomp filter")
}

/// False when the folder can only be entered as the user, later.
fn enter_cwd(plan: &ProcessPlan) -> Result<bool, StepError> {
    let what = || format!("enter process.cwd `{}`", plan.cwd.display());
    match unistd::chdir(&plan.cwd) {
        Ok(()) => Ok(true),
        Err(nix::Error::EACCES) => Ok(false),
        Err(nix::Error::ENOENT) => {
            // We are inside the container's root by now, and its processes can't lead us out.
            std::fs::create_dir_all(&plan.cwd).to(|| format!("make process.cwd `{}`", plan.cwd.display()))?;
            unistd::chdir(&plan.cwd).to(what).map(|()| true)
        }
        Err(e) => Err(e).to(what),
    }
}

/// A current folder outside of the root (through a descriptor that leaked) would be a way out.
fn verify_cwd() -> Result<(), StepError> {
    let cwd = open::current_dir().to(|| "read the current folder")?;
    if cwd.is_absolute() {
        Ok(())
    } else {
        Err(StepError::other(
            "process.cwd is outside of the container's root: refused as a possible way out",
        ))
    }
}

fn set_credentials(who: &Credentials) -> Result<(), StepError> {
    let have = caps::read().to(|| "read capabilities")?;
    let plan = who.capabilities;
    caps::drop_bounding(!plan.bounding).to(|| "drop capabilities from the bounding set")?;
    // They are lost only by who ceases to be root.
    let keeps = who.uid != 0;
    if keeps {
        process::set_keep_caps(true).to(|| "keep capabilities over the change of user")?;
    }
    if let Some(mask) = who.umask {
        nix::sys::stat::umask(Mode::from_bits_truncate(mask));
    } else {
        nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    }
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    match unistd::setgroups(&groups) {
        Err(nix::Error::EPERM) if groups.is_empty() => {}
        other => other.to(|| "set additional groups")?,
    }
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    unistd::setresgid(gid, gid, gid).to(|| format!("become group {gid}"))?;
    unistd::setresuid(uid, uid, uid).to(|| format!("become user {uid}"))?;
    if keeps {
        process::set_keep_caps(false).to(|| "no longer keep capabilities")?;
    }
    // What this process may not have itself it can't give: the container gets the rest.
    let permitted = plan.permitted & have.permitted;
    let inheritable = plan.inheritable & (have.permitted | have.inheritable) & plan.bounding;
    caps::write(caps::Sets {
        effective: plan.effective & permitted,
        permitted,
        inheritable,
    })
    .to(|| "set capabilities")?;
    let ambient = plan.ambient & permitted & inheritable;
    if ambient != 0 {
        caps::set_ambient(ambient).to(|| "set ambient capabilities")?;
    }
    Ok(())
}

/// The environment, with HOME as the container's passwd has it if it isn't set.
fn environment(plan: &ProcessPlan) -> Vec<CString> {
    let mut env = last_of_each(&plan.env);
    if plan.variable("HOME").is_none_or(<[u8]>::is_empty) {
        env.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        let passwd = super::read_small(Path::new("/etc/passwd")).unwrap_or_default();
        let home = home_of(&passwd, plan.credentials.uid).unwrap_or("/");
        if let Ok(entry) = CString::new(format!("HOME={home}")) {
            env.push(entry);
        }
    }
    env
}

/// A variable that is given more than once has its last value, for programs that look for the first one, too.
fn last_of_each(given: &[CString]) -> Vec<CString> {
    let name = |entry: &CString| entry.as_bytes().split(|b| *b == b'=').next().map(<[u8]>::to_vec);
    let mut seen = std::collections::HashSet::new();
    let mut env: Vec<CString> = given
        .iter()
        .rev()
        .filter(|e| seen.insert(name(e)))
        .cloned()
        .collect();
    env.reverse();
    env
}

fn home_of(passwd: &[u8], uid: u32) -> Option<&str> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_its_last_value_once() {
        let given = ["A=1", "B=2", "A=", "C", "B=x=y"].map(|e| CString::new(e).unwrap());
        let left: Vec<_> = last_of_each(&given)
            .into_iter()
            .map(|e| e.into_string().unwrap())
            .collect();
        assert_eq!(left, ["A=", "C", "B=x=y"]);
    }

    #[test]
    fn home_is_the_sixth_field_of_the_users_line() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:7:7::/home/me:/bin/sh\nno:x:8:8:::\n";
        assert_eq!(home_of(passwd, 0), Some("/root"));
        assert_eq!(home_of(passwd, 7), Some("/home/me"));
        assert_eq!(home_of(passwd, 8), None);
        assert_eq!(home_of(passwd, 9), None);
    }
}
