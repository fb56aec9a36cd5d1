use async_trait::async_trait;
use cri_streaming::{
    AttachRequest, BoxDuplex, ExecRequest, ExitStatus, Limits as StreamLimits, PortForwardRequest,
    StreamError, StreamHandler, StreamServer, Streams,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::fake::Asked;
use super::*;

/// Echoes.
struct Echo;

#[async_trait]
impl StreamHandler for Echo {
    async fn exec(&self, request: ExecRequest, mut streams: Streams) -> Result<ExitStatus, StreamError> {
        let mut text = Vec::new();
        if let Some(mut stdin) = streams.stdin.take() {
            let _ = stdin.read_to_end(&mut text).await;
        }
        let mut stdout = streams.stdout.take().unwrap();
        stdout.write_all(request.cmd.join(" ").as_bytes()).await.unwrap();
        stdout.write_all(&text).await.unwrap();
        let _ = stdout.shutdown().await;
        Ok(ExitStatus { code: 3 })
    }

    async fn attach(&self, _: AttachRequest, _: Streams) -> Result<(), StreamError> {
        Ok(())
    }

    async fn port_forward(&self, _: String, _: u16, mut stream: BoxDuplex) -> Result<(), StreamError> {
        let mut buffer = [0; 100];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.unwrap();
        }
        Ok(())
    }
}

async fn echo() -> Arc<StreamServer> {
    let address = "127.0.0.1:0".parse().unwrap();
    let server = StreamServer::bind(address, Arc::new(Echo), StreamLimits::default())
        .await
        .unwrap();
    let server = Arc::new(server);
    let running = server.clone();
    tokio::spawn(async move { running.run(std::future::pending()).await });
    server
}

fn exec(cmd: &[&str], stdin: bool) -> ExecRequest {
    ExecRequest {
        target: "c2".into(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin,
        stdout: true,
        stderr: true,
    }
}

fn upgrade(path: &str, protocols: &str) -> http::Request<()> {
    let mut request = format!("ws://node-1{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", protocols.parse().unwrap());
    headers.insert("authorization", ADMIN.parse().unwrap());
    request
}

#[tokio::test]
async fn exec_is_tunnelled_to_the_runtime_over_websocket() {
    let bed = Bed::new().await;
    let runtime = echo().await;
    *bed.fake.stream.lock().unwrap() = Ok(runtime.exec_url(exec(&["say"], true)).unwrap());
    let path = "/exec/default/web/u1/app?command=say&command=it%20all&input=1&output=1&error=1";
    let (mut socket, answer) = tokio_tungstenite::client_async(
        upgrade(path, "v5.channel.k8s.io, v4.channel.k8s.io"),
        bed.connect(None).await,
    )
    .await
    .unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    socket
        .send(Message::Binary(b"\0 hello"[..].into()))
        .await
        .unwrap();
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    let (mut stdout, mut status) = (Vec::new(), Vec::new());
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            match bytes[0] {
                1 => stdout.extend_from_slice(&bytes[1..]),
                3 => status.extend_from_slice(&bytes[1..]),
                _ => {}
            }
        }
    }
    assert_eq!(stdout, b"say hello");
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    let asked = bed.fake.asked.lock().unwrap().clone();
    let Asked::Exec(request) = &asked[0] else {
        panic!("{asked:?}")
    };
    assert_eq!(request.cmd, ["say", "it all"]);
    assert_eq!(
        (request.container_id.as_str(), request.stdin, request.tty),
        ("c2", true, false)
    );
}

