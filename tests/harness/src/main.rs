//! `test-node`: a throw-away node with a registry and orlop-cri, for commands instead of tests.
//!
//! `test-node run [--bare] [--config TOML] [--log FILE] -- COMMAND...` runs a command in a node and ends with its
//! status; a bare node has a registry only.
//! `test-node hold [--config TOML] [--log FILE] FILE` writes the node's facts to FILE, as shell variables, and keeps
//! the node until SIGTERM or SIGINT. Either way it fails if the node left something behind; `--log` keeps the daemon's.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use tests_harness::Node;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("test-node: {e:#}");
            ExitCode::from(70)
        }
    }
}

struct Wish {
    bare: bool,
    config: String,
    log: Option<PathBuf>,
    rest: Vec<String>,
}

fn run(args: Vec<String>) -> Result<u8> {
    let mut args = args.into_iter();
    let mode = args.next().unwrap_or_default();
    let mut wish = Wish {
        bare: false,
        config: String::new(),
        log: None,
        rest: Vec::new(),
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--config" => wish.config += &format!("{}\n", args.next().context("--config needs TOML")?),
            "--log" => wish.log = Some(args.next().context("--log needs a file")?.into()),
            "--bare" => wish.bare = true,
            "--" => break,
            _ => {
                wish.rest.push(arg);
                break;
            }
        }
    }
    wish.rest.extend(args);
    match (mode.as_str(), wish.rest.is_empty()) {
        ("run", false) => in_node(&wish),
        ("hold", false) => hold(&wish),
        _ => bail!(
            "usage: test-node run [--bare] [--config TOML] [--log FILE] -- COMMAND... | test-node hold [...] FILE"
        ),
    }
}

fn in_node(wish: &Wish) -> Result<u8> {
    let mut node = if wish.bare {
        Node::builder().bare()
    } else {
        Node::builder().config(&wish.config)
    }
    .start()?;
    if wish.bare {
        node.start_registry()?;
    }
    let mut command = Command::new(&wish.rest[0]);
    command
        .args(&wish.rest[1..])
        .env("ORLOP_NODE_CGROUP", node.cgroup_parent());
    let status = node.spawn(&mut command)?.wait()?;
    if !wish.bare {
        let left_running = node.crictl()?.run(&["rmp", "-fa"])?;
        keep_log(&node, wish)?;
        if left_running.code != 0 {
            eprintln!("test-node: failed to remove the pods that were left: {left_running}");
        }
    }
    node.finish()?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

fn hold(wish: &Wish) -> Result<u8> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    // Before there are threads, so that none of them is ended by the signal.
    ends.thread_block().context("failed to block signals")?;
    let node = Node::builder().config(&wish.config).start()?;
    let file = PathBuf::from(&wish.rest[0]);
    let facts = format!(
        "node_holder={}\nnode_keeper={}\nnode_name={}\nnode_log={}\n",
        std::process::id(),
        node.keeper(),
        node.name(),
        node.daemon_log().display()
    );
    let half = file.with_extension("half");
    fs::write(&half, facts).with_context(|| format!("failed to write `{}`", half.display()))?;
    fs::rename(&half, &file).with_context(|| format!("failed to write `{}`", file.display()))?;
    ends.wait().context("failed to wait for a signal")?;
    node.crictl()?.run(&["rmp", "-fa"])?.ok()?;
    keep_log(&node, wish)?;
    node.finish()?;
    Ok(0)
}

fn keep_log(node: &Node, wish: &Wish) -> Result<()> {
    if let Some(to) = &wish.log {
        fs::copy(node.daemon_log(), to).with_context(|| format!("failed to write `{}`", to.display()))?;
    }
    Ok(())
}
