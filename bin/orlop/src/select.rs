//! Which pod and which container are meant.

use controlplane_api::k8s_openapi::List;
use controlplane_api::k8s_openapi::api::core::v1::Pod;

use crate::args::PodArguments;
use crate::client::Client;
use crate::failure::Failure;

/// What kubectl takes for a pod's main container.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// All pods of the node, by namespace and name.
pub(crate) async fn all(client: &Client) -> Result<Vec<Pod>, Failure> {
    let mut pods = client.object::<List<Pod>>("/pods").await?.items;
    pods.sort_by_cached_key(|pod| (namespace(pod).to_owned(), name(pod).to_owned()));
    Ok(pods)
}

/// The pod that is meant.
pub(crate) async fn pod(client: &Client, wanted: &PodArguments) -> Result<Pod, Failure> {
    choose(all(client).await?, wanted)
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The pod of this name, in this namespace or else in whichever; a static pod's name may lack its node's.
fn choose(pods: Vec<Pod>, wanted: &PodArguments) -> Result<Pod, Failure> {
    let (space, plain) = match wanted.pod.split_once('/') {
        Some((space, plain)) if wanted.namespace.is_none() => (Some(space), plain),
        _ => (wanted.namespace.as_deref(), wanted.pod.as_str()),
    };
    let here = |pod: &Pod| space.is_none_or(|space| namespace(pod) == space);
    let full = |pod: &Pod| name(pod) == plain;
    let short = |pod: &Pod| {
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or_default();
        name(pod)
            .strip_suffix(node)
            .and_then(|rest| rest.strip_suffix('-'))
            == Some(plain)
    };
    let mut found: Vec<Pod> = Vec::new();
    for is_it in [&full as &dyn Fn(&Pod) -> bool, &short] {
        if found.is_empty() {
            found = pods
                .iter()
                .filter(|pod| here(pod) && is_it(pod))
                .cloned()
                .collect();
        }
    }
    if found.len() > 1 {
        let spaces: Vec<&str> = found.iter().map(namespace).collect();
        let what = format!(
            "there is a pod {plain:?} in several namespaces: {}",
            spaces.join(", ")
        );
        return Err(Failure::helped(what, format!("-n {}", spaces[0])));
    }
    found.pop().ok_or_else(|| {
        let place = space
            .map(|space| format!(" in namespace {space:?}"))
            .unwrap_or_default();
        Failure::helped(
            format!("no pod {plain:?}{place} on this node"),
            "orlop pods, for those that there are",
        )
    })
}

/// The names of a pod's containers: ordinary ones, init ones, ephemeral ones.
fn containers(pod: &Pod) -> Vec<&str> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten();
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| container.name.as_str());
    spec.containers
        .iter()
        .chain(init)
        .map(|container| container.name.as_str())
        .chain(ephemeral)
        .collect()
}

/// The container that is meant; the first one where none is named, with a note for the user where there are more.
pub(crate) fn container(pod: &Pod, wanted: Option<&str>) -> Result<(String, Option<String>), Failure> {
    let known = containers(pod);
    if let Some(wanted) = wanted {
        return if known.contains(&wanted) {
            Ok((wanted.to_owned(), None))
        } else {
            Err(Failure::helped(
                format!("pod {:?} has no container {wanted:?}", name(pod)),
                format!("-c with one of: {}", known.join(", ")),
            ))
        };
    }
    let marked = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(DEFAULT_CONTAINER))
        .filter(|marked| known.contains(&marked.as_str()));
    let Some(chosen) = marked.map(String::as_str).or(known.first().copied()) else {
        return Err(Failure::new(format!("pod {:?} has no containers", name(pod))));
    };
    let note = (marked.is_none() && known.len() > 1)
        .then(|| format!("Defaulted container {chosen:?} out of: {}", known.join(", ")));
    Ok((chosen.to_owned(), note))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(space: &str, name: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": space},
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        }))
        .unwrap()
    }

    fn wanted(pod: &str, namespace: Option<&str>) -> PodArguments {
        PodArguments {
            pod: pod.into(),
            namespace: namespace.map(str::to_owned),
        }
    }

    #[test]
    fn a_pod_is_found_by_as_much_as_is_needed() {
        let pods = || {
            vec![
                made("default", "web-n1"),
                made("x", "web"),
                made("y", "db"),
                made("z", "db"),
            ]
        };
        assert_eq!(namespace(&choose(pods(), &wanted("web", None)).unwrap()), "x");
        assert_eq!(
            name(&choose(pods(), &wanted("web", Some("default"))).unwrap()),
            "web-n1"
        );
        assert_eq!(namespace(&choose(pods(), &wanted("z/db", None)).unwrap()), "z");
        let several = choose(pods(), &wanted("db", None)).unwrap_err().to_string();
        assert!(several.ends_with("in several namespaces: y, z"), "{several}");
        assert_eq!(
            choose(pods(), &wanted("q", Some("x"))).unwrap_err().to_string(),
            "no pod \"q\" in namespace \"x\" on this node"
        );
    }

    #[test]
    fn a_container_is_the_first_unless_named() {
        let mut pod = made("x", "web");
        let (first, note) = container(&pod, None).unwrap();
        assert_eq!(
            (first.as_str(), note.as_deref()),
            ("a", Some("Defaulted container \"a\" out of: a, b, i"))
        );
        assert_eq!(container(&pod, Some("i")).unwrap().0, "i");
        assert!(container(&pod, Some("q")).is_err());
        pod.metadata.annotations = Some([(DEFAULT_CONTAINER.to_owned(), "b".to_owned())].into());
        assert_eq!(container(&pod, None).unwrap(), ("b".to_owned(), None));
    }
}
