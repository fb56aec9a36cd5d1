//! `orlop exec`: a command in a container, over a WebSocket.

use std::process::ExitCode;

use cri_streaming::ws::channel::{self, Coding};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::args::ExecArguments;
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::select::{self, name, namespace};
use crate::terminal::{self, Raw};

/// How much of standard input goes into a message.
const BLOCK: usize = 16 << 10;

/// Runs a command, and returns its exit code.
pub(crate) async fn run(client: &Client, options: &ExecArguments) -> Result<ExitCode, Failure> {
    let pod = select::pod(client, &options.pod).await?;
    let (container, note) = select::container(&pod, options.container.as_deref())?;
    if let Some(note) = note {
        eprintln!("{note}");
    }
    let tty = options.tty && options.stdin && terminal::is_one();
    if options.tty && !tty {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let mut path = format!(
        "/exec/{}/{}/{}?output=1",
        escape(namespace(&pod)),
        escape(name(&pod)),
        escape(&container)
    );
    path += if tty { "&tty=1" } else { "&error=1" };
    if options.stdin {
        path += "&input=1";
    }
    for word in &options.command {
        path += &format!("&command={}", escape(word));
    }
    let (socket, protocol) = client.exec(&path).await?;
    let failed = |error: std::io::Error| Failure::new(format!("failed to use the terminal: {error}"));
    let raw = if tty {
        Some(Raw::enter().map_err(|error| failed(error.into()))?)
    } else {
        None
    };
    let resized = signal(SignalKind::window_change()).map_err(failed)?;
    let session = Session {
        socket,
        closes: protocol.starts_with("v5."),
        stdin: options.stdin,
        resized: tty.then_some(resized),
    };
    let ended = session.run().await;
    drop(raw);
    ended
}

struct Session {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// The protocol knows of a stream's end.
    closes: bool,
    stdin: bool,
    /// Only with a terminal.
    resized: Option<Signal>,
}

impl Session {
    async fn run(mut self) -> Result<ExitCode, Failure> {
        let broken = |error: &dyn std::fmt::Display| Failure::new(format!("the stream broke off: {error}"));
        if self.resized.is_some() {
            self.send_size().await?;
        }
        let mut keys = tokio::io::stdin();
        let mut block = vec![0; BLOCK];
        let mut outcome = Vec::new();
        loop {
            let resize = async {
                match &mut self.resized {
                    Some(resized) => resized.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.socket.next() => match message {
                    None | Some(Ok(Message::Close(_))) => break,
                    Some(Ok(message)) => show(&message, &mut outcome).await?,
                    Some(Err(_)) if !outcome.is_empty() => break,
                    Some(Err(error)) => return Err(broken(&error)),
                },
                count = keys.read(&mut block), if self.stdin => {
                    let count = count.unwrap_or(0);
                    let message = if count > 0 {
                        channel::encode(Coding::Binary, channel::STDIN, &block[..count])
                    } else {
                        self.stdin = false;
                        if !self.closes {
                            continue;
                        }
                        channel::encode(Coding::Binary, channel::CLOSE, &[channel::STDIN])
                    };
                    // When it fails, reading says why.
                    let _ = self.socket.send(message).await;
                }
                _ = resize => self.send_size().await?,
            }
        }
        if outcome.is_empty() {
            return Err(broken(&"the command's outcome is unknown"));
        }
        exit_code(&outcome)
    }

    async fn send_size(&mut self) -> Result<(), Failure> {
        if let Some(size) = terminal::size() {
            let message = channel::encode(Coding::Binary, channel::RESIZE, size.as_bytes());
            let sent = self.socket.send(message).await;
            sent.map_err(|error| Failure::new(format!("the stream broke off: {error}")))?;
        }
        Ok(())
    }
}

/// Copies output to where it belongs, and keeps the outcome.
async fn show(message: &Message, outcome: &mut Vec<u8>) -> Result<(), Failure> {
    let Some((channel, bytes)) = channel::decode(Coding::Binary, message) else {
        return Ok(());
    };
    let written = match channel {
        channel::STDOUT => {
            let mut out = tokio::io::stdout();
            let all = out.write_all(&bytes).await;
            all.and(out.flush().await)
        }
        channel::STDERR => {
            let mut out = tokio::io::stderr();
            let all = out.write_all(&bytes).await;
            all.and(out.flush().await)
        }
        channel::ERROR => {
            outcome.extend_from_slice(&bytes);
            Ok(())
        }
        _ => Ok(()),
    };
    written.map_err(|error| Failure::new(format!("failed to write: {error}")))
}

/// The command's exit code from its outcome, a `Status` object.
fn exit_code(outcome: &[u8]) -> Result<ExitCode, Failure> {
    let unknown = || Failure::new(String::from_utf8_lossy(outcome).into_owned());
    let status: Value = serde_json::from_slice(outcome).map_err(|_| unknown())?;
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse::<i32>().ok());
    match code {
        // As a shell has it, of which a process can only tell the lowest byte.
        Some(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))),
        None => Err(status["message"].as_str().map_or_else(unknown, Failure::new)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_exit_codes() {
        let code = |text: &str| exit_code(text.as_bytes());
        assert_eq!(code(r#"{"status":"Success"}"#).unwrap(), ExitCode::SUCCESS);
        let seven = r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(code(seven).unwrap(), ExitCode::from(7));
        let lost = code(r#"{"status":"Failure","message":"no such container"}"#);
        assert_eq!(lost.unwrap_err().to_string(), "no such container");
        assert_eq!(code("plain words").unwrap_err().to_string(), "plain words");
    }
}
