//! The same against Debian's docker-registry, so that the registry of the other tests doesn't only please us.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::testing::{Compression, image_of, open_at, tar_of};

/// A process that serves what was pushed to it.
pub(super) struct Registry {
    process: Child,
    pub(super) address: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    async fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), "").await
    }

    /// With more lines for the `http` section.
    pub(super) async fn start_with(dir: tempfile::TempDir, http: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"{http}}}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's docker-registry is installed (hack/deps)");
        let registry = Self {
            process,
            address,
            _dir: dir,
        };
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < until, "docker-registry doesn't answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    async fn push_blob(&self, client: &reqwest::Client, repository: &str, bytes: Vec<u8>) {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
        let begun = client.post(url).send().await.unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", Digest::of(&bytes));
        let put = client
            .put(url)
            .header("content-type", "application/octet-stream")
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), 201);
    }

    async fn push_manifest(&self, client: &reqwest::Client, name: &str, media_type: &str, bytes: Vec<u8>) {
        let url = format!("http://{}/v2/{name}", self.address);
        let put = client
            .put(url)
            .header("content-type", media_type)
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_real_registry_are_pulled() {
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let big: String = (0..300_000).map(|n| format!("{n} ")).collect();
    for (tag, compression) in [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("plain", Compression::Plain),
    ] {
        let tars = [tar_of(&[("big", &big)]), tar_of(&[("tag", tag)])];
        let (manifest, blobs, pushed) = image_of(&tars, compression, tag);
        for blob in blobs {
            registry.push_blob(&client, "team/app", blob).await;
        }
        let (oci, index) = (
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
        );
        let size = manifest.len();
        registry
            .push_manifest(&client, &format!("team/app/manifests/{tag}"), oci, manifest)
            .await;
        let list = serde_json::json!({"schemaVersion": 2, "mediaType": index, "manifests": [
            {"mediaType": oci, "digest": pushed.digest, "size": size,
             "platform": {"os": "linux", "architecture": crate::manifest::Platform::host().architecture}}]});
        let list = serde_json::to_vec(&list).unwrap();
        let list_digest = Digest::of(&list);
        registry
            .push_manifest(&client, &format!("team/app/manifests/{tag}-list"), index, list)
            .await;
        let name = format!("{}/team/app", registry.address);
        for version in [
            format!(":{tag}"),
            format!(":{tag}-list"),
            format!("@{list_digest}"),
        ] {
            let image = images.pull(&format!("{name}{version}"), None).await.unwrap();
            assert_eq!(image.id, pushed.id, "{version}");
        }
        let image = images.find(&pushed.id).unwrap();
        assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (2, 2));
    }
    let error = images
        .pull(&format!("{}/team/none:1", registry.address), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), crate::PullErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_a_known_authority() {
    let certificates = tempfile::tempdir().unwrap();
    let (cert, key) = (
        certificates.path().join("cert.pem"),
        certificates.path().join("key.pem"),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let tls = format!(
        ", tls: {{certificate: {}, key: {}}}",
        cert.display(),
        key.display()
    );
    let registry = Registry::start_with(tempfile::tempdir().unwrap(), &tls).await;
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts").join(&registry.address);
    std::fs::create_dir_all(&hosts).unwrap();
    let mut config = crate::testing::config_at(&dir.path().join("store"));
    config.hosts_dir = Some(dir.path().join("hosts"));
    let images = crate::Images::open(config).await.unwrap();
    // The registry is empty: that it says so is proof of the connection.
    let pull = async |more: &str| {
        let text = format!("server = \"https://{}\"\n{more}", registry.address);
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        let error = images
            .pull(&format!("{}/a:1", registry.address), None)
            .await
            .unwrap_err();
        (error.kind(), crate::disk::Chain(&error).to_string())
    };
    let (kind, text) = pull("").await;
    assert_eq!(kind, crate::PullErrorKind::Unavailable);
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    assert_eq!(pull("skip_verify = true").await.0, crate::PullErrorKind::NotFound);
    let ca = format!("ca = \"{}\"", cert.display());
    let (kind, text) = pull(&ca).await;
    assert_eq!(kind, crate::PullErrorKind::NotFound, "{text}");
    let (kind, text) = pull("ca = \"absent.pem\"").await;
    assert!(
        kind == crate::PullErrorKind::Internal && text.contains("absent.pem"),
        "{text}"
    );
}
