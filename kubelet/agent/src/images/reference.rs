//! Names of images: whether they are any, and the tag that is meant where none is said.
//!
//! The grammar is that of the distribution project's references, which the OCI distribution specification shares.

/// A name that is none, in the words that users know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name \"{name}\": {reason}")]
pub struct BadName {
    name: String,
    reason: &'static str,
}

/// The longest name of a repository.
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// The name with `:latest` where it has neither tag nor digest.
///
/// # Errors
/// It is no name of an image.
pub fn with_default_tag(name: &str) -> Result<String, BadName> {
    let bad = |reason| BadName {
        name: name.to_owned(),
        reason,
    };
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(bad("invalid reference format"));
    }
    let (repository, tag) = match rest.rsplit_once(':') {
        // A colon before a slash is a port's.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(bad("invalid reference format"));
    }
    if repository.len() > MAX_NAME {
        return Err(bad("repository name must not be more than 255 characters"));
    }
    if !is_repository(repository) {
        let lower = repository.to_lowercase();
        return Err(bad(if lower != repository && is_repository(&lower) {
            "invalid reference format: repository name must be lowercase"
        } else {
            "invalid reference format"
        }));
    }
    Ok(if tag.is_none() && digest.is_none() {
        format!("{name}:latest")
    } else {
        name.to_owned()
    })
}

/// The registry of a name, `docker.io` where none is said, and the repository in it.
pub fn registry_and_path(name: &str) -> (String, String) {
    let rest = name.split('@').next().unwrap_or(name);
    let rest = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => rest,
    };
    match rest.split_once('/') {
        Some((host, path)) if is_host(host) => (host.to_owned(), path.to_owned()),
        Some(_) => ("docker.io".to_owned(), rest.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{rest}")),
    }
}

/// Whether the first part of a name is a registry rather than a part of the path.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(|letter| letter.is_ascii_uppercase())
}

fn is_repository(name: &str) -> bool {
    let path = match name.split_once('/') {
        Some((host, path)) if is_host(host) => {
            if !is_domain(host) {
                return false;
            }
            path
        }
        _ => name,
    };
    !path.is_empty() && path.split('/').all(is_component)
}

fn is_domain(host: &str) -> bool {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        }
        None => host
            .split_once(':')
            .map_or((host, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower case letters and digits, separated by one dot, one or two underscores or any number of dashes.
fn is_component(part: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    good(*first)
        && good(*last)
        && part
            .split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit())
            .all(|between| {
                matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
            })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_means_latest() {
        for (name, full) in [
            ("nginx", "nginx:latest"),
            ("nginx:1.27", "nginx:1.27"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("[fd00::1]:5000/a", "[fd00::1]:5000/a:latest"),
            ("a__b/c--d/e.f", "a__b/c--d/e.f:latest"),
        ] {
            assert_eq!(with_default_tag(name).as_deref(), Ok(full));
        }
        let digest = format!("registry.k8s.io/pause@sha256:{}", "a".repeat(64));
        assert_eq!(with_default_tag(&digest), Ok(digest.clone()));
    }

    #[test]
    fn what_is_no_name_is_told_as_upstream_tells_it() {
        let said = |name: &str| with_default_tag(name).expect_err(name).to_string();
        assert_eq!(
            said("FAILED_IMAGE"),
            "couldn't parse image name \"FAILED_IMAGE\": invalid reference format: repository name must be lowercase"
        );
        for name in [
            "",
            "a b",
            "a:",
            "a@sha256:12",
            "a..b",
            "-a",
            "a/",
            "a___b",
            "a:b:c",
        ] {
            assert!(said(name).contains("invalid reference format"), "{name}");
        }
        assert!(said(&"a".repeat(256)).contains("255"));
    }

    #[test]
    fn registries_and_paths_are_told_apart() {
        for (name, registry, path) in [
            ("nginx", "docker.io", "library/nginx"),
            ("me/app:1", "docker.io", "me/app"),
            ("localhost:5000/app:1", "localhost:5000", "app"),
            ("registry.k8s.io/a/b@sha256:00", "registry.k8s.io", "a/b"),
        ] {
            assert_eq!(registry_and_path(name), (registry.to_owned(), path.to_owned()));
        }
    }
}
