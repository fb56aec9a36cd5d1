//! The VM tier: test executables of this workspace, run in Debian guests with systemd and unified cgroup v2.
//!
//! They are built here, shipped by `hack/vm` and run there in their package's folder, as cargo would. Every suite has a
//! guest of its own, gone on with from one that was saved, so that none sees what another left. The lines of libtest
//! are passed on below a line `Running in a guest`, from which the features page knows where a test has passed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

/// What shall run.
#[derive(Args)]
pub(crate) struct Wish {
    /// Also the packages and tests that take too long for every run of CI
    #[arg(long)]
    all: bool,
    /// How often, in a row; the first failure ends it
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Only these suites, as PACKAGE or PACKAGE:TARGET
    suites: Vec<String>,
}

/// The packages whose `tests` are suites of the tier, and whether they are part of every run of CI.
const PACKAGES: &[(&str, bool)] = &[
    ("oci-runtime-cgroups", true),
    ("oci-runtime-container", true),
    ("orlop-oci", true),
    ("cri-shim", true),
    ("tests-harness", true),
    ("tests-e2e", true),
    ("hack-bench", true),
    ("orlop-cni", false),
];

/// What doesn't run in a guest: it builds, and a guest has no compiler.
const NEVER: &[&str] = &["tests-e2e:up"];

/// What runs only with `--all`, or named: emulated, a round of the CRI's benchmark takes minutes.
const LONG: &[&str] = &["hack-bench:cri"];

/// Of which suites CI runs only some tests, by their names: emulated, two hundred pods take too long. Named on the command
/// line, or with `--all`, they run whole.
const BRIEFLY: &[(&str, &[&str])] = &[
    (
        "tests-e2e:cri",
        &["kill_points", "restart", "rpcs", "peers", "crictl_pod"],
    ),
    (
        "tests-e2e:kubelet",
        &[
            "a_manifest_becomes",
            "a_killed_kubelet_comes",
            "what_crashes",
            "config_maps",
            "sidecars",
            "pods_that_run",
        ],
    ),
];

/// Which suites run a second time, with systemd as the maker of their nodes' cgroups, and which tests of them.
const WITH_SYSTEMD: &[(&str, &[&str])] = &[(
    "tests-e2e:cri",
    &[
        "restart",
        "crictl_pod",
        "a_pods_limits_change",
        "the_runtimes_configuration",
    ],
)];

/// The variable by which nodes of tests are told.
const DRIVER: &str = "ORLOP_TEST_CGROUP_DRIVER=systemd";

/// A suite that hangs is ended after that.
const LIMIT_SECONDS: &str = "2400";
const MEMORY_MIB: &str = "3072";

/// Runs the tier.
pub(crate) fn run(wish: &Wish) -> Result<()> {
    let packages = packages(wish)?;
    // What the tests look for in the cache and would build otherwise, which a guest can't.
    crate::sh::run("hack/build", &[])?;
    crate::sh::output("hack/cri-tools", &[])?;
    crate::sh::output(
        "cargo",
        &["run", "--quiet", "--package", "tests-images", "--", "registry"],
    )?;
    let mut arguments = vec!["test", "--no-run", "--locked", "--quiet", "--message-format=json"];
    for package in &packages {
        arguments.extend(["--package", package]);
    }
    let built = built(&crate::sh::output("cargo", &arguments)?);
    let suites: Vec<&Suite> = built
        .suites
        .iter()
        .filter(|suite| wanted(wish, &suite.name))
        .collect();
    ensure!(
        !suites.is_empty(),
        "no suite is called `{}`",
        wish.suites.join("`, `")
    );
    for round in 1..=wish.times {
        let mut failed = Vec::new();
        for (suite, systemd) in turns(&suites) {
            let begun = Instant::now();
            let how = if systemd { " with systemd's cgroups" } else { "" };
            let passed = in_guest(suite, &built, filters(wish, &suite.name, systemd), systemd)?;
            let outcome = if passed { "ok" } else { "FAILED" };
            println!(
                "guest: {}{how} {outcome} in {} s",
                suite.name,
                begun.elapsed().as_secs()
            );
            if !passed {
                failed.push(format!("{}{how}", suite.name));
            }
        }
        ensure!(
            failed.is_empty(),
            "failed in a guest, in round {round}: {}",
            failed.join(", ")
        );
    }
    Ok(())
}

