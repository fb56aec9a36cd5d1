//! A seccomp profile compiles to a program that the kernel's own limits accept, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::LinuxSeccomp;

fuzz_target!(|bytes: &[u8]| {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(bytes) else { return };
    if let Ok(filter) = oci_runtime_container::seccomp::compile(&profile) {
        assert!(filter.instructions() > 0 && filter.instructions() <= 4096);
    }
});
