//! Reading a cgroup's statistics, tolerant of what a host lacks.

use std::fs;
use std::path::{Path, PathBuf};

use crate::hierarchy::Version;
use crate::stats::{HugetlbStats, IoStats, MemoryStats, PidsStats, Pressure, Psi, Stall, Stats};
use crate::{Cgroup, CgroupError, files};

/// v1 says "no limit" by a number close to the largest page count.
const V1_UNLIMITED: u64 = 1 << 62;

pub(crate) fn stats(cgroup: &Cgroup) -> Result<Stats, CgroupError> {
    let mut stats = Stats::default();
    if !cgroup.exists() {
        let path = cgroup
            .directories()
            .next()
            .map(|(_, dir)| dir)
            .unwrap_or_default();
        return Err(CgroupError::read(&path, std::io::ErrorKind::NotFound.into()));
    }
    cpu(cgroup, &mut stats)?;
    match at(cgroup, "memory") {
        Some((Version::V1, dir)) => stats.memory = memory_v1(&dir)?,
        Some((Version::V2, dir)) => stats.memory = memory_v2(&dir)?,
        None => {}
    }
    if let Some((_, dir)) = at(cgroup, "pids") {
        stats.pids = PidsStats {
            current: number(&dir.join("pids.current"))?.unwrap_or(0),
            limit: number(&dir.join("pids.max"))?,
        };
    }
    if let Some((_, dir)) = at(cgroup, "blkio") {
        stats.io = io_v1(&dir)?;
    } else if let Some((_, dir)) = at(cgroup, "io") {
        stats.io = parse_io_stat(&files::read_if_there(&dir.join("io.stat"))?.unwrap_or_default());
    }
    if let Some((version, dir)) = at(cgroup, "hugetlb") {
        stats.hugetlb = hugetlb(version, &dir)?;
    }
    if let Some(dir) = cgroup.v2_directory() {
        stats.psi = psi(&dir)?;
    }
    Ok(stats)
}

pub(crate) fn oom_kills(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    let Some((_, path)) = oom_path(cgroup) else {
        return Err(CgroupError::MissingController {
            controller: "memory".to_owned(),
            file: "memory.events".to_owned(),
        });
    };
    Ok(Table::new(&path, files::read(&path)?)
        .value("oom_kill")?
        .unwrap_or(0))
}

/// Where the OOM killer's count is.
pub(crate) fn oom_path(cgroup: &Cgroup) -> Option<(Version, PathBuf)> {
    let (version, dir) = at(cgroup, "memory")?;
    Some((version, dir.join(oom_file(version))))
}

/// The count in such a file's text.
pub(crate) fn oom_kills_in(text: &str) -> Option<u64> {
    let mut counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    counts.next()?.trim().parse().ok()
}

fn oom_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    }
}

fn at(cgroup: &Cgroup, controller: &str) -> Option<(Version, PathBuf)> {
    cgroup
        .hierarchies()
        .of(controller)
        .map(|h| (h.version, cgroup.directory_in(h)))
}

fn cpu(cgroup: &Cgroup, stats: &mut Stats) -> Result<(), CgroupError> {
    if let Some((Version::V1, dir)) = at(cgroup, "cpuacct") {
        stats.cpu_usage_nanos = number(&dir.join("cpuacct.usage"))?.unwrap_or(0);
        stats.cpu.user_nanos = number(&dir.join("cpuacct.usage_user"))?.unwrap_or(0);
        stats.cpu.system_nanos = number(&dir.join("cpuacct.usage_sys"))?.unwrap_or(0);
    } else if let Some(dir) = cgroup.v2_directory() {
        // These three are there without the controller, too.
        let table = Table::read(&dir.join("cpu.stat"))?;
        stats.cpu_usage_nanos = table.or_zero("usage_usec")? * 1000;
        stats.cpu.user_nanos = table.or_zero("user_usec")? * 1000;
        stats.cpu.system_nanos = table.or_zero("system_usec")? * 1000;
    }
    if let Some((version, dir)) = at(cgroup, "cpu") {
        let table = Table::read(&dir.join("cpu.stat"))?;
        stats.cpu.periods = table.or_zero("nr_periods")?;
        stats.cpu.throttled_periods = table.or_zero("nr_throttled")?;
        stats.cpu.throttled_nanos = match version {
            Version::V1 => table.or_zero("throttled_time")?,
            Version::V2 => table.or_zero("throttled_usec")? * 1000,
        };
    }
    Ok(())
}

