//! Lists and mappings of the tree as serde reads them.

use std::cell::Cell;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess};

use super::{Fault, Pass, Reading, Trail};
use crate::strict::{Data, Entry, Node};

/// A list that is being read.
pub(super) struct Items<'a, 't> {
    pub(super) items: &'a [Node],
    pub(super) next: usize,
    pub(super) trail: &'t Trail<'t>,
    pub(super) pass: &'t Pass<'a>,
}

impl<'a> SeqAccess<'a> for Items<'a, '_> {
    type Error = Fault<'a>;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault<'a>> {
        let Some(node) = self.items.get(self.next) else {
            return Ok(None);
        };
        let trail = Trail::Index(self.trail, self.next);
        self.next += 1;
        let reading = Reading {
            node,
            at: node.at,
            trail: &trail,
            pass: self.pass,
        };
        seed.deserialize(reading)
            .map(Some)
            .map_err(|fault| fault.placed(node, &trail, node.at))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

/// A mapping that is being read.
pub(super) struct Entries<'a, 't> {
    pub(super) entries: &'a [Entry],
    /// One past the entry whose key was read last.
    pub(super) next: usize,
    pub(super) known: &'static [&'static str],
    /// The entry whose value was read last, until the mapping's end.
    pub(super) last: &'t Cell<Option<&'a Entry>>,
    pub(super) trail: &'t Trail<'t>,
    pub(super) pass: &'t Pass<'a>,
}

impl<'a> MapAccess<'a> for Entries<'a, '_> {
    type Error = Fault<'a>;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault<'a>> {
        while let Some(entry) = self.entries.get(self.next) {
            self.next += 1;
            let trail = Trail::Name(self.trail, &entry.key);
            let reading = Reading {
                node: &entry.value,
                at: entry.key_at,
                trail: &trail,
                pass: self.pass,
            };
            let is_known = self.known.contains(&&*entry.key);
            if reading.is_blank() || is_known && matches!(reading.data(), Data::Null) {
                continue;
            }
            let key: StrDeserializer<'a, Fault<'a>> = entry.key.as_str().into_deserializer();
            let key = seed.deserialize(key);
            return key
                .map(Some)
                .map_err(|fault| fault.placed(&entry.value, &trail, entry.key_at));
        }
        self.last.set(None);
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Fault<'a>> {
        let entry = &self.entries[self.next - 1];
        let trail = Trail::Name(self.trail, &entry.key);
        let reading = Reading {
            node: &entry.value,
            at: entry.key_at,
            trail: &trail,
            pass: self.pass,
        };
        let value = seed.deserialize(reading);
        let value = value.map_err(|fault| fault.placed(&entry.value, &trail, entry.value.at))?;
        self.last.set(Some(entry));
        Ok(value)
    }
}
