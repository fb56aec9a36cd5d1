//! Staying small over weeks: what a burst of pods took is given back once it is over.
//!
//! The allocator keeps what was freed, in as many heaps as threads met in it, and each page of the program that ran once
//! stays mapped. So threads share a few heaps, and some time after pods changed both are given back.

use std::sync::OnceLock;

use oci_runtime_sys::footprint::{ProgramText, limit_arenas, trim_heap};

/// As many threads as allocate much at once.
const ARENAS: i32 = 2;

/// What of this program's memory is its file's, looked up before anything else was mapped from files.
static TEXT: OnceLock<ProgramText> = OnceLock::new();

/// To be called at the start of the program, before there are threads.
pub fn begin() {
    limit_arenas(ARENAS);
    // Without it the kubelet is larger, and works.
    TEXT.get_or_init(|| ProgramText::find().unwrap_or_default());
}

/// Gives back what isn't used now. Blocking, a millisecond or so.
pub(crate) fn give_back() {
    trim_heap();
    if let Some(text) = TEXT.get() {
        text.release();
    }
}
