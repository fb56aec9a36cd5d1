//! nftables, spoken natively: atomic batches of changes, and reading back what is there.
//!
//! A [`Batch`] collects changes to one table; [`Nft::commit`] makes all of them or none. Making a table, chain or set
//! that is there is fine; rules are appended, which is why a chain is flushed before it is filled; elements must be new. Elements of sets
//! and maps carry a comment that names their owner, in the form that the `nft` command shows. Layouts are in
//! `linux/netfilter/nf_tables.h`; registers are the 4-byte ones, counted from 0.

mod expr;
mod set;

pub use expr::{Expr, Verdict, ct_status, ifname_bytes, l4proto};
pub use set::{Element, ElementData, KeyType, SetSpec, SetValue, concat};

use std::io;

use crate::{
    NetlinkError,
    attr::{Attrs, Reader},
    channel::{ACK, APPEND, CREATE, DUMP, EXCL, REQUEST, Received, encode},
    pool::Pooled,
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// More changes than this in one batch are a mistake of the caller; he splits them.
pub const MAX_BATCH: usize = 1024;

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// What passes through bridges.
    Bridge = 7,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// At which point.
    pub point: Point,
    /// Lower runs first.
    pub priority: i32,
}

/// A point in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Arrived.
    Prerouting = 0,
    /// For this machine.
    Input = 1,
    /// Passing through.
    Forward = 2,
    /// From this machine.
    Output = 3,
    /// Leaving.
    Postrouting = 4,
}

/// Changes to one table that happen together.
#[derive(Debug, Clone)]
pub struct Batch {
    family: Family,
    table: String,
    changes: Vec<Change>,
    next_set: u32,
}

#[derive(Debug, Clone)]
struct Change {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    what: String,
}

