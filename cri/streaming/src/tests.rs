//! The whole server, by clients of our own: every transport, protocol version and verb over real sockets.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::*;
use crate::spdy::frame::Control;
use crate::spdy::headers::Headers;
use crate::spdy::session::{Session, Side, Stream};
use crate::ws::channel::{self, Coding};

/// Does a few simple things by name.
struct Handler {
    /// Told when a handler has seen that its client is gone.
    gone: mpsc::Sender<&'static str>,
}

#[async_trait]
impl StreamHandler for Handler {
    async fn exec(&self, request: ExecRequest, mut streams: Streams) -> Result<ExitStatus, StreamError> {
        let mut stdout = streams.stdout.take();
        let mut say = async |text: &[u8]| {
            if let Some(stdout) = &mut stdout {
                let _ = stdout.write_all(text).await;
                let _ = stdout.flush().await;
            }
        };
        let words: Vec<&str> = request.cmd.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["cat"] => {
                let mut stdin = streams.stdin.take().unwrap();
                let mut buffer = [0; 5000];
                loop {
                    match stdin.read(&mut buffer).await {
                        Ok(0) | Err(_) => break,
                        Ok(count) => say(&buffer[..count]).await,
                    }
                }
            }
            ["exit", code] => {
                return Ok(ExitStatus {
                    code: code.parse().unwrap(),
                });
            }
            ["both"] => {
                say(b"out").await;
                streams.stderr.take().unwrap().write_all(b"err").await.unwrap();
            }
            ["size"] => {
                let size = streams.resize.take().unwrap().recv().await.unwrap();
                say(format!("{}x{}", size.width, size.height).as_bytes()).await;
            }
            ["big", count] => {
                let block = vec![b'x'; 1000];
                for _ in 0..count.parse::<usize>().unwrap() / block.len() {
                    say(&block).await;
                }
            }
            ["gone"] => {
                streams.gone.wait().await;
                self.gone.send("gone").await.unwrap();
            }
            ["flood"] => {
                let mut stdout = stdout.unwrap();
                while stdout.write_all(&[0; 1000]).await.is_ok() {}
                self.gone.send("broken pipe").await.unwrap();
            }
            ["panic"] => panic!("as asked"),
            _ => {
                return Err(StreamError::not_found(format!(
                    "no command `{}`",
                    request.cmd.join(" ")
                )));
            }
        }
        Ok(ExitStatus { code: 0 })
    }

    async fn attach(&self, request: AttachRequest, mut streams: Streams) -> Result<(), StreamError> {
        streams
            .stdout
            .take()
            .unwrap()
            .write_all(request.target.as_bytes())
            .await
            .unwrap();
        Ok(())
    }

    async fn port_forward(
        &self,
        target: String,
        port: u16,
        mut stream: BoxDuplex,
    ) -> Result<(), StreamError> {
        if port != 7 {
            return Err(StreamError::failed(format!(
                "nobody listens on port {port} of {target}"
            )));
        }
        let mut buffer = [0; 5000];
        loop {
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => stream.write_all(&buffer[..count]).await.unwrap(),
                _ => break,
            }
        }
        let _ = stream.shutdown().await;
        Ok(())
    }
}

struct Server {
    server: Arc<StreamServer>,
    gone: mpsc::Receiver<&'static str>,
    _stop: oneshot::Sender<()>,
}

async fn serve(limits: Limits) -> Server {
    let (send, gone) = mpsc::channel(1);
    let handler = Arc::new(Handler { gone: send });
    let server = Arc::new(
        StreamServer::bind("127.0.0.1:0".parse().unwrap(), handler, limits)
            .await
            .unwrap(),
    );
    let (_stop, stopped) = oneshot::channel::<()>();
    tokio::spawn({
        let server = server.clone();
        async move {
            server
                .run(async {
                    let _ = stopped.await;
                })
                .await;
        }
    });
    Server { server, gone, _stop }
}

fn exec(cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        target: "c1".to_owned(),
        cmd: cmd.iter().map(|&w| w.to_owned()).collect(),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    }
}

fn with_stdin(cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        stdin: true,
        ..exec(cmd)
    }
}

