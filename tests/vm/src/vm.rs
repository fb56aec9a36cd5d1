//! A guest, from its parts to its end.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::channel::{Channel, Finished, Script, Task};
use crate::disk::Disk;
use crate::qemu::{Drive, Machine, Process, Writes, kernel_arguments};
use crate::store::{Entry, RunFolder, Store, target, workspace};
use crate::switch::Switch;
use crate::{image, initrd, job, kvm, snapshot};

/// Until the kernel's first sign of life. One that hangs does so before.
const KERNEL_LIMIT: Duration = Duration::from_secs(30);
/// From there to the agent's answer.
const AGENT_LIMIT: Duration = Duration::from_secs(120);
/// A saved guest is there at once or never.
const RESTORE_LIMIT: Duration = Duration::from_secs(40);

/// What a guest shall be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Without systemd: the agent is the first process.
    pub bare: bool,
    /// Go on from a saved guest, saved by the first of them.
    pub snapshot: bool,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Disks that survive the guest.
    pub disks: Vec<Disk>,
    /// Files and folders of the workspace that it shall have beside the sources, `target/orlop` and `target/testbed`.
    pub ship: Vec<PathBuf>,
    /// More for the kernel's command line.
    pub kernel_arguments: String,
    /// How long the kernel may take to its first sign of life; one that hangs does so before, and is tried once more.
    pub kernel_limit: Duration,
    /// No word about times.
    pub quiet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bare: false,
            snapshot: false,
            memory_mib: 1024,
            cpus: 2,
            disks: Vec::new(),
            ship: Vec::new(),
            kernel_arguments: String::new(),
            kernel_limit: KERNEL_LIMIT,
            quiet: false,
        }
    }
}

/// How long a guest took to come up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Everything that is made once: nothing, usually.
    pub image: Duration,
    /// From QEMU's start to the first command.
    pub boot: Duration,
}

/// A guest. It ends when this value is dropped.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    channel: Channel,
    times: Times,
    folder: PathBuf,
    // Kept from pruning while QEMU reads them.
    _entries: Vec<Entry>,
    _run: Option<RunFolder>,
}

/// All that a group of guests has in common.
struct Parts {
    store: Store,
    entries: Vec<Entry>,
    run: RunFolder,
    machine: Machine,
    took: Duration,
}

impl Vm {
    /// Boots a guest and waits until it takes commands. One that hangs on its way is given up and tried once more.
    ///
    /// # Errors
    /// Something of it can't be made, or it didn't come up twice.
    pub fn boot(options: &Options) -> Result<Self> {
        let parts = prepare(options)?;
        let machine = parts.machine.clone();
        let mut vm = start(options, &parts.store, &machine, &parts.run.path, "node0")?;
        vm.times.image += parts.took;
        vm._entries.extend(parts.entries);
        vm._run = Some(parts.run);
        Ok(vm)
    }

    /// How long it took to come up.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It can't be started or doesn't end in time, or the guest ended.
    pub fn run(&mut self, script: &Script) -> Result<Finished> {
        self.spawn(script)?.finish()
    }

    /// Starts a command.
    ///
    /// # Errors
    /// The guest has ended. That the command can't be started is told by [`Task::wait`].
    pub fn spawn(&mut self, script: &Script) -> Result<Task> {
        self.channel.start(script)
    }

    /// Cuts the power: QEMU is killed, and with it the guest's page cache.
    ///
    /// # Errors
    /// QEMU can't be killed.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Writes everything to the disks and ends the guest.
    ///
    /// # Errors
    /// The guest had ended.
    pub fn end(mut self) -> Result<()> {
        self.channel.sync()?;
        self.process.kill()
    }

    /// What the guest's kernel and systemd wrote on the console.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Boots that many guests side by side, on one network: node i is called `node<i>`, its `eth0` has 192.168.77.(i+1)/24
/// and fd77::(i+1)/64, and each knows the others' names.
///
/// # Errors
/// As [`Vm::boot`]; all are ended then.
pub fn boot_nodes(options: &Options, nodes: u32) -> Result<(Vec<Vm>, Switch)> {
    ensure!((1..=8).contains(&nodes), "there can be 1 to 8 nodes, not {nodes}");
    ensure!(
        nodes == 1 || options.disks.is_empty(),
        "disks that survive are for one node: two would write to the same file"
    );
    let parts = prepare(options)?;
    let switch = Switch::start(nodes, &parts.run.path)?;
    let hosts: String = (0..nodes)
        .map(|i| format!("192.168.77.{0} node{i}\nfd77::{0} node{i}\n", i + 1))
        .collect();
    let mut up: Vec<Vm> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..nodes)
            .map(|node| {
                let (parts, hosts) = (&parts, &hosts);
                scope.spawn(move || {
                    let mut machine = parts.machine.clone();
                    machine.network = Some(node);
                    let folder = parts.run.path.clone();
                    let mut vm = start(options, &parts.store, &machine, &folder, &format!("node{node}"))?;
                    vm.run(&Script::shell(&join_network(node, hosts)))?.ok()?;
                    Ok(vm)
                })
            })
            .collect();
        starting
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a thread that boots a node panicked"))
            })
            .collect::<Result<_>>()
    })?;
    if let Some(first) = up.first_mut() {
        first.times.image += parts.took;
        first._entries.extend(parts.entries);
        first._run = Some(parts.run);
    }
    Ok((up, switch))
}

