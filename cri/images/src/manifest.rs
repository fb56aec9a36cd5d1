//! Manifests, indexes and configs: what a registry's JSON says, and which image of an index fits this machine.
//!
//! OCI image manifests and indexes, and Docker's schema 2 manifests and lists, which are the same but for the media
//! types. Schema 1 is refused: it can't be verified by digest, and registries have stopped serving it.

use std::fmt;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::PullErrorKind;
use crate::digest::Digest;

/// The largest manifest or index (what the distribution spec asks registries to take).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The largest config.
pub const MAX_CONFIG: u64 = 8 << 20;
/// The most layers that overlayfs stacks (OVL_MAX_STACK).
pub const MAX_LAYERS: usize = 500;

/// Media types asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A manifest, index or config that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("the {what} is malformed")]
    Malformed {
        /// Manifest, index or config.
        what: &'static str,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// Schema 1.
    #[error(
        "the registry offers only a Docker schema 1 manifest, which is obsolete; push the image again with a newer tool"
    )]
    Schema1,
    /// Something else than an image.
    #[error("`{0}` is not an image that can be run")]
    NotAnImage(String),
    /// Both an index and a manifest, or neither.
    #[error("the manifest has {0}, so it is ambiguous what it means")]
    Ambiguous(&'static str),
    /// Media type inside and outside differ.
    #[error("the manifest says that it is `{inside}` but was sent as `{outside}`")]
    MediaType {
        /// By its own field.
        inside: String,
        /// By the content type of the answer.
        outside: String,
    },
    /// No image for this machine.
    #[error("there is no image for {wanted}, only for {offered}")]
    Platform {
        /// This machine.
        wanted: Platform,
        /// What the index has.
        offered: String,
    },
    /// Too many layers.
    #[error("{0} layers are more than {MAX_LAYERS}, the most that overlayfs stacks")]
    TooManyLayers(usize),
    /// A layer in a form that can't be read.
    #[error("layer {digest} has the unsupported media type `{media_type}`")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Manifest and config disagree.
    #[error("the manifest has {layers} layers but the config has {diff_ids} diff IDs")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// An index in an index in an index.
    #[error("the index is nested too deeply")]
    Nested,
    /// Larger than allowed.
    #[error("the {what} has {size} bytes, more than {max}")]
    TooLarge {
        /// Manifest or config.
        what: &'static str,
        /// By its descriptor.
        size: u64,
        /// Allowed.
        max: u64,
    },
}

impl ManifestError {
    /// What a caller can do about it.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Malformed { .. } | Self::Ambiguous(_) | Self::MediaType { .. } | Self::Layers { .. } => {
                PullErrorKind::Corrupt
            }
            _ => PullErrorKind::Unsupported,
        }
    }
}

