//! `hack/vm`: a guest for one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    tests_vm::cli::main()
}
