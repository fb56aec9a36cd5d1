//! Names that end up in file names and in the environment of plugins: checked once, here.

/// A name that the CNI specification doesn't allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

const ID_RULE: &str = "it must begin with a letter or digit, followed by letters, digits, '_', '.' or '-'";
/// The longest name that still fits into file names beside another one.
const MAX_ID: usize = 128;

fn check_id(what: &'static str, value: &str) -> Result<(), InvalidId> {
    let mut bytes = value.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    let fail = |rule| {
        Err(InvalidId {
            what,
            value: value.chars().take(MAX_ID).collect(),
            rule,
        })
    };
    if !first || !rest {
        return fail(ID_RULE);
    }
    if value.len() > MAX_ID {
        fail("it is longer than 128 bytes")
    } else {
        Ok(())
    }
}

/// Checks CNI_CONTAINERID.
pub fn check_container_id(id: &str) -> Result<(), InvalidId> {
    check_id("container id", id)
}

/// Checks a network's name.
pub fn check_network_name(name: &str) -> Result<(), InvalidId> {
    check_id("network name", name)
}

/// Checks CNI_IFNAME: what the kernel takes as an interface's name.
pub fn check_ifname(name: &str) -> Result<(), InvalidId> {
    let fail = |rule| {
        Err(InvalidId {
            what: "interface name",
            value: name.chars().take(64).collect(),
            rule,
        })
    };
    if name.is_empty() || name.len() > 15 {
        return fail("it must have 1 to 15 bytes");
    }
    if name == "." || name == ".." || name.contains(['/', ':', '\0']) || name.contains(char::is_whitespace) {
        return fail("it must not be '.' or '..', nor contain '/', ':' or white space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a\n", &"x".repeat(129)] {
            assert!(check_container_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_container_id("0a_b.c-d").is_ok());
        for bad in ["", ".", "..", "a/b", "eth0:1", "sixteen-bytes-xx", "a b"] {
            assert!(check_ifname(bad).is_err(), "{bad:?}");
        }
        assert!(check_ifname("eth0").is_ok());
    }
}
