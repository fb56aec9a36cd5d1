//! Every image that some test wants, by the reference it is pulled by.
//!
//! The CRI suite names its images; what each must contain is what its specs look at. The images of our own tests are
//! below `orlop.test`, a host that exists nowhere.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use crate::layer::{Layer, gzip, zstd};

/// The executables that images are made from.
#[derive(Debug)]
pub struct Programs {
    /// busybox, see [`crate::busybox`].
    pub busybox: Vec<u8>,
    /// The names busybox answers to.
    pub applets: Vec<String>,
    /// The test host, see [`crate::host`].
    pub test_host: Vec<u8>,
}

/// How a manifest is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI manifest.
    Oci,
    /// Docker's manifest, version 2, schema 2.
    Docker,
    /// An OCI index that lists a manifest for another architecture first.
    Index,
}

/// A layer's two sides: what is transferred, and the digest of what it unpacks to.
#[derive(Debug, Clone)]
pub struct LayerBytes {
    /// The compressed archive.
    pub blob: Vec<u8>,
    /// The archive; its digest goes into the image's configuration.
    pub plain: Vec<u8>,
    /// The media type's ending, `gzip` or `zstd`.
    pub compression: &'static str,
}

/// An image: references, layers, configuration.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full references, each with a tag.
    pub references: Vec<String>,
    /// Lowest first.
    pub layers: Vec<LayerBytes>,
    /// The `config` member of the image's configuration.
    pub config: Value,
    /// How its manifest is written.
    pub form: Form,
    /// Write this as the image's configuration instead of a right one.
    pub broken_config: Option<Vec<u8>>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// All of them.
pub fn all(programs: &Programs) -> Result<Vec<Image>> {
    let base = Bases::new(programs)?;
    let mut images = suite(&base)?;
    images.extend(ours(&base)?);
    images.extend(hostile(&base)?);
    Ok(images)
}

/// Layers that many images share.
struct Bases {
    busybox: LayerBytes,
    host: Vec<u8>,
}

impl Bases {
    fn new(programs: &Programs) -> Result<Self> {
        Ok(Self {
            busybox: packed(busybox_layer(programs)?)?,
            host: programs.test_host.clone(),
        })
    }

    /// The test host under another name, perhaps with more files.
    fn program(&self, path: &str, mode: u32) -> Result<Layer> {
        let mut layer = Layer::new();
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            layer = layer.dir(&path[..at + slash], 0o755)?;
            at += slash + 1;
        }
        layer.file(path, mode, &self.host)
    }
}

/// The images of the CRI suite and of its benchmark.
fn suite(base: &Bases) -> Result<Vec<Image>> {
    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    let tools = |name: &str| format!("gcr.io/k8s-staging-cri-tools/{name}");
    let architecture = architecture();
    let shell = || vec![base.busybox.clone()];
    let sh = json!({ "Cmd": ["sh"] });
    let nginx_layer = packed(base.program("usr/sbin/nginx", 0o755)?.finish()?)?;
    let nginx = json!({ "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": { "80/tcp": {} } });
    let hostnet = Layer::new()
        .dir("etc", 0o755)?
        .dir("etc/nginx", 0o755)?
        .dir("etc/nginx/conf.d", 0o755)?
        .file(
            "etc/nginx/conf.d/default.conf",
            0o644,
            b"server {\n    listen 12003;\n}\n",
        )?;
    let httpd = packed(base.program("usr/local/bin/httpd-foreground", 0o755)?.finish()?)?;
    let nonewprivs = packed(base.program("nonewprivs", 0o4755)?.finish()?)?;
    let predefined = Layer::new()
        .dir("etc", 0o755)?
        .file(
            "etc/passwd",
            0o644,
            format!("{PASSWD}default-user:x:1000:1000::/home:/bin/sh\n").as_bytes(),
        )?
        .file(
            "etc/group",
            0o644,
            format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n").as_bytes(),
        )?;

    let mut images = vec![
        image(&[&e2e("busybox:1.29-2")], shell(), sh.clone()),
        image(
            &[&e2e("nginx:1.14-2")],
            vec![base.busybox.clone(), nginx_layer.clone()],
            nginx.clone(),
        ),
        image(
            &[&e2e("httpd:2.4.39-4")],
            vec![base.busybox.clone(), httpd],
            json!({ "Cmd": ["httpd-foreground"] }),
        ),
        image(
            &[&e2e("nonewprivs:1.3")],
            vec![base.busybox.clone(), nonewprivs],
            json!({ "Entrypoint": ["/nonewprivs"] }),
        ),
        image(
            &["registry.k8s.io/pause:3.9"],
            vec![packed(base.program("pause", 0o755)?.finish()?)?],
            json!({ "Entrypoint": ["/pause"] }),
        ),
        image(
            &[&tools(&format!("hostnet-nginx-{architecture}:latest"))],
            vec![base.busybox.clone(), nginx_layer, packed(hostnet.finish()?)?],
            nginx,
        ),
        image(
            &[&tools("test-image-predefined-group:latest")],
            vec![base.busybox.clone(), packed(predefined.finish()?)?],
            json!({ "Cmd": ["sh"], "User": "1000" }),
        ),
        image(
            &[
                &tools("test-image-tags:1"),
                &tools("test-image-tags:2"),
                &tools("test-image-tags:3"),
            ],
            shell(),
            sh.clone(),
        ),
        image(&[&tools("test-image-latest:latest")], shell(), sh.clone()),
        image(&[&tools("test-image-tag:test")], shell(), sh.clone()),
        image(&[&tools("test-image-tag:all")], shell(), sh.clone()),
    ];
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let reference = tools(&format!("test-image-user-{name}:latest"));
        images.push(image(
            &[&reference],
            shell(),
            json!({ "Cmd": ["sh"], "User": user }),
        ));
    }
    for n in 1..=3 {
        images.push(image(
            &[&tools(&format!("test-image-{n}:latest"))],
            shell(),
            sh.clone(),
        ));
    }
    for tag in ["1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc"] {
        images.push(image(
            &[&format!("public.ecr.aws/docker/library/busybox:{tag}")],
            shell(),
            sh.clone(),
        ));
    }
    Ok(images)
}

