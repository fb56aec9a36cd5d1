//! Long runs: fuzzing for hours, thousands of kills, suites many times in a row.
//!
//! What is to be done is a list of jobs, each a command line with a seed of its own; the list is made from the options
//! alone, so the same options give the same run. The first job that fails ends it, with the command that repeats just
//! that job. Each job's output is in `target/soak`.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::ci;

const LOG_DIR: &str = "target/soak";
/// Kills of one job: each of the three tests does a third of them, in a node of its own.
const KILLS_PER_JOB: u32 = 150;
const KILL_TESTS: u32 = 3;
/// A job that takes longer hangs, and is ended.
const JOB_HOURS: u32 = 4;
/// How much of a failed job's output is shown.
const TAIL_LINES: usize = 60;

/// What to do, and for how long.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct Wish {
    /// Go on for this long, again and again with other seeds; nothing is begun after it. Alone, it does all three
    /// below in turn
    #[arg(long)]
    hours: Option<f64>,
    /// A suite to run: a step of `cargo xtask ci` such as test, e2e or conformance
    #[arg(long)]
    suite: Option<String>,
    /// How often to run the suite
    #[arg(long, default_value_t = 1, requires = "suite")]
    times: u32,
    /// How often to kill the daemon, shims, containers and runtimes at random
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// How many seconds to fuzz each target
    #[arg(long, default_value_t = 0)]
    fuzz: u32,
    /// What all random choices come from
    #[arg(long)]
    seed: u32,
}

/// A command to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    name: String,
    environment: Vec<(&'static str, String)>,
    command: String,
}

/// The command line that repeats it.
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={value} ")?;
        }
        f.write_str(&self.command)
    }
}

impl Wish {
    /// What `--hours` alone means.
    fn completed(mut self) -> Result<Self> {
        if self.suite.is_none() && self.kills == 0 && self.fuzz == 0 {
            ensure!(
                self.hours.is_some(),
                "nothing to do: give --hours, --suite, --kills or --fuzz"
            );
            self.suite = Some("e2e".to_owned());
            self.kills = KILLS_PER_JOB;
            self.fuzz = 60;
        }
        ensure!(
            self.hours.is_none_or(|hours| hours.is_finite() && hours > 0.0),
            "--hours must be more than 0"
        );
        Ok(self)
    }
}

/// The jobs of a round; seeds differ from round to round and from job to job.
fn plan(wish: &Wish, round: u32) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    // 0 would mean "draw one" to the fuzzer.
    let mut drawn = 0;
    let mut seed = || {
        drawn += 1;
        let mixed = wish
            .seed
            .wrapping_add(round.wrapping_mul(100_003))
            .wrapping_add(drawn);
        mixed.max(1).to_string()
    };
    if wish.fuzz > 0 {
        jobs.push(Job {
            name: "fuzz".to_owned(),
            environment: vec![("FUZZ_SEED", seed())],
            command: format!("hack/fuzz {}", wish.fuzz),
        });
    }
    let mut rest = wish.kills;
    while rest > 0 {
        let kills = rest.min(KILLS_PER_JOB);
        rest -= kills;
        jobs.push(Job {
            name: format!("{kills} kills"),
            environment: vec![
                ("ORLOP_TEST_SEED", seed()),
                ("ORLOP_TEST_KILLS", kills.div_ceil(KILL_TESTS).to_string()),
            ],
            command: "cargo test --package tests-e2e --test cri --locked -- random_kill:: --test-threads=2"
                .to_owned(),
        });
    }
    if let Some(suite) = &wish.suite {
        let command = ci::command(suite).with_context(|| {
            format!("no suite is called `{suite}`: it is a step of `cargo xtask ci --list`")
        })?;
        for time in 1..=wish.times {
            jobs.push(Job {
                name: format!("{suite}, {time} of {}", wish.times),
                environment: Vec::new(),
                command: command.to_owned(),
            });
        }
    }
    Ok(jobs)
}

/// How it went.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// So many jobs, and none of them failed.
    Passed(u32),
    /// The job after so many others.
    Failed(u32, Job),
}

/// Does rounds of jobs: one, or as many as begin within `limit`.
fn go(
    wish: &Wish,
    limit: Option<Duration>,
    mut elapsed: impl FnMut() -> Duration,
    mut run: impl FnMut(u32, &Job) -> Result<bool>,
) -> Result<Outcome> {
    let mut done = 0;
    for round in 0..u32::MAX {
        for job in plan(wish, round)? {
            if limit.is_some_and(|limit| elapsed() >= limit) {
                return Ok(Outcome::Passed(done));
            }
            if !run(done, &job)? {
                return Ok(Outcome::Failed(done, job));
            }
            done += 1;
        }
        if limit.is_none() {
            break;
        }
    }
    Ok(Outcome::Passed(done))
}

