//! The part that runs outside: boots, waits, cuts, and boots again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests_vm::{Disk, Options, Script, Vm};

use crate::guest;
use crate::random::Random;

/// So many cuts on the same disks; then new ones, with the other file system.
const CUTS_PER_DISK: u32 = 25;
/// The longest that the workload runs before the cut, and the shortest, in milliseconds.
const LONGEST: u64 = 8000;
const SHORTEST: u64 = 200;
/// In so many of a hundred rounds the power goes while the daemon still recovers from the last cut.
const EARLY: u64 = 15;
/// The longest that such a recovery is left alone, in milliseconds.
const EARLY_LONGEST: u64 = 6000;
/// The longest that an audit may take.
const AUDIT_LIMIT: Duration = Duration::from_secs(600);
/// The sizes of the disks, MiB. They are sparse.
const DATA_MIB: u64 = 3072;
const JOURNAL_MIB: u64 = 64;
/// Where they are in the guest.
const DATA: &str = "/disks/data";
const JOURNAL: &str = "/disks/journal";
/// What the workload says when it begins.
const WORKING: &str = "working\n";

/// What a disk's file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FileSystem {
    /// Without its own help for those who forget to flush, and with a journal that isn't committed by itself.
    Ext4,
    /// As it comes.
    Xfs,
}

impl FileSystem {
    fn kind(self) -> tests_vm::FileSystem {
        match self {
            Self::Ext4 => tests_vm::FileSystem::Ext4,
            Self::Xfs => tests_vm::FileSystem::Xfs,
        }
    }

    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "noauto_da_alloc,commit=300",
            Self::Xfs => "",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Wish {
    /// How often the power goes
    #[arg(short = 'n', long = "cuts", default_value_t = 5)]
    cuts: u32,
    /// The moments and the operations; the same seed asks for the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this file system (both take turns when none is named)
    #[arg(long)]
    file_system: Option<FileSystem>,
    /// Takes away the flushes of files whose path contains this text: then something must be found
    #[arg(long, value_name = "PART")]
    lose: Option<String>,
}

/// A share of the cuts, on disks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    kind: FileSystem,
    cuts: u32,
}

/// Who gets how many cuts: both file systems take turns, and each has its turn however few cuts there are.
fn shares(cuts: u32, only: Option<FileSystem>) -> Vec<Share> {
    let most = match only {
        None if cuts < 2 * CUTS_PER_DISK => cuts.div_ceil(2),
        _ => CUTS_PER_DISK,
    };
    let turns = [FileSystem::Ext4, FileSystem::Xfs].into_iter().cycle();
    let mut left = cuts;
    turns
        .map_while(|turn| {
            let cuts = most.min(left);
            left -= cuts;
            (cuts > 0).then_some(Share {
                kind: only.unwrap_or(turn),
                cuts,
            })
        })
        .collect()
}

/// When the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// That long after the daemon was started, whatever it does.
    Recovering(Duration),
    /// That long after the workload began.
    Working(Duration),
    /// Not in this round.
    Never,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recovering(after) => write!(f, "{after:?} into the recovery"),
            Self::Working(after) => write!(f, "{after:?} into the work"),
            Self::Never => f.write_str("none"),
        }
    }
}

fn moment(random: &mut Random) -> Moment {
    if random.percent(EARLY) {
        Moment::Recovering(Duration::from_millis(random.below(EARLY_LONGEST)))
    } else {
        Moment::Working(Duration::from_millis(SHORTEST + random.below(LONGEST - SHORTEST)))
    }
}

/// What happened in a round.
enum Outcome {
    Cut,
    Found(String),
    Ended,
}

pub(crate) fn run(wish: &Wish) -> Result<()> {
    ensure!(wish.cuts > 0, "-n is 0: nothing would be tested");
    let shared = Shared::new(wish)?;
    for (number, share) in shares(wish.cuts, wish.file_system).into_iter().enumerate() {
        let Some(finding) = shared.on_one_disk(number, share)? else {
            continue;
        };
        let Some(part) = &wish.lose else {
            bail!(
                "{finding}\nagain with: cargo xtask powercut -n {} --seed {}",
                wish.cuts,
                wish.seed
            );
        };
        println!("powercut: found, as it should be without flushes of `{part}`: {finding}");
        return Ok(());
    }
    if let Some(part) = &wish.lose {
        bail!(
            "flushes of `{part}` were taken away, and {} cuts found nothing: the test is too weak",
            wish.cuts
        );
    }
    println!(
        "powercut: {} cuts, nothing lost and nothing left over (seed {})",
        wish.cuts, wish.seed
    );
    Ok(())
}

