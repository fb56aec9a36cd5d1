//! Runs this crate alone: serves commands and ports of the machine itself, and prints a URL of each kind.
//!
//! `cargo run -p cri-streaming --example host -- PORT COMMAND [ARGUMENT...]`, then open the URLs with a Kubernetes
//! client. Each is good once, for a minute; for every line on standard input a new set is printed.

use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use cri_streaming::{
    AttachRequest, BoxDuplex, ExecRequest, ExitStatus, Limits, PortForwardRequest, StreamError,
    StreamHandler, StreamServer, Streams,
};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

struct Host;

fn failed(error: std::io::Error) -> StreamError {
    StreamError::failed(error.to_string())
}

#[async_trait]
impl StreamHandler for Host {
    async fn exec(&self, request: ExecRequest, streams: Streams) -> Result<ExitStatus, StreamError> {
        let (program, arguments) = request
            .cmd
            .split_first()
            .ok_or_else(|| StreamError::not_found("no command"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = tokio::spawn(async move {
            if let (Some(mut from), Some(mut to)) = (streams.stdin, stdin) {
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        });
        let out = async {
            if let (Some(mut from), Some(mut to)) = (stdout, streams.stdout) {
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        };
        let err = async {
            if let (Some(mut from), Some(mut to)) = (stderr, streams.stderr) {
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        };
        let (status, (), ()) = tokio::join!(child.wait(), out, err);
        feed.abort();
        Ok(ExitStatus {
            code: status.map_err(failed)?.code().unwrap_or(128),
        })
    }

    async fn attach(&self, _: AttachRequest, _: Streams) -> Result<(), StreamError> {
        Err(StreamError::not_found("there is nothing to attach to"))
    }

    async fn port_forward(&self, _: String, port: u16, mut stream: BoxDuplex) -> Result<(), StreamError> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.map_err(failed)?;
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut socket).await;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("a port is needed")?.parse()?;
    let cmd: Vec<String> = arguments.collect();
    let server =
        Arc::new(StreamServer::bind("127.0.0.1:0".parse()?, Arc::new(Host), Limits::default()).await?);
    let running = server.clone();
    tokio::spawn(async move { running.run(std::future::pending()).await });
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    loop {
        let target = "host".to_owned();
        let forward = PortForwardRequest {
            target: target.clone(),
            ports: vec![port],
        };
        let exec = ExecRequest {
            target,
            cmd: cmd.clone(),
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        println!("{} {}", server.exec_url(exec)?, server.port_forward_url(forward)?);
        if lines.next_line().await?.is_none() {
            return Ok(());
        }
    }
}
