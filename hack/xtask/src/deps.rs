//! Who imports whom: the table of the design, held against `cargo metadata`.
//!
//! Two kinds of rule. [`MAY_IMPORT`] lists, for every crate of the workspace, the crates of ours that it may name
//! (dev-dependencies aside: tests may use more); a crate that is not in the table fails, so a new crate needs a
//! decision. [`NEVER_REACHES`] bans crates from whole trees, however indirectly they come in.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Crate and the crates of ours that it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("oci-runtime-sys", &[]),
    ("oci-runtime-cgroups", &["oci-runtime-sys"]),
    (
        "oci-runtime-container",
        &["oci-runtime-sys", "oci-runtime-cgroups"],
    ),
    ("cri-api", &[]),
    ("cri-images", &["oci-runtime-sys"]),
    ("cri-nri", &["oci-runtime-sys"]),
    ("cri-shim-protocol", &[]),
    ("cri-streaming", &[]),
    (
        "cri-shim",
        &[
            "cri-shim-protocol",
            "oci-runtime-container",
            "oci-runtime-cgroups",
            "oci-runtime-sys",
        ],
    ),
    (
        "cri-server",
        &[
            "cri-api",
            "cri-images",
            "cri-nri",
            "cri-streaming",
            "cri-shim-protocol",
            "cni-invoke",
            "cni-types",
            "cni-net",
            "oci-runtime-cgroups",
            "oci-runtime-sys",
        ],
    ),
    ("cni-types", &[]),
    ("cni-net", &["oci-runtime-sys"]),
    ("cni-invoke", &["cni-types"]),
    ("cni-plugins", &["cni-types", "cni-net"]),
    ("controlplane-api", &[]),
    ("kubelet-pods", &["controlplane-api", "cri-api"]),
    ("kubelet-volumes", &["controlplane-api", "oci-runtime-sys"]),
    (
        "kubelet-agent",
        &[
            "controlplane-api",
            "cri-api",
            "cri-streaming",
            "kubelet-pods",
            "kubelet-volumes",
            "oci-runtime-cgroups",
            "oci-runtime-sys",
        ],
    ),
    ("orlop", &["controlplane-api", "cri-streaming"]),
    ("orlop-kubelet", &["bin-daemon", "kubelet-agent"]),
    ("bin-daemon", &[]),
    (
        "orlop-oci",
        &["oci-runtime-container", "oci-runtime-cgroups", "oci-runtime-sys"],
    ),
    ("orlop-shim", &["cri-shim"]),
    (
        "orlop-cri",
        &[
            "bin-daemon",
            "cri-server",
            "cri-images",
            "cri-streaming",
            "cni-invoke",
            "cni-plugins",
            "cni-types",
        ],
    ),
    ("orlop-cni", &["cni-invoke", "cni-plugins", "cni-types"]),
    ("tests-harness", &["oci-runtime-sys", "tests-images"]),
    ("tests-images", &[]),
    ("tests-host", &[]),
    ("tests-e2e", &[]),
    ("tests-vm", &[]),
    (
        "tests-powercut",
        &["cri-api", "tests-harness", "tests-images", "tests-vm"],
    ),
    ("hack-xtask", &[]),
    ("hack-gen", &[]),
    ("hack-bench", &["cri-api", "cri-server", "tests-images"]),
];

/// Crates of ours and the crates that none of their dependencies may bring in.
const NEVER_REACHES: &[(&[&str], &[&str])] = &[
    (
        &[
            "oci-runtime-sys",
            "oci-runtime-cgroups",
            "oci-runtime-container",
            "cri-shim-protocol",
            "cri-shim",
            "cni-types",
            "cni-net",
            "cni-plugins",
            "orlop-oci",
            "orlop-shim",
            "orlop-cni",
        ],
        &["tokio", "tracing-subscriber", "openssl-sys"],
    ),
    (&["cni-types", "cri-shim-protocol", "cri-api"], &["nix", "rustix"]),
    // Pure: no I/O, no clock.
    (&["controlplane-api", "kubelet-pods"], &["nix", "rustix"]),
    (
        &["orlop-cri"],
        &[
            "openssl-sys",
            "native-tls",
            "aws-lc-sys",
            "cri-shim",
            "oci-runtime-container",
        ],
    ),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDep>,
}

