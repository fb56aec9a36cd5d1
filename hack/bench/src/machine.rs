//! What the figures were measured on, as one line above the tables.

use std::fs;
use std::path::Path;

/// Prints the line.
pub(crate) fn print() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let facts = (cpus, read("/proc/sys/kernel/osrelease"), unified);
    println!("{}", line(&read("/proc/cpuinfo"), &facts));
}

fn line(cpuinfo: &str, (cpus, release, unified): &(usize, String, bool)) -> String {
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unknown CPU", |(_, model)| model.trim());
    let cgroups = if *unified { "cgroup v2 alone" } else { "cgroup v1" };
    let what = if model.contains("QEMU TCG") {
        // Some instructions cost a hundred times as much as others there: only ratios mean something, and those little.
        "a TCG guest, whose times are an emulator's"
    } else {
        model
    };
    format!(
        "machine: {what}; {cpus} CPUs, Linux {}, {cgroups}",
        release.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulated_machine_is_called_one() {
        let facts = (2, "6.1.0-41-cloud-amd64\n".to_owned(), true);
        let guest = line(
            "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n",
            &facts,
        );
        assert_eq!(
            guest,
            "machine: a TCG guest, whose times are an emulator's; 2 CPUs, Linux 6.1.0-41-cloud-amd64, cgroup v2 alone"
        );
        let host = line("model name\t: Fast CPU\n", &(8, "6.12".to_owned(), false));
        assert_eq!(host, "machine: Fast CPU; 8 CPUs, Linux 6.12, cgroup v1");
        assert!(line("", &facts).contains("an unknown CPU"));
    }
}
