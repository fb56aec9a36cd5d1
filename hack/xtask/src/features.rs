//! `docs/features.md`: every feature claimed, with the test that proves it.
//!
//! The page is a row of tables, a component each: a `## Component` heading, then rows `| feature | proof |`. A proof
//! is `not yet`, optionally with a reason after a colon, or tests in backquotes: `package::path::to::test` for a unit
//! test, `package:target::path::to::test` for one in the package's `tests/target.rs`, `ci:step` for a whole step of CI;
//! after `vm:` a test counts only where it has passed in a guest with unified cgroup v2.
//! A test must exist in the package's sources and a step in CI; with the log of a run it must also have run and passed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const PAGE: &str = "docs/features.md";
const README: &str = "README.md";
const BEGIN: &str = "<!-- features: made by `cargo xtask check-features --write` -->";
const END: &str = "<!-- /features -->";

#[derive(Debug, PartialEq, Eq)]
struct Row {
    component: String,
    feature: String,
    proof: Proof,
}

#[derive(Debug, PartialEq, Eq)]
enum Proof {
    NotYet,
    Tests(Vec<Claim>),
}

/// What proves a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Test(TestName),
    /// A step of CI: a suite that others wrote, or a comparison with upstream.
    Step(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct TestName {
    /// In a guest with unified cgroup v2, not on the host.
    guest: bool,
    package: String,
    target: Option<String>,
    path: String,
}

impl TestName {
    fn needs_vm(&self) -> bool {
        self.guest || self.package == "tests-vm"
    }
}

impl std::fmt::Display for TestName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.guest {
            f.write_str("vm:")?;
        }
        match &self.target {
            Some(target) => write!(f, "{}:{target}::{}", self.package, self.path),
            None => write!(f, "{}::{}", self.package, self.path),
        }
    }
}

/// Checks the page, and the README's table made from it.
pub(crate) fn check(ran: Option<&Path>) -> Result<()> {
    let rows = rows()?;
    let folders = package_folders()?;
    let passed = ran
        .map(|file| fs::read_to_string(file).with_context(|| format!("failed to read `{}`", file.display())))
        .transpose()?
        .map(|log| (passed_tests(&log), log));
    let mut wrong = Vec::new();
    let mut unseen = 0;
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    for row in &rows {
        let Proof::Tests(claims) = &row.proof else {
            continue;
        };
        for claim in claims {
            let test = match claim {
                Claim::Test(test) => test,
                Claim::Step(step) if crate::ci::needs_vm(step) && crate::ci::without_vm() => {
                    unseen += 1;
                    continue;
                }
                Claim::Step(step) => {
                    let log = passed.as_ref().map(|(_, log)| log.as_str());
                    wrong.extend(unproven_step(step, log));
                    continue;
                }
            };
            let Some(folder) = folders.get(test.package.as_str()) else {
                wrong.push(format!("`{test}`: no package is called {}", test.package));
                continue;
            };
            let text = sources
                .entry(folder)
                .or_insert_with(|| sources_below(Path::new(folder)));
            let function = test.path.rsplit("::").next().unwrap_or(&test.path);
            if !text.contains(&format!("fn {function}(")) {
                wrong.push(format!("`{test}` doesn't exist (feature \"{}\")", row.feature));
            } else if test.needs_vm() && crate::ci::without_vm() {
                unseen += 1;
            } else if passed.as_ref().is_some_and(|(p, _)| !p.contains(&key(test))) {
                wrong.push(format!(
                    "`{test}` did not run and pass (feature \"{}\")",
                    row.feature
                ));
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "{PAGE} claims what isn't proven:\n  {}",
        wrong.join("\n  ")
    );
    let readme = fs::read_to_string(README).with_context(|| format!("failed to read `{README}`"))?;
    ensure!(
        with_table(&readme, &table(&rows))? == readme,
        "{README}'s table is stale: run `cargo xtask check-features --write`"
    );
    let not_yet = rows.iter().filter(|r| r.proof == Proof::NotYet).count();
    println!(
        "check-features: {} features proven, {not_yet} not yet",
        rows.len() - not_yet
    );
    if unseen > 0 {
        println!(
            "check-features: {unseen} tests that need a VM did NOT run here, where QEMU can't be installed"
        );
    }
    Ok(())
}

/// What is wrong with the claim that a step of CI proves something.
fn unproven_step(step: &str, log: Option<&str>) -> Option<String> {
    if crate::ci::command(step).is_none() {
        return Some(format!(
            "`ci:{step}`: CI has no such step (`cargo xtask ci --list`)"
        ));
    }
    let line = crate::ci::passed_line(step);
    let passed = log.is_none_or(|log| log.lines().any(|l| l == line.trim_end()));
    (!passed).then(|| format!("`ci:{step}` did not run and pass"))
}

/// Writes the README's table from the page.
pub(crate) fn write_readme() -> Result<()> {
    let readme = fs::read_to_string(README).with_context(|| format!("failed to read `{README}`"))?;
    fs::write(README, with_table(&readme, &table(&rows()?))?)
        .with_context(|| format!("failed to write `{README}`"))
}

fn rows() -> Result<Vec<Row>> {
    parse(&fs::read_to_string(PAGE).with_context(|| format!("failed to read `{PAGE}`"))?)
}

fn parse(page: &str) -> Result<Vec<Row>> {
    let mut component = String::new();
    let mut rows = Vec::new();
    for (number, line) in page.lines().enumerate() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.trim().clone_into(&mut component);
        }
        let Some(cells) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            continue;
        };
        let Some((feature, proof)) = cells.rsplit_once(" | ") else {
            continue;
        };
        if feature == "feature" || feature.starts_with("---") {
            continue;
        }
        ensure!(
            !component.is_empty(),
            "{PAGE}:{}: a row before the first `## ` heading",
            number + 1
        );
        let proof = parse_proof(proof.trim()).with_context(|| format!("{PAGE}:{}", number + 1))?;
        rows.push(Row {
            component: component.clone(),
            feature: feature.trim().to_owned(),
            proof,
        });
    }
    ensure!(!rows.is_empty(), "{PAGE} has no rows");
    Ok(rows)
}

