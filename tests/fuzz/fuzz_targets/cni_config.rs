//! Network configurations: conflists and single plugins.
#![no_main]

use cni_types::NetworkList;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = NetworkList::parse_list(text);
    let _ = NetworkList::parse_single(text);
});
