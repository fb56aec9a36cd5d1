//! Lifecycle hooks: what runs right after a container's start and before its stop.
//!
//! A `postStart` hook that fails ends its container: the container waits with [`POST_START_HOOK_ERROR`] and the message of
//! [`HookError`], which events don't repeat, since it may hold secrets. A `preStop` hook that fails is told and forgotten;
//! it has the pod's grace period.

mod node;

use std::net::IpAddr;
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, LifecycleHandler, Pod, TCPSocketAction,
};
use kubelet_pods::cri::labels;
use thiserror::Error;
use tokio::time::{Instant, timeout};

use crate::probing::http::{self, Asker};
use crate::probing::{Exec, ExecError, connect, http_target, resolve_port};

pub use node::NodeHooks;

/// The reason that a container waits for when its `postStart` hook failed.
pub const POST_START_HOOK_ERROR: &str = "PostStartHookError";
/// The event's reason for that, and why the container is killed.
pub const FAILED_POST_START_HOOK: &str = "FailedPostStartHook";
/// The event's message.
pub const POST_START_HOOK_FAILED: &str = "PostStartHook failed";
/// The event's reason when a `preStop` hook failed.
pub const FAILED_PRE_STOP_HOOK: &str = "FailedPreStopHook";
/// The event's message.
pub const PRE_STOP_HOOK_FAILED: &str = "PreStopHook failed";

/// What a hook is of.
#[derive(Debug, Clone, Copy)]
pub struct HookTarget<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's spec.
    pub container: &'a Container,
    /// The runtime's ID of it.
    pub container_id: &'a str,
    /// Where the pod is reached.
    pub ip: Option<IpAddr>,
}

/// Why a hook failed, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HookError {
    /// A command.
    #[error(
        "Exec lifecycle hook ([{command}]) for Container {container:?} in Pod {pod:?} failed - error: {reason}, message: {output:?}"
    )]
    Exec {
        /// The command.
        command: String,
        /// The container's name.
        container: String,
        /// Name, namespace and UID.
        pod: String,
        /// Why.
        reason: String,
        /// What the command wrote.
        output: String,
    },
    /// A request or a connection.
    #[error(
        "{kind} lifecycle hook ({what}) for Container {container:?} in Pod {pod:?} failed - error: {reason}"
    )]
    Network {
        /// `HTTP` or `TCP`.
        kind: &'static str,
        /// The path or the port.
        what: String,
        /// The container's name.
        container: String,
        /// Name, namespace and UID.
        pod: String,
        /// Why.
        reason: String,
    },
    /// It had not ended when the grace period had.
    #[error("the hook of container {container:?} in pod {pod:?} did not end within {seconds} s")]
    Late {
        /// The container's name.
        container: String,
        /// Name, namespace and UID.
        pod: String,
        /// The period.
        seconds: u64,
    },
    /// None of the kinds that there are.
    #[error("Cannot run handler: invalid handler")]
    Invalid,
}

/// Runs a hook to its end.
pub async fn run(
    handler: &LifecycleHandler,
    target: HookTarget<'_>,
    exec: &dyn Exec,
) -> Result<(), HookError> {
    if let Some(action) = &handler.exec {
        return run_command(action.command.as_deref().unwrap_or_default(), target, exec).await;
    }
    if let Some(action) = &handler.http_get {
        let path = action.path.clone().unwrap_or_default();
        return request(action, target)
            .await
            .map_err(|reason| target.network("HTTP", path, reason));
    }
    if let Some(action) = &handler.tcp_socket {
        return reach(action, target)
            .await
            .map_err(|reason| target.network("TCP", port_text(action), reason));
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(HookError::Invalid)
}

/// Runs a `preStop` hook within the grace period; says how much of it is left.
pub async fn run_pre_stop(
    handler: &LifecycleHandler,
    target: HookTarget<'_>,
    exec: &dyn Exec,
    grace: Duration,
) -> (Duration, Result<(), HookError>) {
    let start = Instant::now();
    let result = match timeout(grace, Box::pin(run(handler, target, exec))).await {
        Ok(result) => result,
        Err(_) => Err(HookError::Late {
            container: target.container.name.clone(),
            pod: labels::describe(target.pod),
            seconds: grace.as_secs(),
        }),
    };
    (grace.saturating_sub(start.elapsed()), result)
}

impl HookTarget<'_> {
    fn network(&self, kind: &'static str, what: String, reason: String) -> HookError {
        let (container, pod) = (self.container.name.clone(), labels::describe(self.pod));
        HookError::Network {
            kind,
            what,
            container,
            pod,
            reason,
        }
    }

    fn host(&self, given: Option<&str>) -> Result<String, String> {
        match (given.filter(|host| !host.is_empty()), self.ip) {
            (Some(host), _) => Ok(host.to_owned()),
            (None, Some(ip)) => Ok(ip.to_string()),
            (None, None) => Err("failed to find networking container: the pod has no address".to_owned()),
        }
    }
}

async fn run_command(command: &[String], target: HookTarget<'_>, exec: &dyn Exec) -> Result<(), HookError> {
    let failed = |reason: String, output: String| HookError::Exec {
        command: command.join(" "),
        container: target.container.name.clone(),
        pod: labels::describe(target.pod),
        reason,
        output,
    };
    match exec.exec_sync(target.container_id, command, Duration::ZERO).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let code = output.exit_code;
            Err(failed(
                format!(
                    "command '{}' exited with {code}: {}",
                    command.join(" "),
                    String::from_utf8_lossy(&output.stderr)
                ),
                output.combined(),
            ))
        }
        Err(error @ (ExecError::Timeout | ExecError::Failed(_))) => {
            Err(failed(error.to_string(), String::new()))
        }
    }
}

/// Any answer is good. A server that speaks plain HTTP where HTTPS was meant is asked again so, without credentials.
async fn request(action: &HTTPGetAction, target: HookTarget<'_>) -> Result<(), String> {
    let host = target.host(action.host.as_deref())?;
    let mut to = http_target(action, target.container, &host, Asker::Hook)?;
    let failed = |to: &http::HttpTarget, reason: &str| format!("Get {:?}: {reason}", to.url());
    match http::get(&to).await {
        Ok(_) => Ok(()),
        Err(reason) if to.tls && reason == http::PLAIN_ANSWER => {
            to.tls = false;
            to.headers.remove(::http::header::AUTHORIZATION);
            http::get(&to)
                .await
                .map(drop)
                .map_err(|reason| failed(&to, &reason))
        }
        Err(reason) => Err(failed(&to, &reason)),
    }
}

async fn reach(action: &TCPSocketAction, target: HookTarget<'_>) -> Result<(), String> {
    let port = resolve_port(&action.port, target.container)?;
    let host = target.host(action.host.as_deref())?;
    connect(&host, port)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

fn port_text(action: &TCPSocketAction) -> String {
    use controlplane_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match &action.port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

#[cfg(test)]
mod tests;
