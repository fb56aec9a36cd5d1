//! SIGKILL to the daemon, a shim, a container or the runtime at random moments, while pods come and go.
//!
//! `ORLOP_TEST_SEED` and `ORLOP_TEST_KILLS` set the seed and the number of kills, for long runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec, run, tools, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper};

const ROUNDS: u32 = 15;

/// A number from the environment.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let set = std::env::var(name).ok().map(|text| match text.parse() {
        Ok(number) => number,
        Err(_) => panic!("{name} is `{text}`, not a number"),
    });
    set.unwrap_or(default)
}

/// A small generator: the seed is printed, so that a run can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn whatever_dies_nothing_is_left() {
    let seed = setting("ORLOP_TEST_SEED", 20_251);
    let rounds = setting("ORLOP_TEST_KILLS", ROUNDS);
    println!("ORLOP_TEST_SEED={seed}");
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let mut dice = Dice(seed);
        let mut hits = [0; 3];
        for round in 0..rounds {
            one_round(node, &mut dice, round, &mut hits)
                .with_context(|| format!("round {round} of seed {seed}"))?;
        }
        println!(
            "killed: {} daemons, {} shims, {} containers",
            hits[0], hits[1], hits[2]
        );
        ensure!(
            rounds < ROUNDS || hits.iter().all(|&n| n > 0),
            "the daemon, shims and containers were hit {hits:?} times in {rounds} rounds of seed {seed}"
        );
        node.crictl()?.ok(&["rmp", "-fa"])?;
        node.assert_no_leaks(&before)
    });
}

fn one_round(node: &mut Node, dice: &mut Dice, round: u32, hits: &mut [u32; 3]) -> Result<()> {
    let delay = Duration::from_millis(dice.roll(400));
    let victim = dice.roll(3);
    let shared = &*node;
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<()> {
            let crictl = shared.crictl()?;
            for n in 0..3 {
                let pod = PodSpec::new(&format!("r{round}n{n}"));
                // It may fail: somebody is being killed.
                if let Ok((sandbox, _)) = crictl.start_pod(&pod, &sleeper("main"))
                    && n % 2 == 0
                {
                    let _ = crictl.remove_pod(&sandbox);
                }
            }
            Ok(())
        });
        std::thread::sleep(delay);
        let killed = match victim {
            0 => shared.run("pkill", &["-KILL", "-x", "orlop-cri"]),
            // Within this node's PID namespace only.
            1 => shared.run("pkill", &["-KILL", "-o", "-f", "orlop-shim"]),
            _ => shared.run("pkill", &["-KILL", "-n", "-x", "sh"]),
        };
        // Nobody of that kind may have been there yet.
        let slot = usize::try_from(victim)?.min(2);
        hits[slot] += u32::from(killed?.code == 0);
        worker.join().expect("the worker doesn't panic")
    })?;
    if node.daemon()?.ended()?.is_some() {
        node.await_daemons_end(Duration::from_secs(1))?;
        node.start_daemon()?;
    }
    // Whatever happened, it answers and takes a new pod.
    let crictl = node.crictl()?;
    let (sandbox, id) = crictl.start_pod(&PodSpec::new(&format!("after{round}")), &sleeper("main"))?;
    ensure!(crictl.state(&id)? == "CONTAINER_RUNNING");
    crictl.remove_pod(&sandbox)
}

