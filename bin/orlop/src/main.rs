//! `orlop`: looks at a node without an API server, through its kubelet.
//!
//! Every command asks the kubelet's own endpoints over HTTPS ([`client`]); how it is reached and who asks comes from
//! options, or from a file that the node leaves ([`access`]). What is printed is made by pure functions.

mod access;
mod args;
mod client;
mod describe;
mod exec;
mod failure;
mod logs;
mod pods;
mod select;
mod table;
mod terminal;
mod timeline;
mod trust;
mod yaml;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};
use client::Client;
use failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("failed to start: {error}")).report(),
    };
    let ended = runtime.block_on(run(arguments));
    // A read of the terminal may be under way, and has no end.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let access = access::find(&arguments.access)?;
    let client = Client::new(access)?;
    match arguments.command {
        Command::Pods(options) => pods::run(&client, &options).await?,
        Command::Logs(options) => logs::run(&client, &options).await?,
        Command::Describe(options) => describe::run(&client, &options).await?,
        Command::Timeline(options) => timeline::run(&client, &options).await?,
        Command::Exec(options) => return exec::run(&client, &options).await,
    }
    Ok(ExitCode::SUCCESS)
}
