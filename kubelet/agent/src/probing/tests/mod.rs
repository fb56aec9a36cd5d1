//! Handlers against servers of their own, and the prober under a paused clock.

mod handlers;
mod node;
mod prober;
pub(crate) mod servers;

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::{Exec, ExecError, ExecOutput};

type Script = dyn Fn(&str, &[String]) -> Result<ExecOutput, ExecError> + Send + Sync;

/// Runs commands by a script, each taking as long as it is told to.
pub(crate) struct Scripted {
    pub(crate) script: Box<Script>,
    pub(crate) takes: Duration,
    pub(crate) calls: Mutex<Vec<(String, Vec<String>, Duration)>>,
    pub(crate) under_way: Mutex<(usize, usize)>,
}

impl Scripted {
    pub(crate) fn new(
        script: impl Fn(&str, &[String]) -> Result<ExecOutput, ExecError> + Send + Sync + 'static,
    ) -> Scripted {
        Scripted {
            script: Box::new(script),
            takes: Duration::ZERO,
            calls: Mutex::default(),
            under_way: Mutex::default(),
        }
    }
}

pub(crate) fn exit(code: i32, stdout: &str) -> Result<ExecOutput, ExecError> {
    Ok(ExecOutput {
        stdout: stdout.into(),
        stderr: Vec::new(),
        exit_code: code,
    })
}

#[async_trait]
impl Exec for Scripted {
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ExecError> {
        self.calls
            .lock()
            .unwrap()
            .push((id.to_owned(), command.to_vec(), timeout));
        {
            let mut under_way = self.under_way.lock().unwrap();
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        tokio::time::sleep(self.takes).await;
        self.under_way.lock().unwrap().0 -= 1;
        (self.script)(id, command)
    }
}
