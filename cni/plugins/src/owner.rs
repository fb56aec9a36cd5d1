//! Whose something is: a container's interface. Written into everything that outlives a network namespace.

use std::borrow::Cow;

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

    /// What is written beside a network's name. Neither part can contain a slash.
    pub(crate) fn tag(&self) -> String {
        format!("{}/{}", self.container_id, self.ifname)
    }

    pub(crate) fn from_tag(tag: &str) -> Option<Self> {
        tag.split_once('/').map(|(id, ifname)| Owner::new(id, ifname))
    }

    /// The mark on elements of nftables sets, which all networks share: GC of one must not take another's.
    pub(crate) fn mark(&self, network: &str) -> String {
        format!("{}/{}", network_in_mark(network), self.tag())
    }

    /// Whose element has that mark, if it is of that network.
    pub(crate) fn of_mark(mark: &str, network: &str) -> Option<Self> {
        let rest = mark.strip_prefix(network_in_mark(network).as_ref())?;
        rest.strip_prefix('/').and_then(Owner::from_tag)
    }

    /// The container in a mark, of whatever network.
    pub(crate) fn container_of_mark(mark: &str) -> &str {
        mark.split('/').nth(1).unwrap_or(mark)
    }

    /// The name of something on the host that belongs to it: always the same one, so that it is found again.
    pub(crate) fn host_name(&self, prefix: &str) -> String {
        format!(
            "{prefix}{}",
            short_hash(&[&self.container_id, &self.ifname], 15 - prefix.len())
        )
    }
}

/// A mark has room for 250 bytes, of which container and interface may need 144.
fn network_in_mark(network: &str) -> Cow<'_, str> {
    match network.len() {
        0..=64 => network.into(),
        _ => short_hash(&[network], 64).into(),
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
        assert_eq!(Owner::from_tag(&owner.tag()), Some(owner));
        assert_eq!(Owner::from_tag("x"), None);
    }

    #[test]
    fn marks_belong_to_one_network_and_fit() {
        let owner = Owner::new("c1", "eth0");
        let mark = owner.mark("pods");
        assert_eq!(mark, "pods/c1/eth0");
        assert_eq!(Owner::of_mark(&mark, "pods"), Some(owner));
        assert_eq!(Owner::of_mark(&mark, "pod"), None);
        assert_eq!(Owner::of_mark(&mark, "others"), None);
        assert_eq!(Owner::container_of_mark(&mark), "c1");
        let (network, longest) = ("n".repeat(128), Owner::new(&"c".repeat(128), "a-longest-name1"));
        let mark = longest.mark(&network);
        assert!(mark.len() <= 250, "{}", mark.len());
        assert_eq!(Owner::of_mark(&mark, &network), Some(longest));
    }
}
