//! The deserializer over a tree with places, which notes what is wrong and goes on.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::push_name;
use super::{Data, Entry, Finding, MOST_FINDINGS, Node, Position, StrictError};
use crate::quantity::Quantity;

mod access;

use access::{Entries, Items};

/// So often is a document read again around a value that its type refused.
const MOST_PASSES: usize = 32;

/// The object, unless some value in it could not be gone around, and what is wrong.
pub(super) fn decode<T: DeserializeOwned>(root: &Node) -> (Option<T>, Vec<StrictError>) {
    let mut refused: Vec<(&Node, StrictError)> = Vec::new();
    loop {
        let pass = Pass {
            found: RefCell::default(),
            blank: refused.iter().map(|(node, _)| *node).collect(),
        };
        let read = T::deserialize(Reading {
            node: root,
            at: root.at,
            trail: &Trail::Root,
            pass: &pass,
        });
        let mut found = pass.found.into_inner();
        let finish = |mut found: Vec<StrictError>, refused: Vec<(&Node, StrictError)>| {
            found.extend(refused.into_iter().map(|(_, error)| error));
            found
        };
        match read {
            Ok(object) => return (Some(object), finish(found, refused)),
            Err(fault) => {
                // A fault at the very end, like a field that is missing, belongs to the whole.
                let fault = fault.placed(root, &Trail::Root, root.at);
                let Some((node, error)) = fault.place else {
                    return (None, finish(found, refused));
                };
                let is_stuck = refused.iter().any(|(earlier, _)| std::ptr::eq(*earlier, node));
                if is_stuck || refused.len() + 1 >= MOST_PASSES {
                    if !is_stuck {
                        found.push(error);
                    }
                    return (None, finish(found, refused));
                }
                refused.push((node, error));
            }
        }
    }
}

/// One reading of the whole tree.
struct Pass<'a> {
    found: RefCell<Vec<StrictError>>,
    /// Values that an earlier pass could not get past: read as null.
    blank: Vec<&'a Node>,
}

impl Pass<'_> {
    fn note(&self, at: Position, finding: Finding) {
        let mut found = self.found.borrow_mut();
        if found.len() < MOST_FINDINGS {
            found.push(StrictError::new(at, finding));
        }
    }
}

/// The way from the root to a value.
enum Trail<'a> {
    Root,
    Name(&'a Trail<'a>, &'a str),
    Index(&'a Trail<'a>, usize),
}

impl Trail<'_> {
    fn path(&self) -> String {
        match self {
            Trail::Root => String::new(),
            Trail::Name(parent, name) => {
                let mut path = parent.path();
                push_name(&mut path, name);
                path
            }
            Trail::Index(parent, index) => format!("{}[{index}]", parent.path()),
        }
    }
}

/// What a type itself refused; the innermost value that it happened at.
#[derive(Debug)]
struct Fault<'a> {
    why: String,
    place: Option<(&'a Node, StrictError)>,
}

impl<'a> Fault<'a> {
    fn placed(mut self, node: &'a Node, trail: &Trail<'_>, at: Position) -> Fault<'a> {
        if self.place.is_none() {
            let finding = Finding::Wrong(trail.path(), std::mem::take(&mut self.why));
            self.place = Some((node, StrictError::new(at, finding)));
        }
        self
    }
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Fault<'_> {}

impl de::Error for Fault<'_> {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Fault {
            why: why.to_string(),
            place: None,
        }
    }
}

/// A value that is being read.
#[derive(Clone, Copy)]
struct Reading<'a, 't> {
    node: &'a Node,
    /// Where its key stands, or itself.
    at: Position,
    trail: &'t Trail<'t>,
    pass: &'t Pass<'a>,
}

const NULL: &Data = &Data::Null;

impl<'a, 't> Reading<'a, 't> {
    fn is_blank(&self) -> bool {
        self.pass
            .blank
            .iter()
            .any(|blank| std::ptr::eq(*blank, self.node))
    }

