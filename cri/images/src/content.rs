//! Blobs: content by digest, as registries send it.
//!
//! A blob is written to `ingest/`, hashed on the way, synced, compared with its digest and size, and only then renamed
//! to its name. So a file under `blobs/sha256/` is whole. The directory itself is synced once per pull, before the
//! record that refers to its blobs is written: a name that a power cut takes is pulled again, as nothing refers to it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::FileError;
use crate::digest::{Digest, Hasher};
use crate::disk::Disk;
use crate::step::Step;

/// How many chunks may wait for the disk: with the network's usual chunks, below a megabyte.
const QUEUE: usize = 16;

/// A blob that can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The bytes are others than those asked for.
    #[error("the content has the digest {got} instead of {wanted}")]
    Digest {
        /// Asked for.
        wanted: Digest,
        /// Computed.
        got: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("the content has {got} bytes instead of {wanted}")]
    Size {
        /// Announced.
        wanted: u64,
        /// Counted.
        got: u64,
    },
    /// The disk.
    #[error("failed to store the content")]
    File(#[from] FileError),
    /// The writer is gone: the process is ending.
    #[error("the task that stores the content was lost")]
    Lost,
}

/// A temporary file that is removed when it isn't wanted in the end.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Stores bytes that are in memory and known to have this digest.
pub(crate) fn put(disk: &Disk, digest: &Digest, bytes: &[u8]) -> Result<(), FileError> {
    let path = disk.blob(digest);
    if path.exists() {
        return Ok(());
    }
    let temporary = Temporary(disk.ingest().join(disk.unique()));
    crate::disk::write_synced(&temporary.0, bytes)?;
    disk.steps.reach(Step::BlobSynced);
    fs::rename(&temporary.0, &path).map_err(FileError::of("rename", &path))?;
    disk.steps.reach(Step::BlobRenamed);
    Ok(())
}

enum Message {
    Data(Bytes),
    Restart(oneshot::Sender<()>),
    Finish(oneshot::Sender<Result<(), IngestError>>),
}

/// A blob on its way in. Hashing and writing are done by a blocking thread; when this is dropped early, nothing stays.
pub(crate) struct Ingest {
    messages: mpsc::Sender<Message>,
    received: u64,
    size: u64,
}

impl Ingest {
    /// Begins to take in a blob.
    pub(crate) fn begin(disk: Arc<Disk>, digest: Digest, size: u64) -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || write(&disk, &digest, size, queue));
        Self {
            messages,
            received: 0,
            size,
        }
    }

    /// How many bytes came in.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes there will be.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether all came in.
    pub(crate) fn is_complete(&self) -> bool {
        self.received == self.size
    }

    /// Takes in more bytes.
    pub(crate) async fn push(&mut self, bytes: Bytes) -> Result<(), IngestError> {
        self.received += bytes.len() as u64;
        if self.received > self.size {
            return Err(IngestError::Size {
                wanted: self.size,
                got: self.received,
            });
        }
        match self.messages.send(Message::Data(bytes)).await {
            Ok(()) => Ok(()),
            // The writer stopped because of an error, which it tells at the end.
            Err(_) => Err(self.finish().await.err().unwrap_or(IngestError::Lost)),
        }
    }

    /// Begins again with no bytes: the server can't go on where it stopped.
    pub(crate) async fn restart(&mut self) -> Result<(), IngestError> {
        self.received = 0;
        let (done, wait) = oneshot::channel();
        self.messages
            .send(Message::Restart(done))
            .await
            .map_err(|_| IngestError::Lost)?;
        wait.await.map_err(|_| IngestError::Lost)
    }

    /// Verifies, syncs and renames.
    pub(crate) async fn finish(&mut self) -> Result<(), IngestError> {
        let (done, wait) = oneshot::channel();
        self.messages
            .send(Message::Finish(done))
            .await
            .map_err(|_| IngestError::Lost)?;
        wait.await.map_err(|_| IngestError::Lost)?
    }
}

/// The writer's thread: after an error it goes on taking messages, to tell the error when asked for the end.
fn write(disk: &Disk, digest: &Digest, size: u64, mut queue: mpsc::Receiver<Message>) {
    let temporary = Temporary(disk.ingest().join(disk.unique()));
    let mut file = File::create_new(&temporary.0).map_err(FileError::of("create", &temporary.0));
    let mut hasher = Hasher::default();
    let mut written = 0;
    while let Some(message) = queue.blocking_recv() {
        match message {
            Message::Data(bytes) => {
                if let Ok(open) = &mut file {
                    hasher.update(&bytes);
                    written += bytes.len() as u64;
                    if let Err(error) = open.write_all(&bytes) {
                        file = Err(FileError::of("write", &temporary.0)(error));
                    }
                }
            }
            Message::Restart(done) => {
                file = File::create(&temporary.0).map_err(FileError::of("create", &temporary.0));
                hasher = Hasher::default();
                written = 0;
                // Nobody waits any more when the pull was cancelled; then the queue ends, too.
                let _ = done.send(());
            }
            Message::Finish(done) => {
                let finish = || -> Result<(), IngestError> {
                    let file = file?;
                    disk.steps.reach(Step::BlobWritten);
                    verify(digest, size, hasher.finish(), written)?;
                    commit(disk, digest, &file, &temporary.0)?;
                    Ok(())
                };
                let outcome = finish();
                // Whoever hears of a failure finds nothing left of it.
                drop(temporary);
                let _ = done.send(outcome);
                return;
            }
        }
    }
}

fn verify(wanted: &Digest, size: u64, got: Digest, written: u64) -> Result<(), IngestError> {
    if written != size {
        return Err(IngestError::Size {
            wanted: size,
            got: written,
        });
    }
    if got != *wanted {
        return Err(IngestError::Digest { wanted: *wanted, got });
    }
    Ok(())
}

fn commit(disk: &Disk, digest: &Digest, file: &File, temporary: &Path) -> Result<(), FileError> {
    file.sync_all().map_err(FileError::of("sync", temporary))?;
    disk.steps.reach(Step::BlobSynced);
    let path = disk.blob(digest);
    fs::rename(temporary, &path).map_err(FileError::of("rename", &path))?;
    disk.steps.reach(Step::BlobRenamed);
    Ok(())
}

/// Whether the blob on the disk still has its digest.
pub(crate) fn is_sound(disk: &Disk, digest: &Digest) -> bool {
    let hash = || -> io::Result<Digest> {
        let mut reader = crate::digest::HashingReader::new(File::open(disk.blob(digest))?);
        io::copy(&mut reader, &mut io::sink())?;
        Ok(reader.finish().0)
    };
    hash().is_ok_and(|got| got == *digest)
}
