//! One manifest file: text in, pods and objects out, or what is wrong with it.
//!
//! Such pods may refer to ConfigMaps and Secrets, unlike upstream's: without an API server the same sources name those.
//!
//! A static pod's name gets the node's name as a suffix and its UID is the hash of what it says and where it says it, as
//! upstream: a changed manifest is another pod, which takes the first one's place.

use std::path::Path;
use std::sync::Arc;

use controlplane_api::k8s_openapi::List;
use controlplane_api::k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Toleration};
use controlplane_api::k8s_openapi::api::node::v1::RuntimeClass;
use controlplane_api::pod::{defaults, validation};
use controlplane_api::strict::{self, Document, Limits, StrictError};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Finding, Objects, SourceKind, annotations};

/// The largest manifest that is read.
pub(super) const MAX_BYTES: u64 = 10 << 20;

/// What a manifest names.
#[derive(Debug, Clone)]
pub enum Named {
    /// A pod, ready to be run.
    Pod(Arc<Pod>),
    /// A ConfigMap.
    ConfigMap(ConfigMap),
    /// A Secret.
    Secret(Secret),
    /// A RuntimeClass.
    RuntimeClass(RuntimeClass),
}

/// A manifest that was read.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// What it names, in its order.
    pub named: Vec<Named>,
    /// What is wrong with it. Then it names nothing.
    pub findings: Vec<Finding>,
}

impl Manifest {
    /// Whether something of it is wrong.
    pub fn is_broken(&self) -> bool {
        !self.findings.is_empty()
    }
}

/// Reads a manifest. `place` names it for people and for the UIDs of its pods.
pub fn read(text: &str, place: &str, source: SourceKind, node: &str, now: Timestamp) -> Manifest {
    let documents = match strict::parse(text, Limits::default()) {
        Ok(documents) => documents,
        Err(error) => {
            return Manifest {
                named: Vec::new(),
                findings: vec![finding(place, &error)],
            };
        }
    };
    let mut manifest = Manifest::default();
    for document in &documents {
        if let Err(findings) = one(document, place, source, node, now, &mut manifest.named) {
            manifest.findings.extend(findings);
        }
    }
    if manifest.is_broken() {
        manifest.named.clear();
    }
    manifest
}

