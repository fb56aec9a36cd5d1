//! A round of `bench oci` on the real runtimes.

use std::path::Path;
use std::process::Command;

#[test]
fn one_round_measures_every_runtime_and_leaves_no_cgroup() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let child = Command::new(env!("CARGO_BIN_EXE_hack-bench"))
        .args(["oci", "--rounds", "1", "--idle-ms", "1"])
        .current_dir(top)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the benchmark was built with this test");
    let id = child.id().to_string();
    let output = child.wait_with_output().expect("it was started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for row in ["run", "create", "start", "exec", "state", "delete"] {
        let lines = text.lines().filter(|line| {
            line.starts_with(&format!("{row} "))
                && ["orlop ", "runc ", "crun ", "(p90 ", "ratio to best peer"]
                    .iter()
                    .all(|part| line.contains(part))
        });
        // Hot and idle, each without and with seccomp.
        assert_eq!(lines.count(), 4, "{row}: {text}");
    }
    assert!(text.contains("peak resident set"), "{text}");
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top).expect("cgroups are mounted").flatten();
    // Cgroup v2 alone has none below.
    for hierarchy in hierarchies.map(|entry| entry.path()).chain([top.to_owned()]) {
        for folder in std::fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = folder.file_name();
            let ours = name.to_string_lossy().contains("orlop-bench") && name.to_string_lossy().contains(&id);
            assert!(!ours, "{:?} is left", folder.path());
        }
    }
}
