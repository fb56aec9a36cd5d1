//! Forgets tracked connections, over ctnetlink.
//!
//! Address translation is decided by a connection's first packet. UDP has no beginning that the kernel could see, so
//! when a port mapping comes or goes, its old entries would keep sending packets the old way.

use crate::{
    NetlinkError,
    attr::{Attrs, Reader},
    channel::{ACK, DUMP},
    pool::Pooled,
};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A socket for it in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    channel: Pooled,
}

fn head(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

impl Conntrack {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Conntrack {
            channel: Pooled::open()?,
        })
    }

    /// Forgets every connection of that transport protocol that was begun towards one of these ports, in both families;
    /// returns how many. The whole table is looked at (but never held: it may have a million entries), so callers do it
    /// only where it matters.
    pub fn forget(&mut self, protocol: u8, ports: &[u16]) -> Result<usize, NetlinkError> {
        let mut count = 0;
        for family in [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8] {
            let mut found = Vec::new();
            // Entries that begin while it is listed already follow the new rules.
            let listed = self
                .channel
                .each(SUBSYSTEM << 8 | GET, DUMP, &head(family), |entry| {
                    found.extend(matching(&entry.payload, protocol, ports));
                });
            match listed {
                Ok(_) => {}
                Err(error) if error.is_unsupported() => continue,
                Err(error) => return Err(error.about(|| "list tracked connections".into())),
            }
            for body in found {
                match self.channel.request(SUBSYSTEM << 8 | DELETE, ACK, &body) {
                    Ok(_) => count += 1,
                    // It ended by itself.
                    Err(error) if error.is_absent() => {}
                    Err(error) => return Err(error.about(|| "forget a tracked connection".into())),
                }
            }
        }
        Ok(count)
    }
}

/// The request that deletes the entry, if it is one of those meant.
fn matching(payload: &[u8], protocol: u8, ports: &[u16]) -> Option<Vec<u8>> {
    let (header, rest) = payload.split_at_checked(4)?;
    let entry = Reader(rest);
    let original = entry.find(CTA_TUPLE_ORIG)?;
    let proto = Reader(original).nested(CTA_TUPLE_PROTO)?;
    let port = proto
        .find(CTA_PROTO_DST_PORT)?
        .first_chunk()
        .map(|b| u16::from_be_bytes(*b))?;
    if proto.find(CTA_PROTO_NUM)?.first() != Some(&protocol) || !ports.contains(&port) {
        return None;
    }
    let mut body = Attrs::after(&head(header[0]));
    // The tuple finds it, the number makes sure that it's still the same.
    const NESTED: u16 = 0x8000;
    body.put(CTA_TUPLE_ORIG | NESTED, original);
    if let Some(id) = entry.find(CTA_ID) {
        body.put(CTA_ID, id);
    }
    Some(body.bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_is_forgotten() {
        let entry = |protocol: u8, port: u16| {
            let mut body = Attrs::after(&[2, 0, 0, 0]);
            body.nest(CTA_TUPLE_ORIG, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto
                        .put(CTA_PROTO_NUM, &[protocol])
                        .put(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                });
            });
            body.put(CTA_ID, &[1, 2, 3, 4]);
            body.bytes().to_vec()
        };
        assert!(matching(&entry(17, 53), 17, &[53, 54]).is_some());
        assert!(matching(&entry(6, 53), 17, &[53]).is_none());
        assert!(matching(&entry(17, 55), 17, &[53]).is_none());
        assert!(matching(&[2, 0], 17, &[53]).is_none());
    }
}
