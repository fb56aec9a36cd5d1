//! Tar streams from a registry: every entry's data is read in small pieces.
#![no_main]

use cri_images::unpack::tar::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut archive = Archive::new(bytes);
    let mut piece = [0; 100];
    while let Ok(Some(_)) = archive.next_entry() {
        while archive.read_data(&mut piece).is_ok_and(|read| read > 0) {}
    }
});
