//! A reference is parsed or refused, and its canonical name parses to itself.
#![no_main]

use cri_images::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let name = reference.name();
        let again: Reference = name.parse().expect("a canonical name is a reference");
        assert_eq!(again.name(), name);
    }
});
