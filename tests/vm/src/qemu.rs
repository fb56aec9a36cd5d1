//! QEMU's command line, and its process.
//!
//! The machine is a microvm under TCG with the options that never hung; the order of the arguments is part of what a
//! saved guest depends on, so [`command_line`] is pure and its result goes into the key of a saved guest. The agent's
//! port is the process's standard input and the monitor its standard output, both sockets made by us: no path, no port
//! number, and both end with either side.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::wire::PORT;

/// Where the programs are, also for a user without sbin.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine to be.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) kvm: bool,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) arguments: String,
    pub(crate) drives: Vec<Drive>,
    /// The number of this node in its network, if it has one; its sockets are `n` and `s` with the number.
    pub(crate) network: Option<u32>,
    /// A file with a saved guest to go on with.
    pub(crate) incoming: Option<PathBuf>,
}

/// A disk of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    pub(crate) serial: String,
    pub(crate) file: PathBuf,
    pub(crate) format: &'static str,
    pub(crate) writes: Writes,
}

/// Where a guest's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Away with the machine.
    Discarded,
    /// Into the file, at the pace of the host's page cache, which outlives QEMU.
    Kept,
    /// Into the file, with no regard for the host's power.
    Saved,
}

/// The arguments of QEMU.
pub(crate) fn command_line(machine: &Machine) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| line.extend(words.iter().map(|w| (*w).to_owned()));
    if machine.kvm {
        add(&["-accel", "kvm", "-cpu", "host"]);
    } else {
        add(&["-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off"]);
    }
    add(&[
        "-smp",
        &machine.cpus.to_string(),
        "-m",
        &machine.memory_mib.to_string(),
    ]);
    add(&["-M", "microvm,pit=on,pic=on,rtc=on,isa-serial=on"]);
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&[
        "-kernel",
        &text(&machine.kernel),
        "-initrd",
        &text(&machine.initrd),
    ]);
    add(&["-append", &machine.arguments]);
    add(&["-serial", "file:console.log"]);
    add(&[
        "-chardev",
        "socket,id=monitor,fd=1",
        "-mon",
        "chardev=monitor,mode=readline",
    ]);
    add(&[
        "-chardev",
        "socket,id=agent,fd=0",
        "-device",
        "virtio-serial-device",
    ]);
    add(&["-device", &format!("virtserialport,chardev=agent,name={PORT}")]);
    for (number, drive) in machine.drives.iter().enumerate() {
        let writes = match drive.writes {
            Writes::Discarded => "snapshot=on,cache=unsafe",
            Writes::Kept => "cache=writeback",
            Writes::Saved => "cache=unsafe",
        };
        // A full disk of the host shall be an error in the guest: QEMU would stop it and wait for an operator.
        add(&[
            "-drive",
            &format!(
                "if=none,id=d{number},format={},{writes},werror=report,rerror=report,file={}",
                drive.format,
                text(&drive.file).replace(',', ",,")
            ),
            "-device",
            &format!("virtio-blk-device,drive=d{number},serial={}", drive.serial),
        ]);
    }
    if let Some(node) = machine.network {
        add(&[
            "-netdev",
            &format!("dgram,id=lan,local.type=unix,local.path=n{node},remote.type=unix,remote.path=s{node}"),
            "-device",
            &format!("virtio-net-device,netdev=lan,mac=52:54:00:00:00:{:02x}", node + 1),
        ]);
    }
    if let Some(state) = &machine.incoming {
        add(&["-incoming", &format!("exec:cat '{}'", text(state))]);
    }
    line
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The kernel's arguments that every guest gets.
pub(crate) fn kernel_arguments(kvm: bool) -> String {
    let mut line = "console=ttyS0 panic=-1 quiet mitigations=off reboot=t".to_owned();
    if !kvm {
        // Without these one boot in four hangs: calibrating a clock against another emulated one is a race.
        let khz = tsc_khz()
            .map(|khz| format!(" tsc_early_khz={khz}"))
            .unwrap_or_default();
        line.push_str(&format!("{khz} tsc=reliable no_timer_check"));
    }
    line
}

/// The pace of the host's clock, which TCG hands through.
fn tsc_khz() -> Option<u64> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    khz_of(&info)
}

fn khz_of(info: &str) -> Option<u64> {
    let value = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    // A name that tells the base frequency is better than what the processor runs at just now.
    let named = value("model name").and_then(|name| {
        let ghz: f64 = name
            .split_once("@ ")?
            .1
            .strip_suffix("GHz")?
            .trim()
            .parse()
            .ok()?;
        Some(ghz * 1e6)
    });
    let now = || value("cpu MHz")?.parse::<f64>().ok().map(|mhz| mhz * 1e3);
    named.or_else(now).map(|khz| khz.round() as u64)
}

