//! The shim: one small single-threaded process per pod that holds its containers' stdio, logs and exit codes, so
//! that the daemon may die.
//!
//! A loop waits for whatever happens and deals with one event at a time, never blocking: a daemon's request
//! (`clients`, `requests`, `outcomes`), a container's output (`stdio`, `log`), an attached client (`attached`), the end
//! of a child (`reap`). Whatever is slow (creating, starting, entering a container, deleting it) is forked off as a
//! stage child (`stage`, `stages`) that reports back.
//!
//! What a shim leaves when it's killed: its containers run on, without anybody to read their output; the daemon
//! notices, and kills them through their cgroups. Exits that it had seen are in `exits/` of its folder.
//!
//! One program, three uses, told apart by the first argument:
//!
//! ```text
//!   orlop-shim --state-dir DIR --sandbox ID [--cgroup PATH]           the shim; standard input is its listening socket
//!   orlop-shim pod-init                                               the first process of a shared PID namespace
//!   orlop-shim destroy --root DIR --id ID [--runtime PATH] [--systemd-cgroup]
//!                                                                     deletes a container whose shim is dead
//! ```

mod arguments;
mod attached;
mod clients;
mod container;
mod diary;
mod log;
mod oom;
mod outcomes;
mod pod_init;
mod poll;
mod reap;
mod requests;
mod rest;
mod shim;
mod slab;
mod stage;
mod stages;
mod startup;
mod stdio;
mod wire;

use std::process::ExitCode;

use arguments::Mode;

/// The program.
pub fn main() -> ExitCode {
    let mode = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(mode) => mode,
        Err(error) => {
            eprintln!("orlop-shim: {error}");
            return ExitCode::from(64);
        }
    };
    match mode {
        Mode::PodInit => pod_init::run(),
        Mode::Shim(options) => match startup::run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Until standard error is gone, this reaches the daemon's log.
                eprintln!("orlop-shim: {error}");
                ExitCode::FAILURE
            }
        },
        Mode::Destroy(handle) => match stage::delete(&handle) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}
