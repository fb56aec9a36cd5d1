//! Manifests and configuration, read strictly: YAML (of which JSON is a part) to typed objects, every complaint with
//! its place.
//!
//! The text's parser events become a tree of [`Node`]s, each knowing its line and column. Plain scalars mean what
//! sigs.k8s.io/yaml takes them for: YAML 1.1's booleans (`yes`, `off`, ...), octal, hexadecimal and binary numbers,
//! `_` between digits; whole floats count as integers, as Go writes them. Anchors and merge keys work, within the
//! limits on size that also hold for what aliases repeat. A key that stands twice in a mapping is a finding.
//!
//! [`Document::decode`] walks that tree with a deserializer of its own instead of `serde_json`'s, so that one pass finds
//! all there is: an unknown field is noted and skipped, a value of a wrong type is noted and read as its type's zero,
//! and null is what Go makes of it, the zero. Only what a type itself refuses (a time that is none, an unknown variant)
//! ends a pass, and the next one goes around it.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::Path;

mod decode;
mod scalar;
mod tree;

pub(crate) use tree::{Data, Entry, Node};

/// At most so many findings are told of one document.
const MOST_FINDINGS: usize = 100;

/// How much a text may hold. What goes beyond is refused before memory is taken for it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of text.
    pub bytes: usize,
    /// Mappings and sequences within each other.
    pub depth: usize,
    /// Scalars, sequences and mappings in all, those that aliases repeat included; long scalars count more.
    pub nodes: usize,
    /// Documents in the text.
    pub documents: usize,
}

impl Default for Limits {
    /// 10 MiB, as the kubelet reads at most; 100 levels; half a million nodes; 1,000 documents.
    fn default() -> Limits {
        Limits {
            bytes: 10 << 20,
            depth: 100,
            nodes: 500_000,
            documents: 1_000,
        }
    }
}

/// A place in the text, both numbers counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The text is no YAML.
    Syntax(String),
    /// The text goes beyond one of the [`Limits`].
    Limit(String),
    /// The same key twice in one mapping: the field's path.
    Duplicate(String),
    /// A field that the type hasn't: its path.
    Unknown(String),
    /// A value that the type can't hold: its path (empty for the document itself), and why.
    Wrong(String, String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Syntax(why) | Finding::Limit(why) => f.write_str(why),
            Finding::Duplicate(path) => write!(f, "duplicate field \"{path}\""),
            Finding::Unknown(path) => write!(f, "unknown field \"{path}\""),
            Finding::Wrong(path, why) if path.is_empty() => f.write_str(why),
            Finding::Wrong(path, why) => write!(f, "{path}: {why}"),
        }
    }
}

/// One complaint, with its place: `pods/web.yaml:12:7: unknown field "spec.containers[0].imagee"`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct StrictError {
    /// The file's name, if the text has one.
    pub file: Option<String>,
    /// Where it stands.
    pub at: Position,
    /// What is wrong there.
    pub finding: Finding,
}

impl StrictError {
    pub(crate) fn new(at: Position, finding: Finding) -> StrictError {
        StrictError {
            file: None,
            at,
            finding,
        }
    }

    /// Whether the object can still be used without losing anything but what is named here: an unknown or a repeated
    /// field.
    pub fn is_leniently_ignored(&self) -> bool {
        matches!(self.finding, Finding::Duplicate(_) | Finding::Unknown(_))
    }
}

impl fmt::Display for StrictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        write!(f, "{}:{}: {}", self.at.line, self.at.column, self.finding)
    }
}

/// Reads all documents of a text; those with nothing in them are left out.
///
/// # Errors
/// The first place where the text is no YAML, or goes beyond the limits.
pub fn parse(text: &str, limits: Limits) -> Result<Vec<Document>, StrictError> {
    let documents = tree::read(text, limits)?;
    Ok(documents
        .into_iter()
        .map(|(root, duplicates)| Document {
            value: root.to_value(),
            root,
            duplicates,
            file: None,
        })
        .collect())
}

