//! A registry in this process that can be told to misbehave, and images to serve from it.

pub(crate) mod archive;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::digest::Digest;
use crate::{Images, ImagesConfig};

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status, without content.
    Status(u16),
    /// All headers, but the connection breaks after so many bytes.
    Cut(usize),
    /// Other bytes, of the same length.
    Wrong,
    /// A pause before the answer.
    Slow(Duration),
    /// The headers and some bytes, then silence.
    Stall,
    /// The whole from the beginning, whatever range is asked for.
    NoRange,
    /// The beginning only, as if that were all.
    Short,
}

/// Who may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Everybody.
    Open,
    /// Who has this name and password, by the Basic scheme.
    Basic(&'static str),
    /// Who gets a token for this `Authorization` header ("": nobody in particular) from `/token`.
    Bearer(&'static str),
    /// Who refreshes with this token.
    Refresh(&'static str),
}

struct Content {
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// By part of the path; each is used once.
    faults: Vec<(String, Fault)>,
    guard: Guard,
    log: Vec<String>,
}

/// The registry.
#[derive(Clone)]
pub(crate) struct FakeRegistry {
    pub(crate) address: SocketAddr,
    content: Arc<Mutex<Content>>,
}

/// An image that the registry has.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    pub(crate) id: String,
    pub(crate) digest: Digest,
    pub(crate) layers: Vec<Digest>,
    pub(crate) diff_ids: Vec<Digest>,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn compress(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A tar of files with content.
pub(crate) fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image's blobs and manifest: the manifest's bytes, the blobs, what they are.
pub(crate) fn image_of(
    tars: &[Vec<u8>],
    compression: Compression,
    label: &str,
) -> (Vec<u8>, Vec<Vec<u8>>, Pushed) {
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let mut blobs: Vec<_> = tars.iter().map(|tar| compression.compress(tar)).collect();
    let layers: Vec<_> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/true"], "Labels": {"label": label}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": blobs.iter().map(|blob| describe(compression.media_type(), blob)).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let id = Digest::of(&config).to_string();
    blobs.push(config);
    let digest = Digest::of(&manifest);
    (
        manifest,
        blobs,
        Pushed {
            id,
            digest,
            layers,
            diff_ids,
        },
    )
}

impl FakeRegistry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let content = Content {
            manifests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            faults: Vec::new(),
            guard: Guard::Open,
            log: Vec::new(),
        };
        let registry = Self {
            address,
            content: Arc::new(Mutex::new(content)),
        };
        let serving = registry.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = serving.clone();
                std::thread::spawn(move || registry.serve(stream));
            }
        });
        registry
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Serves an image of layers under `repository:tag`.
    pub(crate) fn push(
        &self,
        repository: &str,
        tag: &str,
        tars: &[Vec<u8>],
        compression: Compression,
    ) -> Pushed {
        self.push_labelled(repository, tag, tars, compression, "")
    }

    pub(crate) fn push_labelled(
        &self,
        repository: &str,
        tag: &str,
        tars: &[Vec<u8>],
        compression: Compression,
        label: &str,
    ) -> Pushed {
        let (manifest, blobs, pushed) = image_of(tars, compression, label);
        for blob in blobs {
            self.put_blob(&blob);
        }
        self.put_manifest(
            repository,
            tag,
            "application/vnd.oci.image.manifest.v1+json",
            manifest,
        );
        pushed
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) {
        self.content
            .lock()
            .unwrap()
            .blobs
            .insert(Digest::of(bytes).to_string(), bytes.to_vec());
    }

    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Digest {
        let digest = Digest::of(&bytes);
        let mut content = self.content.lock().unwrap();
        for version in [tag, &digest.to_string()] {
            let manifest = (media_type.to_owned(), bytes.clone());
            content
                .manifests
                .insert(format!("{repository}/manifests/{version}"), manifest);
        }
        digest
    }

    /// Breaks the next request whose path has `part` in it.
    pub(crate) fn fail(&self, part: &str, fault: Fault) {
        self.content.lock().unwrap().faults.push((part.to_owned(), fault));
    }

    pub(crate) fn guard(&self, guard: Guard) {
        self.content.lock().unwrap().guard = guard;
    }

    /// Requests since the last call: method, path and range.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.content.lock().unwrap().log)
    }

    fn serve(&self, stream: TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((method, path, headers)) = read_request(&mut reader) {
            let mut body = vec![0; headers.get("content-length").map_or(0, |l| l.parse().unwrap())];
            reader.read_exact(&mut body).unwrap();
            if !self.answer(&stream, &method, &path, &headers, &String::from_utf8_lossy(&body)) {
                return;
            }
        }
    }

    /// Whether the connection goes on.
    fn answer(
        &self,
        mut stream: &TcpStream,
        method: &str,
        path: &str,
        headers: &BTreeMap<String, String>,
        body: &str,
    ) -> bool {
        let authorization = headers.get("authorization").map_or("", String::as_str);
        let range = headers.get("range").map(|r| format!(" {r}")).unwrap_or_default();
        let mut content = self.content.lock().unwrap();
        content.log.push(format!("{method} {path}{range}"));
        let fault = content
            .faults
            .iter()
            .position(|(part, _)| path.contains(part.as_str()));
        let fault = fault.map(|at| content.faults.remove(at).1);
        if path.starts_with("/token") {
            let is_good = match &content.guard {
                Guard::Bearer(expected) => authorization == *expected && path.contains("scope=repository%3A"),
                Guard::Refresh(token) => {
                    method == "POST"
                        && body.contains(&format!("refresh_token={token}"))
                        && body.contains("grant_type=refresh_token")
                }
                _ => false,
            };
            return if is_good {
                respond(stream, 200, "", br#"{"token":"sesame","expires_in":300}"#)
            } else {
                respond(
                    stream,
                    401,
                    "",
                    br#"{"errors":[{"code":"UNAUTHORIZED","message":"bad password"}]}"#,
                )
            };
        }
        let (allowed, challenge) = match &content.guard {
            Guard::Open => (true, String::new()),
            Guard::Basic(expected) => (authorization == *expected, "Basic realm=\"r\"".to_owned()),
            Guard::Bearer(_) | Guard::Refresh(_) => {
                let realm = format!("Bearer realm=\"http://{}/token\",service=\"fake\"", self.address);
                (authorization == "Bearer sesame", realm)
            }
        };
        if !allowed {
            return respond(stream, 401, &format!("WWW-Authenticate: {challenge}\r\n"), b"");
        }
        let path = path
            .trim_start_matches("/v2/")
            .split('?')
            .next()
            .unwrap_or_default();
        let found = content.manifests.get(path).cloned().or_else(|| {
            let digest = path.rsplit_once("/blobs/")?.1;
            Some((
                "application/octet-stream".to_owned(),
                content.blobs.get(digest)?.clone(),
            ))
        });
        drop(content);
        let Some((media_type, mut bytes)) = found else {
            return respond(
                stream,
                404,
                "",
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        };
        let digest = Digest::of(&bytes);
        let mut status = 200;
        let mut more = format!("Content-Type: {media_type}\r\n");
        if path.contains("/manifests/") && !matches!(fault, Some(Fault::Wrong)) {
            write!(more, "Docker-Content-Digest: {digest}\r\n").unwrap();
        }
        let from = headers
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if let Some(from) = from.filter(|from| *from < bytes.len() && !matches!(fault, Some(Fault::NoRange)))
        {
            write!(
                more,
                "Content-Range: bytes {from}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            )
            .unwrap();
            bytes.drain(..from);
            status = 206;
        }
        match fault {
            None | Some(Fault::NoRange) => {}
            Some(Fault::Status(status)) => return respond(stream, status, "", b""),
            Some(Fault::Wrong) => bytes.iter_mut().for_each(|byte| *byte ^= 1),
            Some(Fault::Slow(pause)) => std::thread::sleep(pause),
            Some(Fault::Short) => bytes.truncate(bytes.len() / 2),
            Some(Fault::Cut(at)) => {
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} OK\r\n{more}Content-Length: {}\r\n\r\n",
                    bytes.len()
                );
                let _ = stream.write_all(&bytes[..at.min(bytes.len())]);
                return false;
            }
            Some(Fault::Stall) => {
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} OK\r\n{more}Content-Length: {}\r\n\r\n",
                    bytes.len()
                );
                let _ = stream.write_all(&bytes[..bytes.len() / 2]);
                std::thread::sleep(Duration::from_secs(10));
                return false;
            }
        }
        if method == "HEAD" {
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n",
                bytes.len()
            )
            .is_ok();
        }
        respond(stream, status, &more, &bytes)
    }
}