/// Measures in a guest, on cgroup v2 alone, what `cargo xtask bench` measures here; `--vm` is ours, the rest the
/// benchmark's.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    crate::sh::run("hack/build", &[])?;
    crate::sh::run(
        "cargo",
        &["build", "--quiet", "--release", "--package", "hack-bench"],
    )?;
    crate::sh::output(
        "cargo",
        &["run", "--quiet", "--package", "tests-images", "--", "build"],
    )?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let program = format!("{target}/release/hack-bench");
    let mut words = vec![
        "run",
        "--snapshot",
        "--memory",
        MEMORY_MIB,
        "--",
        program.as_str(),
    ];
    words.extend(
        arguments
            .iter()
            .map(String::as_str)
            .filter(|word| *word != "--vm"),
    );
    crate::sh::run("hack/vm", &words)
}

/// The packages that have to be built.
fn packages(wish: &Wish) -> Result<Vec<&'static str>> {
    let named = |package: &str| {
        let mut names = wish
            .suites
            .iter()
            .map(|name| name.split(':').next().unwrap_or(name));
        names.any(|name| name == package)
    };
    for name in &wish.suites {
        let package = name.split(':').next().unwrap_or(name);
        ensure!(
            PACKAGES.iter().any(|(known, _)| *known == package),
            "no package of the VM tier is called `{package}`; there are: {}",
            PACKAGES
                .iter()
                .map(|(known, _)| *known)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let chosen = PACKAGES.iter().filter(|(package, every)| {
        if wish.suites.is_empty() {
            *every || wish.all
        } else {
            named(package)
        }
    });
    Ok(chosen.map(|(package, _)| *package).collect())
}

/// Whether a suite of a chosen package shall run: `PACKAGE:TARGET` names one, `PACKAGE` all of them.
fn wanted(wish: &Wish, suite: &str) -> bool {
    let named = |name: &String| name == suite || suite.split(':').next() == Some(name);
    let unnamed = wish.suites.is_empty() && (wish.all || !LONG.contains(&suite));
    !NEVER.contains(&suite) && (unnamed || wish.suites.iter().any(named))
}

/// Every suite, and after it some once more with systemd's cgroups.
fn turns<'s>(suites: &[&'s Suite]) -> Vec<(&'s Suite, bool)> {
    let again = |suite: &Suite| WITH_SYSTEMD.iter().any(|(name, _)| *name == suite.name);
    let turns = suites.iter().flat_map(|suite| {
        let second = again(suite).then_some((*suite, true));
        std::iter::once((*suite, false)).chain(second)
    });
    turns.collect()
}

/// The names by which the tests of a suite are chosen; none for all.
fn filters(wish: &Wish, suite: &str, systemd: bool) -> &'static [&'static str] {
    if wish.all || !wish.suites.is_empty() {
        return &[];
    }
    let table = if systemd { WITH_SYSTEMD } else { BRIEFLY };
    let brief = table.iter().find(|(name, _)| *name == suite);
    brief.map_or(&[], |(_, filters)| *filters)
}

/// A test executable.
#[derive(Debug, PartialEq, Eq)]
struct Suite {
    /// `PACKAGE:TARGET`.
    name: String,
    executable: PathBuf,
    /// The package's.
    folder: PathBuf,
}

/// What cargo built: the files of `tests`, and the programs that they run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Built {
    suites: Vec<Suite>,
    programs: Vec<PathBuf>,
}

fn built(messages: &str) -> Built {
    let mut found = Built::default();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let target = &message["target"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (executable, kind) = (text(&message["executable"]), text(&target["kind"][0]));
        let folder = PathBuf::from(text(&message["manifest_path"]))
            .parent()
            .map(PathBuf::from);
        let (false, Some(folder)) = (executable.is_empty(), folder) else {
            continue;
        };
        match kind.as_str() {
            "test" => {
                let name = format!(
                    "{}:{}",
                    package_of(&text(&message["package_id"])),
                    text(&target["name"])
                );
                found.suites.push(Suite {
                    name,
                    executable: executable.into(),
                    folder,
                });
            }
            "bin" if message["profile"]["test"] == false => found.programs.push(executable.into()),
            _ => {}
        }
    }
    found.suites.sort_by(|a, b| a.name.cmp(&b.name));
    found.programs.sort();
    found
}

