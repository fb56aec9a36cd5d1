//! The administrator's `hosts.toml`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = cri_images::hosts::parse(text, "registry.example", Path::new("/etc/hosts.d/registry.example"));
});
