//! HTTPS against Debian's docker-registry: whose certificates are believed, what goes through a proxy, who we are.
//!
//! The registry is empty, so that it says "not found" is proof of a connection. What the process's environment and file
//! system say of certificates and proxies is given to a child process, [`child`].

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::contract::Registry;
use crate::testing::config_at;
use crate::{Images, PullErrorKind};

const CHILD: &str = "ORLOP_TEST_IMAGES_TLS";
const NAME: &str = "registry.invalid";

/// A certificate authority, and what it issues.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Self(dir);
        authority.openssl("ca", &["-subj", "/CN=authority"], "critical,CA:TRUE");
        authority
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Certificate and key of a server or client.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let (ca, key) = (self.path("ca.pem"), self.path("ca.key"));
        let names = format!("subjectAltName=DNS:{NAME},IP:127.0.0.1");
        let subject = format!("/CN={name}");
        let arguments = [
            "-CA",
            ca.to_str().unwrap(),
            "-CAkey",
            key.to_str().unwrap(),
            "-subj",
            &subject,
            "-addext",
            &names,
        ];
        self.openssl(name, &arguments, "critical,CA:FALSE");
        (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        )
    }

    fn openssl(&self, name: &str, arguments: &[&str], constraints: &str) {
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args([
                "-nodes",
                "-days",
                "2",
                "-addext",
                &format!("basicConstraints={constraints}"),
            ])
            .arg("-keyout")
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.pem")))
            .args(arguments)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "openssl makes {name}");
    }

    /// A registry with a certificate of this authority.
    async fn registry(&self, more: &str) -> Registry {
        let (cert, key) = self.issue("server");
        let tls = format!(
            ", tls: {{certificate: {}, key: {}{more}}}",
            cert.display(),
            key.display()
        );
        Registry::start_with(tempfile::tempdir().unwrap(), &tls).await
    }
}

/// What a child finds when it starts, and where its answers go.
struct Job {
    dir: tempfile::TempDir,
}

impl Job {
    /// To pull `<host>/a:1`, from a server with TLS.
    fn new(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("reference"), format!("{host}/a:1")).unwrap();
        let hosts = dir.path().join("hosts").join(host);
        fs::create_dir_all(&hosts).unwrap();
        fs::write(hosts.join("hosts.toml"), format!("server = \"https://{host}\"")).unwrap();
        Self { dir }
    }

    fn put(&self, name: &str, from: &Path) {
        fs::copy(from, self.dir.path().join(name)).unwrap();
    }

    /// The kinds of the errors, one for each pull.
    fn run(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "tests::tls::child", "--quiet"]);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        let status = command
            .env(CHILD, self.dir.path())
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let answers = fs::read_to_string(self.dir.path().join("answers")).unwrap();
        answers.lines().map(str::to_owned).collect()
    }
}

