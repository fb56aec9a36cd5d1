//! The daemon as a unit of systemd's, with the unit file that is shipped.
//!
//! The unit's program is the daemon in a node's namespaces: `nsenter` enters them and becomes it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests_harness::{Crictl, Driver, Node, PodSpec, tools, wait_until};

use crate::Test;
use crate::bed::{PATIENCE, in_node, sleeper, until_state};

pub(crate) const TESTS: &[Test] = &[
    (
        "the_unit_starts_restarts_and_stops_with_cgroupfs",
        the_unit_starts_restarts_and_stops_with_cgroupfs,
    ),
    (
        "the_unit_starts_restarts_and_stops_with_systemd",
        the_unit_starts_restarts_and_stops_with_systemd,
    ),
];

fn the_unit_starts_restarts_and_stops_with_cgroupfs() {
    the_unit_starts_restarts_and_stops(Driver::Cgroupfs);
}

fn the_unit_starts_restarts_and_stops_with_systemd() {
    the_unit_starts_restarts_and_stops(Driver::Systemd);
}

const UNIT: &str = "orlop-cri.service";
const UNITS: &str = "/run/systemd/system";
/// Where pods go with cgroupfs.
const ROOT: &str = "/orlop-unit-test";

fn systemctl(args: &[&str]) -> Result<String> {
    let output = Command::new("systemctl")
        .args(args)
        .output()
        .context("failed to run `systemctl`")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "systemctl {args:?}: {text} {stderr}");
    Ok(text)
}

/// The unit's files, which go with this value.
struct Unit;

impl Unit {
    fn install(node: &Node) -> Result<Self> {
        let file = tools::workspace()?.join("bin/orlop-cri/systemd").join(UNIT);
        let drop_ins = Path::new(UNITS).join(format!("{UNIT}.d"));
        fs::create_dir_all(&drop_ins)?;
        fs::copy(file, Path::new(UNITS).join(UNIT))?;
        let drop_in = format!(
            "[Service]\nExecStart=\nExecStart=nsenter -t {} -m -n -u -i -- {}\n\
             StandardOutput=append:{log}\nStandardError=append:{log}\n",
            node.keeper(),
            tools::ours("orlop-cri")?.display(),
            log = node.daemon_log().display(),
        );
        fs::write(drop_ins.join("test.conf"), drop_in)?;
        systemctl(&["daemon-reload"])?;
        Ok(Self)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // What a failed test leaves is in nobody's way but the next one's.
        let _ = systemctl(&["stop", UNIT]);
        let _ = fs::remove_dir_all(Path::new(UNITS).join(format!("{UNIT}.d")));
        let _ = fs::remove_file(Path::new(UNITS).join(UNIT));
        let _ = systemctl(&["daemon-reload"]);
    }
}

fn cgroup_of(pid: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .with_context(|| format!("there is no process {pid}"))?;
    Ok(text.trim().trim_start_matches("0::").to_owned())
}

fn daemon_pid() -> Result<String> {
    systemctl(&["show", "--value", "--property", "MainPID", UNIT])
}

/// The cgroups of the shims.
fn shims() -> Result<Vec<String>> {
    let output = Command::new("pgrep").args(["-f", "orlop-shim"]).output()?;
    let pids = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found: Vec<_> = pids.lines().map(cgroup_of).collect::<Result<_>>()?;
    found.sort();
    found.dedup();
    Ok(found)
}

fn init_pid(crictl: &Crictl<'_>, container: &str) -> Result<i64> {
    let pid = &crictl.inspect(container)?["info"]["pid"];
    pid.as_i64().context("the status tells no pid")
}

