//! The steps of everything that changes the store, by name, so that a test can be killed at each of them.
//!
//! Each function that writes calls [`Steps::reach`] between any two of its effects. In a running daemon this does
//! nothing. The kill test enumerates [`Step::ALL`], lets a process die at each one, opens the store again and looks
//! what is left; a new step that isn't in `ALL` doesn't compile, and one that no test reaches fails the test.

use std::fmt;
use std::sync::Arc;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A point between two effects on the disk.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Step { $($(#[$doc])* $name,)* }

        #[cfg(test)]
        impl Step {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

steps! {
    /// A blob's bytes are in `ingest/`, maybe not yet on the disk.
    BlobWritten,
    /// They are on the disk.
    BlobSynced,
    /// The blob has its name.
    BlobRenamed,
    /// A layer's temporary directory is made.
    LayerCreated,
    /// The layer is unpacked into it.
    LayerUnpacked,
    /// The directories that it has no entries for are listed.
    LayerListed,
    /// Its marker is written.
    LayerMarked,
    /// All of it is on the disk.
    LayerSynced,
    /// The layer has its name.
    LayerRenamed,
    /// All parts of a pull have their names, and the directories that hold the names are on the disk.
    PartsSynced,
    /// An image record is in a temporary file, on the disk.
    RecordWritten,
    /// It has its name.
    RecordRenamed,
    /// A tag's new image has it; the old image still has it too.
    TagAdded,
    /// Blobs that aren't wanted after unpacking are being removed.
    BlobDiscarded,
    /// An image record is gone.
    RecordRemoved,
    /// An unreferenced layer is in the trash.
    LayerTrashed,
    /// An unreferenced blob is in the trash.
    BlobTrashed,
    /// A snapshot is made under a temporary name.
    SnapshotCreated,
    /// It has its name.
    SnapshotRenamed,
    /// A snapshot is in the trash.
    SnapshotTrashed,
    /// A damaged layer has been exchanged for a repaired one and has a temporary name.
    LayerExchanged,
}

/// What is told about each step.
#[derive(Clone, Default)]
pub(crate) struct Steps(Option<Arc<dyn Fn(Step) + Send + Sync>>);

impl Steps {
    /// Tells `hook` about each step.
    #[cfg(test)]
    pub(crate) fn hooked(hook: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Says that a step is reached.
    pub(crate) fn reach(&self, step: Step) {
        if let Some(hook) = &self.0 {
            hook(step);
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}