/// Kills the `n`th process of the runtime that comes by, and says which it was. The built-in runtime is a stage child: a
/// process with the shim's command line below a shim. Read without forking, because it lives for milliseconds.
const ASSASSIN: &str = r#"
foreign=$1 n=$2
declare -A seen
while :; do
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/} name=
        [ -z "${seen[$pid]}" ] && IFS= read -r -d '' name <"$dir/cmdline" || continue
        if [ -n "$foreign" ]; then
            [[ $name == */"$foreign" || $name == "$foreign" ]] || continue
        else
            [[ $name == *orlop-shim ]] || continue
            read -r line <"$dir/stat" || continue
            line=${line##*) } parent=${line#? }
            IFS= read -r -d '' above <"/proc/${parent%% *}/cmdline" && [[ $above == *orlop-shim ]] || continue
        fi
        seen[$pid]=yes
        ((n-- == 0)) || continue
        kill -KILL "$pid" && echo "killed $pid, $name"
        exit
    done
done 2>/dev/null
"#;

#[test]
fn the_built_in_runtime_dies_and_nothing_is_left() {
    runtime_dies("", Node::builder());
}

#[test]
fn a_foreign_runtime_dies_and_nothing_is_left() {
    let path = tools::installed("runc").expect("hack/deps installs it");
    let config = format!("[runtimes.runc]\npath = '{}'\n", path.display());
    runtime_dies("runc", Node::builder().config(&config));
}

fn runtime_dies(handler: &str, wish: tests_harness::NodeBuilder) {
    let seed = setting("ORLOP_TEST_SEED", 20_251);
    let rounds = setting("ORLOP_TEST_KILLS", ROUNDS);
    println!("ORLOP_TEST_SEED={seed}");
    in_node(wish, |node| {
        let before = settled(node)?;
        let mut dice = Dice(seed);
        for round in 0..rounds {
            // A pod's life takes about ten: pinning, creating, starting, executing, deleting.
            let nth = dice.roll(10);
            runtime_round(node, handler, nth, round)
                .with_context(|| format!("round {round} of seed {seed}: process {nth} of the runtime"))?;
        }
        node.assert_no_leaks(&before)
    });
}

fn runtime_round(shared: &Node, handler: &str, nth: u64, round: u32) -> Result<()> {
    let crictl = shared.crictl()?;
    let mut command = std::process::Command::new("bash");
    command.args(["-c", ASSASSIN, "assassin", handler, &nth.to_string()]);
    let mut assassin = shared.spawn(run::piped(&mut command))?;
    let pod = PodSpec::new(&format!("r{round}"));
    // As many lives as it takes: not every process of the runtime lives long enough to be seen.
    let mut lives = 0;
    let outcome = loop {
        let outcome = life(shared, handler, &pod);
        lives += 1;
        if outcome.is_err() {
            // The caller may hear of a death before the killer has ended.
            wait_until("the assassin", PATIENCE, || Ok(assassin.try_wait()?.is_some()))
                .with_context(|| format!("nothing was killed, but: {outcome:?}"))?;
        }
        if assassin.try_wait()?.is_some() {
            break outcome;
        }
        ensure!(lives < 10, "{lives} lives went by, and nothing could be killed");
    };
    let told = run::finish("the assassin", assassin, PATIENCE)?;
    println!(
        "round {round}: {}{}",
        told.text(),
        if outcome.is_ok() {
            ", and nobody minded"
        } else {
            ""
        }
    );
    let what = || format!("{} ({outcome:?})", told.text());
    // A failed call leaves something that can be removed, whatever it was.
    for old in crictl.ok(&["pods", "-q"])?.lines() {
        wait_until("the pod to go", PATIENCE, || {
            Ok(crictl.run(&["rmp", "-f", old])?.code == 0)
        })
        .with_context(what)?;
    }
    life(shared, handler, &pod).with_context(|| format!("the same pod once more, after {}", what()))
}

fn life(node: &Node, handler: &str, pod: &PodSpec) -> Result<()> {
    let crictl = node.crictl()?;
    let flags: &[&str] = if handler.is_empty() {
        &[]
    } else {
        &["--runtime", handler]
    };
    let sandbox = crictl.try_run_pod(pod, flags)?.ok()?.text().to_owned();
    let id = crictl.create(&sandbox, pod, &ContainerSpec::sh("main", "sleep 1000"))?;
    crictl.ok(&["start", &id])?;
    ensure!(crictl.ok(&["exec", "-s", &id, "echo", "here"])? == "here");
    crictl.ok(&["exec", &id, "true"])?;
    crictl.ok(&["stop", "--timeout", "0", &id])?;
    crictl.ok(&["rm", &id])?;
    crictl.remove_pod(&sandbox)
}