#[derive(Deserialize)]
struct NodeDep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

/// Checks the workspace against both tables.
pub(crate) fn check() -> Result<()> {
    let json = crate::sh::output("cargo", &["metadata", "--format-version=1", "--locked"])?;
    let metadata: Metadata = serde_json::from_str(&json).context("failed to read `cargo metadata`")?;
    let mut wrong = direct_imports(&metadata.packages);
    wrong.extend(reached(&metadata));
    if wrong.is_empty() {
        println!("check-deps: every import follows the design");
        return Ok(());
    }
    bail!(
        "imports against the design (hack/xtask/src/deps.rs holds the rules):\n  {}",
        wrong.join("\n  ")
    )
}

fn direct_imports(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|p| p.source.is_none()) {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == package.name) else {
            wrong.push(format!(
                "{}: not in the table of who may import whom",
                package.name
            ));
            continue;
        };
        for dep in package
            .dependencies
            .iter()
            .filter(|d| d.path.is_some() && d.kind.is_none())
        {
            if !allowed.contains(&dep.name.as_str()) {
                wrong.push(format!("{} must not import {}", package.name, dep.name));
            }
        }
    }
    wrong
}

fn reached(metadata: &Metadata) -> Vec<String> {
    let names: BTreeMap<&str, &str> = metadata.packages.iter().map(|p| (&*p.id, &*p.name)).collect();
    let edges: BTreeMap<&str, Vec<&str>> = metadata
        .resolve
        .nodes
        .iter()
        .map(|n| {
            let normal = n
                .deps
                .iter()
                .filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
            (&*n.id, normal.map(|d| &*d.pkg).collect())
        })
        .collect();
    let mut wrong = Vec::new();
    for (roots, banned) in NEVER_REACHES {
        for package in metadata
            .packages
            .iter()
            .filter(|p| p.source.is_none() && roots.contains(&&*p.name))
        {
            let (mut seen, mut queue) = (BTreeSet::new(), vec![&*package.id]);
            while let Some(id) = queue.pop() {
                if seen.insert(id) {
                    queue.extend(edges.get(id).into_iter().flatten());
                }
            }
            let hits = seen
                .iter()
                .filter_map(|id| names.get(id))
                .filter(|n| banned.contains(n));
            wrong.extend(hits.map(|n| format!("{} must not reach {n}, even indirectly", package.name)));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, import: &str) -> Package {
        let dep = Dependency {
            name: import.into(),
            kind: None,
            path: Some("x".into()),
        };
        Package {
            id: name.into(),
            name: name.into(),
            dependencies: vec![dep],
            source: None,
        }
    }

    #[test]
    fn an_upward_import_is_found() {
        let wrong = direct_imports(&[package("oci-runtime-sys", "cri-server")]);
        assert_eq!(wrong, ["oci-runtime-sys must not import cri-server"]);
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(direct_imports(&[package("util", "cri-api")]).len(), 1);
    }

    #[test]
    fn an_indirect_import_is_found() {
        let node = |id: &str, to: &[&str]| Node {
            id: id.into(),
            deps: to
                .iter()
                .map(|t| NodeDep {
                    pkg: (*t).into(),
                    dep_kinds: vec![DepKind { kind: None }],
                })
                .collect(),
        };
        let metadata = Metadata {
            packages: vec![
                package("cri-shim", "a"),
                package("a", "tokio"),
                package("tokio", "b"),
            ],
            resolve: Resolve {
                nodes: vec![
                    node("cri-shim", &["a"]),
                    node("a", &["tokio"]),
                    node("tokio", &[]),
                ],
            },
        };
        assert_eq!(
            reached(&metadata),
            ["cri-shim must not reach tokio, even indirectly"]
        );
    }
}
