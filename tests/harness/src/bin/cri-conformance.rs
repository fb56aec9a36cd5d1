//! `cri-conformance`: runs critest against orlop-cri in a throw-away node, and judges the outcome.
//!
//! What may fail is in a file, with reasons; anything else that fails is an error. All flags that aren't this
//! program's own go to critest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests_harness::{Node, tools};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cri-conformance: {e:#}");
            ExitCode::from(70)
        }
    }
}

#[derive(Default)]
struct Wish {
    reports: PathBuf,
    expected: PathBuf,
    focused: bool,
    at_least: usize,
    config: String,
    /// Another critest than the pinned one.
    critest: Option<PathBuf>,
    flags: Vec<String>,
}

fn wish() -> Result<Wish> {
    let mut wish = Wish {
        reports: "target/conformance/cri".into(),
        ..Wish::default()
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (name, mut value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg.clone(), None),
        };
        let mut needed = || {
            value
                .take()
                .or_else(|| args.next())
                .with_context(|| format!("{name} needs a value"))
        };
        match name.as_str() {
            "--reports" => wish.reports = needed()?.into(),
            "--expected" => wish.expected = needed()?.into(),
            "--config" => wish.config = needed()?,
            "--critest" => wish.critest = Some(needed()?.into()),
            "--at-least" => {
                let number = needed()?;
                wish.at_least = number
                    .parse()
                    .with_context(|| format!("--at-least wants a number, not `{number}`"))?;
            }
            "--focus" | "--skip" => {
                wish.focused = true;
                wish.flags
                    .push(format!("-ginkgo.{}={}", name.trim_start_matches('-'), needed()?));
            }
            _ => wish.flags.push(arg),
        }
    }
    Ok(wish)
}

fn run() -> Result<bool> {
    let wish = wish()?;
    let expected = expected(&fs::read_to_string(&wish.expected).unwrap_or_default());
    let critest = match &wish.critest {
        Some(path) => fs::canonicalize(path).with_context(|| format!("there is no `{}`", path.display()))?,
        None => tools::cri_tools()?.join("critest"),
    };
    fs::create_dir_all(&wish.reports)
        .with_context(|| format!("failed to create `{}`", wish.reports.display()))?;
    let reports = fs::canonicalize(&wish.reports)?;
    let json = reports.join("report.json");
    let _ = fs::remove_file(&json);

    let mut flags = wish.flags.clone();
    if knows(&critest, "-nri-socket")? && !flags.iter().any(|flag| flag.contains("-nri-socket")) {
        flags.push("-nri-socket=/run/nri/nri.sock".to_owned());
    }
    let node = Node::builder().config(&wish.config).start()?;
    let begun = Instant::now();
    let mut command = Command::new(critest);
    command
        .current_dir("/")
        .args([
            "-runtime-endpoint",
            "unix:///run/orlop/cri.sock",
            "-image-endpoint",
            "unix:///run/orlop/cri.sock",
        ])
        // One order, always the same.
        .args(["-ginkgo.no-color", "-ginkgo.timeout=40m", "-ginkgo.seed=1"])
        .arg(format!("-ginkgo.json-report={}", json.display()))
        .arg(format!(
            "-ginkgo.junit-report={}",
            reports.join("junit.xml").display()
        ))
        .args(&flags)
        .stdout(fs::File::create(reports.join("critest.log"))?)
        .stderr(fs::File::create(reports.join("critest.err"))?);
    println!(
        "critest: the whole output goes to {}",
        reports.join("critest.log").display()
    );
    let status = node.spawn(&mut command)?.wait()?;
    let took = begun.elapsed();
    node.keep_logs(&reports)?;
    let removal = node.crictl()?.run(&["rmp", "-fa"])?;
    let left = node.finish();
    ensure!(
        json.exists(),
        "critest wrote no report, it ended with {status}; see {}",
        reports.display()
    );
    let specs = specs(&serde_json::from_slice(&fs::read(&json)?)?)?;
    // Who chooses specs chooses how many pass.
    let at_least = if wish.focused { 1 } else { wish.at_least.max(1) };
    let mut good = judge(&specs, &expected, wish.focused, at_least);
    println!("critest took {:.0} s", took.as_secs_f64());
    if removal.code != 0 {
        println!("the pods that critest left can't be removed: {removal}");
        good = false;
    }
    if let Err(e) = left {
        println!("{e:#}");
        good = false;
    }
    Ok(good)
}

/// Whether this version of critest has a flag.
fn knows(critest: &Path, flag: &str) -> Result<bool> {
    let help = Command::new(critest)
        .arg("-help")
        .output()
        .with_context(|| format!("failed to run `{}`", critest.display()))?;
    let text = [help.stdout, help.stderr].concat();
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line.split_whitespace().next() == Some(flag)))
}

struct Spec {
    name: String,
    state: String,
    message: String,
}

struct Expected {
    part: String,
    reason: String,
}