fn terminal(cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        tty: true,
        stderr: false,
        ..exec(cmd)
    }
}

fn forward(ports: &[u16]) -> PortForwardRequest {
    PortForwardRequest {
        target: "s1".to_owned(),
        ports: ports.to_vec(),
    }
}

/// Whatever a test waits for comes soon, or never.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

async fn dial(server: &StreamServer) -> TcpStream {
    TcpStream::connect(server.local_addr()).await.unwrap()
}

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

mod websocket {
    use super::*;

    struct Client {
        socket: WebSocketStream<TcpStream>,
        coding: Coding,
    }

    async fn connect(server: &StreamServer, url: &str, protocols: &str) -> Result<Client, WsError> {
        let mut request = url.replace("http://", "ws://").into_client_request()?;
        if !protocols.is_empty() {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", protocols.parse().unwrap());
        }
        let (socket, answer) = tokio_tungstenite::client_async(request, dial(server).await).await?;
        let chosen = answer
            .headers()
            .get("sec-websocket-protocol")
            .map_or("", |v| v.to_str().unwrap());
        assert_eq!(chosen, protocols.split(", ").next().unwrap());
        let coding = if chosen.contains("base64") {
            Coding::Base64
        } else {
            Coding::Binary
        };
        Ok(Client { socket, coding })
    }

    impl Client {
        async fn send(&mut self, channel: u8, bytes: &[u8]) {
            self.socket
                .send(channel::encode(self.coding, channel, bytes))
                .await
                .unwrap();
        }

        /// All that comes until the server closes, by channel.
        async fn rest(mut self) -> [String; 4] {
            let mut all = [const { Vec::new() }; 4];
            while let Some(Ok(message)) = soon(self.socket.next()).await {
                if let Some((channel, bytes)) = channel::decode(self.coding, &message) {
                    all[usize::from(channel)].extend_from_slice(&bytes);
                }
            }
            all.map(|bytes| String::from_utf8(bytes).unwrap())
        }
    }

    async fn run(request: ExecRequest, protocol: &str) -> [String; 4] {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(request).unwrap();
        connect(&server.server, &url, protocol)
            .await
            .unwrap()
            .rest()
            .await
    }

