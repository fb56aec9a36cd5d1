//! Deleting a container, or what a crash left of one.

use std::os::fd::AsFd as _;

use nix::libc;
use oci_runtime_cgroups::Cgroup;
use oci_runtime_sys::process;

use crate::state::{Record, Status};
use crate::store::Folder;
use crate::{DeleteError, Runtime, StoreError, hooks, process_table};

/// How long init may take to end after SIGKILL.
const END_WITHIN_SECONDS: u64 = 10;

pub(crate) fn delete(runtime: &Runtime, id: &str, force: bool) -> Result<Vec<String>, DeleteError> {
    let folder = Folder::new(runtime.root(), id)?;
    let record = match folder.read() {
        Ok(record) => record,
        Err(StoreError::NotFound { .. }) if force => {
            // Nothing, or a folder without a record: the crash came before there was anything else.
            folder.remove()?;
            return Ok(Vec::new());
        }
        Err(StoreError::Malformed { .. }) if force => {
            folder.remove()?;
            return Ok(vec![format!(
                "the state of `{id}` was unreadable; its cgroup may be left"
            )]);
        }
        Err(error) => return Err(error.into()),
    };
    let status = runtime.status_of(&folder, &record);
    // An init that nobody has started can be ended: it has done nothing yet (runc does so, too).
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(DeleteError::WrongState {
            id: id.to_owned(),
            status,
        });
    }
    remove(&folder, &record, status)
}

fn remove(folder: &Folder, record: &Record, status: Status) -> Result<Vec<String>, DeleteError> {
    // Init first, through its pidfd; what is left in the cgroup (all of it, without a PID namespace) after that.
    let alive = record
        .init()
        .filter(|_| status != Status::Stopped)
        .and_then(|(pid, started)| process_table::alive(pid, started));
    if let Some(alive) = &alive {
        let _ = process::pidfd_send_signal(alive.pidfd.as_fd(), libc::SIGKILL);
    }
    let cgroup = Cgroup::named(&record.cgroup)?;
    let leftovers = alive.is_some() || !record.own_pid_namespace || record.init().is_none();
    if leftovers && cgroup.exists() {
        cgroup.kill_all()?;
        // A frozen process can't die.
        let _ = cgroup.thaw();
    }
    if let (Some(alive), Some((pid, _))) = (&alive, record.init()) {
        let millis = u32::try_from(END_WITHIN_SECONDS * 1000).unwrap_or(u32::MAX);
        if !process::wait_readable(alive.pidfd.as_fd(), Some(millis)).unwrap_or(true) {
            return Err(DeleteError::StillAlive {
                id: record.id.clone(),
                pid,
                seconds: END_WITHIN_SECONDS,
            });
        }
    }
    cgroup.remove()?;
    let state = record.hook_state(Status::Stopped, 0);
    // A failing poststop hook is logged, and the deletion goes on, says the specification.
    let failed = hooks::run("poststop", &record.poststop, &state).err();
    folder.remove()?;
    Ok(failed.map(|e| e.message).into_iter().collect())
}
