//! Who a container runs as: names and numbers looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The root that these files lie in is hostile: they are opened inside it with openat2, so that a link can't point at
//! the host's, they must be regular files, and only so much of them is read. The lookup itself is a pure function of
//! the two texts, in the order of the CRI: a user name wins over a number, either wins over the image's user, and a
//! group without a user is an error. The primary group is the one asked for, else that of the passwd line, else 0.
//!
//! Supplementary groups are the primary group and those asked for; with policy `Merge` also those that `/etc/group`
//! lists the user in.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use cri_api::v1::{self, SupplementalGroupsPolicy};

/// No real file of users is larger; a hostile one is not read further.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// The kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub additional_gids: Vec<u32>,
    /// The home folder of the passwd line, if there is one.
    pub home: Option<String>,
}

/// Why nobody could be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A group alone.
    #[error("run_as_group {gid} is set without run_as_user or run_as_username")]
    GroupWithoutUser {
        /// The group.
        gid: i64,
    },
    /// A number that is no ID.
    #[error("{field} {id} is not an ID: expected 0 to 4294967294")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// The number.
        id: i64,
    },
    /// A name that isn't in the file.
    #[error("no {what} `{name}` in the image's `{file}`")]
    Unknown {
        /// User or group.
        what: &'static str,
        /// The name.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// Too many groups.
    #[error("more than {MAX_GROUPS} supplementary groups")]
    TooManyGroups,
    /// An enum field with a number that this CRI version doesn't have.
    #[error("supplemental_groups_policy has the unknown value {value}")]
    Policy {
        /// The number.
        value: i32,
    },
    /// A file that can't be read.
    #[error("failed to read `{file}` of the image at `{root}`")]
    Read {
        /// The file.
        file: &'static str,
        /// The image's root.
        root: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// Who a container with this root, image user (`user[:group]`, may be empty) and security context runs as. Blocking.
pub fn resolve_user(
    rootfs: &Path,
    image_user: &str,
    security: Option<&v1::LinuxContainerSecurityContext>,
) -> Result<ResolvedUser, UserError> {
    let wanted = Wanted::new(image_user, security)?;
    let root = File::open(rootfs).map_err(|source| UserError::Read {
        file: "/",
        root: rootfs.to_owned(),
        source,
    })?;
    let read = |file: &'static str| {
        read_in_root(&root, file).map_err(|source| UserError::Read {
            file,
            root: rootfs.to_owned(),
            source,
        })
    };
    wanted.look_up(&read("/etc/passwd")?, &read("/etc/group")?)
}

/// A file inside a root, at most [`MAX_FILE_BYTES`] of it; empty when it isn't there.
fn read_in_root(root: &File, file: &'static str) -> io::Result<String> {
    use oci_runtime_sys::in_root::{Access, open_in_root};
    let file = match open_in_root(root.as_fd(), Path::new(file), Access::Read) {
        // Images without users are common: scratch and one binary.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        other => File::from(other?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    // Comments in odd encodings must not hide the accounts.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The real path of something inside a root.
pub(super) fn path_in_root(root: &Path, path: &Path) -> io::Result<PathBuf> {
    use oci_runtime_sys::in_root::{Access, open_in_root};
    let root = File::open(root)?;
    let found = open_in_root(root.as_fd(), path, Access::Path)?;
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// A user or group as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Id(u32),
    Text(String),
}

impl Name {
    fn parse(text: &str) -> Self {
        match text.parse::<u32>() {
            Ok(id) if id != u32::MAX => Self::Id(id),
            _ => Self::Text(text.to_owned()),
        }
    }
}

/// What is to be looked up.
#[derive(Debug)]
struct Wanted {
    user: Name,
    group: Option<Name>,
    groups: Vec<u32>,
    policy: SupplementalGroupsPolicy,
}

fn id(field: &'static str, id: i64) -> Result<u32, UserError> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(UserError::OutOfRange { field, id })
}

impl Wanted {
    fn new(
        image_user: &str,
        security: Option<&v1::LinuxContainerSecurityContext>,
    ) -> Result<Self, UserError> {
        let none = v1::LinuxContainerSecurityContext::default();
        let security = security.unwrap_or(&none);
        let run_as_user = security
            .run_as_user
            .map(|v| id("run_as_user", v.value))
            .transpose()?;
        let run_as_group = security
            .run_as_group
            .map(|v| id("run_as_group", v.value))
            .transpose()?;
        let explicit = if security.run_as_username.is_empty() {
            run_as_user.map(Name::Id)
        } else {
            Some(Name::parse(&security.run_as_username))
        };
        let (user, group) = match (explicit, run_as_group) {
            (Some(user), group) => (user, group.map(Name::Id)),
            (None, Some(gid)) => return Err(UserError::GroupWithoutUser { gid: gid.into() }),
            (None, None) => of_image(image_user),
        };
        if security.supplemental_groups.len() > MAX_GROUPS {
            return Err(UserError::TooManyGroups);
        }
        let groups = security
            .supplemental_groups
            .iter()
            .map(|g| id("supplemental_groups", *g));
        let value = security.supplemental_groups_policy;
        Ok(Self {
            user,
            group,
            groups: groups.collect::<Result<_, _>>()?,
            policy: SupplementalGroupsPolicy::try_from(value).map_err(|_| UserError::Policy { value })?,
        })
    }

    /// Pure: the answer from the texts of the two files.
    fn look_up(self, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
        let account = accounts(passwd).find(|a| match &self.user {
            Name::Id(uid) => a.uid == *uid,
            Name::Text(name) => a.name == name,
        });
        let uid = match (&self.user, &account) {
            (Name::Id(uid), _) => *uid,
            (Name::Text(_), Some(account)) => account.uid,
            (Name::Text(name), None) => {
                return Err(UserError::Unknown {
                    what: "user",
                    name: name.clone(),
                    file: "/etc/passwd",
                });
            }
        };
        let gid = match &self.group {
            Some(Name::Id(gid)) => *gid,
            Some(Name::Text(name)) => {
                let found = groups(group).find(|g| g.name == name).map(|g| g.gid);
                found.ok_or_else(|| UserError::Unknown {
                    what: "group",
                    name: name.clone(),
                    file: "/etc/group",
                })?
            }
            None => account.as_ref().map_or(0, |a| a.gid),
        };
        let mut all = vec![gid];
        all.extend(&self.groups);
        if let (SupplementalGroupsPolicy::Merge, Some(account)) = (self.policy, &account) {
            let member = |g: &GroupLine<'_>| g.members.split(',').any(|m| m == account.name);
            all.extend(groups(group).filter(member).map(|g| g.gid));
        }
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|gid| seen.insert(*gid));
        if all.len() > MAX_GROUPS {
            return Err(UserError::TooManyGroups);
        }
        let home = account
            .map(|a| a.home)
            .filter(|h| h.starts_with('/'))
            .unwrap_or("/")
            .to_owned();
        Ok(ResolvedUser {
            uid,
            gid,
            additional_gids: all,
            home: Some(home),
        })
    }
}

/// `user[:group]` of an image; nothing is root.
fn of_image(text: &str) -> (Name, Option<Name>) {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() {
        Name::Id(0)
    } else {
        Name::parse(user)
    };
    (user, (!group.is_empty()).then(|| Name::parse(group)))
}

/// A line of passwd.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The lines of passwd that make sense.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        let comment = name.is_empty() || name.starts_with('#');
        (!comment).then_some(Account {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    })
}

/// A line of group.
struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// The lines of group that make sense.
fn groups(group: &str) -> impl Iterator<Item = GroupLine<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let members = fields.next().unwrap_or_default();
        let comment = name.is_empty() || name.starts_with('#');
        (!comment).then_some(GroupLine {
            name,
            gid: gid.parse().ok()?,
            members,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment:x:7:7::/:\nbroken\n\
        www-data:x:33:34:www:/var/www:/bin/sh\ndefault-user:x:1000:1000::/home/u:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nwww-data:x:33:\nstaff:x:50:www-data,default-user\n\
        group-defined-in-image:x:50000:default-user\n";

    fn look_up(image: &str, security: v1::LinuxContainerSecurityContext) -> Result<ResolvedUser, UserError> {
        Wanted::new(image, Some(&security))?.look_up(PASSWD, GROUP)
    }

    fn nothing() -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext::default()
    }

    fn number(value: i64) -> Option<v1::Int64Value> {
        Some(v1::Int64Value { value })
    }

    fn ids(user: &ResolvedUser) -> (u32, u32, &[u32]) {
        (user.uid, user.gid, &user.additional_gids)
    }

    #[test]
    fn the_images_user_in_every_spelling() {
        for (text, expected) in [
            ("", (0, 0, &[0][..])),
            ("1002", (1002, 0, &[0])),
            ("www-data", (33, 34, &[34, 50])),
            ("1003:1004", (1003, 1004, &[1004])),
            ("www-data:1004", (33, 1004, &[1004, 50])),
            ("1000:staff", (1000, 50, &[50, 50000])),
            (":staff", (0, 50, &[50, 0])),
        ] {
            assert_eq!(ids(&look_up(text, nothing()).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn the_security_context_wins_over_the_image() {
        let context = v1::LinuxContainerSecurityContext {
            run_as_user: number(1000),
            supplemental_groups: vec![1234],
            ..nothing()
        };
        let user = look_up("www-data:staff", context.clone()).unwrap();
        assert_eq!(ids(&user), (1000, 1000, &[1000, 1234, 50, 50000][..]));
        assert_eq!(user.home.as_deref(), Some("/home/u"));

        let named = v1::LinuxContainerSecurityContext {
            run_as_username: "www-data".to_owned(),
            run_as_group: number(7),
            ..context
        };
        assert_eq!(ids(&look_up("", named).unwrap()), (33, 7, &[7, 1234, 50][..]));
    }

    #[test]
    fn strict_groups_leave_the_image_out() {
        let context = v1::LinuxContainerSecurityContext {
            run_as_user: number(1000),
            supplemental_groups: vec![1234],
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            ..nothing()
        };
        assert_eq!(
            ids(&look_up("", context).unwrap()),
            (1000, 1000, &[1000, 1234][..])
        );
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        let context = v1::LinuxContainerSecurityContext {
            run_as_group: number(5),
            ..nothing()
        };
        let error = look_up("www-data", context).unwrap_err();
        assert_eq!(
            error.to_string(),
            "run_as_group 5 is set without run_as_user or run_as_username"
        );
    }

    #[test]
    fn who_does_not_exist_is_named() {
        let error = |image| look_up(image, nothing()).unwrap_err().to_string();
        assert_eq!(error("nobody"), "no user `nobody` in the image's `/etc/passwd`");
        assert_eq!(error("0:crowd"), "no group `crowd` in the image's `/etc/group`");
        assert_eq!(
            error("4294967295"),
            "no user `4294967295` in the image's `/etc/passwd`"
        );
        let context = v1::LinuxContainerSecurityContext {
            run_as_user: number(-1),
            ..nothing()
        };
        assert!(
            look_up("", context)
                .unwrap_err()
                .to_string()
                .starts_with("run_as_user -1 is not an ID")
        );
    }

    #[test]
    fn files_are_read_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("passwd"), PASSWD).unwrap();
        std::os::unix::fs::symlink("../../passwd", root.join("etc/passwd")).unwrap();
        let error = resolve_user(&root, "www-data", None).unwrap_err().to_string();
        assert_eq!(error, "no user `www-data` in the image's `/etc/passwd`");

        std::fs::write(root.join("passwd"), PASSWD).unwrap();
        assert_eq!(
            resolve_user(&root, "www-data", None).unwrap().uid,
            33,
            "a link inside the root is fine"
        );
    }

    #[test]
    fn a_hostile_passwd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        let passwd = dir.path().join("etc/passwd");
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(
            resolve_user(dir.path(), "www-data", None).is_err(),
            "a fifo must not block"
        );
        std::fs::remove_file(&passwd).unwrap();
        File::create(&passwd)
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        assert!(resolve_user(dir.path(), "www-data", None).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(passwd in ".{0,200}", group in ".{0,200}", image in ".{0,20}") {
            if let Ok(wanted) = Wanted::new(&image, None) {
                let _ = wanted.look_up(&passwd, &group);
            }
        }
    }
}