fn join_network(node: u32, hosts: &str) -> String {
    let number = node + 1;
    format!(
        "hostname node{node} && printf '127.0.0.1 localhost\\n::1 localhost\\n{hosts}' >/etc/hosts && \
         ip link set eth0 up && ip addr add 192.168.77.{number}/24 dev eth0 && \
         ip addr add fd77::{number}/64 dev eth0 nodad",
        hosts = hosts.replace('\n', "\\n")
    )
}

/// Finds or makes everything that a guest needs.
fn prepare(options: &Options) -> Result<Parts> {
    let begun = Instant::now();
    let store = Store::open()?;
    let run = store.run_folder()?;
    let agent = agent()?;
    let (image, _) = image::ensure(&store)?;
    let kernel = image.path.join("vmlinuz");
    let (initrd, initrd_file) = initrd::ensure(&store, &image.path, &agent)?;
    let (job, job_file, _) = job::ensure(&store, &options.ship)?;
    store.needs_mib(256, "a guest's changes to its disks")?;
    let kvm = kvm::works(&store, &run, &kernel, &initrd_file);
    let discarded = |serial: &str, file: PathBuf| Drive {
        serial: serial.to_owned(),
        file,
        format: "raw",
        writes: Writes::Discarded,
    };
    let mut drives = vec![
        discarded("root", image.path.join("root.img")),
        discarded("job", job_file),
    ];
    drives.extend(options.disks.iter().map(|disk| Drive {
        serial: disk.name.clone(),
        file: disk.file.clone(),
        format: "raw",
        writes: Writes::Kept,
    }));
    let bare = if options.bare { " orlop.bare" } else { "" };
    let machine = Machine {
        kvm,
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        kernel,
        initrd: initrd_file,
        arguments: format!(
            "{}{bare} systemd.show_status=0 systemd.hostname=node0 {}",
            kernel_arguments(kvm),
            options.kernel_arguments
        ),
        drives,
        network: None,
        incoming: None,
    };
    Ok(Parts {
        store,
        entries: vec![image, initrd, job],
        run,
        machine,
        took: begun.elapsed(),
    })
}

/// The agent's executable: named by `hack/vm`, which builds it.
fn agent() -> Result<PathBuf> {
    let path =
        std::env::var_os("ORLOP_VM_AGENT").map_or_else(|| target().join("vm/bin/vm-agent"), PathBuf::from);
    ensure!(
        path.is_file(),
        "the agent `{}` isn't built: run `hack/vm build`",
        path.display()
    );
    Ok(path)
}

/// Starts a machine, from a saved guest if that is asked for, and mounts the job and the disks.
fn start(options: &Options, store: &Store, machine: &Machine, folder: &Path, name: &str) -> Result<Vm> {
    let own = folder.join(name);
    fs::create_dir(&own).with_context(|| format!("failed to create `{}`", own.display()))?;
    if let Some(node) = machine.network {
        // QEMU names its sockets relative to its own folder, because their paths must be short.
        let socket = format!("s{node}");
        std::os::unix::fs::symlink(folder.join(&socket), own.join(&socket))?;
    }
    let mut image = Duration::ZERO;
    let mut entries = Vec::new();
    let mut begun = Instant::now();
    let (process, mut channel) = if options.snapshot {
        ensure!(
            options.disks.is_empty(),
            "a saved guest knows no disk that survives: leave out one of the two"
        );
        let (entry, restored) = restore(store, machine, &own, name, options)?;
        entries.push(entry);
        image = restored.saved;
        begun += image;
        restored.up
    } else {
        come_up(machine, &own, name, options)?
    };
    mount(&mut channel, options)?;
    Ok(Vm {
        process,
        channel,
        times: Times {
            image,
            boot: begun.elapsed(),
        },
        folder: own,
        _entries: entries,
        _run: None,
    })
}

