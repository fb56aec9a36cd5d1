//! Tells of processes that the kernel ended because the machine's memory was full: events of the node.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use crate::events::{EventType, Regarding};
use crate::node::oom::{Victim, Watcher};
use crate::sync::Context;

/// How often the kernel's log is read.
const INTERVAL: Duration = Duration::from_secs(5);

/// Watches for ever, where the kernel's log can be read.
pub(super) async fn run(ctx: Arc<Context>) {
    let opened = Watcher::open(Path::new("/dev/kmsg"));
    let mut watcher = match opened {
        Ok(watcher) => watcher,
        Err(error) => {
            debug!(%error, "the kernel's log can't be read: nobody tells of its OOM killer");
            // A task that ends would end the kubelet.
            return std::future::pending().await;
        }
    };
    loop {
        tokio::time::sleep(INTERVAL).await;
        match watcher.poll() {
            Ok(victims) => tell(&ctx, &victims),
            Err(error) => warn!(%error, "failed to read the kernel's log"),
        }
    }
}

fn tell(ctx: &Context, victims: &[Victim]) {
    let node = ctx.facts().node_name.clone();
    let about = Regarding {
        uid: &node,
        namespace: "",
        name: &node,
        field: None,
    };
    for (reason, message) in victims.iter().filter_map(Victim::event) {
        ctx.events
            .record(&about, EventType::Warning, reason, message, ctx.now());
    }
}