/// The images of our own tests.
fn ours(base: &Bases) -> Result<Vec<Image>> {
    let shell = || vec![base.busybox.clone()];
    let sh = json!({ "Cmd": ["sh"] });
    let host = packed(base.program("test-host", 0o755)?.finish()?)?;
    let serve =
        json!({ "Entrypoint": ["/test-host"], "Cmd": ["serve", "8080"], "ExposedPorts": { "8080/tcp": {} } });
    let bare = Layer::new()
        .dir("etc", 0o755)?
        .file("etc/passwd", 0o644, PASSWD.as_bytes())?
        .file("etc/group", 0o644, GROUP.as_bytes())?
        .dir("tmp", 0o1777)?;

    // Each later layer hides something of the one below, in every way that there is.
    let below = Layer::new()
        .dir("kept", 0o755)?
        .file("kept/a", 0o644, b"a\n")?
        .file("kept/b", 0o644, b"b\n")?
        .dir("emptied", 0o755)?
        .file("emptied/old", 0o644, b"old\n")?
        .file("gone", 0o644, b"gone\n")?
        .symlink("link", "kept/a")?;
    let above = Layer::new()
        .file(".wh.gone", 0o644, b"")?
        .dir("kept", 0o755)?
        .file("kept/.wh.b", 0o644, b"")?
        .dir("emptied", 0o755)?
        .file("emptied/.wh..wh..opq", 0o644, b"")?
        .file("emptied/new", 0o644, b"new\n")?;
    let mut many = shell();
    for n in 0..120 {
        let layer = Layer::new().dir("layers", 0o755)?.file(
            &format!("layers/{n}"),
            0o644,
            format!("{n}\n").as_bytes(),
        )?;
        many.push(packed(layer.finish()?)?);
    }
    // More files than are flushed one by one.
    let mut files = Layer::new().dir("files", 0o755)?;
    for n in 0..1500 {
        files = files.file(
            &format!("files/{n}"),
            0o644,
            format!("{n}\n").repeat(64).as_bytes(),
        )?;
    }
    let zstd_layer = LayerBytes {
        blob: zstd(&base.busybox.plain)?,
        compression: "zstd",
        ..base.busybox.clone()
    };

    let mut images = vec![
        image(
            &["orlop.test/demo:latest"],
            vec![base.busybox.clone(), host.clone()],
            serve.clone(),
        ),
        image(
            &["orlop.test/test-host:1"],
            vec![packed(bare.finish()?)?, host],
            serve,
        ),
        image(&["orlop.test/busybox:1"], shell(), sh.clone()),
        // For servers that need a pause process, which must not be an image that a spec removes.
        image(
            &["orlop.test/sandbox:1"],
            vec![packed(base.program("pause", 0o755)?.finish()?)?],
            json!({ "Entrypoint": ["/pause"] }),
        ),
        image(
            &["orlop.test/whiteouts:1"],
            vec![
                base.busybox.clone(),
                packed(below.finish()?)?,
                packed(above.finish()?)?,
            ],
            sh.clone(),
        ),
        image(&["orlop.test/many-layers:1"], many, sh.clone()),
        image(
            &["orlop.test/many-files:1"],
            vec![base.busybox.clone(), packed(files.finish()?)?],
            sh.clone(),
        ),
        image(&["orlop.test/zstd:1"], vec![zstd_layer], sh.clone()),
    ];
    let mut docker = image(&["orlop.test/docker-manifest:1"], shell(), sh.clone());
    docker.form = Form::Docker;
    images.push(docker);
    let mut index = image(&["orlop.test/index:1"], shell(), sh);
    index.form = Form::Index;
    images.push(index);
    Ok(images)
}