/// Reads one document and adds what it names.
fn one(
    document: &Document,
    place: &str,
    source: SourceKind,
    node: &str,
    now: Timestamp,
    named: &mut Vec<Named>,
) -> Result<(), Vec<Finding>> {
    match (document.api_version(), document.kind()) {
        (Some("v1"), Some("Pod")) => {
            let pod = decode::<Pod>(document, place)?;
            named.push(Named::Pod(Arc::new(finish(
                pod,
                Some(document),
                place,
                source,
                node,
                now,
            )?)));
        }
        (Some("v1"), Some("PodList")) => {
            for pod in decode::<List<Pod>>(document, place)?.items {
                named.push(Named::Pod(Arc::new(finish(pod, None, place, source, node, now)?)));
            }
        }
        (Some("v1"), Some("ConfigMap")) => named.push(Named::ConfigMap(decode(document, place)?)),
        (Some("v1"), Some("Secret")) => named.push(Named::Secret(decode(document, place)?)),
        (Some("node.k8s.io/v1"), Some("RuntimeClass")) => {
            named.push(Named::RuntimeClass(decode(document, place)?));
        }
        (version, kind) => {
            let said = format!("{}, Kind={}", version.unwrap_or(""), kind.unwrap_or(""));
            return Err(vec![Finding {
                place: place.to_owned(),
                message: format!(
                    "no kind \"{said}\" here: a node without an API server takes v1 Pod, PodList, ConfigMap and Secret, \
                     and node.k8s.io/v1 RuntimeClass"
                ),
            }]);
        }
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(document: &Document, place: &str) -> Result<T, Vec<Finding>> {
    document
        .decode()
        .map_err(|errors| errors.iter().map(|error| finding(place, error)).collect())
}

fn finding(place: &str, error: &StrictError) -> Finding {
    Finding {
        place: format!("{place}:{}:{}", error.at.line, error.at.column),
        message: error.finding.to_string(),
    }
}

/// Makes a static pod of what a manifest says: name, namespace, UID, node, annotations, defaults; and checks it. `whole`
/// is the document, where the pod is all of it.
fn finish(
    mut pod: Pod,
    whole: Option<&Document>,
    place: &str,
    source: SourceKind,
    node: &str,
    now: Timestamp,
) -> Result<Pod, Vec<Finding>> {
    let wrong = |message: String| {
        vec![Finding {
            place: place.to_owned(),
            message,
        }]
    };
    let uid = match pod.metadata.uid.take().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid,
        None => hash(&pod, place, node).map_err(|error| wrong(error.to_string()))?,
    };
    if !is_uid(&uid) {
        return Err(wrong(format!(
            "metadata.uid: Invalid value: \"{uid}\": must be at most {MAX_UID} letters, digits and '-'; leave it out, and the manifest's hash is taken"
        )));
    }
    if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(wrong(
            "metadata.name: Required value: name or generateName is required".to_owned(),
        ));
    }
    let metadata = &mut pod.metadata;
    metadata.name = metadata
        .name
        .take()
        .map(|name| format!("{name}-{}", node.to_lowercase()));
    if metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        metadata.namespace = Some("default".to_owned());
    }
    metadata.uid = Some(uid.clone());
    let notes = metadata.annotations.get_or_insert_default();
    notes.insert(annotations::SOURCE.to_owned(), source.as_str().to_owned());
    notes.insert(annotations::HASH.to_owned(), uid);
    notes.insert(annotations::SEEN.to_owned(), now.to_string());
    if let Some(spec) = pod.spec.as_mut() {
        spec.node_name = Some(node.to_owned());
        // The two classes that every cluster has; others only an API server knows.
        if spec.priority.is_none() {
            spec.priority = match spec.priority_class_name.as_deref() {
                Some("system-node-critical") => Some(2_000_001_000),
                Some("system-cluster-critical") => Some(2_000_000_000),
                _ => None,
            };
        }
        // A static pod stays through every taint.
        spec.tolerations.get_or_insert_default().push(Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Default::default()
        });
    }
    pod.status = None;
    defaults::default_pod(&mut pod);
    let errors = validation::validate_pod(&pod, validation::Options::default());
    let findings: Vec<_> = errors
        .iter()
        .map(|error| {
            let at = whole.map(|document| document.place_of(&error.path));
            Finding {
                place: at.map_or_else(
                    || place.to_owned(),
                    |at| format!("{place}:{}:{}", at.line, at.column),
                ),
                message: format!("invalid pod: {error}"),
            }
        })
        .collect();
    if findings.is_empty() {
        Ok(pod)
    } else {
        Err(findings)
    }
}

/// The longest UID: it becomes a part of names of cgroups, folders and labels.
const MAX_UID: usize = 63;

