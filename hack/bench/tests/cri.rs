//! A round of `bench cri` on the real daemons.

use std::path::Path;
use std::process::Command;

#[test]
fn one_round_measures_both_daemons_and_leaves_no_cgroup() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let child = Command::new(env!("CARGO_BIN_EXE_hack-bench"))
        .args(["cri", "--rounds", "1", "--pods", "2", "--idle-ms", "1"])
        .current_dir(top)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the benchmark was built with this test");
    let cgroup = format!("orlop-bench-{}", child.id());
    let output = child.wait_with_output().expect("it was started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for row in ["PullImage", "RunPodSandbox", "StopPodSandbox", "probe", "restart"] {
        let line = text.lines().find(|line| line.trim_start().starts_with(row));
        assert!(
            line.is_some_and(|line| line.contains("orlop ") && line.contains("(p90 ")),
            "{row}: {text}"
        );
    }
    assert!(text.matches("containerd ").count() > 18, "{text}");
    let alone = text.split_once("shim alone").expect("it is measured").1;
    assert_eq!(
        alone
            .lines()
            .skip(1)
            .take(2)
            .filter(|l| l.contains("(most "))
            .count(),
        2,
        "{text}"
    );
    // Cgroup v2 alone has no hierarchies below.
    assert!(
        !Path::new("/sys/fs/cgroup").join(&cgroup).exists(),
        "{cgroup} is left"
    );
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups are mounted");
    for hierarchy in hierarchies.flatten() {
        assert!(
            !hierarchy.path().join(&cgroup).exists(),
            "{} of {:?} is left",
            cgroup,
            hierarchy.path()
        );
    }
}