    fn data(&self) -> &'a Data {
        if self.is_blank() { NULL } else { &self.node.data }
    }

    fn wrong(&self, wanted: &str) {
        let found = match self.data() {
            Data::Null => "null".to_owned(),
            Data::Bool(value) => format!("the boolean {value}"),
            Data::Number(number) => format!("the number {number}"),
            Data::Text(text) => format!("the string {:?}", shortened(text)),
            Data::List(_) => "a list".to_owned(),
            Data::Map(_) => "a mapping".to_owned(),
        };
        let is_bare = matches!(self.data(), Data::Bool(_) | Data::Number(_));
        let hint = if is_bare && wanted == "a string" {
            " (quote it)"
        } else {
            ""
        };
        let why = format!("expected {wanted}, found {found}{hint}");
        self.pass
            .note(self.node.at, Finding::Wrong(self.trail.path(), why));
    }

    fn text(&self) -> &'a str {
        match self.data() {
            Data::Text(text) => text,
            Data::Null => "",
            _ => {
                self.wrong("a string");
                ""
            }
        }
    }

    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => {
                    self.wrong("an integer");
                    visitor.visit_i64(0)
                }
            },
            Data::Null => visitor.visit_i64(0),
            _ => {
                self.wrong("an integer");
                visitor.visit_i64(0)
            }
        }
    }

    fn float<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Number(number) => visitor.visit_f64(number.as_f64().unwrap_or(f64::MAX)),
            Data::Null => visitor.visit_f64(0.0),
            _ => {
                self.wrong("a number");
                visitor.visit_f64(0.0)
            }
        }
    }

    fn items<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        let items: &'a [Node] = match self.data() {
            Data::List(items) => items,
            Data::Null => &[],
            _ => {
                self.wrong("a list");
                &[]
            }
        };
        visitor.visit_seq(Items {
            items,
            next: 0,
            trail: self.trail,
            pass: self.pass,
        })
    }

    /// `known` are a struct's fields, for which null is the same as not being there.
    fn entries<V: Visitor<'a>>(
        self,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        let entries: &'a [Entry] = match self.data() {
            Data::Map(entries) => entries,
            Data::Null => &[],
            _ => {
                self.wrong("a mapping");
                &[]
            }
        };
        let last = Cell::new(None);
        let access = Entries {
            entries,
            next: 0,
            known,
            last: &last,
            trail: self.trail,
            pass: self.pass,
        };
        visitor.visit_map(access).map_err(|fault| match last.get() {
            // The type looked at the value after it was read, as at an apiVersion.
            Some(Entry { key, value, .. }) => fault.placed(value, &Trail::Name(self.trail, key), value.at),
            None => fault,
        })
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

macro_rules! integers {
    ($($name:ident)*) => {
        $(fn $name<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
            self.number(visitor)
        })*
    };
}

impl<'a> de::Deserializer<'a> for Reading<'a, '_> {
    type Error = Fault<'a>;

    integers!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64);

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Null => visitor.visit_unit(),
            Data::Bool(value) => visitor.visit_bool(*value),
            Data::Number(number) if number.is_f64() => self.float(visitor),
            Data::Number(_) => self.number(visitor),
            Data::Text(text) => visitor.visit_borrowed_str(text),
            Data::List(_) => self.items(visitor),
            Data::Map(_) => self.entries(&[], visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Bool(value) => visitor.visit_bool(*value),
            Data::Null => visitor.visit_bool(false),
            _ => {
                self.wrong("a boolean");
                visitor.visit_bool(false)
            }
        }
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.float(visitor)
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.float(visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        visitor.visit_borrowed_str(self.text())
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        visitor.visit_borrowed_str(self.text())
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        if !matches!(self.data(), Data::Null) {
            self.wrong("null");
        }
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        if name == "Quantity" {
            return self.quantity(visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.items(visitor)
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.items(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        self.items(visitor)
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.entries(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        self.entries(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault<'a>> {
        match self.data() {
            Data::Map(entries) => {
                let last = Cell::new(None);
                let access = Entries {
                    entries,
                    next: 0,
                    known: &[],
                    last: &last,
                    trail: self.trail,
                    pass: self.pass,
                };
                visitor.visit_enum(MapAccessDeserializer::new(access))
            }
            _ => visitor.visit_enum(StrDeserializer::new(self.text())),
        }
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        visitor.visit_borrowed_str(self.text())
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        self.pass.note(self.at, Finding::Unknown(self.trail.path()));
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { <W: Visitor<'a>> i128 u128 char bytes byte_buf }
}

impl<'a> Reading<'a, '_> {
    /// k8s-openapi takes any text for a quantity; upstream's decoder refuses what is none.
    fn quantity<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault<'a>> {
        let checked = match self.data() {
            Data::Text(text) => text
                .trim()
                .parse::<Quantity>()
                .map(drop)
                .map_err(|error| error.to_string()),
            Data::Number(_) => Ok(()),
            Data::Null => return visitor.visit_newtype_struct(StrDeserializer::new("0")),
            Data::Bool(_) | Data::List(_) | Data::Map(_) => {
                self.wrong("a quantity");
                return visitor.visit_newtype_struct(StrDeserializer::new("0"));
            }
        };
        match checked {
            Ok(()) => visitor.visit_newtype_struct(self),
            Err(why) => {
                self.pass
                    .note(self.node.at, Finding::Wrong(self.trail.path(), why));
                visitor.visit_newtype_struct(StrDeserializer::new("0"))
            }
        }
    }
}
