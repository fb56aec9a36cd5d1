//! The VM tier: test executables of this workspace, run in Debian guests with systemd and unified cgroup v2.
//!
//! They are built here, shipped by `hack/vm` and run there in their package's folder, as cargo would. Every suite has a
//! guest of its own, gone on with from one that was saved, so that none sees what another left. The lines of libtest
//! are passed on below a line `Running in a guest`, from which the features page knows where a test has passed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// What shall run.
#[derive(Args)]
pub(crate) struct Wish {
    /// Also the suites that take too long for every run of CI
    #[arg(long)]
    all: bool,
    /// How often, in a row; the first failure ends it
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Only these suites, as PACKAGE or PACKAGE:TARGET
    suites: Vec<String>,
}

/// A test executable.
struct Suite {
    package: &'static str,
    /// The file in its `tests`; none: its unit tests.
    target: Option<&'static str>,
    /// Part of every run of CI.
    every: bool,
    arguments: &'static [&'static str],
}

const fn suite(package: &'static str, target: Option<&'static str>) -> Suite {
    Suite {
        package,
        target,
        every: true,
        arguments: &[],
    }
}

const SUITES: &[Suite] = &[
    suite("oci-runtime-cgroups", Some("kernel")),
    suite("oci-runtime-container", Some("seccomp")),
    suite("orlop-oci", Some("lifecycle")),
    suite("orlop-oci", Some("isolation")),
    suite("orlop-oci", Some("terminal")),
    suite("orlop-oci", Some("advisories")),
    suite("orlop-oci", Some("containerd")),
    suite("cri-shim", Some("shim")),
    suite("tests-harness", Some("node")),
    suite("tests-e2e", Some("cri")),
    Suite {
        every: false,
        ..suite("tests-harness", Some("killed"))
    },
    Suite {
        every: false,
        ..suite("orlop-cni", Some("kernel"))
    },
];

/// A suite that hangs is ended after that; the longest takes a third of it.
const LIMIT_SECONDS: &str = "1500";
const MEMORY_MIB: &str = "3072";

/// Runs the tier.
pub(crate) fn run(wish: &Wish) -> Result<()> {
    let chosen = chosen(wish)?;
    // What the tests look for in the cache and would build otherwise, which a guest can't.
    crate::sh::run("hack/build", &[])?;
    crate::sh::output("hack/cri-tools", &[])?;
    crate::sh::run(
        "cargo",
        &["run", "--quiet", "--package", "tests-images", "--", "registry"],
    )?;
    let built = build(&chosen)?;
    let mut failed = Vec::new();
    for round in 1..=wish.times {
        for suite in &chosen {
            let begun = Instant::now();
            let ok = in_guest(suite, &built)?;
            println!(
                "guest: {} {} in {} s",
                suite.name(),
                if ok { "ok" } else { "FAILED" },
                begun.elapsed().as_secs()
            );
            if !ok {
                failed.push(format!("{} (round {round})", suite.name()));
            }
        }
        if !failed.is_empty() {
            bail!("failed in a guest: {}", failed.join(", "));
        }
    }
    Ok(())
}

impl Suite {
    fn name(&self) -> String {
        self.target.map_or_else(
            || self.package.to_owned(),
            |target| format!("{}:{target}", self.package),
        )
    }
}

fn chosen(wish: &Wish) -> Result<Vec<&'static Suite>> {
    let named = |suite: &Suite, name: &str| suite.name() == name || suite.package == name;
    for name in &wish.suites {
        ensure!(
            SUITES.iter().any(|suite| named(suite, name)),
            "no suite of the VM tier is called `{name}`; there are: {}",
            SUITES.iter().map(Suite::name).collect::<Vec<_>>().join(", ")
        );
    }
    let wanted = |suite: &&Suite| {
        if wish.suites.is_empty() {
            suite.every || wish.all
        } else {
            wish.suites.iter().any(|name| named(suite, name))
        }
    };
    Ok(SUITES.iter().filter(wanted).collect())
}

/// What cargo built: the tests by package and target, and the programs that they run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Built {
    tests: BTreeMap<(String, String), (PathBuf, PathBuf)>,
    programs: Vec<PathBuf>,
}

fn build(suites: &[&Suite]) -> Result<Built> {
    let mut arguments = vec!["test", "--no-run", "--locked", "--quiet", "--message-format=json"];
    for suite in suites {
        arguments.extend(["--package", suite.package]);
    }
    Ok(built(&crate::sh::output("cargo", &arguments)?))
}

