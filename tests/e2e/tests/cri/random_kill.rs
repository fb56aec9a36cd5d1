//! SIGKILL to the daemon, a shim or a container at random moments, while pods come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests_harness::{Node, PodSpec};

use crate::bed::{in_node, settled, sleeper};

const ROUNDS: u32 = 15;

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
    let seed = std::env::var("ORLOP_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_251);
    println!("ORLOP_TEST_SEED={seed}");
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let mut dice = Dice(seed);
        for round in 0..ROUNDS {
            one_round(node, &mut dice, round).with_context(|| format!("round {round} of seed {seed}"))?;
        }
        node.crictl()?.ok(&["rmp", "-fa"])?;
        node.assert_no_leaks(&before)
    });
}

fn one_round(node: &mut Node, dice: &mut Dice, round: u32) -> Result<()> {
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
        killed?;
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