fn memory_v1(dir: &Path) -> Result<MemoryStats, CgroupError> {
    let read = |name: &str| number(&dir.join(name));
    let table = Table::read(&dir.join("memory.stat"))?;
    let usage = read("memory.usage_in_bytes")?.unwrap_or(0);
    let limit = read("memory.limit_in_bytes")?.filter(|&v| v < V1_UNLIMITED);
    // Absent where swap is not accounted; it counts memory and swap together.
    let both = read("memory.memsw.usage_in_bytes")?;
    let both_limit = read("memory.memsw.limit_in_bytes")?.filter(|&v| v < V1_UNLIMITED);
    let mut stats = MemoryStats {
        usage,
        rss: table.or_zero("total_rss")?,
        cache: table.or_zero("total_cache")?,
        mapped_file: table.or_zero("total_mapped_file")?,
        kernel: read("memory.kmem.usage_in_bytes")?.unwrap_or(0),
        limit,
        max_usage: read("memory.max_usage_in_bytes")?.unwrap_or(0),
        failures: read("memory.failcnt")?.unwrap_or(0),
        page_faults: table.or_zero("total_pgfault")?,
        major_page_faults: table.or_zero("total_pgmajfault")?,
        swap_usage: both.map(|b| b.saturating_sub(usage)),
        swap_limit: both_limit.map(|b| b.saturating_sub(limit.unwrap_or(0))),
        oom_kills: Table::read(&dir.join(oom_file(Version::V1)))?.or_zero("oom_kill")?,
        ..MemoryStats::default()
    };
    derive(&mut stats, table.or_zero("total_inactive_file")?);
    Ok(stats)
}

fn memory_v2(dir: &Path) -> Result<MemoryStats, CgroupError> {
    let read = |name: &str| number(&dir.join(name));
    let table = Table::read(&dir.join("memory.stat"))?;
    let events = Table::read(&dir.join(oom_file(Version::V2)))?;
    let mut stats = MemoryStats {
        usage: read("memory.current")?.unwrap_or(0),
        rss: table.or_zero("anon")?,
        cache: table.or_zero("file")?,
        mapped_file: table.or_zero("file_mapped")?,
        kernel: table.or_zero("kernel")?,
        limit: read("memory.max")?,
        max_usage: read("memory.peak")?.unwrap_or(0),
        failures: events.or_zero("max")?,
        page_faults: table.or_zero("pgfault")?,
        major_page_faults: table.or_zero("pgmajfault")?,
        swap_usage: read("memory.swap.current")?,
        swap_limit: read("memory.swap.max")?,
        oom_kills: events.or_zero("oom_kill")?,
        ..MemoryStats::default()
    };
    derive(&mut stats, table.or_zero("inactive_file")?);
    Ok(stats)
}

/// What the kubelet calls working set and available.
fn derive(stats: &mut MemoryStats, inactive_file: u64) {
    stats.working_set = stats.usage.saturating_sub(inactive_file);
    stats.available = stats.limit.map(|limit| limit.saturating_sub(stats.working_set));
}

fn io_v1(dir: &Path) -> Result<Vec<IoStats>, CgroupError> {
    let read = |name: &str| -> Result<String, CgroupError> {
        Ok(files::read_if_there(&dir.join(name))?.unwrap_or_default())
    };
    let bytes = read("blkio.throttle.io_service_bytes_recursive")?;
    let operations = read("blkio.throttle.io_serviced_recursive")?;
    Ok(parse_blkio(&bytes, &operations))
}

/// `8:0 Read 4096` and so on, in two files.
fn parse_blkio(bytes: &str, operations: &str) -> Vec<IoStats> {
    let mut devices: Vec<IoStats> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (device_number(device), value.parse::<u64>()) else {
                continue;
            };
            let entry = entry(&mut devices, major, minor);
            match (is_bytes, kind) {
                (true, "Read") => entry.read_bytes = value,
                (true, "Write") => entry.write_bytes = value,
                (false, "Read") => entry.reads = value,
                (false, "Write") => entry.writes = value,
                _ => {}
            }
        }
    }
    devices.sort_unstable();
    devices
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn parse_io_stat(text: &str) -> Vec<IoStats> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device_number) else {
            continue;
        };
        let mut device = IoStats {
            major,
            minor,
            ..IoStats::default()
        };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
        devices.push(device);
    }
    devices.sort_unstable();
    devices
}

fn entry(devices: &mut Vec<IoStats>, major: u64, minor: u64) -> &mut IoStats {
    let known = devices.iter().position(|d| d.major == major && d.minor == minor);
    let index = known.unwrap_or_else(|| {
        devices.push(IoStats {
            major,
            minor,
            ..IoStats::default()
        });
        devices.len() - 1
    });
    &mut devices[index]
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn hugetlb(version: Version, dir: &Path) -> Result<Vec<HugetlbStats>, CgroupError> {
    let suffix = if version == Version::V1 {
        ".usage_in_bytes"
    } else {
        ".current"
    };
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(Vec::new());
    };
    let mut sizes: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.to_owned()))
        .filter(|size| !size.contains('.'))
        .collect();
    sizes.sort_unstable();
    let mut found = Vec::new();
    for page_size in sizes {
        let usage = number(&dir.join(format!("hugetlb.{page_size}{suffix}")))?.unwrap_or(0);
        let failures = match version {
            Version::V1 => number(&dir.join(format!("hugetlb.{page_size}.failcnt")))?.unwrap_or(0),
            Version::V2 => Table::read(&dir.join(format!("hugetlb.{page_size}.events")))?.or_zero("max")?,
        };
        found.push(HugetlbStats {
            page_size,
            usage,
            failures,
        });
    }
    Ok(found)
}