fn expected(text: &str) -> Vec<Expected> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" | "))
        .map(|(part, reason)| Expected {
            part: part.trim().to_owned(),
            reason: reason.trim().to_owned(),
        })
        .collect()
}

/// The specs that ran, from ginkgo's report.
fn specs(report: &Value) -> Result<Vec<Spec>> {
    let mut found = Vec::new();
    for suite in report.as_array().context("the report is no list")? {
        for spec in suite["SpecReports"].as_array().into_iter().flatten() {
            if spec["LeafNodeType"] != "It" {
                if spec["State"] != "passed" {
                    bail!("{} failed: {}", spec["LeafNodeType"], spec["Failure"]["Message"]);
                }
                continue;
            }
            let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let name = texts
                .chain([&spec["LeafNodeText"]])
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            found.push(Spec {
                name,
                state: spec["State"].as_str().unwrap_or("?").to_owned(),
                message: spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(found)
}

/// Why a spec may be skipped: what it says, or for those that say nothing, a part of its name.
const SKIPS: &[&str] = &["AppArmor is disabled on this host", " benchmark about "];

fn may_be_skipped(spec: &Spec) -> bool {
    SKIPS.iter().any(|known| match spec.message.as_str() {
        "" => spec.name.contains(known),
        message => message.contains(known),
    })
}

/// Prints the outcome; whether it is as good as expected, with at least as many specs passed.
fn judge(specs: &[Spec], expected: &[Expected], focused: bool, at_least: usize) -> bool {
    let in_state = |wanted: &[&str]| {
        specs
            .iter()
            .filter(|s| wanted.contains(&s.state.as_str()))
            .count()
    };
    let failed: Vec<&Spec> = specs
        .iter()
        .filter(|s| !["passed", "skipped", "pending"].contains(&s.state.as_str()))
        .collect();
    let reason = |spec: &Spec| {
        expected
            .iter()
            .find(|e| spec.name.contains(&e.part))
            .map(|e| e.reason.as_str())
    };
    let mut unexpected = 0;
    for spec in &failed {
        match reason(spec) {
            Some(reason) => println!("FAILED, as expected: {}\n    {reason}", spec.name),
            None => {
                unexpected += 1;
                let message: Vec<&str> = spec.message.lines().take(6).collect();
                println!("FAILED: {}\n    {}", spec.name, message.join("\n    "));
            }
        }
    }
    for line in expected.iter().filter(|_| !focused) {
        match specs.iter().find(|s| s.name.contains(&line.part)) {
            Some(spec) if spec.state == "passed" => {
                println!("passes now, drop it from the list: {}", spec.name)
            }
            Some(_) => {}
            None => println!("no spec has this name any more: {}", line.part),
        }
    }
    let mut strange = 0;
    // A focus skips all others, without a word.
    for spec in specs
        .iter()
        .filter(|s| s.state == "skipped" || s.state == "pending")
    {
        if focused && spec.message.is_empty() {
            continue;
        }
        let known = may_be_skipped(spec);
        strange += usize::from(!known);
        let why = if spec.message.is_empty() {
            "no reason given"
        } else {
            &spec.message
        };
        let mark = if known {
            "skipped"
        } else {
            "SKIPPED, for no known reason"
        };
        println!("{mark}: {}\n    {why}", spec.name);
    }
    let (passed, skipped) = (in_state(&["passed"]), in_state(&["skipped", "pending"]));
    println!(
        "critest: {passed} passed, {} failed ({unexpected} unexpectedly), {skipped} skipped, of {}",
        failed.len(),
        specs.len()
    );
    if passed < at_least {
        println!("critest: at least {at_least} must pass");
    }
    unexpected == 0 && strange == 0 && passed >= at_least
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unexpected_failures_count() {
        let report = json!([{ "SpecReports": [
            { "LeafNodeType": "BeforeSuite", "State": "passed" },
            { "LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": "works", "State": "passed" },
            { "LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": "can't", "State": "failed",
              "Failure": { "Message": "no" } },
        ]}]);
        let specs = specs(&report).unwrap();
        assert_eq!(specs.len(), 2);
        assert!(!judge(&specs, &[], false, 1));
        let expected = expected("# x\nA can't | because\n");
        assert!(judge(&specs, &expected, false, 1));
        assert!(!judge(&specs, &expected, false, 2));
    }

    #[test]
    fn a_skip_needs_a_known_reason() {
        let judged = |name: &str, message: &str, focused| {
            let report = json!([{ "SpecReports": [
                { "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed" },
                { "LeafNodeType": "It", "LeafNodeText": name, "State": "skipped", "Failure": { "Message": message } },
            ]}]);
            judge(&specs(&report).unwrap(), &[], focused, 1)
        };
        assert!(judged("any", "AppArmor is disabled on this host", false));
        assert!(judged("a benchmark about pods", "", false));
        assert!(!judged("a benchmark about pods", "too slow", false));
        assert!(!judged("any", "", false));
        assert!(judged("any", "", true));
    }
}
