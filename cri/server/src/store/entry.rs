//! One record in memory and on disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use super::record::{self, RecordError};
use super::sync::Syncer;
use crate::lifecycle::{Operation, Step};

/// A record with its folder. Readers get a snapshot; a change is on disk before it is seen.
#[derive(Debug)]
pub struct Entry<R> {
    folder: PathBuf,
    record: Mutex<Arc<R>>,
    step: Mutex<Option<Step>>,
    writing: Mutex<()>,
    changes: watch::Sender<u64>,
    sync: Syncer,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Clone + Serialize> Entry<R> {
    /// An entry over what is on disk already.
    pub(crate) fn new(folder: PathBuf, record: R, step: Option<Step>, sync: Syncer) -> Self {
        Self {
            folder,
            record: Mutex::new(Arc::new(record)),
            step: Mutex::new(step),
            writing: Mutex::new(()),
            changes: watch::Sender::new(0),
            sync,
        }
    }

    /// Makes folder, step and record on disk. Blocks.
    pub(crate) fn make(&self) -> Result<(), RecordError> {
        record::make_folder(&self.folder)?;
        record::write_step(&self.folder, self.step())?;
        record::write(&self.folder, &*self.record()).map(drop)
    }

    /// Where it is on disk.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The record as it is now.
    pub fn record(&self) -> Arc<R> {
        lock(&self.record).clone()
    }

    /// The step under way.
    pub fn step(&self) -> Option<Step> {
        *lock(&self.step)
    }

    /// Says which step comes next, on disk first. Takes microseconds, so it may be called from async code.
    ///
    /// Signals may be sent while something else is under way; they don't hide it.
    ///
    /// # Errors
    /// When the disk is full or fails: the step must not be taken then.
    pub fn begin(&self, step: Step) -> Result<(), RecordError> {
        let mut current = lock(&self.step);
        let other = current.is_some_and(|now| now.operation() != Operation::Signal);
        if step.operation() == Operation::Signal && other {
            return Ok(());
        }
        record::write_step(&self.folder, Some(step))?;
        *current = Some(step);
        Ok(())
    }

    /// Says that the operation is over. Another one that began meanwhile stays.
    ///
    /// # Errors
    /// When the disk fails: a restart would take it as still under way.
    pub fn settle(&self, operation: Operation) -> Result<(), RecordError> {
        let mut current = lock(&self.step);
        if current.is_some_and(|now| now.operation() == operation) {
            record::write_step(&self.folder, None)?;
            *current = None;
        }
        Ok(())
    }

    /// Changes the record, on disk first.
    ///
    /// # Errors
    /// When the disk is full or fails; nothing is changed then.
    pub fn update(&self, change: impl FnOnce(&mut R)) -> Result<(), RecordError> {
        let _alone = lock(&self.writing);
        let mut record = (*self.record()).clone();
        change(&mut record);
        let path = record::write(&self.folder, &record)?;
        self.publish(record);
        self.sync.flush_soon(path);
        Ok(())
    }

    /// Changes the record after a fact: in memory even when the disk refuses, which is logged. Returns whether it is
    /// on disk too.
    pub fn note(&self, change: impl FnOnce(&mut R)) -> bool {
        let _alone = lock(&self.writing);
        let mut record = (*self.record()).clone();
        change(&mut record);
        let written = match record::write(&self.folder, &record) {
            Ok(path) => {
                self.sync.flush_soon(path);
                true
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "a change is kept in memory only");
                false
            }
        };
        self.publish(record);
        written
    }

    fn publish(&self, record: R) {
        *lock(&self.record) = Arc::new(record);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Hears of every later change of the record.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
