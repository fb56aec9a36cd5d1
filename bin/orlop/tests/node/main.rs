//! The executable against a kubelet's real server, with one pod and a real streaming server behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bed;

use bed::{Bed, run, run_with_input};

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_a_table_or_objects() {
    let bed = Bed::new().await;
    let table = run(&bed, &["pods"]).await;
    let mut lines = table.out.lines();
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        [
            "NAMESPACE",
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "NODE"
        ]
    );
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        (&row[..5], &row[6..]),
        (
            &["default", "web-n1", "1/1", "Running", "0"][..],
            &["10.0.0.2", "n1"][..]
        )
    );
    let json: serde_json::Value =
        serde_json::from_str(&run(&bed, &["pods", "-o", "json"]).await.out).unwrap();
    assert_eq!(json["items"][0]["metadata"]["name"], "web-n1");
    assert!(
        run(&bed, &["pods", "-o", "yaml"])
            .await
            .out
            .starts_with("apiVersion: v1\nitems:\n- ")
    );
    assert_eq!(
        run(&bed, &["pods", "-n", "none"]).await.err,
        "No resources found\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_copied_and_followed_to_the_end() {
    let bed = Bed::new().await;
    assert_eq!(run(&bed, &["logs", "web"]).await.out, "one\ntwo\n");
    assert_eq!(
        run(&bed, &["logs", "web", "--tail", "1", "--timestamps"])
            .await
            .out,
        "2026-01-01T00:00:01.000000000Z two\n"
    );
    assert_eq!(run(&bed, &["logs", "web", "--since", "1s"]).await.out, "");
    bed.end_container();
    assert_eq!(
        run(&bed, &["logs", "-f", "default/web-n1", "-c", "app"])
            .await
            .out,
        "one\ntwo\n"
    );
    let wrong = run(&bed, &["logs", "web", "-c", "none"]).await;
    assert_eq!(wrong.code, 1);
    assert_eq!(
        wrong.err,
        "orlop: pod \"web-n1\" has no container \"none\"\n  try: -c with one of: app\n"
    );
    let previous = run(&bed, &["logs", "web", "-p"]).await;
    assert!(
        previous
            .err
            .contains("previous terminated container \"app\" in pod \"web-n1\" not found"),
        "{}",
        previous.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_passes_bytes_both_ways_and_returns_the_code() {
    let bed = Bed::new().await;
    let both = run_with_input(
        &bed,
        &["exec", "-i", "web", "--", "cat", "and exit", "7"],
        b"hello",
    )
    .await;
    assert_eq!(
        (both.out.as_str(), both.err.as_str(), both.code),
        ("hello", "cat|and exit|7", 7)
    );
    let quiet = run(&bed, &["exec", "web", "--", "cat"]).await;
    assert_eq!((quiet.out.as_str(), quiet.code), ("", 0));
    let plain = run_with_input(&bed, &["exec", "-it", "web", "--", "cat"], b"x").await;
    assert!(plain.err.starts_with("Unable to use a TTY"), "{}", plain.err);
    let lost = run(&bed, &["exec", "web", "--", "missing"]).await;
    assert_eq!((lost.code, lost.err.as_str()), (1, "orlop: no such command\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_raw_and_tells_its_size() {
    let bed = Bed::new().await;
    let (out, code) = bed::run_in_terminal(&bed, "stty rows 33 cols 99; orlop exec -it web -- size").await;
    assert!(out.contains("99x33 tty"), "{out}");
    assert_eq!(code, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tells_events_and_timeline_adds_up() {
    let bed = Bed::new().await;
    let text = run(&bed, &["describe", "web"]).await.out;
    assert!(
        text.contains("Name:              web-n1\n") && text.contains("Started container app"),
        "{text}"
    );
    let trace = bed.folder.path().join("trace.json");
    let table = run(&bed, &["timeline", "web", "--chrome", trace.to_str().unwrap()]).await;
    let total = table.out.lines().find(|line| line.starts_with("total")).unwrap();
    assert!(total.ends_with("1000.0ms   1000.0ms   100.0%"), "{}", table.out);
    assert_eq!(table.err, "");
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let spans = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["ph"] == "X");
    assert_eq!(spans.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_with_what_helps() {
    let bed = Bed::new().await;
    let nobody = bed.node_file(None);
    let refused = bed::run_as(&nobody, &["pods"]).await;
    assert!(
        refused
            .err
            .starts_with("orlop: the kubelet wants to know who asks\n  try: --token-file"),
        "{}",
        refused.err
    );
    let wrong = bed.node_file(Some("wrong"));
    let unknown = bed::run_as(&wrong, &["pods"]).await;
    assert!(unknown.err.contains("doesn't know this token"), "{}", unknown.err);
    let guest = bed.node_file(Some("guest"));
    let forbidden = bed::run_as(&guest, &["pods"]).await;
    assert!(
        forbidden
            .err
            .contains("not allowed: Forbidden (user=guest, verb=get"),
        "{}",
        forbidden.err
    );
    let other = bed.foreign_certificate();
    let distrusted = run(&bed, &["pods", "--ca", other.to_str().unwrap()]).await;
    assert!(
        distrusted.err.contains("name the right one with --ca"),
        "{}",
        distrusted.err
    );
    let away = run(&bed, &["pods", "--kubelet", "https://127.0.0.1:1"]).await;
    assert!(
        away.err
            .contains("failed to reach the kubelet at https://127.0.0.1:1"),
        "{}",
        away.err
    );
    assert_eq!(away.code, 1);
    let none = run(&bed, &["logs", "none"]).await;
    assert!(
        none.err
            .starts_with("orlop: no pod \"none\" on this node\n  try: orlop pods"),
        "{}",
        none.err
    );
    assert_eq!(run(&bed, &["frobnicate"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_enough() {
    let bed = Bed::new().await;
    let (certificate, key) = bed.client_certificate();
    let nobody = bed.node_file(None);
    let options = [
        "pods",
        "-o",
        "name",
        "--client-certificate",
        &certificate,
        "--client-key",
        &key,
    ];
    assert_eq!(bed::run_as(&nobody, &options).await.out, "pod/web-n1\n");
}
