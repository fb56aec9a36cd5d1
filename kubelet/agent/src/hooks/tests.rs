//! Each kind of hook, ending well and ill.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::probing::ExecOutput;
use crate::probing::tests::servers::{self, response};
use crate::probing::tests::{Scripted, exit};

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "u-1"}}))
        .unwrap()
}

async fn hook(handler: Value, exec: &Scripted) -> Result<(), String> {
    let handler: LifecycleHandler = serde_json::from_value(handler).unwrap();
    let (pod, container) = (
        pod(),
        Container {
            name: "c".into(),
            ..Container::default()
        },
    );
    let ip = Some("127.0.0.1".parse().unwrap());
    let target = HookTarget {
        pod: &pod,
        container: &container,
        container_id: "id",
        ip,
    };
    run(&handler, target, exec)
        .await
        .map_err(|error| error.to_string())
}

fn fine() -> Scripted {
    Scripted::new(|_, _| exit(0, ""))
}

const WHERE: &str = "for Container \"c\" in Pod \"web_default(u-1)\" failed - error:";

#[tokio::test]
async fn commands_run_in_the_container() {
    let exec = fine();
    assert_eq!(
        hook(json!({"exec": {"command": ["a", "$(B)"]}}), &exec).await,
        Ok(())
    );
    let call = exec.calls.lock().unwrap()[0].clone();
    assert_eq!(
        call,
        ("id".into(), vec!["a".into(), "$(B)".into()], Duration::ZERO),
        "as it is, without deadline"
    );
    let failing = Scripted::new(|_, _| {
        Ok(ExecOutput {
            stdout: b"out".into(),
            stderr: b"err".into(),
            exit_code: 3,
        })
    });
    assert_eq!(
        hook(json!({"exec": {"command": ["a", "b"]}}), &failing)
            .await
            .unwrap_err(),
        format!("Exec lifecycle hook ([a b]) {WHERE} command 'a b' exited with 3: err, message: \"outerr\"")
    );
}

#[tokio::test]
async fn any_answer_to_a_request_is_good_and_none_is_not() {
    let (port, asked) = servers::http(|_| response("500 Ill", "", ""), false).await;
    let get = |port: u16| json!({"httpGet": {"port": port, "path": "/h"}});
    assert_eq!(hook(get(port), &fine()).await, Ok(()));
    assert!(
        asked.lock().unwrap()[0]
            .to_lowercase()
            .contains("user-agent: kube-lifecycle/1.37")
    );
    let closed = servers::closed_port().await;
    assert_eq!(
        hook(get(closed), &fine()).await.unwrap_err(),
        format!(
            "HTTP lifecycle hook (/h) {WHERE} Get \"http://127.0.0.1:{closed}/h\": \
             dial tcp 127.0.0.1:{closed}: connect: connection refused"
        )
    );
}

#[tokio::test]
async fn plain_servers_are_asked_again_without_credentials() {
    let (port, asked) = servers::http(|_| response("200 OK", "", ""), false).await;
    let headers = json!([{"name": "Authorization", "value": "secret"}, {"name": "X", "value": "1"}]);
    let handler = json!({"httpGet": {"port": port, "scheme": "HTTPS", "httpHeaders": headers}});
    assert_eq!(hook(handler, &fine()).await, Ok(()));
    let request = asked.lock().unwrap().last().unwrap().to_lowercase();
    assert!(request.contains("x: 1") && !request.contains("secret"));
}

#[tokio::test]
async fn tcp_connects() {
    let (port, _) = servers::http(|_| None, false).await;
    assert_eq!(hook(json!({"tcpSocket": {"port": port}}), &fine()).await, Ok(()));
    let closed = servers::closed_port().await;
    let error = hook(json!({"tcpSocket": {"port": closed}}), &fine())
        .await
        .unwrap_err();
    assert!(
        error.starts_with(&format!("TCP lifecycle hook ({closed}) {WHERE} dial tcp")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn sleeping_takes_its_time_and_the_grace_period_cuts_it() {
    let start = Instant::now();
    assert_eq!(hook(json!({"sleep": {"seconds": 7}}), &fine()).await, Ok(()));
    assert_eq!(start.elapsed().as_secs(), 7);
    assert!(hook(json!({}), &fine()).await.is_err());
    let (pod, container) = (
        pod(),
        Container {
            name: "c".into(),
            ..Container::default()
        },
    );
    let target = HookTarget {
        pod: &pod,
        container: &container,
        container_id: "id",
        ip: None,
    };
    let handler: LifecycleHandler = serde_json::from_value(json!({"sleep": {"seconds": 7}})).unwrap();
    let exec = fine();
    let (left, result) = run_pre_stop(&handler, target, &exec, Duration::from_secs(30)).await;
    assert!(
        (22..=23).contains(&left.as_secs()),
        "23 s but for the timer's granularity"
    );
    assert_eq!(result, Ok(()));
    let (left, result) = run_pre_stop(&handler, target, &exec, Duration::from_secs(5)).await;
    assert_eq!(left, Duration::ZERO);
    assert_eq!(
        result.unwrap_err().to_string(),
        "the hook of container \"c\" in pod \"web_default(u-1)\" did not end within 5 s"
    );
}
