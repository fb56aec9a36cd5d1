use super::fake::Asked;
use super::*;

#[tokio::test]
async fn health_is_told_everywhere() {
    let bed = Bed::new().await;
    let ok = (StatusCode::OK, "ok".to_owned());
    assert_eq!(bed.get("/healthz").await, ok);
    assert_eq!(bed.get("/healthz/syncloop").await, ok);
    assert_eq!(plain(bed.health, "/healthz").await, ok);
    assert_eq!(plain(bed.read_only, "/healthz/ping").await, ok);
    assert_eq!(plain(bed.health, "/pods").await.0, StatusCode::NOT_FOUND);
    assert_eq!(bed.get("/healthz/nothing").await.0, StatusCode::NOT_FOUND);
    let all = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
    assert_eq!(bed.get("/healthz?verbose").await.1, all);
    *bed.fake.health.lock().unwrap() = Err("stuck".into());
    assert_eq!(
        plain(bed.health, "/healthz").await,
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n".to_owned()
        )
    );
    assert_eq!(
        bed.get("/healthz/syncloop").await.1,
        "internal server error: stuck\n"
    );
    assert_eq!(bed.get("/healthz?exclude=syncloop").await.0, StatusCode::OK);
    let slis = bed.get("/metrics/slis").await.1;
    assert!(
        slis.contains("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 0"),
        "{slis}"
    );
}