fn parse_proof(text: &str) -> Result<Proof> {
    if text == "not yet" || text.starts_with("not yet:") {
        return Ok(Proof::NotYet);
    }
    let tests: Vec<Claim> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .map(parse_claim)
        .collect::<Result<_>>()?;
    ensure!(
        !tests.is_empty(),
        "`{text}` is neither `not yet` nor the name of a test or a step in backquotes"
    );
    Ok(Proof::Tests(tests))
}

fn parse_claim(text: &str) -> Result<Claim> {
    match text.strip_prefix("ci:") {
        Some(step) if !step.contains(':') => Ok(Claim::Step(step.to_owned())),
        _ => parse_test(text).map(Claim::Test),
    }
}

fn parse_test(text: &str) -> Result<TestName> {
    let (guest, name) = match text.strip_prefix("vm:") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let Some((head, path)) = name.split_once("::") else {
        bail!("`{text}` isn't `package::test`")
    };
    let (package, target) = match head.split_once(':') {
        Some((package, target)) => (package, Some(target.to_owned())),
        None => (head, None),
    };
    Ok(TestName {
        guest,
        package: package.to_owned(),
        target,
        path: path.to_owned(),
    })
}

/// What a test is called in cargo's output: the test binary's name (after `vm:` in a guest) and the path in it.
fn key(test: &TestName) -> (String, String) {
    let binary = test
        .target
        .clone()
        .unwrap_or_else(|| test.package.replace('-', "_"));
    (
        if test.guest {
            format!("vm:{binary}")
        } else {
            binary
        },
        test.path.clone(),
    )
}

/// The tests that passed, by test binary, from cargo's merged standard output and error.
fn passed_tests(log: &str) -> BTreeSet<(String, String)> {
    let mut binary = String::new();
    let mut passed = BTreeSet::new();
    for line in log.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            if let Some((name, _)) = line.rsplit('/').next().and_then(|n| n.rsplit_once('-')) {
                let guest = rest.starts_with("in a guest ");
                binary = if guest {
                    format!("vm:{name}")
                } else {
                    name.to_owned()
                };
            }
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... ok")) {
            passed.insert((binary.clone(), name.to_owned()));
        }
    }
    passed
}

