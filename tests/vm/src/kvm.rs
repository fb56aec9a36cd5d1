//! Whether KVM boots a guest here. That `/dev/kvm` is there doesn't say so: on many machines that are guests themselves
//! it opens and then never gets anywhere. So the guest's own kernel is booted once, as far as the first line of the
//! agent, within a second or so; the answer holds until the host reboots.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::qemu::{Machine, Process, kernel_arguments};
use crate::store::{RunFolder, Store, key};

/// How long the probe waits. A kernel that runs by itself takes a third of it.
const LIMIT: Duration = Duration::from_millis(1500);

/// The answer.
pub(crate) fn works(store: &Store, run: &RunFolder, kernel: &Path, initrd: &Path) -> bool {
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = store.root().join("kvm");
    let this = key(&[boot.as_bytes(), kernel.as_os_str().as_encoded_bytes()]);
    if let Ok(text) = fs::read_to_string(&known)
        && let Some(answer) = text.strip_prefix(&this)
    {
        return answer.trim() == "yes";
    }
    let answer = probe(run, kernel, initrd);
    // It is only asked again next time if this fails.
    let _ = fs::write(&known, format!("{this} {}\n", if answer { "yes" } else { "no" }));
    answer
}

fn probe(run: &RunFolder, kernel: &Path, initrd: &Path) -> bool {
    let machine = Machine {
        kvm: true,
        cpus: 1,
        memory_mib: 256,
        kernel: kernel.to_owned(),
        initrd: initrd.to_owned(),
        arguments: format!("{} orlop.probe", kernel_arguments(true)),
        drives: Vec::new(),
        network: None,
        incoming: None,
    };
    let Ok(mut process) = Process::start(&machine, &run.path) else {
        return false;
    };
    let begun = Instant::now();
    let mut up = false;
    while begun.elapsed() < LIMIT && !up && process.ended().is_none() {
        std::thread::sleep(Duration::from_millis(10));
        up = booted(&run.path);
    }
    up || booted(&run.path)
}

fn booted(folder: &Path) -> bool {
    fs::read(folder.join("console.log"))
        .is_ok_and(|log| String::from_utf8_lossy(&log).contains("orlop: kernel up"))
}
