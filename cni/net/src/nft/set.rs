//! Sets and maps, and their elements.

use std::net::IpAddr;

use crate::{
    attr::{Attrs, Reader},
    nft::expr::{Verdict, put_verdict},
};

/// What a key or value is made of. The numbers are those by which the `nft` command knows how to print it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Hardware address.
    Ether,
    /// Transport protocol.
    Protocol,
    /// Port.
    Port,
    /// Interface name.
    Ifname,
}

impl KeyType {
    fn number(self) -> u32 {
        match self {
            KeyType::Ipv4 => 7,
            KeyType::Ipv6 => 8,
            KeyType::Ether => 9,
            KeyType::Protocol => 12,
            KeyType::Port => 13,
            KeyType::Ifname => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            KeyType::Protocol => 1,
            KeyType::Port => 2,
            KeyType::Ipv4 => 4,
            KeyType::Ether => 6,
            KeyType::Ipv6 | KeyType::Ifname => 16,
        }
    }
}

/// The type and the length of several fields in a row, each padded to four bytes.
fn concatenated(fields: &[KeyType]) -> (u32, u32) {
    match fields {
        [one] => (one.number(), one.length()),
        many => many.iter().fold((0, 0), |(number, length), field| {
            (
                number << 6 | field.number(),
                length + field.length().next_multiple_of(4),
            )
        }),
    }
}

/// Puts fields in a row, each padded to four bytes.
pub fn concat(fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        bytes.extend_from_slice(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// What a set's elements lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetValue {
    /// Nothing: a plain set.
    None,
    /// A verdict.
    Verdict,
    /// A value.
    Data(&'static [KeyType]),
}

/// The shape of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetSpec {
    /// The key's fields.
    pub key: &'static [KeyType],
    /// What it leads to.
    pub value: SetValue,
}

const FLAG_MAP: u32 = 0x8;
const TYPE_VERDICT: u32 = 0xffff_ff00;

impl SetSpec {
    pub(super) fn put(&self, body: &mut Attrs) {
        let (number, length) = concatenated(self.key);
        let flags = if self.value == SetValue::None { 0 } else { FLAG_MAP };
        body.put_be32(3, flags).put_be32(4, number).put_be32(5, length);
        match self.value {
            SetValue::None => {}
            SetValue::Verdict => {
                body.put_be32(6, TYPE_VERDICT).put_be32(7, 0);
            }
            SetValue::Data(fields) => {
                let (number, length) = concatenated(fields);
                body.put_be32(6, number).put_be32(7, length);
            }
        }
    }
}

/// What one element leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementData {
    /// Nothing.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Vec<u8>),
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key, as [`concat`] makes it.
    pub key: Vec<u8>,
    /// What it leads to.
    pub data: ElementData,
    /// Who it belongs to; at most 250 bytes.
    pub comment: String,
}

impl Element {
    /// An address as the only field of the key.
    pub fn address_key(ip: IpAddr) -> Vec<u8> {
        match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        }
    }

    pub(super) fn put(&self, entry: &mut Attrs) {
        put_key(entry, &self.key);
        match &self.data {
            ElementData::None => {}
            ElementData::Value(bytes) => {
                entry.put_data(2, bytes);
            }
            ElementData::Verdict(verdict) => {
                entry.nest(2, |data| put_verdict(data, verdict));
            }
        }
        if !self.comment.is_empty() {
            // As the nft command has it: a type, a length, a string with its closing zero.
            let text = &self.comment.as_bytes()[..self.comment.len().min(250)];
            let mut value = vec![COMMENT, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
            value.extend_from_slice(text);
            value.push(0);
            entry.put(6, &value);
        }
    }
}

const COMMENT: u8 = 0;

pub(super) fn put_key(entry: &mut Attrs, key: &[u8]) {
    entry.put_data(1, key);
}

pub(super) fn parse_elements(payload: &[u8]) -> Vec<Element> {
    let reader = Reader(payload.get(4..).unwrap_or_default());
    let Some(list) = reader.nested(3) else {
        return Vec::new();
    };
    list.into_iter()
        .filter_map(|(_, entry)| parse_element(Reader(entry)))
        .collect()
}

fn parse_element(entry: Reader<'_>) -> Option<Element> {
    let key = entry.nested(1)?.find(1)?.to_vec();
    let data = match entry.nested(2) {
        None => ElementData::None,
        Some(data) => match data.find(1) {
            Some(bytes) => ElementData::Value(bytes.to_vec()),
            None => ElementData::Verdict(parse_verdict(data.nested(2)?)?),
        },
    };
    let comment = entry.find(6).and_then(parse_comment).unwrap_or_default();
    Some(Element { key, data, comment })
}

fn parse_verdict(verdict: Reader<'_>) -> Option<Verdict> {
    let code = verdict.find(1)?.first_chunk().map(|b| i32::from_be_bytes(*b))?;
    Verdict::from_code(code, verdict.string(2))
}

fn parse_comment(mut bytes: &[u8]) -> Option<String> {
    loop {
        let (&kind, &length) = (bytes.first()?, bytes.get(1)?);
        let value = bytes.get(2..2 + usize::from(length))?;
        if kind == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = &bytes[2 + usize::from(length)..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_were_written() {
        let elements = [
            Element {
                key: vec![10, 0, 0, 1],
                data: ElementData::None,
                comment: "a/eth0".into(),
            },
            Element {
                key: concat(&[&[6], &80u16.to_be_bytes()]),
                data: ElementData::Value(vec![1, 2, 3, 4]),
                comment: String::new(),
            },
            Element {
                key: vec![1; 16],
                data: ElementData::Verdict(Verdict::Jump("net-1".into())),
                comment: "x".repeat(250),
            },
        ];
        let mut body = Attrs::after(&[0; 4]);
        body.nest(3, |list| {
            for element in &elements {
                list.nest(1, |entry| element.put(entry));
            }
        });
        assert_eq!(parse_elements(body.bytes()), elements);
        assert_eq!(elements[1].key, [6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn concatenated_types_are_packed_by_six_bits() {
        assert_eq!(
            concatenated(&[KeyType::Protocol, KeyType::Port]),
            (12 << 6 | 13, 8)
        );
        assert_eq!(concatenated(&[KeyType::Ipv6]), (8, 16));
        assert_eq!(
            concatenated(&[KeyType::Ifname, KeyType::Ether]),
            (41 << 6 | 9, 24)
        );
    }
}
