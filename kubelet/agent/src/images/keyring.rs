//! Credentials for registries: from pods' `imagePullSecrets` and from the node's own files.
//!
//! Entries are matched as upstream does: by host, where each label may have `*` and the port must be the same, and by a
//! prefix of the path; the longest match is tried first, and several are tried one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use controlplane_api::k8s_openapi::api::core::v1::Secret;
use cri_api::v1::AuthConfig;
use serde::Deserialize;

use super::reference::registry_and_path;

/// A secret or a file that holds no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BadCredentials(String);

/// The largest file of credentials that is read.
const MAX_FILE: u64 = 1 << 20;

/// Credentials, by what they are for.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// `host/path` without scheme, longest first, and who to be there.
    entries: Vec<(String, AuthConfig)>,
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, DockerEntry>,
}

#[derive(Deserialize)]
struct DockerEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

impl Keyring {
    /// Adds what a secret holds: of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    ///
    /// # Errors
    /// It holds something else.
    pub fn add_secret(&mut self, secret: &Secret) -> Result<(), BadCredentials> {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
        if let Some(bytes) = data(".dockerconfigjson") {
            return self.add_json(&bytes.0, name);
        }
        if let Some(bytes) = data(".dockercfg") {
            return self.add_old_json(&bytes.0, name);
        }
        Err(BadCredentials(format!(
            "secret \"{name}\" has neither `.dockerconfigjson` nor `.dockercfg`"
        )))
    }

    /// Adds what the node's own files hold; those that aren't there are left out, and what is wrong with others is told.
    pub fn add_node_files(&mut self, root: &Path) -> Vec<BadCredentials> {
        let files: [(PathBuf, bool); 4] = [
            (root.join("config.json"), false),
            (PathBuf::from("/root/.docker/config.json"), false),
            (PathBuf::from("/.docker/config.json"), false),
            (root.join(".dockercfg"), true),
        ];
        let mut wrong = Vec::new();
        for (path, old) in files {
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            if metadata.len() > MAX_FILE {
                wrong.push(BadCredentials(format!(
                    "`{}` is larger than 1 MiB",
                    path.display()
                )));
                continue;
            }
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let place = path.display().to_string();
            let added = if old {
                self.add_old_json(&bytes, &place)
            } else {
                self.add_json(&bytes, &place)
            };
            wrong.extend(added.err());
        }
        wrong
    }

    fn add_json(&mut self, bytes: &[u8], place: &str) -> Result<(), BadCredentials> {
        let config: DockerConfigJson = parse(bytes, place)?;
        self.add(config.auths, place)
    }

    fn add_old_json(&mut self, bytes: &[u8], place: &str) -> Result<(), BadCredentials> {
        let entries = parse(bytes, place)?;
        self.add(entries, place)
    }

    fn add(&mut self, entries: BTreeMap<String, DockerEntry>, place: &str) -> Result<(), BadCredentials> {
        for (key, entry) in entries {
            let auth = entry.auth_config().ok_or_else(|| {
                BadCredentials(format!(
                    "{place}: the `auth` of \"{key}\" isn't base64 of user:password"
                ))
            })?;
            self.entries.push((normal_key(&key), auth));
        }
        self.entries.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(())
    }

    /// Who to be when an image is pulled, in the order to try.
    pub fn credentials(&self, image: &str) -> Vec<AuthConfig> {
        let (registry, path) = registry_and_path(image);
        let found = self
            .entries
            .iter()
            .filter(|(key, _)| matches(key, &registry, &path));
        found.map(|(_, auth)| auth.clone()).collect()
    }
}

impl DockerEntry {
    fn auth_config(self) -> Option<AuthConfig> {
        let mut auth = AuthConfig {
            username: self.username,
            password: self.password,
            identity_token: self.identity_token,
            registry_token: self.registry_token,
            ..Default::default()
        };
        if !self.auth.is_empty() {
            let decoded = STANDARD.decode(self.auth.trim()).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (user, password) = text.split_once(':')?;
            user.clone_into(&mut auth.username);
            // Some tools pad with NUL.
            password.trim_end_matches('\0').clone_into(&mut auth.password);
        }
        Some(auth)
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], place: &str) -> Result<T, BadCredentials> {
    // The error's text could quote a password; its place is enough.
    serde_json::from_slice(bytes).map_err(|error| {
        BadCredentials(format!(
            "{place}: no docker configuration (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

/// An entry's key as `host/path`: without scheme, API version and the many names of Docker Hub.
fn normal_key(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        key => key.to_owned(),
    }
}

fn matches(key: &str, registry: &str, path: &str) -> bool {
    let (host, prefix) = key.split_once('/').unwrap_or((key, ""));
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name.to_owned(), port.to_owned()),
        _ => (host.to_owned(), String::new()),
    };
    let ((want, want_port), (have, have_port)) = (split(host), split(registry));
    let (want, have): (Vec<_>, Vec<_>) = (want.split('.').collect(), have.split('.').collect());
    want_port == have_port
        && want.len() == have.len()
        && want
            .iter()
            .zip(&have)
            .all(|(pattern, label)| glob(pattern, label))
        && path.starts_with(prefix)
}

/// Whether a label is what a pattern with `*` means.
fn glob(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => label.strip_prefix(before).is_some_and(|rest| {
            let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.into_iter().any(|at| glob(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(keys: &[&str]) -> Keyring {
        let auths: BTreeMap<_, _> = keys
            .iter()
            .enumerate()
            .map(|(number, key)| {
                (
                    *key,
                    serde_json::json!({ "auth": STANDARD.encode(format!("{number}:pass:word")) }),
                )
            })
            .collect();
        let mut keyring = Keyring::default();
        let json = serde_json::to_vec(&serde_json::json!({ "auths": auths })).expect("JSON");
        keyring.add_json(&json, "test").expect("credentials");
        keyring
    }

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring
            .credentials(image)
            .into_iter()
            .map(|auth| auth.username)
            .collect()
    }

    #[test]
    fn the_longest_match_comes_first() {
        let keyring = keyring(&[
            "r.test:5000",
            "r.test:5000/team",
            "*.example.com",
            "https://index.docker.io/v1/",
        ]);
        assert_eq!(users(&keyring, "r.test:5000/team/app:1"), ["1", "0"]);
        assert_eq!(users(&keyring, "r.test/team/app"), Vec::<String>::new());
        assert_eq!(users(&keyring, "a.example.com/x"), ["2"]);
        assert_eq!(users(&keyring, "a.b.example.com/x"), Vec::<String>::new());
        assert_eq!(users(&keyring, "nginx"), ["3"]);
        assert_eq!(keyring.credentials("nginx")[0].password, "pass:word");
    }

    #[test]
    fn a_secret_without_credentials_and_bad_json_are_told_without_their_content() {
        let mut keyring = Keyring::default();
        let error = keyring.add_secret(&Secret::default()).expect_err("nothing in it");
        assert!(error.to_string().contains(".dockerconfigjson"));
        let error = keyring
            .add_json(b"{\"auths\": hunter2", "here")
            .expect_err("no JSON");
        assert!(!error.to_string().contains("hunter2") && error.to_string().contains("here"));
    }
}
