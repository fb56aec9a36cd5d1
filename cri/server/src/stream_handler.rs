//! What stands behind a streaming client: exec, attach and port-forward for the containers of this node.
//!
//! - **Exec** without a terminal gives the process one pipe for each stream and copies between those and the client.
//!   With a terminal the shim hands back its main side, and all goes through that. The exit code comes from the shim.
//!   A client that leaves closes the process's stdin and output; what the process makes of that is its own affair.
//! - **Attach** is a socket to the shim, which keeps at most 1 MiB for a client that doesn't read and then hangs up
//!   with a reason, so the container never waits for it.
//! - **Port-forward** connects to localhost as the pod sees it: a thread enters the pod's network namespace, opens the
//!   sockets there and ends; they are then used from here.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cri_shim_protocol::NamespaceKind;
use cri_shim_protocol::attach::Stream;
use cri_streaming::{
    AttachRequest, BoxDuplex, ByteReader, ByteWriter, ExecRequest, ExitStatus, StreamError, StreamErrorKind,
    StreamHandler, Streams, TerminalSize,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::errors::CallError;
use crate::lifecycle::phase_name;
use crate::node::Node;
use crate::rpc::{Wanted, next_name, start_exec};
use crate::shim::{AttachReader, AttachTo, AttachWriter, ExecHandle, Shim};
use crate::store::{Container, ContainerPhase, SandboxPhase};

/// What is copied at once, in bytes.
const BUFFER_BYTES: usize = 32 << 10;
/// How long output may be silent after a process's end before it counts as complete: a child that the process left
/// behind may hold it open forever.
const SILENCE: Duration = Duration::from_millis(500);
/// How long a client may leave output of an attach unread.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection to a port of the pod may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Serves streaming clients from a node's containers.
pub(crate) struct ContainerStreams {
    node: Arc<Node>,
}

impl ContainerStreams {
    /// For this node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn running(&self, id: &str) -> Result<(Arc<Container>, Arc<dyn Shim>), CallError> {
        let container = self.node.store.find_container(id)?;
        let record = container.record();
        if !matches!(record.phase, ContainerPhase::Running { .. }) {
            let phase = phase_name(&record.phase);
            return Err(CallError::State(format!(
                "container {} is not running but {phase}",
                container.id
            )));
        }
        let shim = self.node.shim_of(&container)?;
        Ok((container, shim))
    }
}

/// An error as the client hears it.
fn told(error: CallError) -> StreamError {
    let kind = match error.code() {
        tonic::Code::NotFound => StreamErrorKind::NotFound,
        _ => StreamErrorKind::Failed,
    };
    StreamError {
        kind,
        message: error.chain(),
    }
}

#[async_trait]
impl StreamHandler for ContainerStreams {
    async fn exec(&self, request: ExecRequest, streams: Streams) -> Result<ExitStatus, StreamError> {
        let (container, _) = self.running(&request.target).map_err(told)?;
        let result = if request.tty {
            exec_terminal(&self.node, &container, request.cmd, streams).await
        } else {
            exec_pipes(&self.node, &container, request.cmd, streams).await
        };
        result.map_err(told)
    }

