//! From the parser's events to trees with places, within the limits.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

use super::{Finding, Limits, MOST_FINDINGS, Position, StrictError, scalar};

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) data: Data,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value; keys are unique within a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Position,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(value) => Value::Bool(*value),
            Data::Number(number) => Value::Number(number.clone()),
            Data::Text(text) => Value::String(text.clone()),
            Data::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Data::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// What it counts towards the limit on nodes.
    fn weight(&self) -> usize {
        match &self.data {
            Data::Text(text) => text_weight(text),
            Data::List(items) => 1 + items.iter().map(Node::weight).sum::<usize>(),
            Data::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|entry| text_weight(&entry.key) + entry.value.weight());
                1 + entries.sum::<usize>()
            }
            Data::Null | Data::Bool(_) | Data::Number(_) => 1,
        }
    }
}

/// Long texts count as several nodes, so that the limit bounds memory too.
fn text_weight(text: &str) -> usize {
    1 + text.len() / 32
}

/// A key that is waiting for its value.
enum Key {
    Name(String, Position),
    Merge,
}

/// A mapping or a sequence that has not ended yet.
enum Open {
    List {
        items: Vec<Node>,
        at: Position,
        anchor: usize,
    },
    Map {
        entries: Vec<Entry>,
        seen: BTreeSet<String>,
        key: Option<Key>,
        merged: Vec<Entry>,
        at: Position,
        anchor: usize,
    },
}

struct Reader {
    limits: Limits,
    left: usize,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    root: Option<Node>,
    duplicates: Vec<StrictError>,
    done: Vec<(Node, Vec<StrictError>)>,
}

/// Reads a text's documents, each with the keys that stand in it twice.
pub(super) fn read(text: &str, limits: Limits) -> Result<Vec<(Node, Vec<StrictError>)>, StrictError> {
    if text.len() > limits.bytes {
        return Err(beyond(Position { line: 1, column: 1 }, "bytes", limits.bytes));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = join_surrogates(text);
    let mut reader = Reader {
        limits,
        left: limits.nodes,
        open: Vec::new(),
        anchors: BTreeMap::new(),
        root: None,
        duplicates: Vec::new(),
        done: Vec::new(),
    };
    let mut parser = Parser::new_from_str(&text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            syntax(
                Position {
                    line: error.marker().line(),
                    column: error.marker().col() + 1,
                },
                error.info(),
            )
        })?;
        reader.take(event, span)?;
    }
    Ok(reader.done)
}