/// What all rounds share.
struct Shared<'w> {
    wish: &'w Wish,
    registry: PathBuf,
    target: PathBuf,
    program: PathBuf,
    preload: Option<PathBuf>,
    folder: PathBuf,
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // It is below the target folder; what can't be removed is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl<'w> Shared<'w> {
    fn new(wish: &'w Wish) -> Result<Self> {
        let program = std::env::current_exe().context("failed to find this program")?;
        let target = tests_vm::target();
        let registry = tests_images::ensure_registry(&mut |what| eprintln!("{what}"))?;
        let folder = target.join(format!("powercut/{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let mut shared = Self {
            wish,
            registry,
            target,
            program,
            preload: None,
            folder,
        };
        if wish.lose.is_some() {
            shared.preload = Some(shared.build_preload()?);
        }
        Ok(shared)
    }

    /// Compiles the library that takes flushes away.
    fn build_preload(&self) -> Result<PathBuf> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("lose/lose.c");
        let library = self.folder.join("lose.so");
        let status = Command::new("cc")
            .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .status()
            .context("failed to run `cc`")?;
        ensure!(status.success(), "failed to compile `{}`", source.display());
        Ok(library)
    }

    /// All cuts of one share; what was found first.
    fn on_one_disk(&self, number: usize, share: Share) -> Result<Option<String>> {
        let kind = share.kind;
        let file = |name: &str| self.folder.join(format!("{name}-{number}.img"));
        let disk = |name, place, kind: FileSystem, mib| {
            let disk = Disk::open(name, &file(name), kind.kind(), mib)?;
            Ok::<_, anyhow::Error>(disk.at(place).options(kind.mount_options()))
        };
        let mut options = Options {
            bare: true,
            quiet: true,
            memory_mib: 1536,
            disks: vec![
                disk("data", DATA, kind, DATA_MIB)?,
                disk("journal", JOURNAL, FileSystem::Ext4, JOURNAL_MIB)?,
            ],
            ..Options::default()
        };
        options.ship.push(self.program.clone());
        options.ship.extend(self.preload.clone());
        let reference = self.prepare(&options)?;
        let mut random = Random::new(self.wish.seed, number as u64);
        for cut in 0..=share.cuts {
            let is_last = cut == share.cuts;
            let moment = if is_last {
                Moment::Never
            } else {
                moment(&mut random)
            };
            let seed = random.below(u64::MAX);
            let empty = is_last || random.percent(30);
            let begun = Instant::now();
            let outcome = self
                .round(&options, &reference, moment, seed, empty)
                .with_context(|| format!("{kind}, round {cut}"))?;
            let seconds = begun.elapsed().as_secs_f64();
            match outcome {
                Outcome::Found(finding) => return Ok(Some(format!("{kind}, after cut {cut}: {finding}"))),
                Outcome::Cut => println!("powercut: {kind}, cut {}: {moment} ({seconds:.1} s)", cut + 1),
                Outcome::Ended => println!("powercut: {kind}: whole and empty in the end ({seconds:.1} s)"),
            }
        }
        for name in ["data", "journal"] {
            std::fs::remove_file(file(name))
                .with_context(|| format!("failed to remove the disk `{name}`"))?;
        }
        Ok(None)
    }

    fn words(&self, task: &str) -> Vec<String> {
        let place = |path: &Path| path.to_string_lossy().into_owned();
        let mut words: Vec<String> = vec![place(&self.program), "guest".into(), task.into()];
        for (option, value) in [
            ("--registry", place(&self.registry)),
            ("--programs", place(&self.target.join("orlop"))),
            ("--data", DATA.to_owned()),
            ("--journal", format!("{JOURNAL}/lines")),
        ] {
            words.extend([option.to_owned(), value]);
        }
        words
    }

    /// How things are where the power stays on.
    fn prepare(&self, options: &Options) -> Result<Vec<u8>> {
        let mut vm = Vm::boot(options)?;
        let script = Script::new(self.words("prepare")).limit(AUDIT_LIMIT);
        let finished = vm
            .run(&script)?
            .ok()
            .context("failed to see how things should be")?;
        vm.end()?;
        Ok(finished.stdout)
    }

    fn round(
        &self,
        options: &Options,
        reference: &[u8],
        moment: Moment,
        seed: u64,
        empty: bool,
    ) -> Result<Outcome> {
        let mut words = self.words("round");
        words.extend(["--seed".to_owned(), seed.to_string()]);
        if empty {
            words.push("--empty".to_owned());
        }
        if moment == Moment::Never {
            words.push("--last".to_owned());
        }
        if let (Some(part), Some(preload)) = (&self.wish.lose, &self.preload) {
            let preload = preload.to_string_lossy().into_owned();
            words.extend(["--preload".to_owned(), preload, "--lose".to_owned(), part.clone()]);
        }
        let mut vm = Vm::boot(options)?;
        let task = vm.spawn(&Script::new(words).input(reference))?;
        let (sender, heard) = channel();
        // It ends with the guest, at the latest.
        let listener = thread::spawn(move || {
            task.wait(|_, bytes| {
                // Who doesn't listen any more has cut the power.
                let _ = sender.send(bytes.to_vec());
                Ok(())
            })
        });
        let mut said = String::new();
        let is_cut = listen(&heard, moment, &mut said)?;
        if is_cut {
            vm.kill()?;
            // The guest is gone: that the task ended with it is no news.
            drop(listener.join());
            return Ok(Outcome::Cut);
        }
        let code = listener
            .join()
            .unwrap_or_else(|_| bail!("the listener panicked"))?;
        vm.kill()?;
        match (code, moment) {
            (0, Moment::Never) => Ok(Outcome::Ended),
            (0, _) => bail!("the workload ended by itself:\n{said}"),
            (guest::FOUND, _) => Ok(Outcome::Found(said)),
            (code, _) => bail!("the guest's part failed with {code}:\n{said}"),
        }
    }
}

