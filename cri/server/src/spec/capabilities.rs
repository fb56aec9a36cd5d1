//! Capabilities: names, the container's sets, and what the host can't give.
//!
//! The CRI speaks of `NET_ADMIN`, the kernel of `CAP_NET_ADMIN`; both spellings are taken, in any case. A container
//! starts with the default set, `ALL` in `add` or `drop` fills or empties it first, single names come after. What the
//! daemon itself doesn't have in its bounding set it can't give, so every set is cut down to that; a capability for
//! ambient use must also be inheritable, or the kernel refuses it.

use cri_api::v1;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::{SpecError, SpecInput};

/// Every capability that exists, in the order of the kernel's numbers.
pub const ALL_CAPABILITIES: [Capability; 41] = {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ]
};

/// The capability of that name, with or without `CAP_`, in any case.
pub fn capability_by_name(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    // oci-spec's Display is the bare kernel name.
    ALL_CAPABILITIES.into_iter().find(|c| c.to_string() == bare)
}

/// A set with the order of [`ALL_CAPABILITIES`]: one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Set(u64);

impl Set {
    const ALL: Self = Self((1 << ALL_CAPABILITIES.len()) - 1);

    fn of(capabilities: &[Capability]) -> Self {
        capabilities.iter().fold(Self::default(), |set, c| set.with(*c))
    }

    fn bit(capability: Capability) -> u64 {
        let place = ALL_CAPABILITIES.iter().position(|c| *c == capability);
        // A capability newer than our list has no bit, and so is in no set.
        place.map_or(0, |at| 1 << at)
    }

    fn with(self, capability: Capability) -> Self {
        Self(self.0 | Self::bit(capability))
    }

    fn without(self, capability: Capability) -> Self {
        Self(self.0 & !Self::bit(capability))
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn to_oci(self) -> Capabilities {
        let held = ALL_CAPABILITIES
            .into_iter()
            .filter(|c| self.0 & Self::bit(*c) != 0);
        held.collect()
    }
}

/// A name in a CRI list.
enum Named {
    All,
    One(Capability),
}

fn parse(names: &[String], field: &'static str) -> Result<Vec<Named>, SpecError> {
    let one = |name: &String| {
        if name.eq_ignore_ascii_case("ALL") {
            return Ok(Named::All);
        }
        capability_by_name(name)
            .map(Named::One)
            .ok_or_else(|| SpecError::Capability {
                name: name.clone(),
                field,
            })
    };
    names.iter().map(one).collect()
}

/// The container's capability sets.
pub(super) fn capabilities(input: &SpecInput<'_>) -> Result<LinuxCapabilities, SpecError> {
    let host = Set::of(&input.host.bounding);
    let empty = v1::Capability::default();
    let asked = input
        .security()
        .and_then(|s| s.capabilities.as_ref())
        .unwrap_or(&empty);
    let defaults = Set::of(&input.defaults.capabilities);
    let (held, ambient) = sets(asked, defaults, input.privileged())?;
    let (held, ambient) = (held.and(host).to_oci(), ambient.and(host).to_oci());
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(held.clone())
        .effective(held.clone())
        .permitted(held)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()?)
}

/// The bounding and the ambient set that a configuration asks for.
fn sets(asked: &v1::Capability, defaults: Set, privileged: bool) -> Result<(Set, Set), SpecError> {
    let add = parse(&asked.add_capabilities, "add_capabilities")?;
    let drop = parse(&asked.drop_capabilities, "drop_capabilities")?;
    let raise = parse(&asked.add_ambient_capabilities, "add_ambient_capabilities")?;
    if privileged {
        return Ok((Set::ALL, Set::default()));
    }
    let has_all = |list: &[Named]| list.iter().any(|n| matches!(n, Named::All));
    let mut held = match (has_all(&add), has_all(&drop)) {
        // Dropping ALL beside adding some is the usual way to name an exact set; adding ALL wins over dropping it.
        (true, _) => Set::ALL,
        (false, true) => Set::default(),
        (false, false) => defaults,
    };
    for name in &add {
        if let Named::One(capability) = name {
            held = held.with(*capability);
        }
    }
    for name in &drop {
        if let Named::One(capability) = name {
            held = held.without(*capability);
        }
    }
    let ambient = raise.iter().fold(Set::default(), |set, name| match name {
        Named::All => Set::ALL,
        Named::One(capability) => set.with(*capability),
    });
    Ok((held.or(ambient), ambient))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(add: &[&str], drop: &[&str], ambient: &[&str]) -> v1::Capability {
        let texts = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        v1::Capability {
            add_capabilities: texts(add),
            drop_capabilities: texts(drop),
            add_ambient_capabilities: texts(ambient),
        }
    }

    fn held(add: &[&str], drop: &[&str]) -> Set {
        let defaults = Set::of(&[Capability::Chown, Capability::NetRaw]);
        sets(&asked(add, drop, &[]), defaults, false).unwrap().0
    }

    #[test]
    fn every_capability_has_its_kernel_name() {
        for capability in ALL_CAPABILITIES {
            let name = capability.to_string();
            assert_eq!(capability_by_name(&name), Some(capability), "{name}");
            assert_eq!(
                capability_by_name(&format!("cap_{}", name.to_lowercase())),
                Some(capability)
            );
        }
        assert_eq!(capability_by_name("SYS_ADMIN"), Some(Capability::SysAdmin));
        assert_eq!(
            capability_by_name("CAP_CHECKPOINT_RESTORE"),
            Some(Capability::CheckpointRestore)
        );
        assert_eq!(capability_by_name("CAP_"), None);
    }

    #[test]
    fn add_and_drop_start_from_the_default_set() {
        assert_eq!(held(&[], &[]), Set::of(&[Capability::Chown, Capability::NetRaw]));
        assert_eq!(
            held(&["SYS_ADMIN"], &["net_raw"]),
            Set::of(&[Capability::Chown, Capability::SysAdmin])
        );
    }

    #[test]
    fn all_fills_or_empties_first() {
        assert_eq!(held(&["ALL"], &[]), Set::ALL);
        assert_eq!(held(&["all"], &["CHOWN"]), Set::ALL.without(Capability::Chown));
        assert_eq!(held(&[], &["ALL"]), Set::default());
        assert_eq!(held(&["KILL"], &["ALL"]), Set::of(&[Capability::Kill]));
        assert_eq!(held(&["ALL"], &["ALL"]), Set::ALL);
    }

    #[test]
    fn ambient_capabilities_are_held_too() {
        let (held, ambient) = sets(&asked(&[], &["ALL"], &["NET_BIND_SERVICE"]), Set::ALL, false).unwrap();
        assert_eq!(held, Set::of(&[Capability::NetBindService]));
        assert_eq!(ambient, held);
    }

    #[test]
    fn privileged_is_everything() {
        let (held, ambient) = sets(&asked(&[], &["ALL"], &["KILL"]), Set::default(), true).unwrap();
        assert_eq!((held, ambient), (Set::ALL, Set::default()));
    }

    #[test]
    fn unknown_names_are_named() {
        let error = sets(&asked(&[], &["NET_RAWW"], &[]), Set::ALL, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown capability `NET_RAWW` in `drop_capabilities`"
        );
    }
}
