//! Staying small over weeks.
//!
//! The allocator keeps what was freed, in as many heaps as threads met in it; and each page of the program that ran
//! once stays mapped, with those around it. Both count as the daemon's memory, on a node where memory is the users'.
//! So threads share a few heaps, and some time after calls were served both are given back: freed memory for good, the
//! program's pages until they are needed again, which takes no disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use oci_runtime_sys::footprint::{ProgramText, limit_arenas, trim_heap};

use crate::node::Node;

/// How often memory is given back at most.
const PERIOD: Duration = Duration::from_secs(20);
/// As many threads as allocate much at once: two workers on a small machine.
const ARENAS: i32 = 2;

/// What of this program's memory is its file's, looked up before anything else was mapped from files.
static TEXT: OnceLock<ProgramText> = OnceLock::new();

/// To be called at the start of the program, before there are threads.
pub fn begin() {
    limit_arenas(ARENAS);
    // Without it the daemon is larger, and works.
    TEXT.get_or_init(|| ProgramText::find().unwrap_or_default());
}

/// Gives memory back from time to time, while calls are served.
pub(crate) async fn give_back(node: Arc<Node>) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(PERIOD).await;
        let calls = node.calls.load(Ordering::Relaxed);
        if calls == seen {
            continue;
        }
        seen = calls;
        // It can't panic; and if it did, the next try would be made.
        let _ = tokio::task::spawn_blocking(|| {
            trim_heap();
            if let Some(text) = TEXT.get() {
                text.release();
            }
        })
        .await;
    }
}