    async fn attach(&self, request: AttachRequest, streams: Streams) -> Result<(), StreamError> {
        let (container, shim) = self.running(&request.target).map_err(told)?;
        let wanted = AttachTo {
            stdin: streams.stdin.is_some(),
            stdout: streams.stdout.is_some(),
            stderr: streams.stderr.is_some(),
        };
        let joined = shim.attach(container.id.as_str(), wanted).await;
        let (reader, writer) = joined
            .map_err(CallError::shim("attach to the container"))
            .map_err(told)?
            .split();
        let gone = streams.gone.wait();
        let close = container.record().config.stdin_once;
        let sizes = resize_container(&*shim, container.id.as_str(), streams.resize);
        // Input and sizes may end long before the output does.
        let inward = async {
            tokio::join!(send_stdin(streams.stdin, writer, close), sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = receive_output(reader, streams.stdout, streams.stderr) => result,
            () = inward => Ok(()),
            () = gone => Ok(()),
        }
    }

    async fn port_forward(
        &self,
        target: String,
        port: u16,
        mut stream: BoxDuplex,
    ) -> Result<(), StreamError> {
        let sandbox = self
            .node
            .store
            .find_sandbox(&target)
            .map_err(|e| told(e.into()))?;
        let record = sandbox.record();
        if record.phase != SandboxPhase::Ready {
            return Err(StreamError::failed(format!(
                "sandbox {} is not ready",
                sandbox.id
            )));
        }
        let id = sandbox.id.as_str();
        let netns = record
            .namespaces
            .network
            .then(|| self.node.paths.namespace(id, NamespaceKind::Network));
        let mut pod = connect(netns, port).await.map_err(|e| {
            StreamError::failed(format!("failed to connect to port {port} of sandbox {id}: {e}"))
        })?;
        // Either side breaking off is an end like any other.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut pod).await;
        Ok(())
    }
}

/// The two ends of a pipe: what the process gets, and ours.
fn pipe_for(stream: &'static str) -> Result<(OwnedFd, OwnedFd), CallError> {
    let made = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    made.map_err(CallError::file("make a pipe for", Path::new(stream)))
}

/// Runs a command whose streams are pipes.
async fn exec_pipes(
    node: &Node,
    container: &Container,
    cmd: Vec<String>,
    streams: Streams,
) -> Result<ExitStatus, CallError> {
    let mut wanted = Wanted {
        cmd,
        tty: false,
        stdin: false,
        stdout: false,
        stderr: false,
        size: None,
    };
    let mut theirs = Vec::new();
    let mut input = None;
    if let Some(client) = streams.stdin {
        let (read, write) = pipe_for("stdin")?;
        let write =
            pipe::Sender::from_owned_fd(write).map_err(CallError::file("watch", Path::new("stdin")))?;
        theirs.push(read);
        wanted.stdin = true;
        input = Some((client, write));
    }
    let mut outputs = Vec::new();
    for (client, name, flag) in [
        (streams.stdout, "stdout", &mut wanted.stdout),
        (streams.stderr, "stderr", &mut wanted.stderr),
    ] {
        let Some(client) = client else { continue };
        let (read, write) = pipe_for(name)?;
        let read = pipe::Receiver::from_owned_fd(read).map_err(CallError::file("watch", Path::new(name)))?;
        theirs.push(write);
        *flag = true;
        outputs.push((read, client));
    }
    let handle = start_exec(node, container, &next_name(node), wanted, theirs).await?;
    let (ended, end) = watch::channel(false);
    let copies = outputs
        .into_iter()
        .map(|(read, client)| copy_output(read, client, end.clone()));
    let copies = futures_util::future::join_all(copies);
    let feeding = async {
        if let Some((mut client, mut write)) = input {
            let _ = tokio::io::copy(&mut client, &mut write).await;
        }
        // Dropped here: the process reads the end.
    };
    let exiting = async {
        let exit = handle.exit.await;
        ended.send_replace(true);
        exit
    };
    let running = async {
        let (exit, _) = tokio::join!(exiting, copies);
        exit
    };
    tokio::pin!(feeding);
    let mut fed = false;
    tokio::pin!(running);
    let exit = loop {
        tokio::select! {
            exit = &mut running => break exit,
            () = &mut feeding, if !fed => fed = true,
        }
    };
    status(exit)
}

fn status(exit: Result<cri_shim_protocol::Exit, oneshot::error::RecvError>) -> Result<ExitStatus, CallError> {
    let died =
        |_| CallError::Unavailable("the shim died or was out of reach when the command ended".to_owned());
    exit.map(|exit| ExitStatus { code: exit.code }).map_err(died)
}

/// Copies a process's output until it ends, or has nothing more to say after the process's end.
async fn copy_output(mut read: pipe::Receiver, mut client: ByteWriter, mut ended: watch::Receiver<bool>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let silence = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(SILENCE).await;
        };
        let count = tokio::select! {
            biased;
            // An error is how a terminal says that nobody holds its other side any more.
            count = read.read(&mut buffer) => count.unwrap_or(0),
            () = silence => 0,
        };
        // A client that is gone closes the pipe: the process gets SIGPIPE, as in a shell's pipeline.
        if count == 0 || client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = client.shutdown().await;
}

