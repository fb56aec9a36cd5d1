//! What CI runs, as a table of steps; each says how long it took, and a failed one doesn't hide the next.
//!
//! The output of the tests goes to `target/ci/<step>.log` as well, from which the features page is checked and the
//! closing count is made.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

const LOG_DIR: &str = "target/ci";

/// A step: its name, what it is for, and the command line, split at blanks.
struct Step {
    name: &'static str,
    why: &'static str,
    command: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        why: "one layout of code",
        command: "cargo fmt --all --check",
    },
    Step {
        name: "deps",
        why: "imports follow the design",
        command: "cargo xtask check-deps",
    },
    Step {
        name: "gen",
        why: "the CRI's facts equal upstream's",
        command: "cargo xtask check-gen",
    },
    Step {
        name: "lint",
        why: "clippy with the workspace's lints",
        command: "cargo clippy --workspace --all-targets --locked -- -D warnings",
    },
    Step {
        name: "licenses",
        why: "dependencies we may ship, from where we expect them",
        command: "hack/deny",
    },
    Step {
        name: "build",
        why: "the executables that the tests run",
        command: "hack/build",
    },
    Step {
        name: "test",
        why: "unit and integration tests of every crate",
        command: "cargo test --workspace --locked --exclude tests-e2e --exclude tests-vm --no-fail-fast",
    },
    Step {
        name: "e2e",
        why: "the real executables against real peers in throw-away nodes",
        command: "cargo test --package tests-e2e --locked --no-fail-fast -- --test-threads=2",
    },
    Step {
        name: "vm",
        why: "guests by hack/vm, and the suites on unified cgroup v2 in them",
        command: "cargo test --package tests-vm --locked --no-fail-fast -- --test-threads=2 && cargo xtask vm",
    },
    Step {
        name: "powercut",
        why: "five power cuts, and one fsync too few is found",
        command: "cargo xtask powercut -n 5 && cargo xtask powercut -n 4 --file-system ext4 --lose /ingest/",
    },
    Step {
        name: "conformance",
        why: "one ordered pass of the CRI suite",
        command: "hack/conformance cri",
    },
    Step {
        name: "conformance-oci",
        why: "the OCI runtime-spec validation",
        command: "hack/conformance oci",
    },
    Step {
        name: "fuzz",
        why: "ten seconds of every fuzz target",
        command: "hack/fuzz 10",
    },
    Step {
        name: "features",
        why: "every claimed feature's test ran and passed",
        command: "cargo xtask check-features --ran target/ci/tests.log",
    },
];

/// Whether guests are left out, because `hack/test` couldn't install QEMU.
pub(crate) fn without_vm() -> bool {
    std::env::var_os("ORLOP_WITHOUT_VM").is_some()
}

/// Whether a step boots guests.
pub(crate) fn needs_vm(step: &str) -> bool {
    matches!(step, "vm" | "powercut")
}

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<12} {:<55} {}", step.name, step.command, step.why);
    }
}

/// The line that says of a step that it has passed.
pub(crate) fn passed_line(step: &str) -> String {
    format!("step {step} ... ok\n")
}

/// A step's command line.
pub(crate) fn command(name: &str) -> Option<&'static str> {
    STEPS.iter().find(|s| s.name == name).map(|s| s.command)
}

/// Runs the named steps, or all.
pub(crate) fn run(names: &[String]) -> Result<()> {
    for name in names {
        ensure!(
            STEPS.iter().any(|s| s.name == name),
            "no step is called `{name}`: `cargo xtask ci --list`"
        );
    }
    if names.is_empty() && fs::exists(LOG_DIR)? {
        fs::remove_dir_all(LOG_DIR).with_context(|| format!("failed to remove the old `{LOG_DIR}`"))?;
    }
    fs::create_dir_all(LOG_DIR).with_context(|| format!("failed to create `{LOG_DIR}`"))?;
    let mut failed = Vec::new();
    let mut timings = Vec::new();
    for step in STEPS
        .iter()
        .filter(|s| names.is_empty() || names.iter().any(|n| n == s.name))
    {
        if step.name == "features" {
            merge_test_logs()?;
        }
        if needs_vm(step.name) && without_vm() {
            println!("== {}: LEFT OUT: QEMU can't be installed here", step.name);
            timings.push(format!("{} left out", step.name));
            continue;
        }
        println!("== {}: {}", step.name, step.command);
        let begun = Instant::now();
        let ok = teed(step)?;
        let seconds = begun.elapsed().as_secs();
        println!(
            "== {}: {} in {seconds} s",
            step.name,
            if ok { "ok" } else { "FAILED" }
        );
        timings.push(format!("{} {seconds} s", step.name));
        if !ok {
            failed.push(step.name);
        }
    }
    let (passed, broken) = counts()?;
    println!("== {}", timings.join(", "));
    println!("tests: {passed} passed, {broken} failed");
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {} (logs in {LOG_DIR})", failed.join(", "))
}

fn log_path(name: &str) -> PathBuf {
    PathBuf::from(LOG_DIR).join(format!("{name}.log"))
}

/// Runs a step, its output on the terminal and in its log, in the order in which it came.
fn teed(step: &Step) -> Result<bool> {
    let path = log_path(step.name);
    let mut log = File::create(&path).with_context(|| format!("failed to create `{}`", path.display()))?;
    let passed = passed_path(step.name);
    if fs::exists(&passed)? {
        fs::remove_file(&passed).with_context(|| format!("failed to remove `{}`", passed.display()))?;
    }
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec 2>&1; {}", step.command)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to run `bash`")?;
    let out = child.stdout.take().context("the child's stdout was asked for")?;
    for line in BufReader::new(out).split(b'\n') {
        let mut line = line?;
        line.push(b'\n');
        log.write_all(&line)?;
        std::io::stdout().write_all(&line)?;
    }
    let ok = child.wait()?.success();
    if ok {
        File::create(&passed).with_context(|| format!("failed to create `{}`", passed.display()))?;
    }
    Ok(ok)
}

/// There once the step has passed, until it runs again.
fn passed_path(name: &str) -> PathBuf {
    PathBuf::from(LOG_DIR).join(format!("{name}.passed"))
}

/// The logs of the tests, and a line for each step that has passed.
fn merge_test_logs() -> Result<()> {
    let mut merged: String = ["test", "e2e", "vm"]
        .iter()
        .map(|n| fs::read_to_string(log_path(n)).unwrap_or_default())
        .collect();
    for step in STEPS.iter().filter(|s| passed_path(s.name).exists()) {
        merged.push_str(&passed_line(step.name));
    }
    fs::write(log_path("tests"), merged).context("failed to write the merged test log")
}

/// How many tests passed and failed in the logs of this run.
fn counts() -> Result<(usize, usize)> {
    merge_test_logs()?;
    let log = fs::read_to_string(log_path("tests"))?;
    Ok((
        log.lines()
            .filter(|l| l.starts_with("test ") && l.ends_with(" ... ok"))
            .count(),
        log.lines()
            .filter(|l| l.starts_with("test ") && l.ends_with(" ... FAILED"))
            .count(),
    ))
}
