//! The node's own figures from the kernel's text files. Pure: who calls reads the files.

use jiff::Timestamp;

use super::summary::{CpuStats, InterfaceStats, MemoryStats, NetworkStats, SwapStats};

/// What a tick of `/proc/stat` is, in nanoseconds: USER_HZ is 100 on every architecture that we run on.
const TICK_NANOS: u64 = 10_000_000;

/// CPU time from `/proc/stat`: all but idle and waiting for I/O.
pub fn cpu(proc_stat: &str, at: Timestamp) -> Option<CpuStats> {
    let line = proc_stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user's.
    let used: u64 = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(index, _)| !matches!(index, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum();
    (ticks.len() >= 4).then_some(CpuStats {
        time: Some(at),
        usage_nano_cores: None,
        usage_core_nano_seconds: Some(used.saturating_mul(TICK_NANOS)),
        psi: None,
    })
}

/// What was used between two measurements, in billionths of a CPU.
pub fn nano_cores(before: &CpuStats, now: &CpuStats) -> Option<u64> {
    let nanos = now.time?.as_nanosecond() - before.time?.as_nanosecond();
    let used = now
        .usage_core_nano_seconds?
        .checked_sub(before.usage_core_nano_seconds?)?;
    if nanos <= 0 {
        return None;
    }
    u64::try_from(i128::from(used) * 1_000_000_000 / nanos).ok()
}

/// Memory from `/proc/meminfo`: the working set is what isn't free, cached or reclaimable at once.
pub fn memory(meminfo: &str, at: Timestamp) -> Option<MemoryStats> {
    let total = field(meminfo, "MemTotal")?;
    let free = field(meminfo, "MemFree")?;
    let inactive_file = field(meminfo, "Inactive(file)").unwrap_or(0);
    let usage = total.saturating_sub(free);
    let working_set = usage.saturating_sub(inactive_file);
    Some(MemoryStats {
        time: Some(at),
        available_bytes: Some(total.saturating_sub(working_set)),
        usage_bytes: Some(usage),
        working_set_bytes: Some(working_set),
        rss_bytes: field(meminfo, "AnonPages"),
        page_faults: None,
        major_page_faults: None,
        psi: None,
    })
}

/// Swap from `/proc/meminfo`.
pub fn swap(meminfo: &str, at: Timestamp) -> Option<SwapStats> {
    let total = field(meminfo, "SwapTotal")?;
    let free = field(meminfo, "SwapFree")?;
    Some(SwapStats {
        time: Some(at),
        swap_available_bytes: Some(free),
        swap_usage_bytes: Some(total.saturating_sub(free)),
    })
}

/// The machine's memory from `/proc/meminfo`, in bytes.
pub fn total_memory(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemTotal")
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Traffic from `/proc/net/dev`; the default interface is the one of `/proc/net/route`'s default route.
pub fn network(net_dev: &str, net_route: &str, at: Timestamp) -> NetworkStats {
    let default = net_route.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    });
    let interfaces: Vec<InterfaceStats> = net_dev.lines().skip(2).filter_map(interface).collect();
    let own = interfaces
        .iter()
        .find(|interface| Some(&interface.name) == default.as_ref());
    NetworkStats {
        time: Some(at),
        default: own.cloned().unwrap_or_default(),
        interfaces: interfaces
            .into_iter()
            .filter(|interface| interface.name != "lo")
            .collect(),
    }
}

fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counts) = line.split_once(':')?;
    let counts: Vec<u64> = counts
        .split_ascii_whitespace()
        .map_while(|count| count.parse().ok())
        .collect();
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes: Some(*counts.first()?),
        rx_errors: Some(*counts.get(2)?),
        tx_bytes: Some(*counts.get(8)?),
        tx_errors: Some(*counts.get(10)?),
    })
}