/// Everything is where it belongs, apart from the rest.
fn check_cgroups(driver: Driver, init: i64, (sandbox, container): (&str, &str)) -> Result<()> {
    let daemon = cgroup_of(&daemon_pid()?)?;
    ensure!(daemon == "/system.slice/orlop-cri.service/daemon", "{daemon}");
    let (shim, pod) = match driver {
        Driver::Cgroupfs => (
            "/system.slice/orlop-cri.service/shims",
            format!("{ROOT}/{sandbox}/{container}"),
        ),
        Driver::Systemd => (
            "/system.slice/orlop-shims.scope",
            format!("/orlop.slice/orlop-{sandbox}.slice/orlop-{container}.scope"),
        ),
    };
    let shims = shims()?;
    ensure!(shims == [shim], "{shims:?}");
    let own = cgroup_of(&init.to_string())?;
    ensure!(own == pod, "{own}");
    // With controllers for what is below, systemd could not start the daemon there again.
    let control = fs::read_to_string("/sys/fs/cgroup/system.slice/orlop-cri.service/cgroup.subtree_control")?;
    ensure!(control.trim().is_empty(), "the unit enables {control}");
    Ok(())
}

fn the_unit_starts_restarts_and_stops(driver: Driver) {
    // The node is one that shares the machine's PIDs, whoever makes the pods' cgroups.
    let usual = match driver {
        Driver::Cgroupfs => format!("[cgroup]\ndriver = \"cgroupfs\"\nroot = \"{ROOT}\"\nshims = \"\"\n"),
        Driver::Systemd => "[cgroup]\nroot = \"\"\nshims = \"\"\n".to_owned(),
    };
    in_node(Node::builder().driver(Driver::Systemd).config(&usual), |node| {
        node.kill_daemon()?;
        let unit = Unit::install(node)?;
        systemctl(&["start", UNIT])?;
        let state = |wanted: &str| {
            let state = systemctl(&["show", "--value", "--property", "ActiveState", UNIT])?;
            ensure!(state == wanted, "the unit is {state}");
            Ok(())
        };
        state("active")?;
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("stays"), &sleeper("main"))?;
        let init = init_pid(&crictl, &container)?;
        let ids = (sandbox.as_str(), container.as_str());
        check_cgroups(driver, init, ids)?;

        let first = daemon_pid()?;
        systemctl(&["restart", UNIT])?;
        ensure!(daemon_pid()? != first, "it is the same process");
        ensure!(init_pid(&crictl, &container)? == init);
        check_cgroups(driver, init, ids)?;
        ensure!(crictl.ok(&["exec", &container, "echo", "here"])? == "here");

        // Killed, it comes back by itself.
        let second = daemon_pid()?;
        systemctl(&["kill", "--kill-whom=main", "--signal=KILL", UNIT])?;
        wait_until("the unit to be restarted", PATIENCE, || {
            let now = daemon_pid()?;
            Ok(now != "0" && now != second && crictl.run(&["version"])?.code == 0)
        })?;
        until_state(&crictl, &container, "CONTAINER_RUNNING")?;
        check_cgroups(driver, init, ids)?;

        systemctl(&["stop", UNIT])?;
        state("inactive")?;
        ensure!(
            Path::new(&format!("/proc/{init}")).exists(),
            "the pod ended with the unit"
        );
        systemctl(&["start", UNIT])?;
        check_cgroups(driver, init, ids)?;
        let (other, _) = crictl.start_pod(&PodSpec::new("comes"), &sleeper("main"))?;
        systemctl(&["reload", UNIT])?;
        crictl.remove_pod(&sandbox)?;
        crictl.remove_pod(&other)?;
        wait_until("the shims' end", PATIENCE, || Ok(shims()?.is_empty()))?;
        systemctl(&["stop", UNIT])?;
        state("inactive")?;
        ensure!(!Path::new("/sys/fs/cgroup/system.slice/orlop-cri.service").exists());
        drop(unit);
        match driver {
            // Pods' own are gone: it is empty.
            Driver::Cgroupfs => fs::remove_dir(format!("/sys/fs/cgroup{ROOT}"))?,
            Driver::Systemd => {
                let left = systemctl(&["list-units", "--all", "--plain", "--no-legend", "orlop-*"])?;
                let left: Vec<_> = left
                    .lines()
                    .filter(|line| !line.contains("orlop-vm-agent"))
                    .collect();
                ensure!(left.is_empty(), "systemd still has {left:?}");
            }
        }
        Ok(())
    });
}