fn built(messages: &str) -> Built {
    let mut found = Built::default();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let (Some(folder), Some(name)) = (manifest.parent(), message["target"]["name"].as_str()) else {
            continue;
        };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        if message["profile"]["test"].as_bool() == Some(true) {
            let key = (
                folder.to_string_lossy().into_owned(),
                if kind == "test" { name } else { "" }.to_owned(),
            );
            found.tests.insert(key, (executable.into(), folder.to_owned()));
        } else {
            found.programs.push(executable.into());
        }
    }
    found.programs.sort();
    found.programs.dedup();
    found
}

impl Built {
    /// The test's executable and its package's folder.
    fn test(&self, suite: &Suite) -> Result<&(PathBuf, PathBuf)> {
        // A package is called as its folder, below `bin`, or as the folders of its path, joined by dashes.
        let is_named = |folder: &str| {
            let mut names = folder.rsplit('/');
            let last = names.next().unwrap_or_default();
            let above = names.next().unwrap_or_default();
            suite.package == last || suite.package == format!("{above}-{last}")
        };
        self.tests
            .iter()
            .find(|((folder, target), _)| is_named(folder) && target == suite.target.unwrap_or_default())
            .map(|(_, found)| found)
            .with_context(|| format!("cargo built no test executable for {}", suite.name()))
    }
}

/// Runs a suite in a guest; whether it passed.
fn in_guest(suite: &Suite, built: &Built) -> Result<bool> {
    let (executable, folder) = built.test(suite)?;
    println!(
        "     Running in a guest {} ({})",
        suite.name(),
        executable.display()
    );
    let script = std::env::current_dir()?.join("hack/vm");
    let mut command = Command::new(&script);
    command.args([
        "run",
        "--snapshot",
        "--memory",
        MEMORY_MIB,
        "--timeout",
        LIMIT_SECONDS,
    ]);
    // The same for every suite, so that one disk serves all.
    for path in built.tests.values().map(|(path, _)| path).chain(&built.programs) {
        command.arg("--ship").arg(path);
    }
    let status = command
        .arg("--")
        .arg(executable)
        .args(suite.arguments)
        .current_dir(folder)
        .status()
        .with_context(|| format!("failed to run `{}`", script.display()))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"compiler-artifact","manifest_path":"/w/oci-runtime/cgroups/Cargo.toml","target":{"kind":["test"],"name":"kernel"},"profile":{"test":true},"executable":"/w/target/debug/deps/kernel-1"}
{"reason":"compiler-artifact","manifest_path":"/w/bin/orlop-oci/Cargo.toml","target":{"kind":["bin"],"name":"orlop-oci"},"profile":{"test":false},"executable":"/w/target/debug/orlop-oci"}
{"reason":"compiler-artifact","manifest_path":"/w/bin/orlop-oci/Cargo.toml","target":{"kind":["test"],"name":"lifecycle"},"profile":{"test":true},"executable":"/w/target/debug/deps/lifecycle-2"}
{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"kind":["lib"],"name":"x"},"profile":{"test":false},"executable":null}
not JSON
"#;

    #[test]
    fn executables_are_found_by_package_and_target_and_run_in_their_folder() {
        let built = built(MESSAGES);
        assert_eq!(built.programs, [PathBuf::from("/w/target/debug/orlop-oci")]);
        let find = |package, target| built.test(&suite(package, target)).cloned();
        assert_eq!(
            find("oci-runtime-cgroups", Some("kernel")).unwrap(),
            (
                "/w/target/debug/deps/kernel-1".into(),
                "/w/oci-runtime/cgroups".into()
            )
        );
        assert_eq!(
            find("orlop-oci", Some("lifecycle")).unwrap().0,
            PathBuf::from("/w/target/debug/deps/lifecycle-2")
        );
        assert!(find("orlop-oci", Some("kernel")).is_err());
    }

    #[test]
    fn suites_go_by_name_and_a_wrong_one_is_refused() {
        let wish = |all, suites: &[&str]| Wish {
            all,
            times: 1,
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert_eq!(chosen(&wish(false, &["cri-shim:shim"])).unwrap().len(), 1);
        assert_eq!(chosen(&wish(false, &["tests-harness"])).unwrap().len(), 2);
        assert!(chosen(&wish(false, &["nothing"])).is_err());
        assert!(chosen(&wish(true, &[])).unwrap().len() > chosen(&wish(false, &[])).unwrap().len());
    }
}
