//! Two hundred pods come and go.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests_harness::{Node, PodSpec};

use crate::bed::{in_node, settled, sleeper};

const PODS: usize = 200;
const AT_ONCE: usize = 8;

#[test]
fn two_hundred_pods_leave_nothing() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let pid = node.daemon()?.pid();
        let (memory_before, files_before) = (memory(pid)?, open_files(pid)?);
        let begun = Instant::now();
        let node = &*node;
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|worker| {
                    scope.spawn(move || -> Result<()> {
                        let crictl = node.crictl()?;
                        for n in (worker..PODS).step_by(AT_ONCE) {
                            let pod = PodSpec::new(&format!("pod{n}"));
                            let (sandbox, _) = crictl
                                .start_pod(&pod, &sleeper("main"))
                                .with_context(|| format!("pod{n}"))?;
                            crictl.remove_pod(&sandbox).with_context(|| format!("pod{n}"))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("the worker doesn't panic"))
        })?;
        println!("{PODS} pods, {AT_ONCE} at a time: {:?}", begun.elapsed());
        let (memory_after, files_after) = (memory(pid)?, open_files(pid)?);
        println!(
            "orlop-cri: {memory_before} -> {memory_after} KiB, {files_before} -> {files_after} open files"
        );
        ensure!(
            files_after <= files_before + 8,
            "open files grew from {files_before} to {files_after}"
        );
        node.assert_no_leaks(&before)
    });
}

fn memory(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