/// [`parse`], with the file's name in every complaint.
///
/// # Errors
/// As [`parse`].
pub fn parse_file(file: &str, text: &str, limits: Limits) -> Result<Vec<Document>, StrictError> {
    let named = |error: StrictError| StrictError {
        file: Some(file.to_owned()),
        ..error
    };
    let mut documents = parse(text, limits).map_err(named)?;
    for document in &mut documents {
        document.file = Some(file.to_owned());
    }
    Ok(documents)
}

/// One document of a text.
#[derive(Clone, Debug)]
pub struct Document {
    root: Node,
    value: Value,
    duplicates: Vec<StrictError>,
    file: Option<String>,
}

impl Document {
    /// `apiVersion`, if it is a text.
    pub fn api_version(&self) -> Option<&str> {
        self.value.get("apiVersion").and_then(Value::as_str)
    }

    /// `kind`, if it is a text.
    pub fn kind(&self) -> Option<&str> {
        self.value.get("kind").and_then(Value::as_str)
    }

    /// The document without places. Of a repeated field, the first value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Where a field stands, its path given as names and indices in decimal (`["spec", "containers", "0", "image"]`):
    /// its key in a mapping, or the entry of a sequence.
    pub fn position(&self, path: &[&str]) -> Option<Position> {
        let (at, depth) = self.deepest(path);
        (depth == path.len()).then_some(at)
    }

    /// Where a field that validation complains of stands, or what there is of the way to it.
    pub fn place_of(&self, path: &Path) -> Position {
        let steps: Vec<_> = steps(path.as_str()).collect();
        self.deepest(&steps).0
    }

    /// The place that can be reached on a path, and how many steps lead to it.
    fn deepest(&self, path: &[&str]) -> (Position, usize) {
        let mut node = &self.root;
        let mut at = node.at;
        for (depth, step) in path.iter().enumerate() {
            let next = match &node.data {
                Data::Map(entries) => {
                    let entry = entries.iter().find(|entry| entry.key == *step);
                    entry.map(|entry| (entry.key_at, &entry.value))
                }
                Data::List(items) => {
                    let item = step.parse::<usize>().ok().and_then(|index| items.get(index));
                    item.map(|item| (item.at, item))
                }
                _ => None,
            };
            let Some(next) = next else { return (at, depth) };
            (at, node) = next;
        }
        (at, path.len())
    }

    /// The document as a `T`.
    ///
    /// # Errors
    /// Everything that is wrong, in the text's order: duplicate and unknown fields, and values of wrong types.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Vec<StrictError>> {
        match self.decode_leniently() {
            Ok((object, warnings)) if warnings.is_empty() => Ok(object),
            Ok((_, findings)) | Err(findings) => Err(findings),
        }
    }

    /// As [`Document::decode`], but duplicate and unknown fields are only told of beside the object, as upstream's
    /// lenient readers ignore them (of duplicates, the first counts here).
    ///
    /// # Errors
    /// Everything that is wrong, if a value has a wrong type.
    pub fn decode_leniently<T: DeserializeOwned>(&self) -> Result<(T, Vec<StrictError>), Vec<StrictError>> {
        let (object, mut findings) = decode::decode::<T>(&self.root);
        findings.extend(self.duplicates.iter().cloned());
        findings.sort_by_key(|finding| finding.at);
        findings.truncate(MOST_FINDINGS);
        for finding in &mut findings {
            finding.file.clone_from(&self.file);
        }
        match object {
            Some(object) if findings.iter().all(StrictError::is_leniently_ignored) => Ok((object, findings)),
            _ => Err(findings),
        }
    }
}

/// The steps of a path as validation writes it: `spec.containers[0].resources.limits[example.com/gpu]`.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        let (step, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = after;
        (!step.is_empty()).then_some(step)
    })
}

#[cfg(test)]
mod tests;
