//! Manifests, indexes and image configurations from a registry.
#![no_main]

use cri_images::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = manifest::parse(bytes, None);
    let _ = manifest::parse_config(bytes, 1);
});