/// Operating system and architecture, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v7`; empty when there is none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// The one this program runs on.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well an image for `other` runs here; `None`: not at all. The higher the better.
    fn rank(&self, other: &Self) -> Option<u8> {
        if other.os != self.os || other.architecture != self.architecture {
            return None;
        }
        let number = |variant: &str| variant.strip_prefix('v').and_then(|v| v.parse::<u8>().ok());
        match (self.architecture.as_str(), other.variant.as_str()) {
            (_, variant) if variant == self.variant => Some(u8::MAX),
            // Without a variant it is the oldest one, or the usual one: fine on all.
            (_, "") => Some(u8::MAX - 1),
            ("amd64", "v1") => Some(u8::MAX - 1),
            // Newer 32-bit ARM runs what was built for older.
            ("arm", variant) => {
                let (ours, theirs) = (number(&self.variant)?, number(variant)?);
                (theirs <= ours).then_some(theirs)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// What a registry has under a digest: how large, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: what it runs on.
    pub platform: Option<Platform>,
}

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Images for several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image: its config and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The config.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or index; `content_type` is what the registry sent it as.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    let outside = content_type.map(|t| {
        t.split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
    });
    if outside
        .as_deref()
        .is_some_and(|t| t.starts_with("application/vnd.docker.distribution.manifest.v1"))
    {
        return Err(ManifestError::Schema1);
    }
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed {
        what: "manifest",
        source,
    })?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    let inside = raw.media_type.unwrap_or_default();
    if let Some(outside) = outside
        && (is_index(&outside) || is_manifest(&outside))
        && !inside.is_empty()
        && outside != inside
    {
        return Err(ManifestError::MediaType { inside, outside });
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if inside.is_empty() || is_index(&inside) => {
            Ok(Document::Index(manifests))
        }
        (None, Some(config), Some(layers)) if inside.is_empty() || is_manifest(&inside) => {
            if !is_config(&config.media_type) {
                let what = raw
                    .artifact_type
                    .filter(|t| !t.is_empty())
                    .unwrap_or(config.media_type);
                return Err(ManifestError::NotAnImage(what));
            }
            check_layers(&config, &layers)?;
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        (Some(_), _, _) => Err(ManifestError::Ambiguous(
            "both a list of manifests and fields of an image",
        )),
        (None, Some(_), Some(_)) => Err(ManifestError::NotAnImage(inside)),
        (None, _, _) => Err(ManifestError::Ambiguous(
            "neither a list of manifests nor config and layers",
        )),
    }
}

fn check_layers(config: &Descriptor, layers: &[Descriptor]) -> Result<(), ManifestError> {
    if config.size > MAX_CONFIG {
        return Err(ManifestError::TooLarge {
            what: "config",
            size: config.size,
            max: MAX_CONFIG,
        });
    }
    if layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(layers.len()));
    }
    match layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        Some(layer) => {
            let media_type = layer.media_type.clone();
            Err(ManifestError::LayerType {
                digest: layer.digest,
                media_type,
            })
        }
        None => Ok(()),
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

fn is_config(media_type: &str) -> bool {
    // Some tools push images with a generic type; the config is checked by its content anyway.
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | ""
    )
}

fn is_layer(media_type: &str) -> bool {
    // Which compression it really is, its first bytes say.
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            | ""
    )
}

/// The image of an index that fits `platform` best; the first one of equals.
pub fn select<'a>(index: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let rank = |entry: &Descriptor| match &entry.platform {
        Some(offered) => platform.rank(offered),
        // Tools that know nothing of platforms make an index of one.
        None => (index.len() == 1).then_some(0),
    };
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in index {
        if let Some(rank) = rank(entry)
            && best.is_none_or(|(so_far, _)| rank > so_far)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut offered: Vec<String> = index
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .take(30)
            .map(Platform::to_string)
            .collect();
        offered.dedup();
        let offered = if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        };
        ManifestError::Platform {
            wanted: platform.clone(),
            offered,
        }
    })
}