/// Listens until the moment has come (true), or the task has ended (false).
fn listen(heard: &Receiver<Vec<u8>>, moment: Moment, said: &mut String) -> Result<bool> {
    let begun = Instant::now();
    let limit = begun + AUDIT_LIMIT;
    let mut until = match moment {
        Moment::Recovering(after) => begun + after,
        Moment::Working(_) | Moment::Never => limit,
    };
    loop {
        match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                said.push_str(&String::from_utf8_lossy(&bytes));
                if let Moment::Working(after) = moment
                    && until == limit
                    && said.ends_with(WORKING)
                {
                    until = Instant::now() + after;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                ensure!(
                    until != limit,
                    "the audit took more than {AUDIT_LIMIT:?}; it said:\n{said}"
                );
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_has_its_disk_and_both_file_systems_their_turn() {
        for cuts in 2..200 {
            let all = shares(cuts, None);
            assert_eq!(all.iter().map(|share| share.cuts).sum::<u32>(), cuts);
            assert!(all.iter().all(|share| (1..=CUTS_PER_DISK).contains(&share.cuts)));
            assert!(all.windows(2).all(|pair| pair[0].kind != pair[1].kind) && all.len() > 1);
        }
        let only = shares(60, Some(FileSystem::Xfs));
        assert!(only.iter().all(|share| share.kind == FileSystem::Xfs) && only.len() == 3);
        assert_eq!(shares(1, None).len(), 1);
    }

    #[test]
    fn the_cut_comes_when_its_time_has_come_or_not_at_all() {
        let soon = Duration::from_millis(20);
        let listened = |words: &[&str], moment, ends: bool| {
            let (sender, heard) = channel();
            for word in words {
                sender.send(word.as_bytes().to_vec()).unwrap();
            }
            let kept = (!ends).then_some(sender);
            let mut said = String::new();
            let is_cut = listen(&heard, moment, &mut said).unwrap();
            drop(kept);
            (is_cut, said)
        };
        assert_eq!(
            listened(&["whole\n", "working\n"], Moment::Working(soon), false),
            (true, "whole\nworking\n".into())
        );
        assert_eq!(
            listened(&["whole\n"], Moment::Recovering(soon), false),
            (true, "whole\n".into())
        );
        assert_eq!(
            listened(&["missing\n"], Moment::Working(soon), true),
            (false, "missing\n".into())
        );
        assert_eq!(listened(&[], Moment::Never, true), (false, String::new()));
    }
}
