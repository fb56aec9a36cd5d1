//! What a cgroup's processes use, in plain numbers: nanoseconds, bytes and counts.

/// One reading of a cgroup. What the host's controllers don't tell is 0 or `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time of everything that ever ran in the cgroup.
    pub cpu_usage_nanos: u64,
    /// The rest of what is known about the CPU.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Block I/O, one entry per device, sorted by device.
    pub io: Vec<IoStats>,
    /// Huge pages, one entry per page size.
    pub hugetlb: Vec<HugetlbStats>,
    /// Pressure stall information, on v2 only.
    pub psi: Option<Psi>,
}

/// CPU time split up, and the throttling by a quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// Time in user mode.
    pub user_nanos: u64,
    /// Time in the kernel.
    pub system_nanos: u64,
    /// Enforcement periods that passed while something was runnable.
    pub periods: u64,
    /// How many of them ended with the quota used up.
    pub throttled_periods: u64,
    /// How long tasks were held back in total.
    pub throttled_nanos: u64,
}

/// Memory, in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Everything charged, page cache included.
    pub usage: u64,
    /// Usage without the inactive file cache: what can't be reclaimed without pain.
    pub working_set: u64,
    /// Anonymous memory, transparent huge pages included.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// File pages mapped by processes.
    pub mapped_file: u64,
    /// Memory of the kernel on behalf of the cgroup.
    pub kernel: u64,
    /// What is left below the limit; `None` without a limit.
    pub available: Option<u64>,
    /// The limit; `None` when unlimited.
    pub limit: Option<u64>,
    /// The highest usage seen.
    pub max_usage: u64,
    /// How often the limit was hit (a count).
    pub failures: u64,
    /// Page faults (a count).
    pub page_faults: u64,
    /// Page faults that waited for a disk (a count).
    pub major_page_faults: u64,
    /// Swap in use; `None` where swap is not accounted.
    pub swap_usage: Option<u64>,
    /// Swap allowed beside the memory limit; `None` when unlimited or not accounted.
    pub swap_limit: Option<u64>,
    /// Processes that the OOM killer ended here (a count).
    pub oom_kills: u64,
}

/// Tasks (threads), as the pids controller counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Tasks alive.
    pub current: u64,
    /// The limit; `None` when unlimited.
    pub limit: Option<u64>,
}

/// Block I/O on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoStats {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// The size as the kernel writes it in file names, e.g. `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub usage: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Pressure stall information of the three resources.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// CPU.
    pub cpu: Pressure,
    /// Memory.
    pub memory: Pressure,
    /// I/O.
    pub io: Pressure,
}

/// Pressure on one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// Total time in microseconds.
    pub total_micros: u64,
}