/// Runs a command on a terminal.
async fn exec_terminal(
    node: &Node,
    container: &Container,
    cmd: Vec<String>,
    mut streams: Streams,
) -> Result<ExitStatus, CallError> {
    let mut wanted = Wanted {
        cmd,
        tty: true,
        stdin: false,
        stdout: false,
        stderr: false,
        size: None,
    };
    // The first size is there at once, if the client has one; the process should start with it.
    if let Some(size) = streams.resize.as_mut().and_then(|sizes| sizes.try_recv().ok()) {
        wanted.size = Some((size.width, size.height));
    }
    let handle = start_exec(node, container, &next_name(node), wanted, Vec::new()).await?;
    let ExecHandle { console, exit, .. } = handle;
    let console = console.ok_or_else(|| CallError::State("the shim gave no terminal".to_owned()))?;
    let watched = terminal_ends(&console).map_err(CallError::file("watch", Path::new("terminal")));
    let (read, mut write) = watched?;
    let gone = streams.gone.wait();
    let (ended, end) = watch::channel(false);
    let inward = async {
        let feed = async {
            if let Some(mut client) = streams.stdin {
                let _ = tokio::io::copy(&mut client, &mut write).await;
            }
        };
        tokio::join!(feed, resize_terminal(&console, streams.resize));
        std::future::pending::<()>().await;
    };
    let running = async {
        let exiting = async {
            let exit = exit.await;
            ended.send_replace(true);
            exit
        };
        let client = streams.stdout.unwrap_or_else(|| Box::pin(tokio::io::sink()));
        tokio::join!(exiting, copy_output(read, client, end)).0
    };
    tokio::select! {
        exit = running => status(exit),
        () = inward => Err(CallError::Lost),
        // The terminal hangs up as it is dropped here, and the process gets SIGHUP.
        () = gone => Err(CallError::State("the client left".to_owned())),
    }
}

/// A terminal's main side for reading and for writing. It behaves as a pipe in each direction, and is watched as one.
fn terminal_ends(console: &OwnedFd) -> io::Result<(pipe::Receiver, pipe::Sender)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(console.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(console.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let read = pipe::Receiver::from_owned_fd_unchecked(console.try_clone()?)?;
    Ok((read, pipe::Sender::from_owned_fd_unchecked(console.try_clone()?)?))
}

async fn resize_terminal(console: &OwnedFd, sizes: Option<mpsc::Receiver<TerminalSize>>) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.recv().await {
        if let Err(error) = oci_runtime_sys::tty::resize(console.as_fd(), size.width, size.height) {
            tracing::debug!(%error, "failed to resize a terminal");
        }
    }
}

/// What the client types goes to the container.
async fn send_stdin(client: Option<ByteReader>, mut writer: AttachWriter, close: bool) {
    let Some(mut client) = client else { return };
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count) = client.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        if writer.write_stdin(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // With `stdin` but without `stdin_once`, the next client may go on where this one ended.
    if close {
        let _ = writer.close_stdin().await;
    }
}

async fn resize_container(shim: &dyn Shim, container: &str, sizes: Option<mpsc::Receiver<TerminalSize>>) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.recv().await {
        if let Err(error) = shim.resize(container, size.width, size.height).await {
            tracing::debug!(%error, container_id = container, "failed to resize a terminal");
        }
    }
}

