//! Against a registry in this process that misbehaves on demand.

use std::time::Duration;

use base64::Engine;

use crate::testing::{Compression, FakeRegistry, Fault, Guard, Pushed, open_at, tar_of};
use crate::{Credentials, Image, Images, PullError, PullErrorKind};

const GZIP: Compression = Compression::Gzip;

struct Bench {
    registry: FakeRegistry,
    images: Images,
    dir: tempfile::TempDir,
    name: String,
    pushed: Pushed,
}

/// An empty store and a registry with one image of a layer that compresses to some hundred kilobytes.
async fn bench() -> Bench {
    let registry = FakeRegistry::start();
    let noise: String = (0..60_000_u64)
        .map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let pushed = registry.push("a/b", "1", &[tar_of(&[("noise", &noise)])], GZIP);
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let name = registry.name("a/b:1");
    Bench {
        registry,
        images,
        dir,
        name,
        pushed,
    }
}

impl Bench {
    async fn pull(&self) -> Result<Image, PullError> {
        self.images.pull(&self.name, None).await
    }

    async fn kind(&self) -> PullErrorKind {
        self.pull().await.unwrap_err().kind()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hiccups_are_tried_again() {
    let bench = bench().await;
    let (manifest, blob) = ("manifests/1", "blobs/");
    for status in [500, 502, 503, 429] {
        bench.registry.fail(manifest, Fault::Status(status));
    }
    bench.registry.fail(blob, Fault::Status(500));
    assert_eq!(bench.pull().await.unwrap().id, bench.pushed.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_stopped() {
    let bench = bench().await;
    let blob = format!("blobs/{}", bench.pushed.layers[0]);
    bench.registry.fail(&blob, Fault::Cut(100_000));
    bench.registry.fail(&blob, Fault::Cut(100_000));
    assert_eq!(bench.pull().await.unwrap().id, bench.pushed.id);
    let log = bench.registry.take_log();
    let ranges: Vec<_> = log
        .iter()
        .filter_map(|line| Some(line.split_once(" bytes=")?.1))
        .collect();
    assert_eq!(ranges.len(), 2, "{log:?}");
    assert!(ranges.iter().all(|range| *range != "0-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_starts_again() {
    let bench = bench().await;
    let blob = format!("blobs/{}", bench.pushed.layers[0]);
    bench.registry.fail(&blob, Fault::Cut(100_000));
    bench.registry.fail(&blob, Fault::NoRange);
    assert_eq!(bench.pull().await.unwrap().id, bench.pushed.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_given_up_in_time() {
    let bench = bench().await;
    let blob = format!("blobs/{}", bench.pushed.layers[0]);
    bench.registry.fail(&blob, Fault::Stall);
    let pulled = tokio::time::timeout(Duration::from_secs(8), bench.pull())
        .await
        .unwrap();
    assert_eq!(pulled.unwrap().id, bench.pushed.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cancelled_leaves_nothing() {
    let bench = bench().await;
    let blob = format!("blobs/{}", bench.pushed.layers[0]);
    bench.registry.fail(&blob, Fault::Stall);
    let ingest = bench.dir.path().join("ingest");
    let in_flight = || crate::disk::names(&ingest).unwrap().len();
    {
        let mut pull = std::pin::pin!(bench.pull());
        let mut log = Vec::new();
        while !log.iter().any(|line: &String| line.contains(&blob)) || in_flight() == 0 {
            let pause = Duration::from_millis(5);
            assert!(tokio::time::timeout(pause, pull.as_mut()).await.is_err());
            log.extend(bench.registry.take_log());
        }
    }
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while in_flight() > 0 {
        assert!(std::time::Instant::now() < until, "the half blob stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.images.list().is_empty());
    // Nothing is locked, and what came whole isn't fetched again.
    assert_eq!(bench.pull().await.unwrap().id, bench.pushed.id);
    bench.images.remove(&bench.pushed.id).await.unwrap().unwrap();
    assert_eq!(bench.images.fs_usage().await.used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_never_stored() {
    let bench = bench().await;
    let (blob, config) = (
        format!("blobs/{}", bench.pushed.layers[0]),
        format!("blobs/{}", bench.pushed.id),
    );
    bench.registry.fail(&config, Fault::Wrong);
    assert_eq!(bench.kind().await, PullErrorKind::Corrupt);
    bench.registry.fail(&blob, Fault::Wrong);
    assert_eq!(bench.kind().await, PullErrorKind::Corrupt);
    bench.registry.fail(&blob, Fault::Short);
    assert_eq!(bench.kind().await, PullErrorKind::Corrupt);
    assert!(bench.images.list().is_empty());
    bench.registry.fail("manifests/1", Fault::Wrong);
    assert_eq!(bench.kind().await, PullErrorKind::Corrupt);
    assert_eq!(bench.pull().await.unwrap().id, bench.pushed.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let bench = bench().await;
    let missing = bench
        .images
        .pull(&bench.registry.name("a/b:2"), None)
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), PullErrorKind::NotFound);
    let text = crate::disk::Chain(&missing).to_string();
    assert!(
        text.contains("a/b:2") && text.contains("manifest unknown"),
        "{text}"
    );
    let nobody = bench.images.pull("127.0.0.1:1/a:1", None).await.unwrap_err();
    assert_eq!(nobody.kind(), PullErrorKind::Unavailable);
    let wrong = bench.images.pull("A:b:c", None).await.unwrap_err();
    assert_eq!(wrong.kind(), PullErrorKind::InvalidReference);
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials {
        username: username.into(),
        password: password.into(),
        ..Default::default()
    }
}

fn basic(pair: &str) -> &'static str {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)).leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ways_of_authentication_work() {
    for (guard, good, bad) in [
        (
            Guard::Basic(basic("u:p")),
            password("u", "p"),
            Some(password("u", "x")),
        ),
        (
            Guard::Bearer(basic("u:p")),
            password("u", "p"),
            Some(password("u", "x")),
        ),
        (Guard::Bearer(basic("u:p")), password("u", "p"), None),
        (Guard::Bearer(""), Credentials::default(), None),
        (
            Guard::Refresh("again"),
            Credentials {
                identity_token: "again".into(),
                ..Default::default()
            },
            None,
        ),
        (
            Guard::Bearer("never"),
            Credentials {
                registry_token: "sesame".into(),
                ..Default::default()
            },
            Some(Credentials {
                registry_token: "wrong".into(),
                ..Default::default()
            }),
        ),
    ] {
        let bench = bench().await;
        bench.registry.guard(guard.clone());
        if guard != Guard::Bearer("") {
            let error = bench.images.pull(&bench.name, bad).await.unwrap_err();
            assert_eq!(
                error.kind(),
                PullErrorKind::Unauthorized,
                "{guard:?}: {}",
                crate::disk::Chain(&error)
            );
        }
        let pulled = bench.images.pull(&bench.name, Some(good)).await;
        assert_eq!(pulled.unwrap().id, bench.pushed.id, "{guard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_what_they_lack_the_next_one_has() {
    let (first, second) = (FakeRegistry::start(), FakeRegistry::start());
    let tars = [tar_of(&[("a", "1")])];
    let pushed = second.push("lib/x", "1", &tars, GZIP);
    // The first has the manifest only.
    let (manifest, _, _) = crate::testing::image_of(&tars, GZIP, "");
    first.put_manifest(
        "lib/x",
        "1",
        "application/vnd.oci.image.manifest.v1+json",
        manifest,
    );
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts/registry.example");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        first.address, second.address
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let mut config = crate::testing::config_at(&dir.path().join("store"));
    config.hosts_dir = Some(dir.path().join("hosts"));
    let images = Images::open(config).await.unwrap();
    let image = images.pull("registry.example/lib/x:1", None).await.unwrap();
    assert_eq!(
        (image.id, image.repo_tags),
        (pushed.id, vec!["registry.example/lib/x:1".to_owned()])
    );
    assert!(first.take_log()[0].ends_with("/v2/lib/x/manifests/1?ns=registry.example"));
    assert!(!second.take_log().iter().any(|line| line.contains("manifests")));
    let error = images.pull("registry.example/lib/y:1", None).await.unwrap_err();
    let text = crate::disk::Chain(&error).to_string();
    assert!(
        text.contains("manifest unknown") && text.contains("127.0.0.1:1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_share_the_download() {
    let bench = bench().await;
    bench.registry.fail(
        &format!("blobs/{}", bench.pushed.layers[0]),
        Fault::Slow(Duration::from_millis(300)),
    );
    let other = bench.registry.push_labelled("c", "1", &[], GZIP, "");
    let pulls = (0..8).map(|_| bench.pull());
    let pulled = futures_util::future::join_all(pulls).await;
    assert!(
        pulled
            .into_iter()
            .all(|image| image.unwrap().id == bench.pushed.id)
    );
    let log = bench.registry.take_log();
    let downloads = log
        .iter()
        .filter(|line| line.contains(&bench.pushed.layers[0].to_string()))
        .count();
    assert_eq!(downloads, 1, "{log:?}");
    assert_eq!(
        bench
            .images
            .pull(&bench.registry.name("c:1"), None)
            .await
            .unwrap()
            .id,
        other.id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_of_this_machine() {
    let bench = bench().await;
    let entry = |digest: &str, size: usize, arch: &str| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": {"os": "linux", "architecture": arch}})
    };
    let ours = crate::manifest::Platform::host().architecture;
    let nowhere = crate::digest::Digest::of(b"nowhere").to_string();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        entry(&nowhere, 1, "s390x"), entry(&bench.pushed.digest.to_string(), 600, &ours)]});
    let digest = bench.registry.put_manifest(
        "a/b",
        "multi",
        "application/vnd.oci.image.index.v1+json",
        serde_json::to_vec(&index).unwrap(),
    );
    let image = bench
        .images
        .pull(&bench.registry.name("a/b:multi"), None)
        .await
        .unwrap();
    assert_eq!(image.id, bench.pushed.id);
    assert_eq!(
        image.repo_digests,
        [bench.registry.name(&format!("a/b@{digest}"))]
    );
    let foreign = serde_json::json!({"schemaVersion": 2, "manifests": [entry(&nowhere, 1, "s390x")]});
    bench.registry.put_manifest(
        "a/b",
        "foreign",
        "application/vnd.oci.image.index.v1+json",
        serde_json::to_vec(&foreign).unwrap(),
    );
    let error = bench
        .images
        .pull(&bench.registry.name("a/b:foreign"), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_manifest_is_refused() {
    let bench = bench().await;
    bench
        .registry
        .put_manifest("a/b", "big", "application/json", vec![b' '; 5 << 20]);
    let error = bench
        .images
        .pull(&bench.registry.name("a/b:big"), None)
        .await
        .unwrap_err();
    assert!(crate::disk::Chain(&error).to_string().contains("larger than"));
}

const PROXIED: &str = "ORLOP_TEST_IMAGES_PROXIED";

/// The child of the next test: pulls from a host that only a proxy knows, when it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn proxied_child() {
    let Ok(root) = std::env::var(PROXIED) else { return };
    let root = std::path::Path::new(&root);
    let mut config = crate::testing::config_at(&root.join("store"));
    config.hosts_dir = Some(root.join("hosts"));
    let pulled = Images::open(config)
        .await
        .unwrap()
        .pull("registry.invalid/x:1", None)
        .await;
    std::fs::write(
        root.join("answer"),
        pulled.map_or_else(|_| "failed".to_owned(), |image| image.id),
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_come_from_the_environment() {
    let registry = FakeRegistry::start();
    let pushed = registry.push("x", "1", &[tar_of(&[("a", "1")])], GZIP);
    let proxy = format!("http://{}", registry.address);
    for (key, no_proxy, answer) in [
        ("HTTP_PROXY", "", pushed.id.as_str()),
        ("http_proxy", "other.invalid", &pushed.id),
        ("HTTP_PROXY", ".invalid", "failed"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts/registry.invalid");
        std::fs::create_dir_all(&hosts).unwrap();
        std::fs::write(hosts.join("hosts.toml"), "server = \"http://registry.invalid\"").unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "registry::tests::proxied_child", "--quiet"])
            .env_remove("REQUEST_METHOD")
            .env(PROXIED, dir.path())
            .env(key, &proxy)
            .env("NO_PROXY", no_proxy)
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(
            std::fs::read_to_string(dir.path().join("answer")).unwrap(),
            answer,
            "{key} {no_proxy}"
        );
    }
}
