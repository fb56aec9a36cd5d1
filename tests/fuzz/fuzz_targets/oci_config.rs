//! `config.json` and process descriptions: read or refused, and what was read is one again when it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_runtime_container::{parse_process, parse_spec};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = parse_spec(bytes) {
        let written = serde_json::to_vec(&spec.value).expect("a configuration can be written");
        let again = parse_spec(&written).expect("our own configuration is one");
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    }
    if let Ok(process) = parse_process(bytes) {
        let written = serde_json::to_vec(&process.value).expect("a process can be written");
        parse_process(&written).expect("our own process is one");
    }
});