/// JSON writes a character beyond the first plane as two escapes, which YAML doesn't know: makes them one. Half a pair
/// becomes the replacement character, as in Go. Only for texts that are JSON by their first character.
fn join_surrogates(text: &str) -> Cow<'_, str> {
    let is_json = text.trim_start().starts_with(['{', '[']);
    if !is_json || !(text.contains("\\ud") || text.contains("\\uD")) {
        return Cow::Borrowed(text);
    }
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.find('\\') {
        joined.push_str(&rest[..found]);
        rest = &rest[found..];
        let length = match (escape(rest), rest.get(6..).and_then(escape)) {
            (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => {
                let character = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                joined.push_str(&format!("\\U{character:08x}"));
                12
            }
            (Some(0xd800..=0xdfff), _) => {
                joined.push_str("\\ufffd");
                6
            }
            _ => {
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                joined.push_str(&rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    joined.push_str(rest);
    Cow::Owned(joined)
}

/// The number of an escape `\uXXXX` that a text begins with.
fn escape(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

fn syntax(at: Position, why: &str) -> StrictError {
    StrictError::new(at, Finding::Syntax(why.to_owned()))
}

fn beyond(at: Position, what: &str, limit: usize) -> StrictError {
    StrictError::new(at, Finding::Limit(format!("more than {limit} {what}")))
}

impl Reader {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), StrictError> {
        let at = Position {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                if self.done.len() >= self.limits.documents {
                    return Err(beyond(at, "documents", self.limits.documents));
                }
                Ok(())
            }
            Event::DocumentEnd => {
                let duplicates = std::mem::take(&mut self.duplicates);
                if let Some(root) = self.root.take().filter(|root| !matches!(root.data, Data::Null)) {
                    self.done.push((root, duplicates));
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| syntax(at, "an anchor's value contains an alias of itself"))?;
                self.spend(node.weight(), at)?;
                self.place(Node { at, ..node }, false)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(text_weight(&text), at)?;
                let data = scalar_value(&text, style, tag.as_deref()).map_err(|why| syntax(at, &why))?;
                let plain = style == ScalarStyle::Plain;
                let is_merge = plain && text == "<<" && tag.is_none_or(|tag| tag.suffix == "merge");
                self.finish(Node { at, data }, anchor, is_merge)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), &["seq"], at)?;
                self.begin(
                    Open::List {
                        items: Vec::new(),
                        at,
                        anchor,
                    },
                    at,
                )
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), &["map"], at)?;
                let (entries, seen, merged) = (Vec::new(), BTreeSet::new(), Vec::new());
                self.begin(
                    Open::Map {
                        entries,
                        seen,
                        key: None,
                        merged,
                        at,
                        anchor,
                    },
                    at,
                )
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { items, at, anchor }) => self.finish(
                    Node {
                        at,
                        data: Data::List(items),
                    },
                    anchor,
                    false,
                ),
                Some(Open::Map {
                    mut entries,
                    seen,
                    merged,
                    at,
                    anchor,
                    ..
                }) => {
                    let mut seen = seen;
                    entries.extend(merged.into_iter().filter(|entry| seen.insert(entry.key.clone())));
                    self.finish(
                        Node {
                            at,
                            data: Data::Map(entries),
                        },
                        anchor,
                        false,
                    )
                }
                None => Err(syntax(at, "an end without a beginning")),
            },
        }
    }

    fn spend(&mut self, weight: usize, at: Position) -> Result<(), StrictError> {
        self.left = self
            .left
            .checked_sub(weight)
            .ok_or_else(|| beyond(at, "values", self.limits.nodes))?;
        Ok(())
    }

    fn begin(&mut self, open: Open, at: Position) -> Result<(), StrictError> {
        self.spend(1, at)?;
        if self.open.len() >= self.limits.depth {
            return Err(beyond(at, "levels", self.limits.depth));
        }
        self.open.push(open);
        Ok(())
    }

    /// Keeps a whole value for its aliases, and puts it in its place.
    fn finish(&mut self, node: Node, anchor: usize, is_merge: bool) -> Result<(), StrictError> {
        if anchor > 0 {
            self.spend(node.weight(), node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node, is_merge)
    }

    fn place(&mut self, node: Node, is_merge: bool) -> Result<(), StrictError> {
        let depth = self.open.len();
        match self.open.last_mut() {
            None => {
                self.root = Some(node);
                Ok(())
            }
            Some(Open::List { items, .. }) => {
                items.push(node);
                Ok(())
            }
            Some(Open::Map {
                entries,
                seen,
                key,
                merged,
                ..
            }) => match key.take() {
                None if is_merge => {
                    *key = Some(Key::Merge);
                    Ok(())
                }
                None => {
                    let at = node.at;
                    let name = scalar::key(node.data)
                        .ok_or_else(|| syntax(at, "a mapping's key must be a text, a number or a boolean"))?;
                    *key = Some(Key::Name(name, at));
                    Ok(())
                }
                Some(Key::Merge) => merge(node, merged),
                Some(Key::Name(name, key_at)) if seen.insert(name.clone()) => {
                    entries.push(Entry {
                        key: name,
                        key_at,
                        value: node,
                    });
                    Ok(())
                }
                Some(Key::Name(name, key_at)) => {
                    self.repeated(depth, &name, key_at);
                    Ok(())
                }
            },
        }
    }

    fn repeated(&mut self, depth: usize, name: &str, at: Position) {
        if self.duplicates.len() >= MOST_FINDINGS {
            return;
        }
        let mut path = String::new();
        for open in self.open.iter().take(depth - 1) {
            match open {
                Open::List { items, .. } => path.push_str(&format!("[{}]", items.len())),
                Open::Map {
                    key: Some(Key::Name(name, _)),
                    ..
                } => push_name(&mut path, name),
                Open::Map { .. } => push_name(&mut path, "<<"),
            }
        }
        push_name(&mut path, name);
        self.duplicates
            .push(StrictError::new(at, Finding::Duplicate(path)));
    }
}

pub(super) fn push_name(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Takes over what `<<` names: a mapping, or several, of which the first has precedence.
fn merge(node: Node, merged: &mut Vec<Entry>) -> Result<(), StrictError> {
    let at = node.at;
    let mut add = |data| match data {
        Data::Map(entries) => {
            merged.extend(entries);
            Ok(())
        }
        _ => Err(syntax(
            at,
            "a merge key's value must be a mapping or a sequence of mappings",
        )),
    };
    match node.data {
        Data::List(items) => items.into_iter().try_for_each(|item| add(item.data)),
        data => add(data),
    }
}

fn check_tag(tag: Option<&Tag>, allowed: &[&str], at: Position) -> Result<(), StrictError> {
    match tag {
        Some(tag)
            if !(is_plain_text_tag(tag) || tag.is_yaml_core_schema() && allowed.contains(&&*tag.suffix)) =>
        {
            Err(syntax(at, &format!("unsupported tag {tag}")))
        }
        _ => Ok(()),
    }
}

/// `!`, which only says that a scalar is a text.
fn is_plain_text_tag(tag: &Tag) -> bool {
    (tag.handle.is_empty() && tag.suffix == "!") || (tag.handle == "!" && tag.suffix.is_empty())
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Data, String> {
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain {
            scalar::resolve(text)
        } else {
            Ok(Data::Text(text.to_owned()))
        };
    };
    if is_plain_text_tag(tag) {
        return Ok(Data::Text(text.to_owned()));
    }
    if !tag.is_yaml_core_schema() {
        return Err(format!("unsupported tag {tag}"));
    }
    let wanted = tag.suffix.as_str();
    let data = match wanted {
        "str" | "timestamp" => return Ok(Data::Text(text.to_owned())),
        "merge" if text == "<<" => return Ok(Data::Text(text.to_owned())),
        "null" | "bool" | "int" | "float" => scalar::resolve(text)?,
        _ => return Err(format!("unsupported tag {tag}")),
    };
    let fits = match &data {
        Data::Null => wanted == "null",
        Data::Bool(_) => wanted == "bool",
        Data::Number(number) => wanted == "float" || (wanted == "int" && !number.is_f64()),
        Data::Text(_) | Data::List(_) | Data::Map(_) => false,
    };
    if fits {
        Ok(data)
    } else {
        Err(format!("`{text}` is no {wanted}"))
    }
}