struct Restored {
    up: (Process, Channel),
    /// How long it took to save the guest, if that had to be done.
    saved: Duration,
}

/// Goes on from a saved guest. One that doesn't come back, twice, is forgotten and saved anew, once.
fn restore(
    store: &Store,
    machine: &Machine,
    folder: &Path,
    name: &str,
    options: &Options,
) -> Result<(Entry, Restored)> {
    let begun = Instant::now();
    let save = |first: &Machine, folder: &Path| {
        let (process, mut channel) = come_up(first, folder, "to be saved", options)?;
        channel.sync()?;
        let monitor = process.monitor.try_clone()?;
        Ok::<(UnixStream, Box<dyn std::any::Any>), _>((monitor, Box::new((process, channel))))
    };
    for last in [false, true] {
        let (entry, next, _) = snapshot::ensure(store, machine, save)?;
        let saved = begun.elapsed();
        match come_up(&next, folder, name, options) {
            Ok((process, mut channel)) => {
                channel.set_clock()?;
                return Ok((
                    entry,
                    Restored {
                        up: (process, channel),
                        saved,
                    },
                ));
            }
            Err(e) if last => return Err(e),
            Err(e) => {
                eprintln!("vm: {name}: {e:#}; saving a new one");
                store.forget(entry)?;
            }
        }
    }
    bail!("the last try has ended the loop")
}

/// Mounts the job where it is on the host, and the disks where they are wanted.
fn mount(channel: &mut Channel, options: &Options) -> Result<()> {
    let agent = "/run/orlop-vm/agent";
    let place = workspace().to_string_lossy().into_owned();
    channel
        .start(&Script::new([agent, "mount", "job", &place]))?
        .finish()?
        .ok()
        .context("failed to mount the job's disk")?;
    for disk in &options.disks {
        let mut words = vec![agent, "mount", &disk.name, &disk.place, disk.system.name()];
        if !disk.options.is_empty() {
            words.push(&disk.options);
        }
        channel
            .start(&Script::new(words))?
            .finish()?
            .ok()
            .with_context(|| format!("failed to mount the disk `{}`", disk.name))?;
    }
    Ok(())
}

/// Starts QEMU and waits for the agent; once more if it hangs.
fn come_up(machine: &Machine, folder: &Path, name: &str, options: &Options) -> Result<(Process, Channel)> {
    match try_to_come_up(machine, folder, options.kernel_limit) {
        Ok(up) => Ok(up),
        Err(error) => {
            eprintln!("vm: {name}: {error:#}; trying once more");
            try_to_come_up(machine, folder, options.kernel_limit).with_context(|| {
                format!(
                    "the guest {name} didn't come up, twice; if its image is damaged, remove `{}`",
                    machine.kernel.parent().unwrap_or(Path::new("/")).display()
                )
            })
        }
    }
}

fn try_to_come_up(machine: &Machine, folder: &Path, kernel_limit: Duration) -> Result<(Process, Channel)> {
    // Of the first try, if this is the second.
    let socket = machine.network.map(|node| format!("n{node}"));
    for old in socket.iter().map(String::as_str).chain(["console.log"]) {
        let _ = fs::remove_file(folder.join(old));
    }
    let mut process = Process::start(machine, folder)?;
    let mut channel = Channel::new(process.agent.try_clone()?)?;
    let begun = Instant::now();
    let told = |what: &str| {
        let console = image::tail(&folder.join("console.log"), 8);
        let log = image::tail(&folder.join("qemu.log"), 4);
        anyhow::anyhow!(
            "{what} after {:.1} s\n{console}\n{log}",
            begun.elapsed().as_secs_f64()
        )
    };
    let hello = match channel.hello() {
        Ok(hello) => hello,
        Err(_) => bail!(told("QEMU ended")),
    };
    loop {
        match hello.answered(Duration::from_millis(100)) {
            Ok(true) => return Ok((process, channel)),
            Ok(false) => {}
            Err(_) => bail!(told("QEMU ended")),
        }
        if process.ended().is_some() {
            bail!(told("QEMU ended"));
        }
        let limit = if machine.incoming.is_some() {
            RESTORE_LIMIT
        } else if image::tail(&folder.join("console.log"), 50).contains("orlop: kernel up") {
            AGENT_LIMIT
        } else {
            kernel_limit
        };
        if begun.elapsed() > limit {
            bail!(told("the guest hangs"));
        }
    }
}
