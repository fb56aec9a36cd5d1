use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn pod(spec: Value, status: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "web", "namespace": "x"}, "spec": spec, "status": status}),
    )
    .unwrap()
}

fn own(name: &str, ready: bool, state: Value) -> Value {
    json!({"name": name, "ready": ready, "restartCount": 0, "image": "i", "imageID": "", "state": state})
}

fn shown(pod: &Pod) -> (String, String) {
    let shown = Shown::of(pod, now());
    (format!("{}/{}", shown.ready, shown.total), shown.status)
}

fn two() -> Value {
    json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]})
}

#[test]
fn status_has_kubectls_words() {
    let init = |statuses: Value| {
        pod(
            two(),
            json!({"phase": "Pending", "initContainerStatuses": statuses}),
        )
    };
    let is =
        |pod: Pod, ready: &str, status: &str| assert_eq!(shown(&pod), (ready.to_owned(), status.to_owned()));
    is(init(json!([])), "0/3", "Pending");
    is(
        init(json!([own("i", false, json!({"running": {}}))])),
        "0/3",
        "Init:0/2",
    );
    is(
        init(json!([own(
            "i",
            false,
            json!({"waiting": {"reason": "PodInitializing"}})
        )])),
        "0/3",
        "Init:0/2",
    );
    is(
        init(json!([own(
            "i",
            false,
            json!({"waiting": {"reason": "CrashLoopBackOff"}})
        )])),
        "0/3",
        "Init:CrashLoopBackOff",
    );
    is(
        init(json!([own("i", false, json!({"terminated": {"exitCode": 2}}))])),
        "0/3",
        "Init:ExitCode:2",
    );
    is(
        init(json!([own(
            "i",
            false,
            json!({"terminated": {"exitCode": 2, "reason": "Error"}})
        )])),
        "0/3",
        "Init:Error",
    );
    let done = own(
        "i",
        true,
        json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
    );
    is(
        init(json!([done, own("s", false, json!({"running": {}}))])),
        "0/3",
        "Init:1/2",
    );
    let mut side = own("s", true, json!({"running": {}}));
    side["started"] = json!(true);
    let running = |a: Value, b: Value, ready: &str| {
        let status = json!({
            "phase": "Running",
            "initContainerStatuses": [done, side],
            "containerStatuses": [a, b],
            "conditions": [{"type": "Ready", "status": ready}],
        });
        pod(two(), status)
    };
    let up = |name: &str| own(name, true, json!({"running": {}}));
    let ended = |name: &str, reason: &str| {
        own(
            name,
            false,
            json!({"terminated": {"exitCode": 0, "reason": reason}}),
        )
    };
    is(running(up("a"), up("b"), "True"), "3/3", "Running");
    is(
        running(up("a"), ended("b", "Completed"), "False"),
        "2/3",
        "NotReady",
    );
    is(
        running(up("a"), ended("b", "Completed"), "True"),
        "2/3",
        "Running",
    );
    is(
        running(ended("a", "Completed"), ended("b", "Completed"), "False"),
        "1/3",
        "Completed",
    );
    is(
        running(
            up("a"),
            own("b", false, json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            "False",
        ),
        "2/3",
        "CrashLoopBackOff",
    );
    is(
        running(
            up("a"),
            own("b", false, json!({"terminated": {"exitCode": 137, "signal": 9}})),
            "False",
        ),
        "2/3",
        "Signal:9",
    );
    is(
        pod(two(), json!({"phase": "Failed", "reason": "Evicted"})),
        "0/3",
        "Evicted",
    );
    let mut leaving = running(up("a"), up("b"), "True");
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    is(leaving, "3/3", "Terminating");
}

#[test]
fn the_table_is_kubectls() {
    let mut restarted = own("a", true, json!({"running": {}}));
    restarted["restartCount"] = json!(2);
    restarted["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:58:00Z"}});
    let status = json!({"phase": "Running", "podIP": "10.0.0.2", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [restarted]});
    let pods = [
        pod(json!({"containers": [{"name": "a"}], "nodeName": "n1"}), status),
        pod(json!({"containers": []}), json!({"phase": "Pending"})),
    ];
    assert_eq!(
        table(&pods, now()),
        "NAMESPACE   NAME   READY   STATUS    RESTARTS     AGE         IP         NODE\n\
         x           web    1/1     Running   2 (2m ago)   60m         10.0.0.2   n1\n\
         x           web    0/0     Pending   0            <unknown>   <none>     <none>\n"
    );
}
