//! Containers by the OCI runtime specification: create, start, exec, kill, delete, update, and their state on disk.
//!
//! The story of a container: [`Runtime::create`] reads `config.json` and works out a plan (`plan`, pure), writes its
//! intent to disk (`store`), makes the cgroup, opens what init needs from the host (`prepare`) and forks init right
//! into its namespaces. Init builds its root file system (`init`), tells the runtime that it is ready (`handshake`)
//! and waits for a connection. [`Runtime::start`] connects; init gives up its rights and executes the command. What a
//! container is doing is never written down: it is read from the kernel each time (`Runtime::status_of`).
//!
//! Everything here blocks and is for single-threaded processes: the command line, and the shim's stage children.

mod cgroup;
mod config;
mod context;
mod create;
mod delete;
mod error;
mod exec;
mod handshake;
mod hooks;
mod init;
mod inside;
mod keeper;
mod options;
mod plan;
mod prepare;
mod process_table;
mod runtime;
pub mod seccomp;
mod start;
mod state;
mod store;

pub use config::{Parsed, load_process, load_spec, parse_process, parse_spec};
pub use error::{
    ConfigError, ControlError, CreateError, DeleteError, ErrorKind, ExecError, KillError, StartError,
    StepError, StoreError,
};
pub use options::{CreateOptions, Created, ExecOptions, Execed, Stdio};
pub use plan::{capability_names_known as capability_names, capability_number};
pub use runtime::Runtime;
pub use state::{OCI_VERSION, State, Status, now as rfc3339_now};