fn package_folders() -> Result<BTreeMap<String, String>> {
    let json = crate::sh::output(
        "cargo",
        &["metadata", "--format-version=1", "--no-deps", "--locked"],
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    let packages = metadata["packages"]
        .as_array()
        .context("`cargo metadata` has no packages")?;
    Ok(packages
        .iter()
        .filter_map(|p| {
            let manifest = Path::new(p["manifest_path"].as_str()?);
            Some((
                p["name"].as_str()?.to_owned(),
                manifest.parent()?.to_str()?.to_owned(),
            ))
        })
        .collect())
}

fn sources_below(folder: &Path) -> String {
    let mut text = String::new();
    let mut queue: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                queue.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    text
}

fn table(rows: &[Row]) -> String {
    let mut order: Vec<&str> = Vec::new();
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for row in rows {
        let count = counts.entry(&row.component).or_insert_with(|| {
            order.push(&row.component);
            (0, 0)
        });
        match row.proof {
            Proof::NotYet => count.1 += 1,
            Proof::Tests(_) => count.0 += 1,
        }
    }
    let mut text = String::from("| component | features proven by a test | not yet |\n| --- | --- | --- |\n");
    for component in order {
        let (proven, not_yet) = counts[component];
        text.push_str(&format!("| {component} | {proven} | {not_yet} |\n"));
    }
    text
}

fn with_table(readme: &str, table: &str) -> Result<String> {
    let (head, rest) = readme
        .split_once(BEGIN)
        .with_context(|| format!("{README} lacks `{BEGIN}`"))?;
    let (_, tail) = rest
        .split_once(END)
        .with_context(|| format!("{README} lacks `{END}`"))?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# F\n\n## Shim\n\n| feature | proof |\n| --- | --- |\n| a | `cri-shim::log::x` and `e2e:pods::y` |\n| b | not yet: later |\n";

    #[test]
    fn rows_name_their_tests() {
        let rows = parse(PAGE).unwrap();
        assert_eq!(rows.len(), 2);
        let Proof::Tests(tests) = &rows[0].proof else {
            panic!("row a has tests")
        };
        let [Claim::Test(x), Claim::Test(y)] = &tests[..] else {
            panic!("they are tests: {tests:?}")
        };
        assert_eq!(key(x), ("cri_shim".to_owned(), "log::x".to_owned()));
        assert_eq!(key(y), ("pods".to_owned(), "y".to_owned()));
        assert_eq!(rows[1].proof, Proof::NotYet);
    }

    #[test]
    fn a_claim_without_a_test_is_refused() {
        assert!(parse("## A\n| a | yes, surely |\n").is_err());
        assert!(parse("| a | not yet |\n").is_err());
    }

    #[test]
    fn a_step_proves_what_it_did_only_when_it_has_passed() {
        let rows = parse("## A\n| a | `ci:conformance` |\n").unwrap();
        let Proof::Tests(claims) = &rows[0].proof else {
            panic!("it is a claim")
        };
        assert_eq!(claims, &[Claim::Step("conformance".to_owned())]);
        let log = crate::ci::passed_line("conformance");
        assert_eq!(unproven_step("conformance", Some(&log)), None);
        assert_eq!(unproven_step("conformance", None), None);
        for other in [
            "",
            "step conformance ... FAILED\n",
            "step conformance-oci ... ok\n",
        ] {
            assert!(unproven_step("conformance", Some(other)).is_some(), "{other}");
        }
        assert!(unproven_step("nothing", None).is_some());
    }

    #[test]
    fn only_passed_tests_count() {
        let log = "     Running unittests src/lib.rs (target/debug/deps/cri_shim-0f)\ntest log::x ... ok\ntest log::z ... FAILED\n     Running tests/pods.rs (target/debug/deps/pods-1a)\ntest y ... ok\n";
        let passed = passed_tests(log);
        assert_eq!(passed.len(), 2);
        assert!(passed.contains(&("pods".to_owned(), "y".to_owned())));
    }

    #[test]
    fn a_test_that_passed_on_the_host_proves_nothing_of_a_guest() {
        let log = "     Running tests/kernel.rs (target/debug/deps/kernel-0f)\ntest a ... ok\n     Running in a guest x:kernel (/w/target/debug/deps/kernel-0f)\ntest b ... ok\n";
        let passed = passed_tests(log);
        let proven = |name: &str| passed.contains(&key(&parse_test(name).unwrap()));
        assert!(proven("x:kernel::a") && !proven("vm:x:kernel::a"));
        assert!(proven("vm:x:kernel::b") && !proven("x:kernel::b"));
        assert_eq!(
            parse_test("vm:x:kernel::b").unwrap().to_string(),
            "vm:x:kernel::b"
        );
    }

    #[test]
    fn the_table_counts_by_component_and_replaces_itself() {
        let table = table(&parse(PAGE).unwrap());
        assert!(table.contains("| Shim | 1 | 1 |"));
        let readme = format!("x\n{BEGIN}\nold\n{END}\ny\n");
        let new = with_table(&readme, &table).unwrap();
        assert_eq!(with_table(&new, &table).unwrap(), new);
        assert!(new.starts_with("x\n") && new.ends_with("\ny\n") && !new.contains("old"));
    }
}
