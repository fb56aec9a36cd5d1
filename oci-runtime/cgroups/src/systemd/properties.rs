//! Limits in systemd's words: a pure function.
//!
//! systemd writes a unit's limits again whenever it likes (after a daemon-reload, say), so it has to know those that it
//! has words for. The cgroup's files are written besides: they know more limits, and finer ones. Devices are left to
//! the filter that is ours, which systemd doesn't touch on a unit without device rules.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::message::{Property, Value};
use crate::limits::{cpu_weight, io_weight};

/// systemd's "no limit".
const INFINITY: u64 = u64::MAX;
/// The kernel's period where none is given, in microseconds.
const USUAL_PERIOD: u64 = 100_000;

/// The properties for the limits that systemd has words for.
pub(crate) fn properties(resources: &LinuxResources) -> Vec<Property> {
    let mut found = BTreeMap::new();
    if let Some(memory) = resources.memory() {
        found.extend(of_memory(memory));
    }
    if let Some(cpu) = resources.cpu() {
        found.extend(of_cpu(cpu));
    }
    if let Some(pids) = resources.pids() {
        let most = match pids.limit() {
            max if max > 0 => max.unsigned_abs(),
            _ => INFINITY,
        };
        found.insert("TasksMax", Value::U64(most));
    }
    let weight = resources.block_io().as_ref().and_then(|io| io.weight());
    if let Some(weight) = weight.filter(|&weight| weight != 0) {
        found.insert("IOWeight", Value::U64(io_weight(weight)));
    }
    // Last, as the files of the same names are written last.
    for (file, value) in resources.unified().iter().flatten().collect::<BTreeMap<_, _>>() {
        found.extend(of_file(file, value));
    }
    found.into_iter().collect()
}

/// Those of a scope: without a limit on processes it would get systemd's usual one, 15 % of what the machine can have.
pub(crate) fn of_scope(resources: &LinuxResources) -> Vec<Property> {
    let mut found = properties(resources);
    if !found.iter().any(|(name, _)| *name == "TasksMax") {
        found.push(("TasksMax", Value::U64(INFINITY)));
    }
    found
}

/// -1 lifts a limit, 0 is "not said".
fn bytes(value: Option<i64>) -> Option<Value> {
    match value? {
        0 => None,
        value => Some(Value::U64(u64::try_from(value).unwrap_or(INFINITY))),
    }
}

fn of_memory(memory: &LinuxMemory) -> Vec<Property> {
    let mut found = Vec::new();
    found.extend(bytes(memory.limit()).map(|value| ("MemoryMax", value)));
    found.extend(bytes(memory.reservation()).map(|value| ("MemoryLow", value)));
    let limit = memory.limit().unwrap_or(0);
    match memory.swap().unwrap_or(if limit == -1 { -1 } else { 0 }) {
        0 => {}
        // Together with memory in the specification, alone here.
        both if both > 0 && limit > 0 => {
            let alone = both.saturating_sub(limit).max(0).unsigned_abs();
            found.push(("MemorySwapMax", Value::U64(alone)));
        }
        -1 => found.push(("MemorySwapMax", Value::U64(INFINITY))),
        // Refused when the files are written.
        _ => {}
    }
    found
}

fn of_cpu(cpu: &LinuxCpu) -> Vec<Property> {
    let mut found = Vec::new();
    let set = |n: Option<u64>| n.filter(|&n| n != 0);
    found.extend(set(cpu.shares()).map(|shares| ("CPUWeight", Value::U64(cpu_weight(shares)))));
    let period = set(cpu.period());
    found.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::U64(period))));
    if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
        found.push(per_second(quota, period.unwrap_or(USUAL_PERIOD)));
    }
    let list = |list: &Option<String>| list.as_deref().and_then(bits).map(Value::Bytes);
    found.extend(list(cpu.cpus()).map(|cpus| ("AllowedCPUs", cpus)));
    found.extend(list(cpu.mems()).map(|mems| ("AllowedMemoryNodes", mems)));
    found
}

/// systemd keeps whole percents of a CPU, so what is in between is rounded up: the finer value is in the file.
fn per_second(quota: i64, period: u64) -> Property {
    const PERCENT: u64 = 10_000;
    let micros = match u64::try_from(quota) {
        Ok(quota) => quota
            .saturating_mul(1_000_000)
            .div_ceil(period)
            .div_ceil(PERCENT)
            .saturating_mul(PERCENT),
        Err(_) => INFINITY,
    };
    ("CPUQuotaPerSecUSec", Value::U64(micros))
}

