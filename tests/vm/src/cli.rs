//! The command line of `hack/vm`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::channel::TooLong;
use crate::disk::Disk;
use crate::store::{Store, workspace};
use crate::{Options, Script, Vm, boot_nodes};

const USAGE: &str = "usage: hack/vm run [OPTION...] -- COMMAND [ARGUMENT...]

Runs a command in a throw-away Debian 12 guest with systemd and unified cgroup v2: the workspace and what is built lie at
the same paths as here, the command runs in the same folder as root, and its exit code is ours.

  --bare             without systemd: a static agent is the first process
  --snapshot         go on from a saved guest (the first run saves one)
  --nodes N          N guests on one network, node0, node1...; the command runs on each of them side by side, with
                     ORLOP_NODE and ORLOP_NODES set, and lines begin with the node's name
  --disk DISK        a disk that survives: `persistent`, or FILE[:ext4|xfs][:SIZE]; mounted on /disks/NAME
  --ship PATH        a file or folder of cargo's target folder that the guest shall have too; target/orlop and
                     target/testbed it always has, and files that the command names
  --out PATH[:HERE]  a file or folder of the guest to bring back when the command has ended
  --env KEY=VALUE    a variable for the command
  --memory MIB       1024 otherwise
  --timeout SECONDS  3600 otherwise; then the command is killed, and the exit code is 124
  --quiet            no line about times

hack/vm build only makes what a guest needs. Exit code 125: the guest failed, not the command.";

/// The command line, taken apart.
#[derive(Debug, Default)]
struct Wish {
    options: Options,
    nodes: u32,
    out: Vec<String>,
    disks: Vec<String>,
    variables: Vec<(String, String)>,
    timeout: Option<Duration>,
    command: Vec<String>,
}

/// Runs `hack/vm`; the exit code is the guest's command's.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run", rest @ ..] => match parse(rest) {
            Ok(wish) => run(wish),
            Err(e) => {
                eprintln!("vm: {e:#}\n\n{USAGE}");
                return ExitCode::from(64);
            }
        },
        ["build"] => Vm::boot(&Options::default()).and_then(Vm::end).map(|()| 0),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(125)),
        Err(e) if e.is::<TooLong>() => {
            eprintln!("vm: {e}");
            ExitCode::from(124)
        }
        Err(e) => {
            eprintln!("vm: {e:#}");
            ExitCode::from(125)
        }
    }
}

fn parse(words: &[&str]) -> Result<Wish> {
    let mut wish = Wish {
        nodes: 1,
        ..Wish::default()
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .copied()
                .with_context(|| format!("{word} needs a value"))
        };
        match *word {
            "--" => {
                wish.command = words.map(|w| (*w).to_owned()).collect();
                break;
            }
            "--bare" => wish.options.bare = true,
            "--snapshot" => wish.options.snapshot = true,
            "--quiet" => wish.options.quiet = true,
            "--nodes" => wish.nodes = value()?.parse().context("--nodes takes a number")?,
            "--memory" => {
                wish.options.memory_mib = value()?.parse().context("--memory takes a number of MiB")?
            }
            "--timeout" => {
                let seconds = value()?.parse().context("--timeout takes a number of seconds")?;
                wish.timeout = Some(Duration::from_secs(seconds));
            }
            "--disk" => wish.disks.push(value()?.to_owned()),
            "--ship" => wish.options.ship.push(value()?.into()),
            "--out" => wish.out.push(value()?.to_owned()),
            "--env" => {
                let (key, value) = value()?.split_once('=').context("--env takes KEY=VALUE")?;
                wish.variables.push((key.to_owned(), value.to_owned()));
            }
            other => bail!("`{other}` is no option (the command comes after --)"),
        }
    }
    ensure!(!wish.command.is_empty(), "there is no command after --");
    ensure!(wish.nodes == 1 || wish.out.is_empty(), "--out is for one node");
    Ok(wish)
}

fn run(mut wish: Wish) -> Result<i32> {
    let store = Store::open()?;
    for disk in &wish.disks {
        wish.options.disks.push(Disk::parse(disk, &store)?);
    }
    let folder = std::env::current_dir()?;
    wish.options.ship.extend(named(&wish.command, &folder));
    let (mut nodes, _switch) = if wish.nodes == 1 {
        (vec![Vm::boot(&wish.options)?], None)
    } else {
        let (nodes, switch) = boot_nodes(&wish.options, wish.nodes)?;
        (nodes, Some(switch))
    };
    let times = nodes.first().map(Vm::times).unwrap_or_default();
    let begun = Instant::now();
    let done = if nodes.len() == 1 {
        one(&wish, &mut nodes[0], &folder)
    } else {
        all(&wish, &mut nodes, &folder)
    };
    let took = begun.elapsed();
    if done.is_ok() {
        for path in &wish.out {
            bring(&mut nodes[0], path, &folder)?;
        }
    }
    if wish.options.disks.is_empty() {
        drop(nodes);
    } else {
        nodes.into_iter().try_for_each(Vm::end)?;
    }
    if !wish.options.quiet {
        eprintln!(
            "vm: image {:.1} s, boot {:.1} s, command {:.1} s",
            times.image.as_secs_f64(),
            times.boot.as_secs_f64(),
            took.as_secs_f64()
        );
    }
    done
}