/// What the container says goes to the client, until it ends or the shim hangs up.
async fn receive_output(
    mut reader: AttachReader,
    mut stdout: Option<ByteWriter>,
    mut stderr: Option<ByteWriter>,
) -> Result<(), StreamError> {
    let too_slow = |message: String| StreamError {
        kind: StreamErrorKind::TooSlow,
        message,
    };
    loop {
        let next = reader
            .next()
            .await
            .map_err(|e| StreamError::failed(format!("the attach stream broke: {e}")))?;
        let (client, bytes) = match next {
            None => break,
            Some((Stream::Reason, bytes)) => {
                return Err(too_slow(String::from_utf8_lossy(&bytes).into_owned()));
            }
            Some((Stream::Stdout, bytes)) => (&mut stdout, bytes),
            Some((Stream::Stderr, bytes)) => (&mut stderr, bytes),
            Some((Stream::Stdin, _)) => continue,
        };
        let Some(client) = client else { continue };
        match tokio::time::timeout(PATIENCE, client.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Err(too_slow(format!(
                    "disconnected: nothing was read for {seconds} seconds"
                )));
            }
        }
    }
    for client in [&mut stdout, &mut stderr].into_iter().flatten() {
        let _ = client.shutdown().await;
    }
    Ok(())
}

/// Connects to a port on localhost, as seen from a network namespace.
async fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let sockets = sockets_in(netns).await?;
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (family, socket) in sockets.into_iter().rev() {
        let localhost = match family {
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        match tokio::time::timeout(CONNECT, socket.connect(SocketAddr::new(localhost, port))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            // IPv4's failure is the one that people expect to read, and it comes first.
            Ok(Err(error)) if failure.kind() == io::ErrorKind::AddrNotAvailable => failure = error,
            Ok(Err(_)) => {}
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// Sockets of a network namespace, IPv6 first: opened by a thread that enters it, and is never used again.
async fn sockets_in(netns: Option<PathBuf>) -> io::Result<Vec<(AddressFamily, OwnedFd)>> {
    let (send, sockets) = oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".to_owned())
        .spawn(move || {
            let open = || {
                if let Some(path) = netns {
                    let netns = File::open(path)?;
                    oci_runtime_sys::clone::setns(netns.as_fd(), nix::libc::CLONE_NEWNET)?;
                }
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let open = |family| socket(family, SockType::Stream, flags, None).map(|s| (family, s));
                let v4 = open(AddressFamily::Inet)?;
                // A kernel without IPv6 has only the other.
                Ok(open(AddressFamily::Inet6).into_iter().chain([v4]).collect())
            };
            let _ = send.send(open());
        })?;
    sockets
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread that opens sockets was lost")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_is_tried_in_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut near = connect(None, port).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            near.write_all(b"x").await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'x');
            drop(listener);
            let refused = connect(None, port).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[tokio::test]
    async fn another_namespace_has_another_localhost() {
        // A listener in a namespace of its own, held by a thread.
        let (send, port) = oneshot::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            oci_runtime_sys::net::loopback_up().unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let netns = format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            );
            send.send((listener.local_addr().unwrap().port(), PathBuf::from(netns)))
                .unwrap();
            let _ = wait.recv();
        });
        let (port, netns) = port.await.unwrap();
        connect(Some(netns), port).await.unwrap();
        assert!(connect(None, port).await.is_err(), "not in our own");
        drop(done);
        holder.join().unwrap();
        assert!(connect(Some("/nonexistent".into()), port).await.is_err());
    }

    #[tokio::test]
    async fn output_ends_although_somebody_holds_it_open() {
        let (read, _held) = pipe_for("stdout").unwrap();
        nix::unistd::write(&_held, b"last words").unwrap();
        let read = pipe::Receiver::from_owned_fd(read).unwrap();
        let (client, mut seen) = tokio::io::duplex(100);
        let (ended, end) = watch::channel(false);
        ended.send_replace(true);
        copy_output(read, Box::pin(client), end).await;
        let mut text = String::new();
        seen.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
    }
}
