//! The result cache, in libcni's format: one JSON file per attachment under `<cache_dir>/results`, called
//! `<network>-<container>-<interface>`. An entry without a result is the intent of an ADD that hasn't ended.
//! Files appear whole or not at all; one that can't be read counts as absent.
//!
//! The folder is the same for every runtime on a machine that follows libcni. So entries of ours say that they are
//! (`madeBy`, a key that libcni passes over), and what others wrote is never taken for a leftover.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use cni_types::{NetworkList, RuntimeConfig};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Attachment;

const KIND: &str = "cniCacheV1";
const OURS: &str = "orlop";

/// The cache can't be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} the CNI cache entry `{}`", path.display())]
pub struct CacheError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// One entry as it is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    kind: String,
    container_id: String,
    /// The list's text in base64.
    config: String,
    if_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_by: Option<String>,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

/// Whose an entry is, whatever else it says: what another runtime means by its configuration isn't ours to judge.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    kind: String,
    network_name: String,
    #[serde(default)]
    made_by: Option<String>,
}

impl Owner {
    fn is_ours(&self) -> bool {
        self.kind == KIND && self.made_by.as_deref() == Some(OURS)
    }
}

/// An attachment with the network that made it.
#[derive(Debug, Clone)]
pub(crate) struct Cached {
    pub(crate) attachment: Attachment,
    pub(crate) network: NetworkList,
    /// Absent when ADD didn't end.
    pub(crate) result: Option<Value>,
    /// Whether this runtime, and no other one, made it.
    pub(crate) ours: bool,
}

