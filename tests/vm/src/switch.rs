//! The network between nodes: datagrams over Unix sockets, each node's frames handed to all others.
//!
//! Node i's QEMU binds `n<i>` in its own folder and sends to `s<i>`, which this process reads. A node that
//! is cut off ([`Switch::cut`]) neither hears nor is heard.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};

/// The longest frame: QEMU's own limit for a datagram is about 68 KiB.
const MOST: usize = 128 * 1024;

/// The switch of a group of nodes; it forwards as long as the process lives.
#[derive(Debug, Clone)]
pub struct Switch {
    cut: Arc<Vec<AtomicBool>>,
}

impl Switch {
    /// Forwards between that many nodes in a folder.
    pub(crate) fn start(nodes: u32, folder: &Path) -> Result<Self> {
        let cut: Arc<Vec<AtomicBool>> = Arc::new((0..nodes).map(|_| AtomicBool::new(false)).collect());
        // A socket's path has at most 107 bytes; by a descriptor, any folder's is short.
        let handle = std::fs::File::open(folder)?;
        let short = PathBuf::from(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&handle)
        ));
        let handle = Arc::new(handle);
        for node in 0..nodes {
            let socket = UnixDatagram::bind(short.join(format!("s{node}")))
                .with_context(|| format!("failed to bind a socket in `{}`", folder.display()))?;
            let others: Vec<(usize, PathBuf)> = (0..nodes)
                .filter(|other| *other != node)
                .map(|other| (other as usize, short.join(format!("node{other}/n{other}"))))
                .collect();
            let (cut, handle) = (Arc::clone(&cut), Arc::clone(&handle));
            thread::spawn(move || {
                let _folder = handle;
                let mut frame = vec![0; MOST];
                while let Ok(length) = socket.recv(&mut frame) {
                    if cut[node as usize].load(Ordering::Relaxed) {
                        continue;
                    }
                    for (other, path) in &others {
                        if !cut[*other].load(Ordering::Relaxed) {
                            // A network loses frames, most of all to nodes that aren't up.
                            let _ = socket.send_to(&frame[..length], path);
                        }
                    }
                }
            });
        }
        Ok(Self { cut })
    }

    /// Cuts a node off, or joins it again.
    pub fn cut(&self, node: usize, off: bool) {
        if let Some(flag) = self.cut.get(node) {
            flag.store(off, Ordering::Relaxed);
        }
    }
}
