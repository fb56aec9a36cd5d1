//! The root disk and its kernel, made by mmdebstrap from the machine's own package sources.
//!
//! mmdebstrap fills a folder, and hooks in it fetch the kernel's package (unpacked only: configuring it would build an
//! initial RAM disk that nobody needs) and let `mke2fs -d` write the disk. So it takes neither a loop device nor a
//! mount of ours, and works as root and, by user namespaces, as a user. The disk holds Debian's packages and nothing of
//! ours: the agent comes by the initial RAM disk ([`crate::initrd`]), so that only a change of this file makes a new one.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::qemu::{spawn, tied};
use crate::store::{Entry, Store, key};

const SUITE: &str = "bookworm";

/// What the guest has beside Debian's essential packages: systemd, and the peers and tools of the test suites.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "kmod",
    "mount",
    "util-linux",
    "procps",
    "bash",
    "netbase",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "iptables",
    "nftables",
    "conntrack",
    "curl",
    "e2fsprogs",
    "xfsprogs",
    "apparmor",
    "busybox-static",
    "runc",
    "crun",
    "containerd",
    "containernetworking-plugins",
    "docker-registry",
    "strace",
];

/// Room in the root disk, in MiB; the file is sparse.
const ROOT_MIB: u32 = 6144;
/// What the disk of the host must have free for the whole making.
const NEEDS_MIB: u64 = 3072;