/// Whether a UID can be a part of all the names that it becomes a part of.
fn is_uid(uid: &str) -> bool {
    uid.len() <= MAX_UID
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// 32 hexadecimal digits that are the same for the same pod of the same place.
fn hash(pod: &Pod, place: &str, node: &str) -> Result<String, serde_json::Error> {
    let mut hasher = Sha256::new();
    hasher.update(serde_json::to_vec(pod)?);
    hasher.update(format!("\0host:{node}\0file:{place}"));
    let digest = hasher.finalize();
    Ok(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Collects manifests into what a source names as a whole. The first one wins where two name the same.
pub(super) fn collect<'a>(
    manifests: impl Iterator<Item = (&'a str, &'a Manifest)>,
) -> (Vec<Arc<Pod>>, Objects, Vec<Finding>) {
    let mut pods: Vec<Arc<Pod>> = Vec::new();
    let mut objects = Objects::default();
    let mut findings = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for (place, manifest) in manifests {
        findings.extend(manifest.findings.iter().cloned());
        for named in &manifest.named {
            let (kind, namespace, name) = identity(named);
            let key = (kind, namespace.to_owned(), name.to_owned());
            if let Some(first) = places.get(&key) {
                findings.push(Finding {
                    place: place.to_owned(),
                    message: format!(
                        "{kind} \"{namespace}/{name}\" is left out: {first} names it already; give one of them another name"
                    ),
                });
                continue;
            }
            places.insert(key, place.to_owned());
            match named.clone() {
                Named::Pod(pod) => pods.push(pod),
                Named::ConfigMap(object) => drop(objects.add_config_map(object)),
                Named::Secret(object) => drop(objects.add_secret(object)),
                Named::RuntimeClass(object) => drop(objects.add_runtime_class(object)),
            }
        }
    }
    (pods, objects, findings)
}

fn identity(named: &Named) -> (&'static str, &str, &str) {
    let (kind, metadata) = match named {
        Named::Pod(pod) => ("Pod", &pod.metadata),
        Named::ConfigMap(object) => ("ConfigMap", &object.metadata),
        Named::Secret(object) => ("Secret", &object.metadata),
        Named::RuntimeClass(object) => ("RuntimeClass", &object.metadata),
    };
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty());
    (
        kind,
        namespace.unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Whether a file of a folder of manifests is one: upstream leaves out names that begin with a dot.
pub(super) fn is_manifest(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| !name.to_string_lossy().starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    image: demo\n";

    fn read_it(text: &str) -> Manifest {
        read(
            text,
            "pods/web.yaml",
            SourceKind::File,
            "node-1",
            Timestamp::UNIX_EPOCH,
        )
    }

    fn pod(manifest: &Manifest) -> &Pod {
        match manifest.named.as_slice() {
            [Named::Pod(pod)] => pod,
            other => panic!("one pod: {other:?}, {:?}", manifest.findings),
        }
    }

    #[test]
    fn a_static_pod_has_the_nodes_name_in_its_own_and_a_uid_of_its_content() {
        let first = read_it(WEB);
        let metadata = &pod(&first).metadata;
        assert_eq!(metadata.name.as_deref(), Some("web-node-1"));
        assert_eq!(metadata.namespace.as_deref(), Some("default"));
        assert_eq!(metadata.uid.as_deref().map(str::len), Some(32));
        assert_eq!(
            pod(&read_it(WEB)).metadata.uid,
            metadata.uid,
            "the same text is the same pod"
        );
        let other = read_it(&WEB.replace("image: demo", "image: other"));
        assert_ne!(pod(&other).metadata.uid, metadata.uid);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place() {
        let manifest = read_it(&WEB.replace("image: demo", "imagee: demo"));
        let finding = manifest.findings.first().expect("a finding");
        assert!(finding.place.starts_with("pods/web.yaml:8:"), "{finding:?}");
        assert!(finding.message.contains("imagee"), "{finding:?}");
        assert!(manifest.named.is_empty());
    }

    #[test]
    fn impossible_values_and_other_kinds_are_refused() {
        let manifest = read_it(&WEB.replace("name: web\n    image", "name: Web_\n    image"));
        assert!(
            manifest.findings[0].message.contains("spec.containers[0].name"),
            "{manifest:?}"
        );
        let manifest = read_it("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n");
        assert!(
            manifest.findings[0].message.contains("apps/v1, Kind=Deployment"),
            "{manifest:?}"
        );
    }

    #[test]
    fn a_uid_that_could_lead_elsewhere_is_refused() {
        for uid in ["../up", "a_b", "a/b", "..", &"a".repeat(64)] {
            let manifest =
                read_it(&WEB.replace("name: web\nspec", &format!("name: web\n  uid: \"{uid}\"\nspec")));
            assert!(
                manifest.findings[0].message.contains("metadata.uid"),
                "{uid}: {manifest:?}"
            );
        }
        let manifest = read_it(&WEB.replace("name: web\nspec", "name: web\n  uid: my-uid\nspec"));
        assert_eq!(pod(&manifest).metadata.uid.as_deref(), Some("my-uid"));
    }

    #[test]
    fn the_critical_classes_have_their_priority() {
        let manifest = read_it(&format!("{WEB}  priorityClassName: system-node-critical\n"));
        let spec = pod(&manifest).spec.as_ref().expect("a spec");
        assert_eq!(spec.priority, Some(2_000_001_000));
    }

    #[test]
    fn of_two_of_one_name_the_first_stays_and_the_second_is_told() {
        let (first, second) = (read_it(WEB), read_it(&WEB.replace("demo", "other")));
        let both = [("a.yaml", &first), ("b.yaml", &second)];
        let (pods, _, findings) = collect(both.into_iter());
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].metadata.uid, pod(&first).metadata.uid);
        assert!(
            findings[0].message.contains("a.yaml names it already"),
            "{findings:?}"
        );
    }

    #[test]
    fn objects_come_with_pods_in_one_file() {
        let text =
            format!("{WEB}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{k: v}}\n");
        let manifest = read_it(&text);
        let (pods, objects, findings) = collect([("a", &manifest)].into_iter());
        assert_eq!((pods.len(), findings.len()), (1, 0), "{findings:?}");
        let secret = objects.secret("default", "s").expect("the secret");
        assert_eq!(
            secret
                .data
                .as_ref()
                .and_then(|data| data.get("k"))
                .map(|v| v.0.as_slice()),
            Some(&b"v"[..])
        );
    }
}
