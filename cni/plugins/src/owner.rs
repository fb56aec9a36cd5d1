//! Whose something is: a container's interface. Written into everything that outlives a network namespace.

use sha2::{Digest, Sha256};

/// A container's interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

impl Owner {
    pub(crate) fn new(container_id: &str, ifname: &str) -> Self {
        Owner {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// The mark on elements of nftables sets. Neither part can contain a slash.
    pub(crate) fn mark(&self) -> String {
        format!("{}/{}", self.container_id, self.ifname)
    }

    pub(crate) fn from_mark(mark: &str) -> Option<Self> {
        mark.split_once('/').map(|(id, ifname)| Owner::new(id, ifname))
    }

    /// The name of something on the host that belongs to it: always the same one, so that it is found again.
    pub(crate) fn host_name(&self, prefix: &str) -> String {
        format!(
            "{prefix}{}",
            short_hash(&[&self.container_id, &self.ifname], 15 - prefix.len())
        )
    }
}

/// `digits` hexadecimal digits of a hash over the parts.
pub(crate) fn short_hash(parts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut text: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        let owner = Owner::new("c1", "eth0");
        assert_eq!(
            owner.host_name("veth"),
            Owner::new("c1", "eth0").host_name("veth")
        );
        assert_eq!(owner.host_name("veth").len(), 15);
        assert_ne!(
            owner.host_name("veth"),
            Owner::new("c1e", "th0").host_name("veth")
        );
        assert_eq!(Owner::from_mark(&owner.mark()), Some(owner));
        assert_eq!(Owner::from_mark("x"), None);
    }
}
