//! `orlop-shim`: one per pod, started by `orlop-cri`. All of it is in [`cri_shim`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cri_shim::main()
}