fn respond(mut stream: &TcpStream, status: u16, more: &str, bytes: &[u8]) -> bool {
    let head = format!(
        "HTTP/1.1 {status} X\r\n{more}Content-Length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(&[head.as_bytes(), bytes].concat()).is_ok()
}

type Head = (String, String, BTreeMap<String, String>);

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Head> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    // As a proxy we are asked with a whole URL.
    let path = match target.strip_prefix("http://").and_then(|rest| rest.find('/')) {
        Some(slash) => target["http://".len() + slash..].to_owned(),
        None => target.to_owned(),
    };
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => return Some((method, path, headers)),
        };
    }
}

/// A store with short time-outs.
pub(crate) async fn open_at(root: &Path) -> Images {
    Images::open(config_at(root)).await.unwrap()
}

pub(crate) fn config_at(root: &Path) -> ImagesConfig {
    ImagesConfig {
        progress_timeout: Duration::from_millis(1500),
        ..ImagesConfig::new(root)
    }
}

/// Runs `test` on a thread with a mount namespace of its own, in which a tmpfs is mounted for it.
pub(crate) fn in_mount_namespace(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            const CLONE_NEWNS: i32 = 0x20000;
            const CLONE_FS: i32 = 0x200;
            oci_runtime_sys::clone::unshare(CLONE_NEWNS | CLONE_FS).unwrap();
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            test(dir.path());
        });
        thread.join().unwrap();
    });
}