fn psi(dir: &Path) -> Result<Option<Psi>, CgroupError> {
    let read = |name: &str| files::read_if_there(&dir.join(name));
    // A kernel may be booted with psi=0: then the files are missing or refuse to be read.
    let (Some(cpu), Some(memory), Some(io)) = (
        read("cpu.pressure")?,
        read("memory.pressure")?,
        read("io.pressure")?,
    ) else {
        return Ok(None);
    };
    Ok(Some(Psi {
        cpu: parse_pressure(&cpu),
        memory: parse_pressure(&memory),
        io: parse_pressure(&io),
    }))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`.
fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        *stall = words
            .filter_map(|w| w.split_once('='))
            .fold(Stall::default(), |mut stall, (key, value)| {
                match key {
                    "avg10" => stall.avg10 = value.parse().unwrap_or(0.0),
                    "avg60" => stall.avg60 = value.parse().unwrap_or(0.0),
                    "avg300" => stall.avg300 = value.parse().unwrap_or(0.0),
                    "total" => stall.total_micros = value.parse().unwrap_or(0),
                    _ => {}
                }
                stall
            });
    }
    pressure
}

/// A file with one number; `max` and an absent file are `None`.
fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    let Some(text) = files::read_if_there(path)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| malformed(path, digits)),
    }
}

/// A file with a key and a number on each line.
struct Table {
    path: PathBuf,
    text: String,
}

impl Table {
    fn new(path: &Path, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// An absent file is an empty table.
    fn read(path: &Path) -> Result<Self, CgroupError> {
        Ok(Self::new(path, files::read_if_there(path)?.unwrap_or_default()))
    }

    fn value(&self, key: &str) -> Result<Option<u64>, CgroupError> {
        let found = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        found
            .map(|v| v.trim().parse().map_err(|_| malformed(&self.path, v)))
            .transpose()
    }

    fn or_zero(&self, key: &str) -> Result<u64, CgroupError> {
        Ok(self.value(key)?.unwrap_or(0))
    }
}

fn malformed(path: &Path, line: &str) -> CgroupError {
    CgroupError::Malformed {
        path: path.to_owned(),
        line: line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_memory_counts_the_working_set_without_inactive_files() {
        let tmp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(tmp.path().join(name), text).unwrap();
        write("memory.usage_in_bytes", "1000\n");
        write("memory.limit_in_bytes", "5000\n");
        write(
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        );
        write(
            "memory.stat",
            "inactive_file 1\ntotal_inactive_file 300\ntotal_rss 500\ntotal_pgfault 7\n",
        );
        let stats = memory_v1(tmp.path()).unwrap();
        assert_eq!(
            (stats.working_set, stats.available, stats.limit),
            (700, Some(4300), Some(5000))
        );
        assert_eq!((stats.rss, stats.page_faults, stats.oom_kills), (500, 7, 3));
        assert_eq!(stats.swap_usage, None);
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_v1(tmp.path()).unwrap().limit, None);
    }

    #[test]
    fn v2_memory_reads_max_as_no_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(tmp.path().join(name), text).unwrap();
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write(
            "memory.stat",
            "anon 10\nfile 20\ninactive_file 5000\npgfault 2\npgmajfault 1\n",
        );
        write("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n");
        let stats = memory_v2(tmp.path()).unwrap();
        assert_eq!(
            (stats.usage, stats.working_set, stats.limit, stats.available),
            (4096, 0, None, None)
        );
        assert_eq!(
            (stats.failures, stats.oom_kills, stats.major_page_faults),
            (4, 1, 1)
        );
    }

    #[test]
    fn io_of_both_versions_maps_to_the_same_numbers() {
        let wanted = IoStats {
            major: 8,
            minor: 16,
            read_bytes: 1,
            write_bytes: 2,
            reads: 3,
            writes: 4,
        };
        let v1 = parse_blkio(
            "8:16 Read 1\n8:16 Write 2\n8:16 Total 3\nTotal 3\n",
            "8:16 Read 3\n8:16 Write 4\nTotal 7\n",
        );
        let v2 = parse_io_stat("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        assert_eq!(v1, [wanted]);
        assert_eq!(v2, [wanted]);
    }

    #[test]
    fn pressure_lines_are_read_and_garbage_is_zero() {
        let p = parse_pressure("some avg10=1.50 avg60=0.20 avg300=x total=77\nfull avg10=0.00 total=5\n?\n");
        assert_eq!((p.some.avg10, p.some.avg300, p.some.total_micros), (1.5, 0.0, 77));
        assert_eq!(p.full.total_micros, 5);
    }

    #[test]
    fn a_malformed_number_names_the_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("pids.current");
        fs::write(&path, "many\n").unwrap();
        let error = number(&path).unwrap_err().to_string();
        assert!(
            error.contains("pids.current") && error.contains("many"),
            "{error}"
        );
    }
}
