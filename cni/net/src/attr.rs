//! Netlink attributes: a length, a type, a value, padded to four bytes; values may be attributes again.

use std::net::IpAddr;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Builds a message's payload.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attrs {
    bytes: Vec<u8>,
}

impl Attrs {
    /// Begins with a fixed header.
    pub(crate) fn after(header: &[u8]) -> Self {
        Attrs {
            bytes: header.to_vec(),
        }
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value);
        self.end(start);
        self
    }

    /// In network byte order, as nfnetlink has it.
    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// In network byte order, as nfnetlink has it.
    pub(crate) fn put_be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// In the machine's byte order, as routing netlink has it.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// With the closing zero byte.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.end(start);
        self
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs)) -> &mut Self {
        let start = self.begin(kind | NESTED);
        fill(self);
        self.end(start);
        self
    }

    /// A value inside of a nest of its own, as nftables wraps them.
    pub(crate) fn put_data(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |nest| {
            nest.put(1, value);
        })
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        // Every caller's values are far below 64 KiB; a longer one is cut off here and refused by the kernel.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads attributes one after the other; stops at the first that is damaged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The first attribute of that type.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Reader<'a>> {
        self.find(kind).map(Reader)
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
    }

    pub(crate) fn string(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    pub(crate) fn ip(self, kind: u16) -> Option<IpAddr> {
        let bytes = self.find(kind)?;
        match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            _ => None,
        }
    }
}

impl<'a> IntoIterator for Reader<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = ReaderIter<'a>;
    fn into_iter(self) -> ReaderIter<'a> {
        ReaderIter(self.0)
    }
}

pub(crate) struct ReaderIter<'a>(&'a [u8]);

impl<'a> Iterator for ReaderIter<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes([*self.0.get(2)?, *self.0.get(3)?]) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_built_is_read_again(values in proptest::collection::vec((1u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let mut attrs = Attrs::default();
            for (kind, value) in &values {
                attrs.nest(*kind, |a| { a.put(7, value); });
            }
            let read: Vec<(u16, Vec<u8>)> =
                Reader(attrs.bytes()).into_iter().map(|(k, v)| (k, Reader(v).find(7).unwrap().to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn noise_is_read_without_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, value) in Reader(&noise) {
                let _ = Reader(value).string(1);
            }
        }
    }
}
