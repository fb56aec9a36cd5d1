//! Exec, Attach, PortForward: each answers a URL of the streaming server, good once for a minute.

use std::sync::Arc;

use cri_api::v1::*;
use cri_streaming as stream;

use super::containers::running;
use crate::errors::CallError;
use crate::node::Node;
use crate::store::SandboxPhase;

fn server(node: &Node) -> Result<&stream::StreamServer, CallError> {
    let server = node.streams.get().map(AsRef::as_ref);
    server.ok_or_else(|| CallError::State("the streaming server isn't up yet".to_owned()))
}

fn check(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), CallError> {
    let invalid = |text: &str| Err(CallError::Invalid(text.to_owned()));
    if tty && stderr {
        return invalid("`tty` and `stderr` exclude each other: a terminal has one output");
    }
    if !(stdin || stdout || stderr) {
        return invalid("one of `stdin`, `stdout` and `stderr` must be set");
    }
    Ok(())
}

pub(super) async fn exec(node: Arc<Node>, request: ExecRequest) -> Result<ExecResponse, CallError> {
    check(request.tty, request.stdin, request.stdout, request.stderr)?;
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(CallError::Invalid("`cmd` is empty".to_owned()));
    }
    let container = node.store.find_container(&request.container_id)?;
    running(&container)?;
    let url = server(&node)?.exec_url(stream::ExecRequest {
        target: container.id.to_string(),
        cmd: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(ExecResponse { url })
}

pub(super) async fn attach(node: Arc<Node>, request: AttachRequest) -> Result<AttachResponse, CallError> {
    check(request.tty, request.stdin, request.stdout, request.stderr)?;
    let container = node.store.find_container(&request.container_id)?;
    running(&container)?;
    let url = server(&node)?.attach_url(stream::AttachRequest {
        target: container.id.to_string(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(AttachResponse { url })
}

pub(super) async fn port_forward(
    node: Arc<Node>,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, CallError> {
    let sandbox = node.store.find_sandbox(&request.pod_sandbox_id)?;
    if sandbox.record().phase != SandboxPhase::Ready {
        return Err(CallError::State(format!("sandbox {} is not ready", sandbox.id)));
    }
    let port = |port: &i32| {
        u16::try_from(*port)
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| CallError::Invalid(format!("port {port} is not 1 to 65535")))
    };
    let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
    let url = server(&node)?.port_forward_url(stream::PortForwardRequest {
        target: sandbox.id.to_string(),
        ports,
    })?;
    Ok(PortForwardResponse { url })
}
