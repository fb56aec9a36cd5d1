//! Image references: `[host[:port]/]repository[:tag][@digest]`.
//!
//! The grammar is that of the distribution project, with Docker's defaults: without a host it is docker.io, on docker.io
//! a name of one part is below `library/`, without a tag and a digest the tag is `latest`. When there are both a tag
//! and a digest, the digest decides and the tag is dropped: it may long since mean something else.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The longest repository name, host included.
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;
/// The host that is meant when none is named.
const DEFAULT_HOST: &str = "docker.io";

/// A parsed image reference, in full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    repository: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// By a name that can move.
    Tag(String),
    /// By content.
    Digest(Digest),
}

/// A string that isn't an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("an image reference can't be empty")]
    Empty,
    /// Too long.
    #[error("the image reference `{0}...` is longer than {MAX_NAME} characters")]
    TooLong(String),
    /// A bare image ID, where a name is needed.
    #[error("the image reference `{0}` is an image ID; name a repository")]
    Id(String),
    /// The host part.
    #[error("the image reference `{reference}` has an invalid host `{host}`")]
    Host {
        /// The whole.
        reference: String,
        /// The part.
        host: String,
    },
    /// The repository part.
    #[error(
        "the image reference `{reference}` has an invalid repository `{repository}`: \
         its parts must be a-z 0-9, with single `.`, `_`, `__` or dashes between"
    )]
    Repository {
        /// The whole.
        reference: String,
        /// The part.
        repository: String,
    },
    /// The tag part.
    #[error(
        "the image reference `{reference}` has an invalid tag `{tag}`: \
         1 to {MAX_TAG} of A-Z a-z 0-9 _ . - and neither `.` nor `-` first"
    )]
    Tag {
        /// The whole.
        reference: String,
        /// The part.
        tag: String,
    },
    /// The digest part.
    #[error("the image reference `{reference}` has an invalid digest")]
    Digest {
        /// The whole.
        reference: String,
        /// What is wrong with the part.
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// The registry: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on that registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which image of it.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Host and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The same repository at a digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            repository,
            version,
        } = self;
        match version {
            Version::Tag(tag) => write!(f, "{host}/{repository}:{tag}"),
            Version::Digest(digest) => write!(f, "{host}/{repository}@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let shown = || text.chars().take(300).collect::<String>();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                    reference: shown(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before belongs to a port or an IPv6 address.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag)),
            _ => (rest, None),
        };
        if name.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(name.chars().take(60).collect()));
        }
        if Digest::from_hex(name).is_some() {
            return Err(ReferenceError::Id(shown()));
        }
        let (host, repository) = split_host(name);
        if !is_host(host) {
            return Err(ReferenceError::Host {
                reference: shown(),
                host: host.to_owned(),
            });
        }
        if !repository.split('/').all(is_component) {
            return Err(ReferenceError::Repository {
                reference: shown(),
                repository: repository.to_owned(),
            });
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag {
                reference: shown(),
                tag: tag.chars().take(200).collect(),
            });
        }
        let repository = match (host, repository.contains('/')) {
            (DEFAULT_HOST, false) => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        // The defaults count too: what is stored is the full form.
        if host.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(name.chars().take(60).collect()));
        }
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            host: host.to_owned(),
            repository,
            version,
        })
    }
}

/// Splits the host from a name; the first part is one when it looks like one.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_HOST, rest),
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    }
}

/// Whether this is `name`, `name:port`, `[ipv6]` or `[ipv6]:port`.
pub(crate) fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|c| c.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Whether this is one part of a repository's path.
fn is_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let alphanumeric = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    // Between letters and digits: one dot, one or two underscores, or any number of dashes.
    bytes.split(alphanumeric).all(|gap| {
        matches!(gap, b"" | b"." | b"_" | b"__") || (!gap.is_empty() && gap.iter().all(|c| *c == b'-'))
    })
}

/// Whether this is a tag.
fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn full(text: &str) -> String {
        text.parse::<Reference>()
            .map_or_else(|error| format!("error: {error}"), |r| r.to_string())
    }

    #[test]
    fn a_name_is_not_too_long_only_by_its_full_form() {
        let room = MAX_NAME - "docker.io/library/".len();
        let fits: Reference = "a".repeat(room).parse().unwrap();
        assert_eq!(fits.name().len(), MAX_NAME);
        assert!(matches!(
            "a".repeat(room + 1).parse::<Reference>(),
            Err(ReferenceError::TooLong(_))
        ));
    }

    #[test]
    fn short_names_get_their_defaults() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(full("me/app"), "docker.io/me/app:latest");
        assert_eq!(full("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(
            full("index.docker.io/busybox"),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(full("localhost/a"), "localhost/a:latest");
        assert_eq!(full("localhost:5000/a:b"), "localhost:5000/a:b");
        assert_eq!(full("[::1]:5000/a"), "[::1]:5000/a:latest");
        assert_eq!(full("[fd00::1]/a/b:c"), "[fd00::1]/a/b:c");
        assert_eq!(
            full("registry.k8s.io/e2e-test-images/busybox:1.29-2"),
            "registry.k8s.io/e2e-test-images/busybox:1.29-2"
        );
        assert_eq!(full("a__b/c---d.e_f"), "docker.io/a__b/c---d.e_f:latest");
        assert_eq!(full("REG/a"), "REG/a:latest");
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        assert_eq!(
            full(&format!("busybox@{DIGEST}")),
            format!("docker.io/library/busybox@{DIGEST}")
        );
        assert_eq!(
            full(&format!("a.b:1/x:tag@{DIGEST}")),
            format!("a.b:1/x@{DIGEST}")
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            ":",
            "/",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-x",
            "A",
            "a b",
            "a_-b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a@",
            "a@b",
            "http://a/b",
            "a:99999/b",
            "[::1/b",
            "[xyz]:1/b",
            "a:1:2/b",
            "a.b:/c",
            "a\n",
            "ä",
            "../a",
            "a/../b",
            "a.-b/c",
            "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982!",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} gave {}", full(bad));
        }
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
        assert!("x/".repeat(200).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn anything_parses_or_fails_without_a_panic(text in "\\PC{0,300}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_full_form_is_a_fixed_point(text in "([a-z0-9.:\\[\\]-]{0,12}/)?[a-z0-9._/-]{1,20}(:[a-z0-9._-]{1,8})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                let full = reference.to_string();
                prop_assert_eq!(full.parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn a_good_reference_keeps_its_parts(
            host in "[a-z][a-z0-9]{0,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let reference: Reference = format!("{host}/{repository}:{tag}").parse().unwrap();
            prop_assert_eq!(reference.host(), host);
            if reference.host() != DEFAULT_HOST {
                prop_assert_eq!(reference.repository(), repository);
            }
            prop_assert_eq!(reference.version(), &Version::Tag(tag));
        }
    }
}