fn head(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Batch {
    /// No changes yet.
    pub fn new(family: Family, table: &str) -> Self {
        Batch {
            family,
            table: table.to_owned(),
            changes: Vec::new(),
            next_set: 0,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes it has.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    fn push(&mut self, kind: u16, flags: u16, what: String, fill: impl FnOnce(&mut Attrs)) -> &mut Self {
        let mut body = Attrs::after(&head(self.family as u8, 0));
        body.put_str(1, &self.table);
        fill(&mut body);
        self.changes.push(Change {
            kind,
            flags,
            body: body.bytes().to_vec(),
            what,
        });
        self
    }

    /// Makes the table.
    pub fn table(&mut self) -> &mut Self {
        let what = format!("make nftables table {}", self.table);
        self.push(NEWTABLE, CREATE, what, |_| {})
    }

    /// Makes a chain; with a hook, one that packets come through by themselves (policy: accept).
    pub fn chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Self {
        self.push(NEWCHAIN, CREATE, format!("make nftables chain {name}"), |body| {
            body.put_str(3, name);
            if let Some(hook) = hook {
                body.nest(4, |nest| {
                    nest.put_be32(1, hook.point as u32)
                        .put_be32(2, hook.priority.cast_unsigned());
                });
                body.put_str(7, hook.kind);
            }
        })
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.push(DELRULE, 0, format!("flush nftables chain {name}"), |body| {
            body.put_str(2, name);
        })
    }

    /// Appends a rule to a chain.
    pub fn rule(&mut self, chain: &str, expressions: &[Expr]) -> &mut Self {
        self.push(
            NEWRULE,
            CREATE | APPEND,
            format!("add a rule to nftables chain {chain}"),
            |body| {
                body.put_str(2, chain).nest(4, |list| {
                    for expression in expressions {
                        expression.put(list);
                    }
                });
            },
        )
    }

    /// Makes a set or map.
    pub fn set(&mut self, name: &str, spec: &SetSpec) -> &mut Self {
        self.next_set += 1;
        let id = self.next_set;
        self.push(NEWSET, CREATE, format!("make nftables set {name}"), |body| {
            body.put_str(2, name);
            spec.put(body);
            body.put_be32(10, id);
        })
    }

    /// Adds an element whose key must not be there yet ([`NetlinkError::is_present`]).
    pub fn element(&mut self, set: &str, element: &Element) -> &mut Self {
        self.push(
            NEWSETELEM,
            CREATE | EXCL,
            format!("add an element to nftables set {set}"),
            |body| {
                body.put_str(2, set).nest(3, |list| {
                    list.nest(1, |entry| element.put(entry));
                });
            },
        )
    }

    /// Removes an element, which must be there.
    pub fn remove_element(&mut self, set: &str, key: &[u8]) -> &mut Self {
        self.push(
            DELSETELEM,
            0,
            format!("remove an element from nftables set {set}"),
            |body| {
                body.put_str(2, set).nest(3, |list| {
                    list.nest(1, |entry| set::put_key(entry, key));
                });
            },
        )
    }
}

/// An nftables socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nft {
    channel: Pooled,
}

fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

impl Nft {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Nft {
            channel: Pooled::open()?,
        })
    }

    /// Makes all changes, or none and says which one was refused.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        if batch.len() > MAX_BATCH {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(NetlinkError::new(
                format!("send {} nftables changes at once", batch.len()),
                error,
            ));
        }
        let begin = self.channel.next_sequence();
        let mut bytes = encode(BATCH_BEGIN, REQUEST, begin, &head(0, SUBSYSTEM));
        let mut last = begin;
        for (index, change) in batch.changes.iter().enumerate() {
            last = self.channel.next_sequence();
            // Refused changes are always answered; of the others the last one's answer is enough.
            let ack = if index + 1 == batch.len() { ACK } else { 0 };
            bytes.extend(encode(
                kind(change.kind),
                change.flags | REQUEST | ack,
                last,
                &change.body,
            ));
        }
        let end = self.channel.next_sequence();
        bytes.extend(encode(BATCH_END, REQUEST, end, &head(0, SUBSYSTEM)));
        self.channel.send(&bytes)?;
        self.outcome(batch, begin, last)
    }

    fn outcome(&mut self, batch: &Batch, begin: u32, last: u32) -> Result<(), NetlinkError> {
        let mut failed: Option<NetlinkError> = None;
        loop {
            for (header, received) in self.channel.receive()? {
                let index = header.sequence.wrapping_sub(begin);
                if index as usize > batch.len() {
                    continue;
                }
                if let Received::Failed(error) = received
                    && failed.is_none()
                {
                    let what = match (index as usize).checked_sub(1).and_then(|i| batch.changes.get(i)) {
                        Some(change) => change.what.clone(),
                        None => format!("change nftables table {}", batch.table),
                    };
                    failed = Some(error.about(|| what));
                }
                if header.sequence == last || header.sequence == begin {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Whether there is such a chain.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, NetlinkError> {
        let mut body = Attrs::after(&head(family as u8, 0));
        body.put_str(1, table).put_str(3, chain);
        match self.channel.request(kind(GETCHAIN), 0, body.bytes()) {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error.about(|| format!("find nftables chain {chain}"))),
        }
    }

    /// The names of a table's chains; none when there is no table.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<Vec<String>, NetlinkError> {
        let mut body = Attrs::after(&head(family as u8, 0));
        body.put_str(1, table);
        let replies = match self.channel.request(kind(GETCHAIN), DUMP, body.bytes()) {
            Ok(replies) => replies,
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(error.about(|| format!("list nftables table {table}"))),
        };
        let names = replies.iter().filter_map(|reply| {
            let reader = Reader(reply.payload.get(4..)?);
            reader.string(1).filter(|of| of == table)?;
            reader.string(3)
        });
        Ok(names.collect())
    }

    /// Every element of a set; none when there is no such set.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>, NetlinkError> {
        let mut body = Attrs::after(&head(family as u8, 0));
        body.put_str(1, table).put_str(2, set);
        match self.channel.request(kind(GETSETELEM), DUMP, body.bytes()) {
            Ok(replies) => Ok(replies
                .iter()
                .flat_map(|reply| set::parse_elements(&reply.payload))
                .collect()),
            Err(error) if error.is_absent() => Ok(Vec::new()),
            Err(error) => Err(error.about(|| format!("list nftables set {set}"))),
        }
    }

    /// One element by its key.
    pub fn element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
    ) -> Result<Option<Element>, NetlinkError> {
        let mut body = Attrs::after(&head(family as u8, 0));
        body.put_str(1, table).put_str(2, set).nest(3, |list| {
            list.nest(1, |entry| set::put_key(entry, key));
        });
        match self.channel.request(kind(GETSETELEM), 0, body.bytes()) {
            Ok(replies) => Ok(replies
                .iter()
                .flat_map(|reply| set::parse_elements(&reply.payload))
                .next()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.about(|| format!("read nftables set {set}"))),
        }
    }

    /// Removes elements; those that are gone already are fine.
    pub fn remove_elements(
        &mut self,
        family: Family,
        table: &str,
        elements: &[(String, Vec<u8>)],
    ) -> Result<(), NetlinkError> {
        for piece in elements.chunks(MAX_BATCH / 4) {
            let mut all = Batch::new(family, table);
            for (set, key) in piece {
                all.remove_element(set, key);
            }
            match self.commit(&all) {
                Err(error) if error.is_absent() => {}
                other => {
                    other?;
                    continue;
                }
            }
            for (set, key) in piece {
                match self.commit(Batch::new(family, table).remove_element(set, key)) {
                    Err(error) if !error.is_absent() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