/// Runs it all.
pub(crate) fn run(wish: Wish) -> Result<()> {
    let wish = wish.completed()?;
    // A wrong suite is told before anything is built.
    let first = plan(&wish, 0)?;
    if fs::exists(LOG_DIR)? {
        fs::remove_dir_all(LOG_DIR).with_context(|| format!("failed to remove the old `{LOG_DIR}`"))?;
    }
    fs::create_dir_all(LOG_DIR).with_context(|| format!("failed to create `{LOG_DIR}`"))?;
    let hours = wish.hours;
    match hours {
        Some(hours) => println!(
            "soak: {} jobs a round, for {hours} h, seed {}",
            first.len(),
            wish.seed
        ),
        None => println!("soak: {} jobs, seed {}", first.len(), wish.seed),
    }
    if std::env::var_os("ORLOP_BIN_DIR").is_none() {
        crate::sh::run("hack/build", &[])?;
    }
    let begun = Instant::now();
    let limit = hours.map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let outcome = go(
        &wish,
        limit,
        || begun.elapsed(),
        |number, job| {
            println!("soak: {} {}: {job}", clock(begun.elapsed()), job.name);
            let at = Instant::now();
            let ok = execute(job, &log_path(number))?;
            let verdict = if ok { "ok" } else { "FAILED" };
            println!(
                "soak: {} {}: {verdict} after {}",
                clock(begun.elapsed()),
                job.name,
                clock(at.elapsed())
            );
            Ok(ok)
        },
    )?;
    match outcome {
        Outcome::Passed(done) => {
            println!("soak: {done} jobs in {}, none failed", clock(begun.elapsed()));
            Ok(())
        }
        Outcome::Failed(done, job) => {
            let log = log_path(done);
            println!("{}", tail(&fs::read_to_string(&log).unwrap_or_default()));
            bail!(
                "soak: {} failed after {done} others and {}\n  its output: {}\n  again: {job}",
                job.name,
                clock(begun.elapsed()),
                log.display()
            )
        }
    }
}

fn log_path(number: u32) -> PathBuf {
    PathBuf::from(LOG_DIR).join(format!("{number:04}.log"))
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Runs a job with its output in a file.
fn execute(job: &Job, log: &Path) -> Result<bool> {
    let mut out = File::create(log).with_context(|| format!("failed to create `{}`", log.display()))?;
    writeln!(out, "{job}")?;
    let status = Command::new("timeout")
        // In this group, so that Ctrl-C ends the job as well.
        .args([
            "--foreground",
            "--kill-after=60",
            &format!("{JOB_HOURS}h"),
            "bash",
            "-c",
        ])
        .arg(format!("exec {}", job.command))
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()
        .context("failed to run `timeout`")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            hours: None,
            suite: None,
            times: 1,
            kills: 0,
            fuzz: 0,
            seed: 7,
        }
    }

    #[test]
    fn options_become_jobs() {
        let wish = Wish {
            suite: Some("conformance".to_owned()),
            times: 2,
            kills: 400,
            fuzz: 30,
            ..wish()
        };
        let jobs = plan(&wish, 0).unwrap();
        let names: Vec<&str> = jobs.iter().map(|j| j.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "fuzz",
                "150 kills",
                "150 kills",
                "100 kills",
                "conformance, 1 of 2",
                "conformance, 2 of 2"
            ]
        );
        assert_eq!(jobs[0].to_string(), "FUZZ_SEED=8 hack/fuzz 30");
        assert!(
            jobs[3]
                .to_string()
                .starts_with("ORLOP_TEST_SEED=11 ORLOP_TEST_KILLS=34 cargo test ")
        );
        assert_eq!(jobs[4].to_string(), "hack/conformance cri");
        // The same again, and other seeds in the next round.
        assert_eq!(plan(&wish, 0).unwrap(), jobs);
        let next = plan(&wish, 1).unwrap();
        assert!(jobs[..4].iter().all(|job| !next.contains(job)));
    }

    #[test]
    fn hours_alone_do_everything_and_nothing_is_refused() {
        assert!(wish().completed().is_err());
        let hours = |hours| {
            Wish {
                hours: Some(hours),
                ..wish()
            }
            .completed()
        };
        assert!(hours(0.0).is_err() && hours(f64::NAN).is_err());
        assert_eq!(plan(&hours(1.0).unwrap(), 0).unwrap().len(), 3);
        let unknown = Wish {
            suite: Some("nothing".to_owned()),
            ..wish()
        };
        assert!(plan(&unknown, 0).unwrap_err().to_string().contains("`nothing`"));
    }

    #[test]
    fn the_first_failure_ends_it_and_so_does_the_time() {
        let wish = Wish { kills: 450, ..wish() };
        let mut ran = 0;
        let outcome = go(
            &wish,
            None,
            || Duration::ZERO,
            |number, _| {
                ran += 1;
                Ok(number != 1)
            },
        );
        let second = plan(&wish, 0).unwrap().remove(1);
        assert_eq!((outcome.unwrap(), ran), (Outcome::Failed(1, second), 2));
        let outcome = go(&wish, None, || Duration::ZERO, |_, _| Ok(true));
        assert_eq!(outcome.unwrap(), Outcome::Passed(3));
        let mut hour = 0;
        let mut elapsed = || {
            hour += 1;
            Duration::from_secs(hour * 3600)
        };
        let limit = Some(Duration::from_secs(6 * 3600));
        assert_eq!(
            go(&wish, limit, &mut elapsed, |_, _| Ok(true)).unwrap(),
            Outcome::Passed(5)
        );
    }

    #[test]
    fn a_job_runs_with_its_seed_and_its_output_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let job = |command: &str| Job {
            name: "j".to_owned(),
            environment: vec![("FUZZ_SEED", "5".to_owned())],
            command: command.to_owned(),
        };
        assert!(execute(&job("printenv FUZZ_SEED"), &log).unwrap());
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            "FUZZ_SEED=5 printenv FUZZ_SEED\n5\n"
        );
        assert!(!execute(&job("false"), &log).unwrap());
    }
}