/// A file of the cgroup; none for one that systemd has no word for, or a value that isn't what the file takes, which
/// the kernel will refuse.
fn of_file(file: &str, value: &str) -> Vec<Property> {
    let number = |name| match value.trim() {
        "max" => Some((name, Value::U64(INFINITY))),
        digits => Some((name, Value::U64(digits.parse().ok()?))),
    };
    let list = |name| Some((name, Value::Bytes(bits(value)?)));
    let one = match file {
        "memory.max" => number("MemoryMax"),
        "memory.high" => number("MemoryHigh"),
        "memory.low" => number("MemoryLow"),
        "memory.min" => number("MemoryMin"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        "cpuset.cpus" => list("AllowedCPUs"),
        "cpuset.mems" => list("AllowedMemoryNodes"),
        "cpu.max" => return quota_and_period(value).unwrap_or_default(),
        _ => None,
    };
    one.into_iter().collect()
}

/// `50000 100000`, `max`
fn quota_and_period(value: &str) -> Option<Vec<Property>> {
    let mut words = value.split_whitespace();
    let quota = match words.next()? {
        "max" => -1,
        digits => digits.parse().ok()?,
    };
    let period = words.next().map_or(Some(USUAL_PERIOD), |p| p.parse().ok())?;
    (period > 0).then(|| {
        vec![
            per_second(quota, period),
            ("CPUQuotaPeriodUSec", Value::U64(period)),
        ]
    })
}

/// A list like `0-2,5` as bits, the lowest first; `None` for an empty list or no list at all.
fn bits(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel is built for.
    const MOST: usize = 8192;
    let mut bytes = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0u8);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let text = |(name, value): Property| match value {
            Value::U64(INFINITY) => format!("{name}=infinity"),
            Value::U64(number) => format!("{name}={number}"),
            Value::Bytes(bytes) => format!("{name}={bytes:?}"),
            other => format!("{name}={other:?}"),
        };
        properties(&resources).into_iter().map(text).collect()
    }

    #[test]
    fn limits_are_said_in_systemd_s_words() {
        assert!(of("{}").is_empty());
        assert_eq!(
            of(r#"{"memory":{"limit":1000,"reservation":500,"swap":1500},"pids":{"limit":7}}"#),
            [
                "MemoryLow=500",
                "MemoryMax=1000",
                "MemorySwapMax=500",
                "TasksMax=7"
            ]
        );
        assert_eq!(
            of(r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#),
            [
                "MemoryMax=infinity",
                "MemorySwapMax=infinity",
                "TasksMax=infinity"
            ]
        );
        assert_eq!(
            of(r#"{"cpu":{"shares":1024,"cpus":"0-2,9","mems":"0"},"blockIO":{"weight":10}}"#),
            [
                "AllowedCPUs=[7, 2]",
                "AllowedMemoryNodes=[1]",
                "CPUWeight=100",
                "IOWeight=1"
            ]
        );
    }

    #[test]
    fn a_scope_without_a_limit_on_processes_has_none() {
        let tasks = |json: &str| {
            let found = of_scope(&serde_json::from_str(json).unwrap()).into_iter();
            found
                .filter(|(name, _)| *name == "TasksMax")
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        for unlimited in ["{}", r#"{"memory":{"limit":9}}"#, r#"{"pids":{"limit":-1}}"#] {
            assert_eq!(tasks(unlimited), [Value::U64(INFINITY)], "{unlimited}");
        }
        assert_eq!(tasks(r#"{"pids":{"limit":7}}"#), [Value::U64(7)]);
        assert_eq!(tasks(r#"{"unified":{"pids.max":"8"}}"#), [Value::U64(8)]);
    }

    #[test]
    fn quotas_are_rounded_up_to_whole_percents() {
        for (cpu, wanted) in [
            (r#"{"quota":50000,"period":100000}"#, "500000"),
            (r#"{"quota":50001,"period":100000}"#, "510000"),
            (r#"{"quota":2500}"#, "30000"),
            (r#"{"quota":-1}"#, "infinity"),
        ] {
            let got = of(&format!(r#"{{"cpu":{cpu}}}"#));
            assert!(
                got.contains(&format!("CPUQuotaPerSecUSec={wanted}")),
                "{cpu}: {got:?}"
            );
        }
        assert_eq!(of(r#"{"cpu":{"period":50000}}"#), ["CPUQuotaPeriodUSec=50000"]);
    }

    #[test]
    fn files_of_the_cgroup_win_and_unknown_ones_are_left_to_the_kernel() {
        assert_eq!(
            of(
                r#"{"memory":{"limit":1000},"unified":{"memory.max":"max","memory.high":"70","memory.oom.group":"1",
                "cpu.max":"1000 5000","cpuset.cpus":"x","pids.max":"many"}}"#
            ),
            [
                "CPUQuotaPerSecUSec=200000",
                "CPUQuotaPeriodUSec=5000",
                "MemoryHigh=70",
                "MemoryMax=infinity"
            ]
        );
    }

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0"), Some(vec![1]));
        assert_eq!(bits("7,8\n"), Some(vec![128, 1]));
        for bad in ["", "a", "3-1", "0-99999", "1,,2"] {
            assert_eq!(bits(bad), None, "{bad}");
        }
    }
}