#[tokio::test]
async fn spdy_is_handed_on_without_being_read() {
    let bed = Bed::new().await;
    let runtime = echo().await;
    let forward = PortForwardRequest {
        target: "s1".into(),
        ports: Vec::new(),
    };
    *bed.fake.stream.lock().unwrap() = Ok(runtime.port_forward_url(forward).unwrap());
    let mut stream = bed.connect(None).await;
    let head = "POST /portForward/default/web HTTP/1.1\r\nhost: n\r\nauthorization: Bearer admin-token\r\n\
                connection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: portforward.k8s.io\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(
        answer.contains("upgrade: spdy/3.1\r\n")
            && answer.contains("x-stream-protocol-version: portforward.k8s.io")
    );
    // A ping of SPDY/3.1 is answered by the runtime's server with the same bytes.
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    stream.write_all(&ping).await.unwrap();
    let mut pong = [0; 12];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, ping);
    let asked = bed.fake.asked.lock().unwrap().clone();
    assert!(matches!(&asked[0], Asked::PortForward(request) if request.pod_sandbox_id == "s1"));
}

#[tokio::test]
async fn a_stopping_server_cuts_tunnels_after_the_drain() {
    let mut bed = Bed::new().await;
    let runtime = echo().await;
    *bed.fake.stream.lock().unwrap() = Ok(runtime.exec_url(exec(&["say"], true)).unwrap());
    let request = upgrade("/exec/default/web/app?input=1&output=1", "v5.channel.k8s.io");
    let (mut socket, _) = tokio_tungstenite::client_async(request, bed.connect(None).await)
        .await
        .unwrap();
    bed.stop().await;
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(10), end).await.unwrap();
}

