//! Layers on top of each other, against a model: what overlayfs shows is what putting one archive after the other into
//! one directory gives.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::mount::{MountFlags, mount, unmount};

use super::*;
use crate::testing::archive::{Attributes, Builder, PLAIN};
use crate::testing::in_mount_namespace;

#[derive(Debug, Clone)]
enum Act {
    File { mode: u32 },
    Dir { mode: u32, uid: u32 },
    Symlink { to: String },
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone)]
struct Made {
    path: Vec<String>,
    act: Act,
}

/// One file, link or directory of the model.
#[derive(Debug, Clone)]
struct Node {
    mode: u32,
    uid: u32,
    /// The layer that touched it last.
    layer: usize,
    is: Is,
}

#[derive(Debug, Clone)]
enum Is {
    File(String),
    Symlink(String),
    Dir(BTreeMap<String, Node>),
}

impl Node {
    fn dir(mode: u32, uid: u32, layer: usize) -> Self {
        Self {
            mode,
            uid,
            layer,
            is: Is::Dir(BTreeMap::new()),
        }
    }

    fn children(&mut self) -> &mut BTreeMap<String, Node> {
        match &mut self.is {
            Is::Dir(children) => children,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn at(&mut self, path: &[String]) -> Option<&mut Node> {
        let mut node = self;
        for name in path {
            node = match &mut node.is {
                Is::Dir(children) => children.get_mut(name)?,
                _ => return None,
            };
        }
        Some(node)
    }

    /// Takes away what layers below `layer` put there.
    fn prune(&mut self, layer: usize) {
        if let Is::Dir(children) = &mut self.is {
            children.retain(|_, child| child.layer == layer);
            children.values_mut().for_each(|child| child.prune(layer));
        }
    }

    /// Where `path` leads; an error where a file stands in the way or links never end.
    fn follow(&mut self, path: &[String]) -> Result<Vec<String>, ()> {
        let mut to_come: Vec<String> = path.iter().rev().cloned().collect();
        let (mut real, mut links) = (Vec::new(), 0);
        while let Some(name) = to_come.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    real.pop();
                    continue;
                }
                _ => real.push(name),
            }
            match self.at(&real).map(|node| &node.is) {
                None | Some(Is::Dir(_)) => {}
                Some(Is::File(_)) => return Err(()),
                Some(Is::Symlink(to)) => {
                    links += 1;
                    if links > 40 {
                        return Err(());
                    }
                    real.pop();
                    if to.starts_with('/') {
                        real.clear();
                    }
                    to_come.extend(to.split('/').rev().map(str::to_owned));
                }
            }
        }
        Ok(real)
    }

    /// The directory at `path`, made where it isn't.
    fn directory(&mut self, path: &[String], layer: usize) -> Result<&mut Node, ()> {
        let real = self.follow(path)?;
        let mut node = self;
        for name in real {
            node = node
                .children()
                .entry(name)
                .or_insert_with(|| Self::dir(0o755, 0, layer));
            node.layer = layer;
        }
        Ok(node)
    }

    fn apply(&mut self, layer: usize, made: &Made) -> Result<(), ()> {
        let (name, parents) = made.path.split_last().unwrap();
        let parent = self.directory(parents, layer)?;
        let (mode, uid, is) = match &made.act {
            Act::Opaque => {
                parent.prune(layer);
                return Ok(());
            }
            Act::Whiteout => {
                match parent.children().get_mut(name) {
                    Some(node) if node.layer == layer => node.prune(layer),
                    _ => drop(parent.children().remove(name)),
                }
                return Ok(());
            }
            Act::Dir { mode, uid } => {
                let node = parent.children().get(name).cloned();
                let is = match node.map(|node| node.is) {
                    Some(is @ Is::Dir(_)) => is,
                    _ => Is::Dir(BTreeMap::new()),
                };
                (*mode, *uid, is)
            }
            Act::File { mode } => (*mode, 0, Is::File(layer.to_string())),
            Act::Symlink { to } => (0o777, 0, Is::Symlink(to.clone())),
        };
        let node = Self { mode, uid, layer, is };
        parent.children().insert(name.clone(), node);
        Ok(())
    }

    fn list(&self, path: &str, all: &mut Vec<String>) {
        let Is::Dir(children) = &self.is else { panic!() };
        for (name, node) in children {
            let path = format!("{path}/{name}");
            match &node.is {
                Is::File(text) => all.push(format!("{path} {:o} {text}", node.mode)),
                Is::Symlink(to) => all.push(format!("{path} -> {to}")),
                Is::Dir(_) => {
                    all.push(format!("{path}/ {:o} {}", node.mode, node.uid));
                    node.list(&path, all);
                }
            }
        }
    }
}

