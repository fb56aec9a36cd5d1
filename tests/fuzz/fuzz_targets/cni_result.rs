//! What a foreign plugin prints: a result in any version, and back.
#![no_main]

use cni_types::{AddResult, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    if let Ok(result) = AddResult::from_json(&value) {
        let json = result.to_json(Version::V1_1_0);
        AddResult::from_json(&json).expect("our own result is a result");
    }
});
