//! One probing of each kind.

use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Probe};
use kubelet_pods::probe::ProbeKind;
use serde_json::{Value, json};
use tonic::Status;

use super::servers::{self, response};
use super::{Scripted, exit};
use crate::probing::{Action, ExecError, ExecOutput, Outcome, compile, resolve_port};

const SECOND: Duration = Duration::from_secs(1);

fn container(fields: Value) -> Container {
    let mut whole = json!({"name": "c"});
    whole
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

fn action(probe: Value) -> Action {
    let probe: Probe = serde_json::from_value(probe).unwrap();
    compile(&probe, &container(json!({})), Some("127.0.0.1".parse().unwrap()))
}

async fn run(action: &Action, patience: Duration) -> Outcome {
    action
        .run(&Scripted::new(|_, _| exit(0, "")), "id", patience)
        .await
}

async fn get(fields: Value, port: u16) -> Outcome {
    let mut whole = json!({"port": port});
    whole
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    run(&action(json!({"httpGet": whole})), 5 * SECOND).await
}

fn failure(text: &str) -> Outcome {
    Outcome::Failure(text.to_owned())
}

#[tokio::test]
async fn http_asks_as_upstream_does() {
    let (port, asked) = servers::http(|_| response("200 OK", "", "fine"), false).await;
    assert_eq!(
        get(json!({"path": "/a b?x=1#gone"}), port).await,
        Outcome::Success("fine".into())
    );
    let request = asked.lock().unwrap()[0].to_lowercase();
    assert!(request.starts_with("get /a%20b?x=1 http/1.1\r\n"), "{request}");
    for header in [
        format!("host: 127.0.0.1:{port}"),
        "user-agent: kube-probe/1.37".into(),
        "accept: */*".into(),
        "connection: close".into(),
    ] {
        assert!(
            request.contains(&format!("\r\n{header}\r\n")),
            "{header} in {request}"
        );
    }
    let headers = json!([
        {"name": "Host", "value": "other.example"}, {"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"},
        {"name": "User-Agent", "value": ""}, {"name": "Accept", "value": "text/plain"}
    ]);
    get(json!({"path": "no-slash", "httpHeaders": headers}), port).await;
    let request = asked.lock().unwrap()[1].to_lowercase();
    assert!(request.starts_with("get /no-slash "));
    assert!(request.contains("\r\nhost: other.example\r\n") && request.contains("x-a: 1\r\nx-a: 2\r\n"));
    assert!(!request.contains("user-agent") && request.contains("\r\naccept: text/plain\r\n"));
}

#[tokio::test]
async fn http_statuses_count() {
    let by_path = |request: &str| {
        let status = request.split([' ', '/']).nth(2).unwrap();
        response(&format!("{status} X"), "", "body")
    };
    let (port, _) = servers::http(by_path, false).await;
    for (status, expected) in [
        (200, Outcome::Success("body".into())),
        (204, Outcome::Success(String::new())),
        (
            304,
            Outcome::Warning("Probe terminated redirects, Response body: ".into()),
        ),
        (404, failure("HTTP probe failed with statuscode: 404")),
        (500, failure("HTTP probe failed with statuscode: 500")),
    ] {
        assert_eq!(get(json!({"path": format!("/{status}")}), port).await, expected);
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let (port, asked) = servers::http(
        |request| match request.split(' ').nth(1).unwrap() {
            "/start" => response("302 Found", "Location: next?q\r\n", ""),
            "/next?q" => response("301 Moved", "Location: /end\r\n", ""),
            "/end" => response("200 OK", "", "there"),
            "/away" => response("302 Found", "Location: http://elsewhere.example/x\r\n", "bye"),
            _ => response("302 Found", "Location: /again\r\n", ""),
        },
        false,
    )
    .await;
    assert_eq!(
        get(json!({"path": "/start"}), port).await,
        Outcome::Success("there".into())
    );
    assert_eq!(asked.lock().unwrap().len(), 3);
    let away = get(json!({"path": "/away"}), port).await;
    assert_eq!(
        away,
        Outcome::Warning("Probe terminated redirects, Response body: bye".into())
    );
    assert_eq!(away.event(ProbeKind::Liveness).unwrap().0, "ProbeWarning");
    let again = get(json!({"path": "/again"}), port).await;
    let expected = format!("Get \"http://127.0.0.1:{port}/again\": stopped after 10 redirects");
    assert_eq!(again, failure(&expected));
}

#[tokio::test]
async fn bodies_are_read_up_to_10_kib_even_if_they_never_end() {
    let endless = |_: &str| Some([b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'x'; 100_000]].concat());
    let (port, _) = servers::http(endless, false).await;
    assert_eq!(
        get(json!({}), port).await,
        Outcome::Success("x".repeat(10 * 1024))
    );
}

#[tokio::test]
async fn http_that_fails_says_how() {
    let closed = servers::closed_port().await;
    assert_eq!(
        get(json!({"path": "/x"}), closed).await,
        failure(&format!(
            "Get \"http://127.0.0.1:{closed}/x\": dial tcp 127.0.0.1:{closed}: connect: connection refused"
        ))
    );
    let (hangs, _) = servers::http(|_| None, false).await;
    let action = action(json!({"httpGet": {"port": hangs}}));
    assert_eq!(
        run(&action, Duration::from_millis(50)).await,
        failure(&format!(
            "Get \"http://127.0.0.1:{hangs}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))
    );
    let (ends, _) = servers::http(|_| Some(Vec::new()), false).await;
    assert_eq!(
        get(json!({}), ends).await,
        failure(&format!("Get \"http://127.0.0.1:{ends}/\": EOF"))
    );
    let bad = get(json!({"httpHeaders": [{"name": "a b", "value": ""}]}), ends).await;
    assert_eq!(
        bad,
        Outcome::Unknown("net/http: invalid header field name \"a b\"".into())
    );
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let (port, asked) = servers::http(|_| response("200 OK", "", "safe"), true).await;
    assert_eq!(
        get(json!({"scheme": "HTTPS"}), port).await,
        Outcome::Success("safe".into())
    );
    assert_eq!(asked.lock().unwrap().len(), 1);
    let (plain, _) = servers::http(|_| response("400 Bad", "", ""), false).await;
    let outcome = get(json!({"scheme": "HTTPS"}), plain).await;
    let expected =
        format!("Get \"https://127.0.0.1:{plain}/\": http: server gave HTTP response to HTTPS client");
    assert_eq!(outcome, failure(&expected));
}

#[tokio::test]
async fn tcp_only_connects() {
    let (port, _) = servers::http(|_| None, false).await;
    assert_eq!(
        run(&action(json!({"tcpSocket": {"port": port}})), SECOND).await,
        Outcome::Success(String::new())
    );
    let closed = servers::closed_port().await;
    assert_eq!(
        run(
            &action(json!({"tcpSocket": {"port": closed, "host": "127.0.0.1"}})),
            SECOND
        )
        .await,
        failure(&format!(
            "dial tcp 127.0.0.1:{closed}: connect: connection refused"
        ))
    );
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let port = servers::grpc(|service| match service {
        "" => Ok(1),
        "ill" => Ok(2),
        "no" => Err(Status::unimplemented("none")),
        _ => Err(Status::not_found("unknown service")),
    })
    .await;
    let probe = |service: &str| action(json!({"grpc": {"port": port, "service": service}}));
    assert_eq!(
        run(&probe(""), 5 * SECOND).await,
        Outcome::Success("service healthy".into())
    );
    assert_eq!(
        run(&probe("ill"), 5 * SECOND).await,
        failure("service unhealthy (responded with \"NOT_SERVING\")")
    );
    assert_eq!(
        run(&probe("no"), 5 * SECOND).await,
        failure(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): none"
        )
    );
    assert_eq!(
        run(&probe("x"), 5 * SECOND).await,
        failure("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")
    );
    let closed = servers::closed_port().await;
    assert_eq!(
        run(&action(json!({"grpc": {"port": closed}})), SECOND).await,
        failure(&format!(
            "error: failed to connect service at \"127.0.0.1:{closed}\": dial tcp 127.0.0.1:{closed}: connect: connection refused"
        ))
    );
    let (hangs, _) = servers::http(|_| None, false).await;
    assert_eq!(
        run(
            &action(json!({"grpc": {"port": hangs}})),
            Duration::from_millis(100)
        )
        .await,
        failure("timeout: health rpc did not complete within 100ms")
    );
}

#[tokio::test(start_paused = true)]
async fn commands_succeed_fail_and_take_too_long() {
    let probe: Probe = serde_json::from_value(json!({"exec": {"command": ["check", "$(A)"]}})).unwrap();
    let spec = container(json!({"env": [{"name": "A", "value": "1"}]}));
    let action = compile(&probe, &spec, None);
    assert_eq!(action, Action::Exec(vec!["check".into(), "1".into()]));
    let with = |answer: Result<ExecOutput, ExecError>| Scripted::new(move |_, _| answer.clone());
    assert_eq!(
        action.run(&with(exit(0, "ok")), "id", SECOND).await,
        Outcome::Success("ok".into())
    );
    let both = ExecOutput {
        stdout: b"out ".into(),
        stderr: b"err".into(),
        exit_code: 1,
    };
    assert_eq!(
        action.run(&with(Ok(both)), "id", SECOND).await,
        failure("out err")
    );
    let late = failure("command timed out: \"check 1\" timed out after 1s");
    assert_eq!(
        action.run(&with(Err(ExecError::Timeout)), "id", SECOND).await,
        late
    );
    let broken = with(Err(ExecError::Failed("no such container".into())));
    assert_eq!(
        action.run(&broken, "id", SECOND).await,
        Outcome::Unknown("no such container".into())
    );
    let hangs = Scripted {
        takes: Duration::from_secs(3600),
        ..with(exit(0, ""))
    };
    assert_eq!(
        action.run(&hangs, "id", SECOND).await,
        late,
        "a runtime that hangs"
    );
    let long = ExecOutput {
        stdout: vec![b'x'; 20_000],
        stderr: vec![b'y'; 10],
        exit_code: 0,
    };
    assert_eq!(long.combined().len(), 10 * 1024);
}

#[test]
fn ports_by_number_and_by_name() {
    let spec = container(json!({"ports": [{"name": "http", "containerPort": 8080}]}));
    let resolve = |port: Value| resolve_port(&serde_json::from_value(port).unwrap(), &spec);
    assert_eq!(resolve(json!(80)), Ok(80));
    assert_eq!(resolve(json!("81")), Ok(81));
    assert_eq!(resolve(json!("http")), Ok(8080));
    assert_eq!(resolve(json!("no")), Err("couldn't find port: no".into()));
    assert_eq!(resolve(json!(0)), Err("invalid port number: 0".into()));
    assert_eq!(resolve(json!(70000)), Err("invalid port number: 70000".into()));
}

#[test]
fn events_are_in_upstreams_words() {
    let event = |outcome: Outcome| outcome.event(ProbeKind::Readiness);
    assert_eq!(event(Outcome::Success(String::new())), None);
    assert_eq!(
        event(failure("x")),
        Some(("Unhealthy", "Readiness probe failed: x".into()))
    );
    let errored = "Readiness probe errored and resulted in unknown state: x";
    assert_eq!(
        event(Outcome::Unknown("x".into())),
        Some(("Unhealthy", errored.into()))
    );
}