/// The package's name from its ID: `path+file:///w/bin/orlop-oci#0.1.0`, or `...#NAME@0.1.0` where the folder is called
/// otherwise.
fn package_of(id: &str) -> &str {
    let (path, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

/// Runs a suite, or the tests of it that the filters choose, in a guest; whether it passed.
fn in_guest(suite: &Suite, built: &Built, filters: &[&str], systemd: bool) -> Result<bool> {
    println!(
        "     Running in a guest {} ({})",
        suite.name,
        suite.executable.display()
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
    if systemd {
        command.args(["--env", DRIVER]);
    }
    // The same for every suite, so that one disk serves all.
    for path in built
        .suites
        .iter()
        .map(|suite| &suite.executable)
        .chain(&built.programs)
    {
        command.arg("--ship").arg(path);
    }
    let status = command
        .arg("--")
        .arg(&suite.executable)
        .args(filters)
        .current_dir(&suite.folder)
        .status()
        .with_context(|| format!("failed to run `{}`", script.display()))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/oci-runtime/cgroups#oci-runtime-cgroups@0.1.0","manifest_path":"/w/oci-runtime/cgroups/Cargo.toml","target":{"kind":["test"],"name":"kernel"},"profile":{"test":true},"executable":"/w/target/debug/deps/kernel-1"}
{"reason":"compiler-artifact","package_id":"path+file:///w/bin/orlop-oci#0.1.0","manifest_path":"/w/bin/orlop-oci/Cargo.toml","target":{"kind":["bin"],"name":"orlop-oci"},"profile":{"test":false},"executable":"/w/target/debug/orlop-oci"}
{"reason":"compiler-artifact","package_id":"path+file:///w/bin/orlop-oci#0.1.0","manifest_path":"/w/bin/orlop-oci/Cargo.toml","target":{"kind":["bin"],"name":"orlop-oci"},"profile":{"test":true},"executable":"/w/target/debug/deps/orlop_oci-3"}
{"reason":"compiler-artifact","package_id":"path+file:///w/bin/orlop-oci#0.1.0","manifest_path":"/w/bin/orlop-oci/Cargo.toml","target":{"kind":["test"],"name":"lifecycle"},"profile":{"test":true},"executable":"/w/target/debug/deps/lifecycle-2"}
{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"kind":["lib"],"name":"x"},"profile":{"test":false},"executable":null}
not JSON
"#;

    #[test]
    fn suites_are_what_cargo_built_of_tests_and_run_in_their_packages_folder() {
        let built = built(MESSAGES);
        assert_eq!(built.programs, [PathBuf::from("/w/target/debug/orlop-oci")]);
        let suite = |name: &str, executable: &str, folder: &str| Suite {
            name: name.to_owned(),
            executable: executable.into(),
            folder: folder.into(),
        };
        assert_eq!(
            built.suites,
            [
                suite(
                    "oci-runtime-cgroups:kernel",
                    "/w/target/debug/deps/kernel-1",
                    "/w/oci-runtime/cgroups"
                ),
                suite(
                    "orlop-oci:lifecycle",
                    "/w/target/debug/deps/lifecycle-2",
                    "/w/bin/orlop-oci"
                ),
            ]
        );
    }

    #[test]
    fn suites_go_by_name_and_a_wrong_one_is_refused() {
        let wish = |all, suites: &[&str]| Wish {
            all,
            times: 1,
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
        };
        let one = wish(false, &["cri-shim:shim"]);
        assert_eq!(packages(&one).unwrap(), ["cri-shim"]);
        assert!(wanted(&one, "cri-shim:shim") && !wanted(&one, "cri-shim:other"));
        assert!(wanted(&wish(false, &["cri-shim"]), "cri-shim:shim"));
        assert!(!wanted(&wish(true, &[]), "tests-e2e:up") && wanted(&wish(true, &[]), "tests-e2e:cri"));
        assert!(!wanted(&wish(false, &[]), "hack-bench:cri") && wanted(&wish(true, &[]), "hack-bench:cri"));
        for systemd in [false, true] {
            assert!(!filters(&wish(false, &[]), "tests-e2e:cri", systemd).is_empty());
            assert!(filters(&wish(true, &[]), "tests-e2e:cri", systemd).is_empty());
            assert!(filters(&wish(false, &["tests-e2e"]), "tests-e2e:cri", systemd).is_empty());
        }
        let suite = |name: &str| Suite {
            name: name.to_owned(),
            executable: PathBuf::new(),
            folder: PathBuf::new(),
        };
        let (cri, shim) = (suite("tests-e2e:cri"), suite("cri-shim:shim"));
        assert_eq!(
            turns(&[&cri, &shim]),
            [(&cri, false), (&cri, true), (&shim, false)],
            "some run with both drivers"
        );
        assert!(packages(&wish(false, &["nothing"])).is_err());
        assert!(packages(&wish(true, &[])).unwrap().len() > packages(&wish(false, &[])).unwrap().len());
    }
}