const KERNEL_HOOK: &str = r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
mkdir "$1/.kernel"
cd "$1/.kernel"
apt-get -q -o APT::Sandbox::User=root download "$package"
dpkg-deb -x ./*.deb .
mv lib/modules "$1/usr/lib/modules"
cp boot/vmlinuz-* "$OUT/vmlinuz"
cd /
rm -r "$1/.kernel"
release=$(ls "$1/usr/lib/modules")
chroot "$1" depmod "$release"
echo "$release" >"$OUT/release"
cd "$1/usr/lib/modules/$release"
cp modules.dep modules.builtin "$OUT"
mkdir "$OUT/modules"
find kernel -name 'virtio*.ko' -o -name '*failover.ko' | while read -r module; do
    mkdir -p "$OUT/modules/${module%/*}"
    cp "$module" "$OUT/modules/$module"
done
"#;

const ROOT_HOOK: &str = r#"set -e
echo 0123456789abcdef0123456789abcdef >"$1/etc/machine-id"
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*
: >"$1/etc/fstab"
echo 'root:*:19000:0:99999:7:::' >"$1/etc/shadow.new"
sed '/^root:/d' "$1/etc/shadow" >>"$1/etc/shadow.new"
mv "$1/etc/shadow.new" "$1/etc/shadow"
# A bind mount shows the folder without what is mounted in it just now.
mkdir "$OUT/view"
unshare --mount sh -ec '
    mount --bind "$1" "$OUT/view"
    mke2fs -q -F -t ext4 -L root -m 0 -O ^has_journal -E root_owner=0:0 -d "$OUT/view" "$OUT/root.img" "${ROOT_MIB}M"
' sh "$1"
"#;

/// The image, made if it isn't there; whether it was.
pub(crate) fn ensure(store: &Store) -> Result<(Entry, bool)> {
    let packages = PACKAGES.join(",");
    let parts = [SUITE, &packages, KERNEL_HOOK, ROOT_HOOK, &ROOT_MIB.to_string()];
    let key = key(&parts.map(str::as_bytes));
    store.ensure("images", &key, |half| {
        store.needs_mib(NEEDS_MIB, "making the guest's image")?;
        eprintln!("vm: making the guest's image (once; about two minutes)");
        make(half, &packages)
    })
}

fn make(half: &Path, packages: &str) -> Result<()> {
    // As a user, mmdebstrap runs in a user namespace whose root isn't the owner of our folders.
    let work = half.join("work");
    fs::create_dir(&work)?;
    fs::set_permissions(&work, fs::Permissions::from_mode(0o1777))?;
    let log_path = half.join("mmdebstrap.log");
    let log = File::create(&log_path)?;
    let root = nix::unistd::Uid::effective().is_root();
    let mut command = if root {
        // mmdebstrap mounts /proc and more; a killed one must leave none of it, nor a process.
        let mut command = tied("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "mmdebstrap",
        ]);
        command
    } else {
        tied("mmdebstrap")
    };
    command
        .arg(if root { "--mode=root" } else { "--mode=unshare" })
        .args([
            "--variant=essential",
            "--format=null",
            "--keyring=/usr/share/keyrings",
        ])
        .arg(format!("--include={packages}"))
        .arg("--dpkgopt=force-unsafe-io");
    for waste in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{waste}/*"));
    }
    for option in apt_options()? {
        command.arg(format!("--aptopt={option}"));
    }
    for hook in [KERNEL_HOOK, ROOT_HOOK] {
        command.arg(format!("--customize-hook={hook}"));
    }
    command.args([SUITE, "/dev/null"]);
    let sources = sources()?;
    let list = half.join("sources.list");
    if !sources.is_empty() {
        fs::write(&list, &sources)?;
        command.arg(&list);
    }
    command
        .env("PATH", crate::qemu::PATH)
        .env("LC_ALL", "C")
        .env("TMPDIR", &work)
        .env("OUT", &work)
        .env("ROOT_MIB", ROOT_MIB.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = spawn(command).context("failed to run `mmdebstrap`")?.wait()?;
    ensure!(
        status.success(),
        "mmdebstrap failed ({status}); its last words:\n{}",
        tail(&log_path, 12)
    );
    for name in [
        "root.img",
        "vmlinuz",
        "release",
        "modules.dep",
        "modules.builtin",
        "modules",
    ] {
        take(&work.join(name), half, root)?;
    }
    crate::store::remove(&work)
}

/// Moves a result up; as a user, it belongs to a subordinate ID and is copied.
fn take(from: &Path, to: &Path, root: bool) -> Result<()> {
    let mut command = Command::new(if root { "mv" } else { "cp" });
    if !root {
        command.args(["-r", "--sparse=always"]);
    }
    let status = command.arg(from).arg(to).status().context("failed to run `mv`")?;
    ensure!(status.success(), "failed to keep `{}`", from.display());
    Ok(())
}

/// The machine's sources of this Debian release, as lines of a sources.list. None where apt has no lists: then
/// mmdebstrap's own defaults hold.
fn sources() -> Result<String> {
    let format = "$(SITE) $(RELEASE) $(COMPONENT) $(ORIGIN) $(CODENAME)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Identifier: Packages"])
        .output()
        .context("failed to run `apt-get`")?;
    ensure!(
        output.status.success(),
        "`apt-get indextargets` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(source_lines(&String::from_utf8_lossy(&output.stdout)))
}

fn source_lines(targets: &str) -> String {
    let mut lines: Vec<String> = targets
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [site, release, component, "Debian", codename] if codename.starts_with(SUITE) => {
                Some(format!("deb {site} {release} {component}\n"))
            }
            _ => None,
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// How the machine's apt reaches its sources: proxies, retries, checks.
fn apt_options() -> Result<Vec<String>> {
    let output = Command::new("apt-config")
        .args(["dump", "Acquire"])
        .output()
        .context("failed to run `apt-config`")?;
    Ok(options_of(&String::from_utf8_lossy(&output.stdout)))
}

fn options_of(dump: &str) -> Vec<String> {
    let wanted = [
        "http",
        "https",
        "ftp",
        "Retries",
        "Check-Valid-Until",
        "Check-Date",
        "ForceIPv4",
        "ForceIPv6",
    ];
    dump.lines()
        .filter_map(|line| line.strip_suffix(';'))
        .filter(|line| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            let key = name.strip_prefix("Acquire::").unwrap_or_default();
            let first = key.split("::").next().unwrap_or_default();
            wanted.contains(&first) && value != "\"\""
        })
        .map(str::to_owned)
        .collect()
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debians_own_sources_are_taken_once_each() {
        let targets = "http://m/debian bookworm main Debian bookworm\nhttp://m/debian bookworm main Debian bookworm\n\
                       http://m/security bookworm-security main Debian bookworm-security\n\
                       http://other/ nodistro main Node nodistro\nhttp://m/debian trixie main Debian trixie\n";
        assert_eq!(
            source_lines(targets),
            "deb http://m/debian bookworm main\ndeb http://m/security bookworm-security main\n"
        );
    }

    #[test]
    fn the_machines_way_to_its_sources_is_passed_on() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAcquire::Languages:: \"none\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(
            options_of(dump),
            [
                "Acquire::http::Proxy \"http://p:3128\"",
                "Acquire::Check-Date \"false\""
            ]
        );
    }
}