#[tokio::test]
async fn refusals_of_the_runtime_come_through() {
    let bed = Bed::new().await;
    let runtime = echo().await;
    let path = "/exec/default/web/app?output=1";
    let ask = async |request: http::Request<()>| match tokio_tungstenite::client_async(
        request,
        bed.connect(None).await,
    )
    .await
    {
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => answer.status(),
        other => panic!("{other:?}"),
    };
    *bed.fake.stream.lock().unwrap() = Ok(runtime.exec_url(exec(&["say"], false)).unwrap());
    assert!(ask(upgrade(path, "no.such.protocol")).await.is_client_error());
    *bed.fake.stream.lock().unwrap() = Ok("http://127.0.0.1:1/exec/x".into());
    assert_eq!(
        ask(upgrade(path, "v4.channel.k8s.io")).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    *bed.fake.stream.lock().unwrap() = Err(tonic::Status::not_found("no container").into());
    assert_eq!(
        ask(upgrade(path, "v4.channel.k8s.io")).await,
        StatusCode::NOT_FOUND
    );
    *bed.fake.stream.lock().unwrap() = Err(tonic::Status::resource_exhausted("too many").into());
    assert_eq!(
        ask(upgrade(path, "v4.channel.k8s.io")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    let forward = upgrade("/portForward/default/web?port=80,99999", "v4.channel.k8s.io");
    assert_eq!(ask(forward).await, StatusCode::BAD_REQUEST);
    assert_eq!(
        bed.get("/exec/default/web/app").await,
        (
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr".into()
        )
    );
    *bed.fake.stream.lock().unwrap() = Ok("http://127.0.0.1:1/exec/x".into());
    assert_eq!(bed.get(path).await.1, "Upgrade request required\n");
    assert_eq!(
        bed.get("/attach/default/none/app?output=1").await.1,
        "pod does not exist"
    );
    assert_eq!(
        bed.get("/attach/default/web/late?output=1").await.1,
        "container not found (\"late\")"
    );
    assert_eq!(bed.get("/portForward/default/web/u7").await.1, "pod not found");
}

#[tokio::test]
async fn logs_are_followed_through_a_rotation_until_the_container_ends() {
    let bed = Bed::new().await;
    let log = bed.fake.log.clone();
    let append = |path: &Path, text: &str| {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append(
        &log,
        "2026-01-01T00:00:00Z stdout F 0\n2026-01-01T00:00:01Z stdout F 1\n2026-01-01T00:00:02Z std",
    );
    let path = "/containerLogs/default/web/app?follow=true&tailLines=2";
    let mut body = bed.send("GET", path, ADMIN).await.into_body();
    let mut seen = String::new();
    let mut next = async |seen: &mut String, wanted: &str| {
        while seen.as_str() != wanted {
            let frame = tokio::time::timeout(Duration::from_secs(10), body.frame())
                .await
                .unwrap();
            let Some(frame) = frame else {
                panic!("ended after {seen:?}")
            };
            let bytes = frame.unwrap().into_data().unwrap();
            seen.push_str(std::str::from_utf8(&bytes).unwrap());
            assert!(
                wanted.starts_with(seen.as_str()),
                "{seen:?} is not how {wanted:?} begins"
            );
        }
    };
    next(&mut seen, "0\n1\n").await;
    let rotated = log.with_extension("log.1");
    std::fs::rename(&log, &rotated).unwrap();
    append(&rotated, "out F 2\n");
    append(&rotated, "2026-01-01T00:00:03Z stdout P three\n");
    append(
        &log,
        "2026-01-01T00:00:03Z stdout F  goes on\n2026-01-01T00:00:04Z stderr F 4\n",
    );
    next(&mut seen, "0\n1\n2\nthree goes on\n4\n").await;
    append(&log, "2026-01-01T00:00:05Z stdout F last\n");
    *bed.fake.running.lock().unwrap() = false;
    next(&mut seen, "0\n1\n2\nthree goes on\n4\nlast\n").await;
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn logs_have_upstreams_parameters_and_refusals() {
    let bed = Bed::new().await;
    std::fs::write(
        &bed.fake.log,
        "2026-01-01T00:00:00.5Z stdout F a\nnonsense\n2026-01-01T00:00:01Z stderr F b\n2026-01-01T00:00:02Z stdout F c\n",
    )
    .unwrap();
    std::fs::write(
        bed.folder.path().join("previous.log"),
        "2025-01-01T00:00:00Z stdout F before\n",
    )
    .unwrap();
    let root = "/containerLogs/default/web/app";
    let get = async |query: &str| bed.get(&format!("{root}?{query}")).await;
    assert_eq!(get("").await, (StatusCode::OK, "a\nb\nc\n".into()));
    assert_eq!(get("tailLines=1").await.1, "c\n");
    assert_eq!(get("tail=all").await.1, "a\nb\nc\n");
    assert_eq!(get("stream=Stderr").await.1, "b\n");
    assert_eq!(get("limitBytes=3").await.1, "a\nb");
    assert_eq!(get("sinceTime=2026-01-01T00:00:01Z").await.1, "b\nc\n");
    assert_eq!(
        get("timestamps=true&tailLines=4").await.1.lines().next(),
        Some("2026-01-01T00:00:00.500000000Z a")
    );
    assert_eq!(get("previous=true").await.1, "before\n");
    let undecodable = (
        StatusCode::BAD_REQUEST,
        r#"{"message": "Unable to decode query."}"#.to_owned(),
    );
    assert_eq!(get("tailLines=x").await, undecodable);
    let invalid = (
        StatusCode::UNPROCESSABLE_ENTITY,
        r#"{"message": "Invalid request."}"#.to_owned(),
    );
    for query in [
        "tailLines=-1",
        "limitBytes=0",
        "sinceSeconds=0",
        "stream=Both",
        "stream=Stdout&tailLines=1",
    ] {
        assert_eq!(get(query).await, invalid, "{query}");
    }
    let other = async |path: &str| bed.get(&format!("/containerLogs/default/{path}")).await;
    assert_eq!(
        other("none/app").await,
        (StatusCode::NOT_FOUND, "pod \"none\" does not exist".into())
    );
    assert_eq!(
        other("web/none").await.1,
        "container \"none\" not found in pod \"web\""
    );
    assert_eq!(
        other("web/late").await,
        (
            StatusCode::BAD_REQUEST,
            "container \"late\" in pod \"web\" is waiting to start: trying and failing to pull image".into()
        )
    );
    assert_eq!(
        other("web/first").await.1,
        "container \"first\" in pod \"web\" is not available"
    );
    assert_eq!(
        other("web/late?previous=1").await.1,
        "previous terminated container \"late\" in pod \"web\" not found"
    );
    std::fs::remove_file(&bed.fake.log).unwrap();
    assert!(get("").await.1.starts_with("failed to open log file"));
}