fn archive(layer: usize, entries: &[Made]) -> Builder {
    let mut builder = Builder::new();
    for Made { path, act } in entries {
        let (name, parents) = path.split_last().unwrap();
        let below = |name: &str| [parents, &[name.to_owned()]].concat().join("/");
        builder = match act {
            Act::File { mode } => {
                let attributes = Attributes { mode: *mode, ..PLAIN };
                builder.entry(
                    b'0',
                    &path.join("/"),
                    "",
                    layer.to_string().as_bytes(),
                    &attributes,
                )
            }
            Act::Dir { mode, uid } => builder.dir_of(&path.join("/"), *mode, u64::from(*uid)),
            Act::Symlink { to } => builder.symlink(&path.join("/"), to),
            Act::Whiteout => builder.file(&below(&format!(".wh.{name}")), ""),
            Act::Opaque => builder.file(&below(".wh..wh..opq"), ""),
        };
    }
    builder
}

/// Unpacks a layer as a pull does: by itself, and again on top of those below, where it matters.
fn unpack_onto(
    root: &Path,
    layer: usize,
    builder: &Builder,
    below: &[PathBuf],
) -> Result<(PathBuf, Unpacked), UnpackError> {
    let unpack_at = |name: &str, below: &[PathBuf]| {
        let at = root.join(format!("{layer}-{name}"));
        fs::create_dir(&at).unwrap();
        let limits = Limits::default();
        unpack(&builder.bytes[..], &at, below, OverlayXattrs::Trusted, &limits).map(|unpacked| (at, unpacked))
    };
    let (at, unpacked) = unpack_at("alone", &[])?;
    let Implied::Paths(implied) = &unpacked.implied else {
        panic!("too much for a list")
    };
    if below.is_empty() || fits(implied, below, OverlayXattrs::Trusted).unwrap() {
        return Ok((at, unpacked));
    }
    unpack_at("chained", below)
}

fn list(root: &Path, path: &str, all: &mut Vec<String>) {
    let mut names: Vec<String> = fs::read_dir(root.join(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in names {
        let path = if path.is_empty() {
            name
        } else {
            format!("{path}/{name}")
        };
        let at = root.join(&path);
        // A whiteout in a directory that no layer below has: overlayfs lists its name, though nothing is there.
        let Ok(meta) = fs::symlink_metadata(&at) else {
            continue;
        };
        let mode = meta.mode() & 0o7777;
        if meta.is_dir() {
            all.push(format!("/{path}/ {mode:o} {}", meta.uid()));
            list(root, &path, all);
        } else if meta.is_symlink() {
            all.push(format!("/{path} -> {}", fs::read_link(&at).unwrap().display()));
        } else {
            all.push(format!("/{path} {mode:o} {}", fs::read_to_string(&at).unwrap()));
        }
    }
}

fn compare(root: &Path, layers: &[Vec<Made>]) {
    let mut model = Node::dir(0o755, 0, 0);
    let mut stack: Vec<PathBuf> = Vec::new();
    for (n, entries) in layers.iter().enumerate() {
        let expected = entries.iter().try_for_each(|made| model.apply(n, made));
        match (unpack_onto(root, n, &archive(n, entries), &stack), expected) {
            (Ok((at, unpacked)), Ok(())) => {
                // Overlayfs merges roots even where they are opaque; a snapshot leaves out what is below.
                if unpacked.is_opaque {
                    stack.clear();
                }
                stack.insert(0, at);
            }
            (
                Err(UnpackError::Entry {
                    source: EntryError::Parent,
                    ..
                }),
                Err(()),
            ) => return,
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }
    let (target, bottom) = (root.join("target"), root.join("bottom"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&bottom).unwrap();
    stack.push(bottom);
    let names: Vec<_> = stack.iter().map(|at| at.to_str().unwrap()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", names.join(":"))).unwrap();
    mount("overlay", &target, "overlay", MountFlags::RDONLY, &*options).unwrap();
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    list(&target, "", &mut got);
    model.list("", &mut expected);
    unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
}

fn entries() -> impl Strategy<Value = Vec<Made>> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned);
    let mode = prop_oneof![Just(0o755_u32), Just(0o1777), Just(0o700)];
    let act = prop_oneof![
        3 => mode.clone().prop_map(|mode| Act::File { mode }),
        3 => (mode, prop_oneof![Just(0_u32), Just(7)]).prop_map(|(mode, uid)| Act::Dir { mode, uid }),
        3 => "(/|\\.\\./)?[abc](/([abc]|\\.\\.)){0,2}".prop_map(|to| Act::Symlink { to }),
        2 => Just(Act::Whiteout),
        1 => Just(Act::Opaque),
    ];
    let made = (proptest::collection::vec(name, 1..4), act).prop_map(|(path, act)| Made { path, act });
    proptest::collection::vec(made, 0..7)
}

#[test]
fn overlayfs_shows_what_one_archive_after_the_other_gives() {
    in_mount_namespace(|root| {
        let mut runner = TestRunner::new(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(400)
        });
        let layers = proptest::collection::vec(entries(), 1..4);
        let ran = runner.run(&layers, |layers| {
            let place = tempfile::tempdir_in(root).unwrap();
            compare(place.path(), &layers);
            Ok(())
        });
        if let Err(error) = ran {
            panic!("{error}");
        }
    });
}