/// Files of cargo's target folder that the command names, and what lies beside a test executable: it runs programs of
/// its own package from there.
fn named(command: &[String], folder: &Path) -> Vec<PathBuf> {
    let Ok(target) = crate::store::target().canonicalize() else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = command
        .iter()
        .filter(|word| word.contains('/'))
        .filter_map(|word| folder.join(word).canonicalize().ok())
        .filter(|path| path.is_file() && path.starts_with(&target))
        .collect();
    for profile in ["debug", "release"].map(|name| target.join(name)) {
        if found.iter().any(|path| path.starts_with(profile.join("deps"))) {
            found.extend(crate::job::programs(&profile));
        }
    }
    found
}

fn script(wish: &Wish, folder: &Path, node: u32) -> Script {
    let here = if folder.starts_with(workspace()) {
        folder.to_owned()
    } else {
        workspace()
    };
    let mut script = Script::new(wish.command.clone())
        .folder(&here.to_string_lossy())
        // Emulated, a container takes ten times as long; tests wait longer before they call it hung.
        .env("ORLOP_TEST_SLOWNESS", "8")
        .env("ORLOP_NODE", &node.to_string())
        .env("ORLOP_NODES", &wish.nodes.to_string());
    for (key, value) in &wish.variables {
        script = script.env(key, value);
    }
    match wish.timeout {
        Some(limit) => script.limit(limit),
        None => script,
    }
}

fn one(wish: &Wish, vm: &mut Vm, folder: &Path) -> Result<i32> {
    vm.spawn(&script(wish, folder, 0))?.wait(pass)
}

fn pass(error: bool, bytes: &[u8]) -> Result<()> {
    if error {
        std::io::stderr().write_all(bytes)?;
    } else {
        let mut out = std::io::stdout();
        out.write_all(bytes).and_then(|()| out.flush())?;
    }
    Ok(())
}

/// On every node side by side; the exit code is that of the first, by number, that failed.
fn all(wish: &Wish, nodes: &mut [Vm], folder: &Path) -> Result<i32> {
    let codes: Vec<Result<i32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter_mut()
            .zip(0..)
            .map(|(vm, node)| scope.spawn(move || prefixed(vm, &script(wish, folder, node), node)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<i32>>| {
            thread
                .join()
                .unwrap_or_else(|_| bail!("a thread that serves a node panicked"))
        };
        threads.into_iter().map(join).collect()
    });
    let codes: Vec<i32> = codes.into_iter().collect::<Result<_>>()?;
    Ok(codes.into_iter().find(|code| *code != 0).unwrap_or_default())
}

fn prefixed(vm: &mut Vm, script: &Script, node: u32) -> Result<i32> {
    let mut rest: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
    let code = vm.spawn(script)?.wait(|error, bytes| {
        let rest = &mut rest[usize::from(error)];
        rest.extend_from_slice(bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            pass(error, &[format!("node{node}: ").as_bytes(), &line].concat())?;
        }
        Ok(())
    })?;
    for (error, rest) in [(false, &rest[0]), (true, &rest[1])] {
        if !rest.is_empty() {
            pass(error, &[format!("node{node}: ").as_bytes(), rest, b"\n"].concat())?;
        }
    }
    Ok(code)
}

/// Brings a file or folder of the guest here, by a tar stream: beside where it is named, or under the same path.
fn bring(vm: &mut Vm, wish: &str, folder: &Path) -> Result<()> {
    let (from, to) = wish.split_once(':').unwrap_or((wish, ""));
    let guest = if from.starts_with('/') {
        PathBuf::from(from)
    } else {
        folder.join(from)
    };
    let to = match to {
        "" if guest.starts_with(workspace()) => guest.clone(),
        "" => folder.join(guest.file_name().context("--out needs a name")?),
        to => folder.join(to),
    };
    let (above, name) = (
        guest.parent().unwrap_or(Path::new("/")),
        guest.file_name().context("--out needs a name")?,
    );
    let place = to.parent().context("--out needs a place")?;
    std::fs::create_dir_all(place).with_context(|| format!("failed to create `{}`", place.display()))?;
    let mut tar = Command::new("tar")
        .args(["-x", "--no-same-owner", "-C"])
        .arg(place)
        .arg(format!(
            "--transform=s,^{},{},",
            name.to_string_lossy(),
            to.file_name().unwrap_or(name).to_string_lossy()
        ))
        .stdin(Stdio::piped())
        .spawn()
        .context("failed to run `tar`")?;
    let mut into = tar.stdin.take().context("tar's input was asked for")?;
    let pack = Script::new([
        "tar".into(),
        "-c".into(),
        "-C".into(),
        above.to_string_lossy(),
        name.to_string_lossy(),
    ]);
    let code = vm.spawn(&pack)?.wait(|error, bytes| {
        if error {
            pass(true, bytes)
        } else {
            into.write_all(bytes).context("tar ended early")
        }
    });
    drop(into);
    let unpacked = tar.wait()?;
    ensure!(code? == 0 && unpacked.success(), "failed to bring `{from}` back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_comes_after_two_dashes_as_it_is() {
        let wish = parse(&["--bare", "--nodes", "2", "--", "sh", "-c", "--bare"]).unwrap();
        assert!(wish.options.bare && wish.nodes == 2 && !wish.options.snapshot);
        assert_eq!(wish.command, ["sh", "-c", "--bare"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (words, why) in [
            (vec!["true"], "`true` is no option (the command comes after --)"),
            (vec!["--bare"], "there is no command after --"),
            (vec!["--nodes"], "--nodes needs a value"),
            (
                vec!["--nodes", "2", "--out", "x", "--", "true"],
                "--out is for one node",
            ),
        ] {
            assert_eq!(parse(&words).unwrap_err().to_string(), why);
        }
    }
}