    #[tokio::test]
    async fn exec_in_every_version() {
        for protocol in [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
        ] {
            let [_, out, err, status] = run(exec(&["both"]), protocol).await;
            assert_eq!(
                (out.as_str(), err.as_str(), status.as_str()),
                ("out", "err", SUCCESS),
                "{protocol}"
            );
            let status = &run(exec(&["exit", "7"]), protocol).await[3];
            assert!(
                status.contains(r#""causes":[{"reason":"ExitCode","message":"7"}]"#),
                "{protocol}: {status}"
            );
            let status = &run(exec(&["none"]), protocol).await[3];
            assert!(
                status.contains("no command `none`") && status.contains("NotFound"),
                "{protocol}: {status}"
            );
        }
        for protocol in ["channel.k8s.io", "base64.channel.k8s.io", ""] {
            let [_, out, err, status] = run(exec(&["both"]), protocol).await;
            assert_eq!(
                (out.as_str(), err.as_str(), status.as_str()),
                ("out", "err", ""),
                "{protocol}"
            );
            let status = &run(exec(&["exit", "7"]), protocol).await[3];
            assert_eq!(
                status, "command terminated with non-zero exit code: exit status 7",
                "{protocol}"
            );
        }
    }

    #[tokio::test]
    async fn the_first_known_protocol_of_the_client_is_spoken() {
        let [_, _, _, status] = run(exec(&["both"]), "v5.channel.k8s.io, v4.channel.k8s.io").await;
        assert_eq!(status, SUCCESS);
    }

    #[tokio::test]
    async fn version_5_closes_stdin() {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(with_stdin(&["cat"])).unwrap();
        let mut client = connect(&server.server, &url, "v5.channel.k8s.io").await.unwrap();
        client.send(channel::STDIN, b"hello ").await;
        client.send(channel::STDIN, b"world").await;
        client.send(channel::CLOSE, &[channel::STDIN]).await;
        let [_, out, _, status] = client.rest().await;
        assert_eq!((out.as_str(), status.as_str()), ("hello world", SUCCESS));
    }

    #[tokio::test]
    async fn terminals_have_sizes() {
        for protocol in ["v5.channel.k8s.io", "base64.channel.k8s.io"] {
            let server = serve(Limits::default()).await;
            let url = server.server.exec_url(terminal(&["size"])).unwrap();
            let mut client = connect(&server.server, &url, protocol).await.unwrap();
            client.send(channel::RESIZE, br#"{"Width":80,"Height":24}"#).await;
            assert_eq!(client.rest().await[1], "80x24");
        }
    }

    #[tokio::test]
    async fn attach_has_no_exit_code() {
        let server = serve(Limits::default()).await;
        let request = AttachRequest {
            target: "c7".to_owned(),
            tty: true,
            stdin: false,
            stdout: true,
            stderr: false,
        };
        let url = server.server.attach_url(request).unwrap();
        let [_, out, _, status] = connect(&server.server, &url, "v4.channel.k8s.io")
            .await
            .unwrap()
            .rest()
            .await;
        assert_eq!((out.as_str(), status.as_str()), ("c7", SUCCESS));
    }

    #[tokio::test]
    async fn much_output_comes_whole() {
        let [_, out, _, status] = run(exec(&["big", "3000000"]), "v5.channel.k8s.io").await;
        assert_eq!((out.len(), status.as_str()), (3_000_000, SUCCESS));
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_a_failure() {
        let status = &run(exec(&["panic"]), "v4.channel.k8s.io").await[3];
        assert!(status.contains("the server failed"), "{status}");
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed() {
        let mut server = serve(Limits::default()).await;
        for command in ["gone", "flood"] {
            let url = server.server.exec_url(exec(&[command])).unwrap();
            let client = connect(&server.server, &url, "v5.channel.k8s.io").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(client);
            soon(server.gone.recv()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_idle_client_is_let_go() {
        let limits = Limits {
            idle: Duration::from_millis(100),
            ..Limits::default()
        };
        let mut server = serve(limits).await;
        let url = server.server.exec_url(exec(&["gone"])).unwrap();
        let client = connect(&server.server, &url, "v5.channel.k8s.io").await.unwrap();
        soon(server.gone.recv()).await.unwrap();
        drop(client);
    }

    #[tokio::test]
    async fn ports_have_two_channels_each() {
        let server = serve(Limits::default()).await;
        for (ports, query) in [(vec![7, 9], ""), (vec![], "?port=7&port=9")] {
            let url = server.server.port_forward_url(forward(&ports)).unwrap() + query;
            let mut client = connect(&server.server, &url, "v4.channel.k8s.io").await.unwrap();
            client.send(0, b"ping").await;
            let mut all = vec![Vec::new(); 4];
            while all[0].len() < 6 || all[3].len() < 4 {
                let message = soon(client.socket.next()).await.unwrap().unwrap();
                let (channel, bytes) = channel::decode(Coding::Binary, &message).unwrap();
                all[usize::from(channel)].extend_from_slice(&bytes);
            }
            assert_eq!(all[0], [&7u16.to_le_bytes()[..], b"ping"].concat());
            assert_eq!(all[1], 7u16.to_le_bytes());
            let told = String::from_utf8_lossy(&all[3][2..]);
            assert_eq!(told, "error forwarding port 9: nobody listens on port 9 of s1");
        }
    }

    /// kubectl's way: SPDY frames in binary messages.
    #[tokio::test]
    async fn port_forward_through_the_tunnel() {
        let server = serve(Limits::default()).await;
        let url = server.server.port_forward_url(forward(&[])).unwrap();
        let client = connect(&server.server, &url, "SPDY/3.1+portforward.k8s.io")
            .await
            .unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut read, mut write) = tokio::io::split(far);
        let (mut sink, mut source) = client.socket.split();
        tokio::spawn(async move {
            // Odd sizes, so that frames and messages don't agree.
            let mut buffer = [0; 777];
            while let Ok(count) = read.read(&mut buffer).await {
                if count == 0
                    || sink
                        .send(Message::Binary(buffer[..count].to_vec().into()))
                        .await
                        .is_err()
                {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(Ok(message)) = source.next().await {
                if write.write_all(&message.into_data()).await.is_err() {
                    break;
                }
            }
        });
        let mut session = Session::start(near, Side::Client, 10);
        spdy::forward_echo(&mut session, "1").await;
        spdy::forward_failure(&mut session, "2").await;
    }

    #[tokio::test]
    async fn refusals_say_what_is_offered() {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(exec(&["both"])).unwrap();
        let refused = |result: Result<Client, WsError>| match result.err() {
            Some(WsError::Http(answer)) => {
                let body = answer.body().clone().unwrap_or_default();
                (answer.status().as_u16(), String::from_utf8(body).unwrap())
            }
            other => panic!("{other:?}"),
        };
        let (code, body) = refused(connect(&server.server, &url, "v9.channel.k8s.io").await);
        assert_eq!(code, 400);
        assert!(
            body.contains("v9.channel.k8s.io") && body.contains("v5.channel.k8s.io"),
            "{body}"
        );
        // That did not use the token up, but this does.
        connect(&server.server, &url, "v5.channel.k8s.io").await.unwrap();
        let (code, body) = refused(connect(&server.server, &url, "v5.channel.k8s.io").await);
        assert!(code == 404 && body.contains("used already"), "{code} {body}");
    }
}

mod spdy {
    use super::*;

    async fn connect(server: &StreamServer, url: &str, protocols: &[&str]) -> Result<Session, String> {
        let mut socket = dial(server).await;
        let path = url.splitn(4, '/').nth(3).unwrap();
        let mut head =
            format!("POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
        for protocol in protocols {
            head += &format!("X-Stream-Protocol-Version: {protocol}\r\n");
        }
        socket.write_all((head + "\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(soon(socket.read_u8()).await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        if !answer.starts_with("http/1.1 101") {
            return Err(answer);
        }
        assert!(
            answer.contains("upgrade: spdy/3.1") && answer.contains("connection: upgrade"),
            "{answer}"
        );
        if let Some(first) = protocols.first() {
            assert!(
                answer.contains(&format!("x-stream-protocol-version: {first}")),
                "{answer}"
            );
        }
        Ok(Session::start(socket, Side::Client, 10))
    }

    async fn open(session: &mut Session, headers: &[(&str, &str)]) -> Stream {
        let headers: Headers = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        session.open(headers).await
    }

    async fn open_kind(session: &mut Session, kind: &str) -> Stream {
        open(session, &[("streamtype", kind)]).await
    }

    async fn text(stream: &mut Stream) -> String {
        let mut all = Vec::new();
        soon(stream.pipe.read_to_end(&mut all)).await.unwrap();
        String::from_utf8(all).unwrap()
    }

    async fn run(request: ExecRequest, protocols: &[&str]) -> [String; 3] {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(request).unwrap();
        let mut session = connect(&server.server, &url, protocols).await.unwrap();
        let mut error = open_kind(&mut session, "error").await;
        let mut stdout = open_kind(&mut session, "stdout").await;
        let mut stderr = open_kind(&mut session, "stderr").await;
        let (out, err) = tokio::join!(text(&mut stdout), text(&mut stderr));
        [out, err, text(&mut error).await]
    }

    #[tokio::test]
    async fn exec_in_every_version() {
        let [out, err, status] = run(exec(&["both"]), &["v4.channel.k8s.io", "v3.channel.k8s.io"]).await;
        assert_eq!(
            (out.as_str(), err.as_str(), status.as_str()),
            ("out", "err", SUCCESS)
        );
        let status = &run(exec(&["exit", "7"]), &["v4.channel.k8s.io"]).await[2];
        assert!(
            status.contains(r#""causes":[{"reason":"ExitCode","message":"7"}]"#),
            "{status}"
        );
        for protocol in [
            &["v3.channel.k8s.io"][..],
            &["v2.channel.k8s.io"],
            &["channel.k8s.io"],
            &[],
        ] {
            let [out, err, status] = run(exec(&["both"]), protocol).await;
            assert_eq!(
                (out.as_str(), err.as_str(), status.as_str()),
                ("out", "err", ""),
                "{protocol:?}"
            );
            let status = &run(exec(&["exit", "7"]), protocol).await[2];
            assert_eq!(
                status, "command terminated with non-zero exit code: exit status 7",
                "{protocol:?}"
            );
        }
    }

    #[tokio::test]
    async fn stdin_goes_in_and_ends() {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(with_stdin(&["cat"])).unwrap();
        let mut session = connect(&server.server, &url, &["v4.channel.k8s.io"])
            .await
            .unwrap();
        let mut error = open_kind(&mut session, "error").await;
        let mut stdin = open_kind(&mut session, "stdin").await;
        let mut stdout = open_kind(&mut session, "stdout").await;
        let _stderr = open_kind(&mut session, "stderr").await;
        let sent = "0123456789".repeat(50_000);
        let bytes = sent.clone();
        tokio::spawn(async move {
            stdin.pipe.write_all(bytes.as_bytes()).await.unwrap();
            stdin.pipe.shutdown().await.unwrap();
        });
        assert!(text(&mut stdout).await == sent);
        assert_eq!(text(&mut error).await, SUCCESS);
    }

    #[tokio::test]
    async fn terminals_have_sizes() {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(terminal(&["size"])).unwrap();
        let mut session = connect(&server.server, &url, &["v4.channel.k8s.io"])
            .await
            .unwrap();
        let mut error = open_kind(&mut session, "error").await;
        let mut stdout = open_kind(&mut session, "stdout").await;
        let mut resize = open_kind(&mut session, "resize").await;
        resize.pipe.write_all(b"{\"Width\":80,").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        resize.pipe.write_all(b"\"Height\":24}\n").await.unwrap();
        assert_eq!(text(&mut stdout).await, "80x24");
        assert_eq!(text(&mut error).await, SUCCESS);
    }

    #[tokio::test]
    async fn much_output_comes_whole_to_who_counts_and_who_does_not() {
        for counting in [false, true] {
            let server = serve(Limits::default()).await;
            let url = server.server.exec_url(exec(&["big", "3000000"])).unwrap();
            let mut session = connect(&server.server, &url, &["v4.channel.k8s.io"])
                .await
                .unwrap();
            if counting {
                // From now on the server sends only what our session's window updates allow.
                session.send(Control::WindowUpdate { stream: 0, delta: 1 }).await;
            }
            let mut error = open_kind(&mut session, "error").await;
            let mut stdout = open_kind(&mut session, "stdout").await;
            let _stderr = open_kind(&mut session, "stderr").await;
            assert_eq!(text(&mut stdout).await.len(), 3_000_000);
            assert_eq!(text(&mut error).await, SUCCESS);
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed() {
        let mut server = serve(Limits::default()).await;
        for command in ["gone", "flood"] {
            let url = server.server.exec_url(exec(&[command])).unwrap();
            let mut session = connect(&server.server, &url, &["v4.channel.k8s.io"])
                .await
                .unwrap();
            let mut streams = Vec::new();
            for kind in ["error", "stdout", "stderr"] {
                streams.push(open_kind(&mut session, kind).await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(session);
            soon(server.gone.recv()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_opens_too_little_is_let_go() {
        let server = serve(Limits {
            stream_creation: Duration::from_millis(100),
            ..Limits::default()
        })
        .await;
        let url = server.server.exec_url(exec(&["both"])).unwrap();
        let mut session = connect(&server.server, &url, &["v4.channel.k8s.io"])
            .await
            .unwrap();
        let _error = open_kind(&mut session, "error").await;
        let mut ended = session.ended();
        soon(ended.wait_for(|e| *e)).await.unwrap();
    }

    pub(super) async fn forward_echo(session: &mut Session, request: &str) {
        let label = |kind| [("streamtype", kind), ("port", "7"), ("requestid", request)];
        let mut error = open(session, &label("error")).await;
        let mut data = open(session, &label("data")).await;
        error.pipe.shutdown().await.unwrap();
        data.pipe.write_all(b"ping").await.unwrap();
        data.pipe.shutdown().await.unwrap();
        assert_eq!(text(&mut data).await, "ping");
        assert_eq!(text(&mut error).await, "");
    }

    pub(super) async fn forward_failure(session: &mut Session, request: &str) {
        let label = |kind| [("streamtype", kind), ("port", "9"), ("requestid", request)];
        let mut data = open(session, &label("data")).await;
        let mut error = open(session, &label("error")).await;
        assert_eq!(
            text(&mut error).await,
            "error forwarding port 9: nobody listens on port 9 of s1"
        );
        assert_eq!(text(&mut data).await, "");
    }

    #[tokio::test]
    async fn one_connection_forwards_many_times() {
        let server = serve(Limits {
            max_forwards: 4,
            ..Limits::default()
        })
        .await;
        let url = server.server.port_forward_url(forward(&[])).unwrap();
        let mut session = connect(&server.server, &url, &["portforward.k8s.io"])
            .await
            .unwrap();
        for round in 0..20 {
            forward_echo(&mut session, &round.to_string()).await;
            forward_failure(&mut session, &format!("f{round}")).await;
        }
    }

    #[tokio::test]
    async fn old_clients_name_no_request() {
        let server = serve(Limits::default()).await;
        let url = server.server.port_forward_url(forward(&[])).unwrap();
        let mut session = connect(&server.server, &url, &["portforward.k8s.io"])
            .await
            .unwrap();
        let mut error = open(&mut session, &[("streamtype", "error"), ("port", "9")]).await;
        let _data = open(&mut session, &[("streamtype", "data"), ("port", "9")]).await;
        assert!(text(&mut error).await.starts_with("error forwarding port 9"));
    }

    #[tokio::test]
    async fn a_stream_without_partner_is_given_up() {
        let server = serve(Limits {
            stream_creation: Duration::from_millis(100),
            ..Limits::default()
        })
        .await;
        let url = server.server.port_forward_url(forward(&[])).unwrap();
        let mut session = connect(&server.server, &url, &["portforward.k8s.io"])
            .await
            .unwrap();
        let mut alone = open(
            &mut session,
            &[("streamtype", "data"), ("port", "7"), ("requestid", "1")],
        )
        .await;
        assert_eq!(text(&mut alone).await, "", "reset");
        forward_echo(&mut session, "2").await;
    }

    #[tokio::test]
    async fn an_unknown_protocol_is_forbidden() {
        let server = serve(Limits::default()).await;
        let url = server.server.exec_url(exec(&["both"])).unwrap();
        let answer = connect(&server.server, &url, &["v9.channel.k8s.io"])
            .await
            .err()
            .unwrap();
        assert!(answer.starts_with("http/1.1 403"), "{answer}");
        assert!(
            answer.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn anything_else_is_refused_by_name() {
    let server = serve(Limits::default()).await;
    let ask = async |head: &str| {
        let mut socket = dial(&server.server).await;
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(socket.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    let plain = ask("GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        plain.starts_with("HTTP/1.1 400") && plain.contains("needs an upgrade"),
        "{plain}"
    );
    let upgrade = "HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let path = ask(&format!("POST /nothing/x {upgrade}")).await;
    assert!(
        path.starts_with("HTTP/1.1 404") && path.contains("no such path: `/nothing/x`"),
        "{path}"
    );
    let token = ask(&format!("POST /exec/x {upgrade}")).await;
    assert!(
        token.starts_with("HTTP/1.1 404") && token.contains("this URL is unknown"),
        "{token}"
    );
    let long = ask(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000))).await;
    assert!(long.starts_with("HTTP/1.1 4"), "{long}");
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    let server = serve(Limits {
        stream_creation: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let mut socket = dial(&server.server).await;
    let mut answer = Vec::new();
    let _ = soon(socket.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn the_end_of_the_server_is_the_end_of_its_connections() {
    let Server {
        server,
        mut gone,
        _stop,
    } = serve(Limits::default()).await;
    let url = server.exec_url(exec(&["gone"])).unwrap();
    let request = url.replace("http://", "ws://").into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, dial(&server).await)
        .await
        .unwrap();
    drop(_stop);
    while let Some(Ok(_)) = soon(socket.next()).await {}
    soon(gone.recv()).await.unwrap();
}