/// Pulls when it is told to; with `system`, where that is the system's store of certificates, and with `renewed`, once
/// more after that has taken the place of `store`.
#[test]
fn child() {
    let Ok(root) = std::env::var(CHILD) else { return };
    let root = Path::new(&root);
    let system = root.join("system");
    if system.exists() {
        const CLONE_NEWNS: i32 = 0x20000;
        const CLONE_FS: i32 = 0x200;
        oci_runtime_sys::clone::unshare(CLONE_NEWNS | CLONE_FS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", "/etc/ssl/certs", "tmpfs", MountFlags::empty(), None).unwrap();
        fs::copy(&system, "/etc/ssl/certs/ca-certificates.crt").unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let mut config = config_at(&root.join("images"));
        config.hosts_dir = Some(root.join("hosts"));
        let images = Images::open(config).await.unwrap();
        let reference = fs::read_to_string(root.join("reference")).unwrap();
        let mut answers = String::new();
        loop {
            let error = images.pull(&reference, None).await.unwrap_err();
            answers.push_str(&format!("{:?} {}\n", error.kind(), crate::disk::Chain(&error)));
            if fs::rename(root.join("renewed"), root.join("store")).is_err() {
                break;
            }
        }
        fs::write(root.join("answers"), answers).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_authorities_are_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = authority.registry("").await;
    for (store, expected) in [(&authority, "NotFound"), (&other, "Unavailable")] {
        let job = Job::new(&registry.address);
        job.put("system", &store.certificate());
        let answers = job.run(&[]);
        assert!(
            answers.len() == 1 && answers[0].starts_with(expected),
            "{answers:?}"
        );
        assert_eq!(
            answers[0].contains("invalid peer certificate"),
            expected == "Unavailable"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_systems_authorities_counts_at_the_next_pull() {
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = authority.registry("").await;
    let job = Job::new(&registry.address);
    job.put("store", &other.certificate());
    job.put("renewed", &authority.certificate());
    let store = job.dir.path().join("store");
    let answers = job.run(&[("SSL_CERT_FILE", store.to_str().unwrap())]);
    assert!(answers.len() == 2, "{answers:?}");
    assert!(
        answers[0].starts_with("Unavailable") && answers[1].starts_with("NotFound"),
        "{answers:?}"
    );
}

/// A proxy that knows where [`NAME`] is. Ends with the test's process.
fn start_proxy(registry: &str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (heads, registry) = (Arc::new(Mutex::new(Vec::new())), registry.to_owned());
    let kept = heads.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (kept, registry) = (kept.clone(), registry.clone());
            std::thread::spawn(move || tunnel(client, &registry, &kept));
        }
    });
    (address, heads)
}

fn tunnel(mut client: TcpStream, registry: &str, heads: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    heads.lock().unwrap().push(head);
    let mut server = TcpStream::connect(registry).ok()?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut to_client, mut from_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer).ok()? {
            0 => return server.shutdown(std::net::Shutdown::Write).ok(),
            read => server.write_all(&buffer[..read]).ok()?,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_goes_through_the_proxy_of_the_environment() {
    let authority = Authority::new();
    let registry = authority.registry("").await;
    let (proxy, heads) = start_proxy(&registry.address);
    let port = registry.address.rsplit_once(':').unwrap().1;
    let host = format!("{NAME}:{port}");
    let url = format!("http://me:secret@{proxy}");
    let ca = authority.certificate();
    let store = ("SSL_CERT_FILE", ca.to_str().unwrap());
    for (key, no_proxy, expected) in [
        ("HTTPS_PROXY", "", "NotFound"),
        ("https_proxy", "other.invalid", "NotFound"),
        ("ALL_PROXY", "", "NotFound"),
        // For plain HTTP only, and for others only: then the name has to be found, and can't be.
        ("HTTP_PROXY", "", "Unavailable"),
        ("HTTPS_PROXY", ".invalid", "Unavailable"),
        ("HTTPS_PROXY", "*", "Unavailable"),
    ] {
        let answers = Job::new(&host).run(&[store, (key, &url), ("NO_PROXY", no_proxy)]);
        assert!(answers[0].starts_with(expected), "{key} {no_proxy}: {answers:?}");
        let heads = std::mem::take(&mut *heads.lock().unwrap());
        assert_eq!(
            heads.is_empty(),
            expected == "Unavailable",
            "{key} {no_proxy}: {heads:?}"
        );
        for head in heads {
            assert!(head.starts_with(&format!("CONNECT {host} ")), "{head}");
            // `me:secret`.
            assert!(
                head.to_lowercase()
                    .contains("proxy-authorization: basic bwu6c2vjcmv0"),
                "{head}"
            );
        }
    }
    // The proxy sees nothing of the certificate, but it is looked at.
    let other = Authority::new();
    let store = other.certificate();
    let answers = Job::new(&host).run(&[("SSL_CERT_FILE", store.to_str().unwrap()), ("HTTPS_PROXY", &url)]);
    assert!(answers[0].contains("invalid peer certificate"), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_authority_plain_http_works_and_https_says_what_it_takes() {
    let fake = crate::testing::FakeRegistry::start();
    let nothing = [("SSL_CERT_FILE", "/nowhere/ca.pem"), ("SSL_CERT_DIR", "/nowhere")];
    let host = fake.address.to_string();
    let job = Job::new(&host);
    let hosts = job.dir.path().join("hosts").join(&host).join("hosts.toml");
    let answers = job.run(&nothing);
    assert!(
        answers[0].starts_with("Internal") && answers[0].contains("ca-certificates"),
        "{answers:?}"
    );
    fs::write(hosts, format!("server = \"http://{host}\"")).unwrap();
    let answers = job.run(&nothing);
    assert!(answers[0].starts_with("NotFound"), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_its_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let more = format!(", clientcas: [{}]", clients.certificate().display());
    let registry = authority.registry(&more).await;
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts").join(&registry.address);
    fs::create_dir_all(&hosts).unwrap();
    let mut config = config_at(&dir.path().join("store"));
    config.hosts_dir = Some(dir.path().join("hosts"));
    let images = Images::open(config).await.unwrap();
    let pull = async |client: &str| {
        let ca = authority.certificate();
        let text = format!("server = \"https://{}\"\nca = {ca:?}\n{client}", registry.address);
        fs::write(hosts.join("hosts.toml"), text).unwrap();
        let reference = format!("{}/a:1", registry.address);
        let error = images.pull(&reference, None).await.unwrap_err();
        (error.kind(), crate::disk::Chain(&error).to_string())
    };
    let put = |name: &str, from: &[&PathBuf]| {
        let bytes: Vec<u8> = from.iter().flat_map(|from| fs::read(from).unwrap()).collect();
        fs::write(hosts.join(name), bytes).unwrap();
    };
    let (cert, key) = clients.issue("client");
    put("client.crt", &[&cert]);
    put("client.key", &[&key]);
    put("both.pem", &[&cert, &key]);
    let (stranger, stranger_key) = authority.issue("stranger");
    put("stranger.pem", &[&stranger, &stranger_key]);

    let (kind, text) = pull("").await;
    assert_eq!(kind, PullErrorKind::Unavailable, "{text}");
    let (kind, text) = pull("client = \"stranger.pem\"").await;
    assert_eq!(kind, PullErrorKind::Unavailable, "{text}");
    for client in [
        "[[\"client.crt\", \"client.key\"]]",
        "\"both.pem\"",
        "[\"both.pem\"]",
        "[[\"both.pem\", \"\"]]",
    ] {
        let (kind, text) = pull(&format!("client = {client}")).await;
        assert_eq!(kind, PullErrorKind::NotFound, "{client}: {text}");
    }
    let (kind, text) = pull("client = \"client.crt\"").await;
    assert!(
        kind == PullErrorKind::Internal && text.contains("client.crt"),
        "{text}"
    );
    let (kind, text) = pull("client = [[\"client.crt\", \"absent.key\"]]").await;
    assert!(
        kind == PullErrorKind::Internal && text.contains("absent.key"),
        "{text}"
    );
}