#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn new(cache_dir: &Path) -> Self {
        Cache {
            dir: cache_dir.join("results"),
        }
    }

    fn path(&self, network: &str, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{network}-{id}-{ifname}"))
    }

    /// Writes an entry in one step. Not synced: after a power loss every namespace is gone, and GC clears the rest.
    pub(crate) fn write(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        result: Option<&Value>,
    ) -> Result<(), CacheError> {
        let path = self.path(&list.name, &attachment.container_id, &attachment.ifname);
        let fail = |what| {
            let path = path.clone();
            move |source| CacheError { what, path, source }
        };
        let stored = Stored {
            kind: KIND.into(),
            container_id: attachment.container_id.clone(),
            config: STANDARD.encode(&list.source),
            if_name: attachment.ifname.clone(),
            made_by: Some(OURS.into()),
            network_name: list.name.clone(),
            netns: attachment.netns.to_string_lossy().into_owned(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.runtime.to_map(),
            result: result.cloned(),
        };
        let bytes = serde_json::to_vec(&stored)
            .map_err(io::Error::from)
            .map_err(fail("encode"))?;
        fs::create_dir_all(&self.dir).map_err(fail("make the directory of"))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".new-{}-{number}", std::process::id()));
        fs::write(&temporary, bytes).map_err(fail("write"))?;
        fs::rename(&temporary, &path)
            .inspect_err(|_| drop(fs::remove_file(&temporary)))
            .map_err(fail("rename"))
    }

    pub(crate) fn remove(&self, network: &str, id: &str, ifname: &str) -> Result<(), CacheError> {
        let path = self.path(network, id, ifname);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CacheError {
                what: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// The entry of a container's interface: on the network `likely` if it is there, else on any.
    pub(crate) fn find(
        &self,
        likely: Option<&str>,
        id: &str,
        ifname: &str,
    ) -> Result<Option<Cached>, CacheError> {
        if let Some(network) = likely
            && let Some(found) = read(&self.path(network, id, ifname))?
        {
            return Ok(Some(found));
        }
        let suffix = format!("-{id}-{ifname}");
        for path in self.files()? {
            let named = path
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.ends_with(&suffix));
            if named
                && let Some(found) = read(&path)?
                && found.attachment.container_id == id
                && found.attachment.ifname == ifname
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Every readable entry, in the order of names.
    pub(crate) fn all(&self) -> Result<Vec<Cached>, CacheError> {
        let mut all = Vec::new();
        for path in self.files()? {
            all.extend(read(&path)?);
        }
        Ok(all)
    }

    /// The networks that another runtime has attachments of.
    pub(crate) fn foreign_networks(&self) -> Result<BTreeSet<String>, CacheError> {
        let mut networks = BTreeSet::new();
        for path in self.files()? {
            let owner = bytes_of(&path)?.and_then(|bytes| serde_json::from_slice::<Owner>(&bytes).ok());
            networks.extend(
                owner
                    .filter(|owner| !owner.is_ours())
                    .map(|owner| owner.network_name),
            );
        }
        Ok(networks)
    }

    /// Removes half-written files that a killed process left, and what a power cut left of entries: files that no
    /// longer hold JSON and were last written before `booted`. A younger one may be another runtime's that is being
    /// written.
    pub(crate) fn sweep(&self, booted: SystemTime) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let is_old = || {
                entry
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .is_ok_and(|at| at < booted)
            };
            let is_torn = || {
                fs::read(entry.path())
                    .is_ok_and(|bytes| serde_json::from_slice::<IgnoredAny>(&bytes).is_err())
            };
            let is_half = entry.file_name().to_string_lossy().starts_with(".new-");
            if is_half || (is_old() && is_torn()) {
                // What can't be removed now is tried again at the next sweep.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn files(&self) -> Result<Vec<PathBuf>, CacheError> {
        let fail = |source| CacheError {
            what: "list",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(fail)?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }
}

fn bytes_of(path: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CacheError {
            what: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn read(path: &Path) -> Result<Option<Cached>, CacheError> {
    let Some(bytes) = bytes_of(path)? else {
        return Ok(None);
    };
    let decoded = decode(&bytes);
    if decoded.is_none() {
        tracing::warn!(path = %path.display(), "a CNI cache entry is damaged and counts as absent");
    }
    Ok(decoded)
}

fn decode(bytes: &[u8]) -> Option<Cached> {
    let stored: Stored = serde_json::from_slice(bytes)
        .ok()
        .filter(|stored: &Stored| stored.kind == KIND)?;
    let source = String::from_utf8(STANDARD.decode(&stored.config).ok()?).ok()?;
    let network = NetworkList::parse_list(&source).ok()?;
    let runtime = RuntimeConfig::deserialize(Value::Object(stored.capability_args)).ok()?;
    Some(Cached {
        attachment: Attachment {
            container_id: stored.container_id,
            netns: stored.netns.into(),
            ifname: stored.if_name,
            args: stored.cni_args,
            runtime,
        },
        network,
        result: stored.result.filter(|result| !result.is_null()),
        ours: stored.made_by.as_deref() == Some(OURS),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(name: &str) -> NetworkList {
        let text = json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}).to_string();
        NetworkList::parse_list(&text).unwrap()
    }

    #[test]
    fn entries_are_as_libcni_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let attachment = Attachment {
            container_id: "c-1".into(),
            netns: "/run/netns/x".into(),
            ifname: "eth0".into(),
            args: vec![("K8S_POD_NAME".into(), "p".into())],
            runtime: RuntimeConfig {
                cgroup_path: Some("/x".into()),
                ..RuntimeConfig::default()
            },
        };
        cache
            .write(&list("pods"), &attachment, Some(&json!({"cniVersion": "1.0.0"})))
            .unwrap();
        let text = fs::read_to_string(dir.path().join("results/pods-c-1-eth0")).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({
                "kind": "cniCacheV1", "containerId": "c-1", "ifName": "eth0", "networkName": "pods",
                "madeBy": "orlop",
                "config": STANDARD.encode(list("pods").source), "netns": "/run/netns/x",
                "cniArgs": [["K8S_POD_NAME", "p"]], "capabilityArgs": {"cgroupPath": "/x"},
                "result": {"cniVersion": "1.0.0"}
            })
        );
        let found = cache.find(Some("renamed"), "c-1", "eth0").unwrap().unwrap();
        assert!(found.ours);
        // As another runtime writes it, with names that could be read in two ways.
        let mut other = value.clone();
        other["containerId"] = json!("1");
        other.as_object_mut().unwrap().remove("madeBy");
        fs::write(dir.path().join("results/pods-c-1-eth0-1-eth0"), other.to_string()).unwrap();
        assert!(!cache.find(None, "1", "eth0").unwrap().unwrap().ours);
        cache.remove("pods-c-1-eth0", "1", "eth0").unwrap();
        assert_eq!(
            (found.network.name.as_str(), found.attachment),
            ("pods", attachment.clone())
        );
        assert!(cache.find(None, "1", "eth0").unwrap().is_none());
        // Of another one's, only the names need to make sense.
        assert!(cache.foreign_networks().unwrap().is_empty());
        let odd = json!({"kind": "cniCacheV9", "networkName": "theirs", "config": 7, "capabilityArgs": []});
        let theirs = dir.path().join("results/theirs-c-3-eth0");
        fs::write(&theirs, odd.to_string()).unwrap();
        assert_eq!(
            cache.foreign_networks().unwrap(),
            BTreeSet::from(["theirs".to_owned()])
        );
        fs::remove_file(theirs).unwrap();
        fs::write(dir.path().join("results/pods-c-2-eth0"), "{").unwrap();
        fs::write(dir.path().join("results/.new-1-1"), "{").unwrap();
        assert_eq!(cache.all().unwrap().len(), 1);
        let torn = dir.path().join("results/pods-c-2-eth0");
        cache.sweep(SystemTime::UNIX_EPOCH);
        assert!(!dir.path().join("results/.new-1-1").exists());
        // What was written since the boot may be another runtime's that is being written.
        assert!(torn.exists());
        cache.sweep(SystemTime::now() + std::time::Duration::from_secs(1));
        assert!(!torn.exists());
        assert_eq!(cache.all().unwrap().len(), 1);
        cache.remove("pods", "c-1", "eth0").unwrap();
        cache.remove("pods", "c-1", "eth0").unwrap();
        assert!(cache.all().unwrap().is_empty());
    }
}
