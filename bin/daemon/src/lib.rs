//! What every daemon's main shares: configuration files, logging, signals, exit codes.
//!
//! A main is a page: parse the command line, [`config::load`] the file with its drop-ins, [`logging::init`], build the
//! component, run it beside [`signals::Signals`], drain with a deadline, and turn what went wrong into an exit code
//! with [`exit::report`]. Libraries never use this crate; they take a typed configuration and a future that
//! resolves when it is time to stop.

pub mod config;
pub mod exit;
pub mod logging;
pub mod signals;
pub mod supervisor;
