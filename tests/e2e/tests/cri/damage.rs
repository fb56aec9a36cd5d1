//! Files of the daemon's state that a power cut or a full disk has cut short: the daemon starts, other pods go on, and
//! what belongs to the damaged file can be removed and made again.

use anyhow::{Context, Result, ensure};
use tests_harness::{Node, PodSpec, Snapshot};

use crate::bed::{in_node, settled, sleeper};

/// How a file is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Empty,
    Half,
    Garbage,
}

#[test]
fn whatever_file_is_cut_short_the_rest_goes_on() {
    in_node(Node::builder(), |node| {
        settled(node)?;
        let crictl = node.crictl()?;
        let (bystander, id) = crictl.start_pod(&PodSpec::new("bystander"), &sleeper("main"))?;
        let pid = crictl.inspect(&id)?["info"]["pid"].clone();
        let before = node.snapshot()?;
        let files = files_of_a_pod(node)?;
        for expected in ["record.json", "step", "config.json"] {
            ensure!(
                files.iter().any(|f| f.ends_with(expected)),
                "no {expected} is among {files:?}"
            );
        }
        println!("{} files: {}", files.len(), files.join(" "));
        for file in &files {
            for damage in [Damage::Empty, Damage::Half, Damage::Garbage] {
                damaged(node, file, damage, &before).with_context(|| format!("{file}: {damage:?}"))?;
                let status = node.crictl()?.inspect(&id)?;
                ensure!(
                    status["status"]["state"] == "CONTAINER_RUNNING" && status["info"]["pid"] == pid,
                    "{file}: {damage:?} hit the bystander: {status}"
                );
            }
        }
        node.crictl()?.remove_pod(&bystander)
    });
}

const SANDBOX: &str = "SANDBOX";
const CONTAINER: &str = "CONTAINER";

/// Every file that belongs to one pod, with names in the place of its IDs.
fn files_of_a_pod(node: &Node) -> Result<Vec<String>> {
    let crictl = node.crictl()?;
    let (sandbox, container) = crictl.start_pod(&PodSpec::new("model"), &sleeper("main"))?;
    let find = format!(
        "find /var/lib/orlop/cri /run/orlop -xdev \\( -path '*{sandbox}*' -o -path '*{container}*' \\) -type f \
         -not -path '*/images/*' -not -path '*/rootfs/*' -not -path '*/shm/*' -not -path '*/ns/*'"
    );
    let found = node.run("sh", &["-c", &find])?.ok()?;
    crictl.remove_pod(&sandbox)?;
    let name = |line: &str| line.replace(&sandbox, SANDBOX).replace(&container, CONTAINER);
    let mut files: Vec<String> = found.text().lines().map(name).collect();
    files.sort();
    Ok(files)
}

fn damaged(node: &mut Node, file: &str, damage: Damage, before: &Snapshot) -> Result<()> {
    let crictl = node.crictl()?;
    let pod = PodSpec::new("damaged");
    let (sandbox, container) = crictl.start_pod(&pod, &sleeper("main"))?;
    drop(crictl);
    node.kill_daemon()?;
    let path = file.replace(SANDBOX, &sandbox).replace(CONTAINER, &container);
    node.inside(|| {
        let bytes = std::fs::read(&path).with_context(|| format!("failed to read `{path}`"))?;
        let new = match damage {
            Damage::Empty => Vec::new(),
            Damage::Half => bytes[..bytes.len() / 2].to_vec(),
            Damage::Garbage => vec![0xf5; bytes.len()],
        };
        std::fs::write(&path, new).with_context(|| format!("failed to write `{path}`"))
    })?;
    node.start_daemon().context("the daemon doesn't start")?;
    let crictl = node.crictl()?;
    crictl.ok(&["ps", "-a"])?;
    for old in crictl.ok(&["pods", "--name", "^damaged$", "-q"])?.lines() {
        crictl.ok(&["inspectp", old])?;
        crictl
            .remove_pod(old)
            .context("what is left of the pod can't be removed")?;
    }
    node.assert_no_leaks(before)?;
    let (again, _) = crictl
        .start_pod(&pod, &sleeper("main"))
        .context("the same pod can't be made again")?;
    crictl.remove_pod(&again)?;
    node.assert_no_leaks(before)
}