/// A running QEMU. It is killed when this value is dropped, and by the kernel when this process ends.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) agent: UnixStream,
    pub(crate) monitor: UnixStream,
}

impl Process {
    /// Starts QEMU in a folder, where it writes `console.log` and `qemu.log`.
    pub(crate) fn start(machine: &Machine, folder: &Path) -> Result<Self> {
        let (agent, agent_end) = UnixStream::pair()?;
        let (monitor, monitor_end) = UnixStream::pair()?;
        let log = fs::File::create(folder.join("qemu.log"))?;
        let mut command = tied("qemu-system-x86_64");
        command
            .args(command_line(machine))
            .current_dir(folder)
            .env("PATH", PATH)
            .env("TMPDIR", folder)
            .stdin(Stdio::from(OwnedFd::from(agent_end)))
            .stdout(Stdio::from(OwnedFd::from(monitor_end)))
            .stderr(log);
        let child =
            spawn(command).context("failed to run `qemu-system-x86_64`: is qemu-system-x86 installed?")?;
        Ok(Self {
            child,
            agent,
            monitor,
        })
    }

    /// SIGKILL, as a power cut: nothing is flushed.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("failed to kill QEMU")?;
        self.child.wait().context("failed to wait for QEMU")?;
        Ok(())
    }

    /// How QEMU ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child
            .try_wait()
            .ok()
            .flatten()
            .map(|status| status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// A command that the kernel kills when this process ends: `setpriv` asks for that, and the shell between them looks
/// whether its parent ended before.
pub(crate) fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "sh",
            "-c",
            r#"[ "$PPID" = "$0" ] && exec "$@""#,
        ])
        .arg(std::process::id().to_string())
        .arg(program);
    command
}

/// Starts a tied command. The kernel sends the signal when the thread that started it ends, not the process: so one
/// thread that lives as long as the process starts them all.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, waiting) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in waiting {
                // Who asked waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, started) = channel();
    starter
        .send((command, answer))
        .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    Ok(started
        .recv()
        .context("the thread that starts processes is gone")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            kvm: false,
            cpus: 2,
            memory_mib: 768,
            kernel: "k".into(),
            initrd: "i".into(),
            arguments: "a".to_owned(),
            drives: vec![Drive {
                serial: "root".to_owned(),
                file: "/a,b".into(),
                format: "raw",
                writes: Writes::Discarded,
            }],
            network: Some(1),
            incoming: None,
        }
    }

    #[test]
    fn a_guest_never_writes_to_what_is_shared_and_disks_go_by_serial_number() {
        let line = command_line(&machine()).join(" ");
        assert!(line.contains("snapshot=on") && line.contains("file=/a,,b") && line.contains("serial=root"));
        assert!(line.contains("-accel tcg,thread=multi -cpu max,erms=off,fsrm=off"));
        let kept = Machine {
            drives: vec![Drive {
                writes: Writes::Kept,
                ..machine().drives[0].clone()
            }],
            ..machine()
        };
        let line = command_line(&kept).join(" ");
        assert!(line.contains("cache=writeback") && !line.contains("snapshot=on"));
    }

    #[test]
    fn nodes_have_sockets_and_addresses_of_their_own() {
        let line = command_line(&machine()).join(" ");
        assert!(line.contains("local.path=n1") && line.contains("remote.path=s1") && line.contains("00:02"));
    }

    #[test]
    fn the_clocks_pace_is_the_base_frequency_where_it_is_named() {
        assert_eq!(
            khz_of("model name\t: X\ncpu MHz\t\t: 2596.150\n"),
            Some(2_596_150)
        );
        assert_eq!(
            khz_of("model name\t: X CPU @ 2.60GHz\ncpu MHz\t\t: 900.1\n"),
            Some(2_600_000)
        );
        assert_eq!(khz_of("processor : 0\n"), None);
    }

    #[test]
    fn a_tied_command_does_not_start_for_another_parent() {
        let mut command = Command::new("sh");
        // As `tied` calls it, but in the name of a process that isn't the parent.
        command.args(["-c", r#"[ "$PPID" = "$0" ] && exec "$@""#, "1", "true"]);
        assert!(!command.status().unwrap().success());
        assert!(tied("true").status().unwrap().success());
    }
}
