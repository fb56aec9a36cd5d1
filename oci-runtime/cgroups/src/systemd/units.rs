//! Names of units, and where their cgroups are.

use crate::CgroupError;

/// Where scopes go that name no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// A unit that stands for a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A container's, born around a process.
    Scope {
        /// `prefix-name.scope`
        name: String,
        /// The slice it's in.
        slice: String,
    },
    /// A pod's.
    Slice {
        /// `a-b.slice`
        name: String,
    },
}

impl Unit {
    /// Reads `slice:prefix:name` or the name of a slice.
    pub(crate) fn parse(path: &str) -> Result<Self, CgroupError> {
        let refuse = |reason| CgroupError::Path {
            path: path.to_owned(),
            reason,
        };
        if path.ends_with(".slice") && !path.contains(':') {
            slice_levels(path).map_err(refuse)?;
            return Ok(Self::Slice {
                name: path.to_owned(),
            });
        }
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(refuse(
                "is not in the form `slice:prefix:name` that the systemd cgroup driver takes",
            ));
        };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        slice_levels(slice).map_err(refuse)?;
        if prefix.is_empty() || name.is_empty() {
            return Err(refuse("has an empty prefix or name"));
        }
        let name = format!("{prefix}-{name}.scope");
        if !is_unit_name(&name) {
            return Err(refuse("has a character that no unit's name can have"));
        }
        Ok(Self::Scope {
            name,
            slice: slice.to_owned(),
        })
    }

    /// systemd's name of it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Scope { name, .. } | Self::Slice { name } => name,
        }
    }

    /// The cgroup's path from the root of the hierarchy.
    pub(crate) fn path(&self) -> String {
        let levels = |slice: &str| slice_levels(slice).unwrap_or_default().join("/");
        match self {
            Self::Slice { name } => format!("/{}", levels(name)),
            Self::Scope { name, slice } if slice == "-.slice" => format!("/{name}"),
            Self::Scope { name, slice } => format!("/{}/{name}", levels(slice)),
        }
    }

    /// The slice above a slice; `None` for one at the top.
    pub(crate) fn parent_of_slice(name: &str) -> Option<String> {
        let (above, _) = name.strip_suffix(".slice")?.rsplit_once('-')?;
        Some(format!("{above}.slice"))
    }
}

/// `a-b.slice` → `a.slice`, `a-b.slice`. The root, `-.slice`, has none.
fn slice_levels(slice: &str) -> Result<Vec<String>, &'static str> {
    let Some(name) = slice.strip_suffix(".slice").filter(|name| !name.is_empty()) else {
        return Err("names a slice that doesn't end in `.slice`");
    };
    if name == "-" {
        return Ok(Vec::new());
    }
    if !is_unit_name(slice) {
        return Err("names a slice with a character that no unit's name can have");
    }
    if name.split('-').any(str::is_empty) {
        return Err("names a slice with a level without a name");
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

/// As systemd has it; its limit includes the NUL.
fn is_unit_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    name.len() < 256 && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_and_slices_have_the_paths_that_systemd_gives_them() {
        for (given, name, path) in [
            (
                "kubepods-besteffort-pod1_2.slice:orlop:c1",
                "orlop-c1.scope",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/orlop-c1.scope",
            ),
            (":orlop:c", "orlop-c.scope", "/system.slice/orlop-c.scope"),
            ("-.slice:a:b", "a-b.scope", "/a-b.scope"),
            ("kubepods.slice", "kubepods.slice", "/kubepods.slice"),
            ("a-b.slice", "a-b.slice", "/a.slice/a-b.slice"),
        ] {
            let unit = Unit::parse(given).unwrap();
            assert_eq!((unit.name(), unit.path().as_str()), (name, path), "{given}");
        }
    }

    #[test]
    fn what_names_no_unit_is_refused() {
        for bad in [
            "",
            "/a/b",
            "a:b",
            "a:b:c",
            "a.slice:b:c:d",
            "a.slice::c",
            "a.slice:b:",
            "a--b.slice:c:d",
            "-a.slice:c:d",
            ".slice",
            "a/b.slice",
            "a.slice:b:c/d",
            "a.slice:b:c d",
        ] {
            assert!(Unit::parse(bad).is_err(), "{bad:?} was taken");
        }
        assert!(Unit::parse(&format!("a.slice:b:{}", "x".repeat(250))).is_err());
    }

    #[test]
    fn a_slice_has_the_slice_above_it_for_a_parent() {
        assert_eq!(Unit::parent_of_slice("a-b-c.slice").as_deref(), Some("a-b.slice"));
        assert_eq!(Unit::parent_of_slice("a.slice"), None);
    }
}
