//! Who cleans up after a runner that was killed.
//!
//! The kernel takes back a node's processes, mounts and links when its runner dies. Its folder and its cgroups stay, and
//! nobody of the node lives who could remove them. So every node has a janitor outside: a shell that reads a pipe from
//! the runner, and removes both when the pipe ends. After a node that was finished it finds nothing to do.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

/// The keeper's pid comes by the pipe as soon as there is one. All waits are bounded; whoever holds on longer than that
/// is found by the next audit.
const SCRIPT: &str = r#"
name=$1 base=$2 keeper=
while read -r line; do keeper=$line; done
lives() { [ -n "$keeper" ] && [ -e "/proc/$keeper/stat" ] && ! grep -qs '^State:.Z' "/proc/$keeper/status"; }
for ((n = 0; n < 600; n++)); do
    lives || break
    sleep 0.05
done
for ((n = 0; n < 600; n++)); do
    left=
    for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ -d "$top/$name" ] || continue
        find "$top/$name" -depth -type d -exec rmdir {} + 2>/dev/null || left=yes
    done
    rm -rf --one-file-system "$base" 2>/dev/null || left=yes
    [ -n "$left" ] || exit 0
    sleep 0.05
done
exit 1
"#;

/// A node's janitor.
#[derive(Debug)]
pub(crate) struct Janitor {
    child: Child,
    lifeline: Option<ChildStdin>,
}

impl Janitor {
    /// Hires one, before there is anything to clean up.
    pub(crate) fn hire(name: &str, base: &Path) -> Result<Self> {
        let mut child = Command::new("bash")
            .args(["--norc", "--noprofile", "-c", SCRIPT, "janitor", name])
            .arg(base)
            .env_remove("BASH_ENV")
            // Whoever reads what the runner prints must not wait for the janitor, nor Ctrl-C reach it.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("failed to run `bash`")?;
        let lifeline = child.stdin.take();
        Ok(Self { child, lifeline })
    }

    /// Tells it whose end it has to wait for.
    pub(crate) fn tell_keeper(&mut self, pid: u32) -> Result<()> {
        let pipe = self.lifeline.as_mut().context("the janitor was dismissed")?;
        writeln!(pipe, "{pid}").context("failed to write to the node's janitor")
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Whatever it couldn't remove is in the way of the audit, which says so.
        let _ = self.child.wait();
    }
}
