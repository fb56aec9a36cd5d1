//! Starting a created container: connecting to its init is the word to go.
//!
//! Init accepts one connection, ever. It closes by the success of `execve`, or after init has said what failed, so
//! this needs no state of its own, and two starts at once can't both succeed.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::context::Context as _;
use crate::create::at_start_socket;
use crate::state::Status;
use crate::store::Folder;
use crate::{Runtime, StartError, StepError, hooks};

/// `execve` closes init's descriptors one after the other: how long its lock may outlast its connection.
const EXECUTED: Duration = Duration::from_secs(5);

pub(crate) fn start(runtime: &Runtime, id: &str) -> Result<Vec<String>, StartError> {
    let folder = Folder::new(runtime.root(), id)?;
    let record = folder.read()?;
    let refuse = |status| Err(StartError::WrongState { status });
    if record.init().is_none() {
        return refuse(Status::Creating);
    }
    let mut stream = match at_start_socket(&folder, |path| UnixStream::connect(path)) {
        Ok(stream) => stream,
        // Somebody else's start was first, or it has ended.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            return refuse(runtime.status_of(&folder, &record));
        }
        Err(e) => return Err(e).to(|| "connect to init").map_err(Into::into),
    };
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return refuse(Status::Running),
        Err(e) => return Err(e).to(|| "hear from init").map_err(Into::into),
    }
    if !said.is_empty() {
        let error: StepError = serde_json::from_slice(&said)
            .map_err(|e| StepError::other(format!("init said something that isn't an error: {e}")))?;
        return Err(error.into());
    }
    if !folder.unlocked_within(EXECUTED) {
        return refuse(Status::Created);
    }
    let pid = record.init().map_or(0, |(pid, _)| pid);
    // A failing poststart hook is logged, and the life of the container goes on, says the specification.
    let state = record.hook_state(Status::Running, pid);
    let failed = hooks::run("poststart", &record.poststart, &state).err();
    Ok(failed.map(|e| e.message).into_iter().collect())
}