/// Reads a config and the diff IDs of its layers, bottom first.
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    let malformed = |source| ManifestError::Malformed {
        what: "config",
        source,
    };
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(malformed)?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return Err(ManifestError::Layers {
            layers,
            diff_ids: diff_ids.len(),
        });
    }
    let diff_ids = diff_ids
        .iter()
        .map(|id| {
            id.parse::<Digest>()
                .map_err(|error| malformed(serde::de::Error::custom(error)))
        })
        .collect::<Result<_, _>>()?;
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn entry(n: u8, platform: Option<&str>) -> Descriptor {
        let platform = platform.map(|p| {
            let mut parts = p.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Platform {
                os: next(),
                architecture: next(),
                variant: next(),
            }
        });
        Descriptor {
            media_type: OCI.to_owned(),
            digest: digest(n),
            size: 1,
            platform,
        }
    }

    fn platform(p: &str) -> Platform {
        entry(0, Some(p)).platform.unwrap()
    }

    fn pick(entries: &[Option<&str>], host: &str) -> Option<usize> {
        let index: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(n, p)| entry(n as u8, *p))
            .collect();
        let picked = select(&index, &platform(host)).ok()?.digest;
        index.iter().position(|e| e.digest == picked)
    }

    #[test]
    fn the_platform_that_fits_best_is_picked() {
        let amd = "linux/amd64";
        assert_eq!(
            pick(&[Some("windows/amd64"), Some("linux/arm64/v8"), Some(amd)], amd),
            Some(2)
        );
        assert_eq!(
            pick(&[Some("unknown/unknown"), Some(amd), Some(amd)], amd),
            Some(1)
        );
        assert_eq!(
            pick(&[Some("linux/amd64/v3"), Some("linux/amd64/v1")], amd),
            Some(1)
        );
        assert_eq!(pick(&[Some("linux/amd64/v3")], amd), None);
        assert_eq!(
            pick(
                &[Some("linux/arm/v5"), Some("linux/arm/v6"), Some("linux/arm/v8")],
                "linux/arm/v7"
            ),
            Some(1)
        );
        assert_eq!(pick(&[Some("linux/arm64")], "linux/arm64/v8"), Some(0));
        assert_eq!(pick(&[Some("linux/arm64/v8")], "linux/arm64/v8"), Some(0));
        assert_eq!(pick(&[None], amd), Some(0));
        assert_eq!(pick(&[None, None], amd), None);
        assert_eq!(pick(&[], amd), None);
        let error = select(&[entry(0, Some("linux/s390x"))], &platform(amd))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "there is no image for linux/amd64, only for linux/s390x");
    }

    fn manifest(extra: &str) -> String {
        let d = digest(1);
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{d}","size":2}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{d}","size":3}}]{extra}}}"#
        )
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        assert!(
            matches!(parse(manifest("").as_bytes(), Some(OCI)), Ok(Document::Manifest(m)) if m.layers.len() == 1)
        );
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(parse(index.as_bytes(), None), Ok(Document::Index(m)) if m.is_empty()));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let kind = |text: &str, content_type| parse(text.as_bytes(), content_type).unwrap_err();
        assert!(matches!(
            kind(r#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            ManifestError::Schema1
        ));
        let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(kind("x", Some(v1)), ManifestError::Schema1));
        assert!(matches!(kind("x", None), ManifestError::Malformed { .. }));
        assert!(matches!(kind("{}", None), ManifestError::Ambiguous(_)));
        assert!(matches!(
            kind(&manifest(r#","manifests":[]"#), None),
            ManifestError::Ambiguous(_)
        ));
        let docker = r#","mediaType":"application/vnd.docker.distribution.manifest.v2+json""#;
        assert!(matches!(
            kind(&manifest(docker), Some(OCI)),
            ManifestError::MediaType { .. }
        ));
        let helm = manifest("").replace("oci.image.config", "cncf.helm.config");
        assert!(matches!(kind(&helm, None), ManifestError::NotAnImage(_)));
        let encrypted = manifest("").replace("tar+gzip", "tar+gzip+encrypted");
        assert!(matches!(kind(&encrypted, None), ManifestError::LayerType { .. }));
        let sha512 = manifest("").replace("sha256:", "sha512:");
        assert!(matches!(kind(&sha512, None), ManifestError::Malformed { .. }));
    }

    #[test]
    fn configs_of_docker_and_oci_are_read() {
        let d = digest(1);
        let docker = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null,
            "Volumes":null,"WorkingDir":"","Labels":null,"OnBuild":null,"Image":"","Domainname":""}},"container":"x",
            "container_config":{{}},"docker_version":"1","created":"2020-01-01T00:00:00Z","history":[{{"created_by":"x"}}],
            "rootfs":{{"type":"layers","diff_ids":["{d}"]}}}}"#
        );
        let (config, diff_ids) = parse_config(docker.as_bytes(), 1).unwrap();
        assert_eq!(diff_ids, [d]);
        assert_eq!(config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["sh"]);
        assert!(matches!(
            parse_config(docker.as_bytes(), 2),
            Err(ManifestError::Layers { .. })
        ));
        assert!(matches!(
            parse_config(b"{}", 0),
            Err(ManifestError::Malformed { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, None);
            let _ = parse_config(&bytes, 1);
        }
    }
}