/// Images that must be refused, or must do no harm.
fn hostile(base: &Bases) -> Result<Vec<Image>> {
    let sh = json!({ "Cmd": ["sh"] });
    let with = |name: &str, layer: LayerBytes| {
        image(
            &[&format!("orlop.test/{name}:1")],
            vec![base.busybox.clone(), layer],
            sh.clone(),
        )
    };
    let traversal = Layer::new()
        .hostile_file("../../../../../../tmp/orlop-escaped", b"escaped\n")?
        .finish()?;
    // Followed inside the image's root this is harmless; followed outside it is an escape.
    let symlink = Layer::new()
        .dir("tmp", 0o1777)?
        .symlink("out", "/tmp")?
        .file("out/orlop-escaped", 0o644, b"escaped\n")?
        .finish()?;
    let fine = Layer::new().file("fine", 0o644, b"fine\n")?.finish()?;
    let not_gzip = LayerBytes {
        blob: b"this is no gzip stream".to_vec(),
        plain: fine.clone(),
        compression: "gzip",
    };
    let mut cut = packed(fine.clone())?;
    cut.blob.truncate(cut.blob.len() / 2);
    let mut other = packed(fine)?;
    other.plain = b"something else".to_vec();

    let mut config = with("bad-config", base.busybox.clone());
    config.broken_config =
        Some(b"{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"la".to_vec());
    Ok(vec![
        with("bad-traversal", packed(traversal)?),
        with("absolute-symlink", packed(symlink)?),
        with("bad-layer", not_gzip),
        with("cut-layer", cut),
        with("bad-diff-id", other),
        config,
    ])
}

/// An image whose configuration, and so its ID, is its own: the first reference is in a label.
fn image(references: &[&str], layers: Vec<LayerBytes>, mut config: Value) -> Image {
    config["Env"] = json!([PATH]);
    config["WorkingDir"] = json!("/");
    config["Labels"] = json!({ "test.orlop.image": references[0] });
    Image {
        references: references.iter().map(|&r| r.to_owned()).collect(),
        layers,
        config,
        form: Form::Oci,
        broken_config: None,
    }
}

fn packed(plain: Vec<u8>) -> Result<LayerBytes> {
    Ok(LayerBytes {
        blob: gzip(&plain)?,
        plain,
        compression: "gzip",
    })
}

/// The architecture, as Go and OCI call it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A small system: busybox under all its names as hard links, so that one of them can be hidden or replaced.
fn busybox_layer(programs: &Programs) -> Result<Vec<u8>> {
    let mut layer = Layer::new()
        .dir("bin", 0o755)?
        .file("bin/busybox", 0o755, &programs.busybox)?;
    let names: BTreeSet<&String> = programs
        .applets
        .iter()
        .filter(|name| *name != "busybox")
        .collect();
    for name in names {
        layer = layer.hard_link(&format!("bin/{name}"), "bin/busybox")?;
    }
    for dir in [
        "dev", "etc", "home", "mnt", "proc", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/lib",
        "var/run",
    ] {
        layer = layer.dir(dir, 0o755)?;
    }
    layer
        .hard_link("usr/bin/env", "bin/busybox")?
        .dir("root", 0o700)?
        .dir("tmp", 0o1777)?
        .dir("var/tmp", 0o1777)?
        .file("etc/passwd", 0o644, PASSWD.as_bytes())?
        .file("etc/group", 0o644, GROUP.as_bytes())?
        .file(
            "etc/nsswitch.conf",
            0o644,
            b"passwd: files\ngroup: files\nhosts: files dns\n",
        )?
        .finish()
}
