//! kill, ps, update and events.

use anyhow::Context as _;
use oci_runtime_cgroups::Stats;
use oci_runtime_container::Runtime;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use serde_json::{Value, json};

use super::{print_json, read_input};
use crate::args::{Arguments, Usage};

pub(super) fn kill(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<u8> {
    let signal = match arguments.words.get(1) {
        Some(text) => signal_number(text).ok_or_else(|| Usage(format!("`{text}` is not a signal")))?,
        None => SIGTERM,
    };
    runtime.kill(arguments.id()?, signal, arguments.is_set("all"))?;
    Ok(0)
}

const SIGTERM: i32 = 15;

/// `9`, `KILL` or `SIGKILL`; real-time signals as `RTMIN+1`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = offset
            .strip_prefix('+')
            .map_or(Some(0), |n| n.parse::<i32>().ok())?;
        return (RTMIN..=RTMAX)
            .contains(&(RTMIN + offset))
            .then_some(RTMIN + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = offset
            .strip_prefix('-')
            .map_or(Some(0), |n| n.parse::<i32>().ok())?;
        return (RTMIN..=RTMAX)
            .contains(&(RTMAX - offset))
            .then_some(RTMAX - offset);
    }
    let known: Result<nix::sys::signal::Signal, _> = format!("SIG{name}").parse();
    known.ok().map(|signal| signal as i32)
}

pub(super) fn ps(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<u8> {
    let pids = runtime.ps(arguments.id()?)?;
    match arguments.value("format") {
        Some("json") => {
            println!("{}", serde_json::to_string(&pids)?);
            Ok(0)
        }
        None | Some("table") => {
            println!("{:>8} {:>8} COMMAND", "PID", "PPID");
            for pid in pids {
                let (parent, command) = describe(pid);
                println!("{pid:>8} {parent:>8} {command}");
            }
            Ok(0)
        }
        Some(other) => Err(Usage(format!("--format is `table` or `json`, not `{other}`")).into()),
    }
}

fn describe(pid: i32) -> (String, String) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&line)
        .trim_end_matches('\0')
        .replace('\0', " ");
    let command = if words.is_empty() {
        format!("[{}]", field("Name:"))
    } else {
        words
    };
    (field("PPid:"), command)
}

pub(super) fn update(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<u8> {
    let resources = match arguments.value("resources") {
        Some(path) => serde_json::from_slice(&read_input(path)?)
            .with_context(|| format!("`{path}` is not a valid description of resources"))?,
        None => resources_of(arguments)?,
    };
    runtime.update(arguments.id()?, &resources)?;
    Ok(0)
}

fn resources_of(arguments: &Arguments) -> anyhow::Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    if arguments.value("blkio-weight").is_some() {
        return Err(Usage("--blkio-weight is not supported; use --resources".to_owned()).into());
    }
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(arguments.number("memory")?)
        .set_reservation(arguments.number("memory-reservation")?)
        .set_swap(arguments.number("memory-swap")?);
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    let shares = arguments.number("cpu-share")?.or(arguments.number("cpu-shares")?);
    let mut cpu = LinuxCpu::default();
    cpu.set_period(arguments.number("cpu-period")?)
        .set_quota(arguments.number("cpu-quota")?)
        .set_burst(arguments.number("cpu-burst")?)
        .set_shares(shares)
        .set_cpus(arguments.value("cpuset-cpus").map(str::to_owned))
        .set_mems(arguments.value("cpuset-mems").map(str::to_owned));
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = arguments.number("pids-limit")? {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if resources == LinuxResources::default() {
        return Err(Usage("update needs --resources or a limit".to_owned()).into());
    }
    Ok(resources)
}

pub(super) fn events(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<u8> {
    if !arguments.is_set("stats") {
        return Err(Usage("events without --stats (a stream) is not supported".to_owned()).into());
    }
    let id = arguments.id()?;
    let stats = runtime.stats(id)?;
    print_json(&json!({ "type": "stats", "id": id, "data": stats_document(&stats) }))
}

/// In runc's form.
fn stats_document(stats: &Stats) -> Value {
    let memory = &stats.memory;
    json!({
        "cpu": {
            "usage": {
                "total": stats.cpu_usage_nanos,
                "kernel": stats.cpu.system_nanos,
                "user": stats.cpu.user_nanos
            },
            "throttling": {
                "periods": stats.cpu.periods,
                "throttledPeriods": stats.cpu.throttled_periods,
                "throttledTime": stats.cpu.throttled_nanos
            }
        },
        "memory": {
            "cache": memory.cache,
            "usage": {
                "limit": memory.limit.unwrap_or(u64::MAX),
                "usage": memory.usage,
                "max": memory.max_usage,
                "failcnt": memory.failures
            },
            "swap": { "limit": memory.swap_limit.unwrap_or(0), "usage": memory.swap_usage.unwrap_or(0) },
            "raw": { "rss": memory.rss, "pgfault": memory.page_faults, "pgmajfault": memory.major_page_faults }
        },
        "pids": { "current": stats.pids.current, "limit": stats.pids.limit.unwrap_or(0) },
        "blkio": {},
        "hugetlb": {}
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_number_and_name() {
        for (text, number) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGTERM", Some(15)),
            ("sigusr1", Some(10)),
            ("RTMIN+1", Some(35)),
            ("SIGRTMAX", Some(64)),
            ("SIGFLY", None),
            ("65", None),
            ("-1", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
