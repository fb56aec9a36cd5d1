//! orlop-cri on a machine with systemd, cgroup v2 alone and AppArmor: what the build machines' hosts don't have.
//!
//! Such a machine is a guest of `hack/vm`, where `hack/test --vm` runs this. Elsewhere there is nothing to test, and it
//! says so. It reports like libtest does; names on its command line select tests.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "guest/apparmor.rs"]
mod apparmor;
#[path = "cri/bed.rs"]
#[allow(dead_code, reason = "the other suite uses the rest")]
mod bed;
#[path = "guest/cgroup.rs"]
mod cgroup;
#[path = "cri/client.rs"]
#[allow(dead_code, reason = "the other suite uses the rest")]
mod client;
#[path = "guest/unit.rs"]
mod unit;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

/// A test's name and body.
type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[apparmor::TESTS, cgroup::TESTS, unit::TESTS];

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let tests = || TESTS.iter().flat_map(|tests| tests.iter());
    if std::env::args().any(|argument| argument == "--list") {
        tests().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() || !Path::new("/run/systemd/private").exists()
    {
        println!(
            "\nguest: no test was run: they need cgroup v2 alone and systemd; `hack/test --vm` has both\n"
        );
        return ExitCode::SUCCESS;
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let chosen: Vec<_> = tests().filter(|(name, _)| chosen(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored",
        chosen.len() - failed
    );
    ExitCode::from(u8::from(failed > 0))
}