#[tokio::test]
async fn pods_are_lists_and_configz_is_named() {
    let bed = Bed::new().await;
    for path in ["/pods", "/runningpods/"] {
        let list: serde_json::Value = serde_json::from_str(&bed.get(path).await.1).unwrap();
        assert_eq!(list["kind"], "PodList");
        assert_eq!(list["apiVersion"], "v1");
        assert_eq!(list["items"][0]["metadata"]["name"], "web");
    }
    let config: serde_json::Value = serde_json::from_str(&bed.get("/configz").await.1).unwrap();
    assert_eq!(config["kubeletconfig"]["maxPods"], 110);
    let posted = bed.send("POST", "/pods", ADMIN).await;
    assert_eq!(posted.headers()["allow"], "GET");
    assert_eq!(
        read(posted).await,
        (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed".into())
    );
    let events: serde_json::Value = serde_json::from_str(&bed.get("/events/default/web").await.1).unwrap();
    assert_eq!(events["items"][0]["reason"], "Started");
    let timeline: serde_json::Value =
        serde_json::from_str(&bed.get("/timeline/default/web").await.1).unwrap();
    assert_eq!(timeline["covered"], 0.99);
    assert_eq!(bed.get("/timeline/default/none").await.0, StatusCode::NOT_FOUND);
    for path in ["/debug/pprof/", "/", "/exec/default", "/stats/", "/%ff"] {
        assert_eq!(
            bed.get(path).await,
            (StatusCode::NOT_FOUND, "404 page not found\n".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_read_only_port_has_no_more_than_upstreams() {
    let bed = Bed::new().await;
    for path in ["/pods", "/metrics", "/metrics/cadvisor", "/stats/summary"] {
        assert_eq!(plain(bed.read_only, path).await.0, StatusCode::OK, "{path}");
    }
    for path in [
        "/configz",
        "/logs/",
        "/containerLogs/default/web/app",
        "/runningpods/",
    ] {
        assert_eq!(
            plain(bed.read_only, path).await.0,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn metrics_are_text_and_count_requests() {
    let bed = Bed::new().await;
    bed.metrics.running_pods.set(&[], 7.0);
    bed.metrics
        .prober_probe_total
        .inc(&["Liveness", "successful", "app", "web", "default", "u1"]);
    let answer = bed.send("GET", "/metrics", ADMIN).await;
    assert_eq!(
        answer.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(read(answer).await.1.contains("\nkubelet_running_pods 7\n"));
    let text = bed.get("/metrics").await.1;
    let line = "kubelet_http_requests_total{method=\"GET\",path=\"metrics\",server_type=\"readwrite\",long_running=\"false\"} 2";
    assert!(text.contains(line), "{text}");
    assert!(
        bed.get("/metrics/probes")
            .await
            .1
            .contains("prober_probe_total{probe_type=\"Liveness\"")
    );
    assert!(
        bed.get("/metrics/cadvisor")
            .await
            .1
            .contains("machine_cpu_cores 2")
    );
    assert!(
        bed.get("/metrics/resource")
            .await
            .1
            .contains("resource_scrape_error 0")
    );
    let summary: serde_json::Value = serde_json::from_str(&bed.get("/stats/summary").await.1).unwrap();
    assert_eq!(summary["pods"], serde_json::json!([]));
    *bed.fake.stats_fail.lock().unwrap() = true;
    assert!(
        bed.get("/metrics/resource")
            .await
            .1
            .contains("resource_scrape_error 1")
    );
    assert_eq!(
        bed.get("/stats/summary").await,
        (StatusCode::INTERNAL_SERVER_ERROR, "the runtime is away".into())
    );
}

#[tokio::test]
async fn run_takes_its_command_from_query_or_form() {
    let bed = Bed::new().await;
    let ran = read(bed.send("POST", "/run/default/web/app?cmd=ls%20-l", ADMIN).await).await;
    assert_eq!(ran, (StatusCode::OK, "outerr".into()));
    let stream = bed.connect(None).await;
    let form = exchange(
        stream,
        request("POST", "/run/default/web/u1/app", ADMIN, "cmd=false+x"),
    )
    .await;
    assert_eq!(
        read(form).await,
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "command 'false x' exited with 1: err".into()
        )
    );
    let asked = bed.fake.asked.lock().unwrap().clone();
    let Asked::Sync(first) = &asked[0] else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (first.container_id.as_str(), first.cmd.as_slice()),
        ("c2", &["ls".to_owned(), "-l".to_owned()][..])
    );
    let gone = read(bed.send("POST", "/run/default/none/app?cmd=x", ADMIN).await).await;
    assert_eq!(gone, (StatusCode::NOT_FOUND, "pod does not exist".into()));
    let wrong = read(bed.send("POST", "/run/default/web/u2/app?cmd=x", ADMIN).await).await;
    assert_eq!(
        wrong,
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "container not found (\"app\")".into()
        )
    );
}

#[tokio::test]
async fn a_checkpoint_is_where_upstream_puts_it() {
    let bed = Bed::new().await;
    let (code, body) = read(
        bed.send("POST", "/checkpoint/default/web/app?timeout=3", ADMIN)
            .await,
    )
    .await;
    assert_eq!(code, StatusCode::OK, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let location = answer["items"][0].as_str().unwrap().to_owned();
    let folder = bed.folder.path().join("checkpoints/checkpoint-web_default-app-");
    assert!(
        location.starts_with(folder.to_str().unwrap()) && location.ends_with("Z.tar"),
        "{location}"
    );
    let folder = std::fs::metadata(bed.folder.path().join("checkpoints")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&folder.permissions());
    assert_eq!(mode & 0o777, 0o700);
    let asked = bed.fake.asked.lock().unwrap().clone();
    let Asked::Checkpoint(request) = &asked[0] else {
        panic!("{asked:?}")
    };
    assert_eq!((request.timeout, &request.location), (3, &location));
    let none = read(bed.send("POST", "/checkpoint/default/web/none", ADMIN).await).await;
    assert_eq!(
        none,
        (StatusCode::NOT_FOUND, "container none does not exist".into())
    );
    let late = read(bed.send("POST", "/checkpoint/default/web/late", ADMIN).await).await;
    assert_eq!(
        late.1,
        "checkpointing of default/web/late failed (container late not found)"
    );
    let bad = read(
        bed.send("POST", "/checkpoint/default/web/app?timeout=x", ADMIN)
            .await,
    )
    .await;
    assert_eq!(bad.1, "cannot parse value of timeout parameter");
}

#[tokio::test]
async fn files_below_the_log_folder_are_shown_and_no_others() {
    let bed = Bed::new().await;
    let folder = bed.folder.path().join("log");
    std::fs::create_dir_all(folder.join("pods/a b")).unwrap();
    std::fs::write(folder.join("syslog"), "lines\n").unwrap();
    std::fs::write(folder.join("pods/a b/0.log"), "deep\n").unwrap();
    std::fs::write(bed.folder.path().join("secret"), "no\n").unwrap();
    std::os::unix::fs::symlink(folder.join("pods/a b/0.log"), folder.join("inside")).unwrap();
    std::os::unix::fs::symlink(bed.folder.path().join("secret"), folder.join("outside")).unwrap();
    nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let listing = bed.get("/logs/").await.1;
    assert!(
        listing.contains("<a href=\"pods/\">pods/</a>\n") && listing.contains("<a href=\"syslog\">"),
        "{listing}"
    );
    assert!(
        bed.get("/logs/pods/")
            .await
            .1
            .contains("<a href=\"a%20b/\">a b/</a>")
    );
    assert_eq!(bed.get("/logs/syslog").await, (StatusCode::OK, "lines\n".into()));
    assert_eq!(bed.get("/logs/pods/a%20b/0.log").await.1, "deep\n");
    assert_eq!(bed.get("/logs/inside").await.1, "deep\n", "a link within");
    for path in [
        "/logs/outside",
        "/logs/../secret",
        "/logs/%2e%2e/secret",
        "/logs/pods/../../secret",
        "/logs/pipe",
    ] {
        assert_eq!(
            bed.get(path).await,
            (StatusCode::FORBIDDEN, "403 Forbidden\n".into()),
            "{path}"
        );
    }
    assert_eq!(bed.get("/logs//etc/hostname").await.0, StatusCode::NOT_FOUND);
    assert_eq!(bed.get("/logs/none").await.0, StatusCode::NOT_FOUND);
    let moved = bed.send("GET", "/logs/pods", ADMIN).await;
    assert_eq!(
        (moved.status(), moved.headers()["location"].to_str().unwrap()),
        (StatusCode::MOVED_PERMANENTLY, "pods/")
    );
    assert_eq!(bed.get("/logs/?query=kubelet").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_is_switched_off_says_so() {
    let bed = Bed::with(|config| config.debugging = false).await;
    for path in [
        "/containerLogs/default/web/app",
        "/runningpods/",
        "/logs/",
        "/exec/default/web/app",
    ] {
        let answer = (
            StatusCode::METHOD_NOT_ALLOWED,
            "Debug endpoints are disabled.\n".to_owned(),
        );
        assert_eq!(bed.get(path).await, answer, "{path}");
    }
    assert_eq!(bed.get("/pods").await.0, StatusCode::OK);
    let bed = Bed::with(|config| config.system_logs = false).await;
    assert_eq!(
        bed.get("/logs/").await,
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "logs endpoint is disabled.\n".into()
        )
    );
}
