//! How much a volume holds.

/// What a volume holds, and what its file system has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes that its files take on the disk.
    pub used_bytes: u64,
    /// Files and directories, the root included.
    pub used_inodes: u64,
    /// Bytes that its file system has.
    pub capacity_bytes: u64,
    /// Bytes that are free there.
    pub available_bytes: u64,
    /// Inodes that its file system has.
    pub inodes: u64,
    /// Inodes that are free there.
    pub free_inodes: u64,
    /// Whether it holds more than was counted: the walk through it is bounded.
    pub partial: bool,
}
