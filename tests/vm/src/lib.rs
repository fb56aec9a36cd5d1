//! Debian guests in seconds: a Linux with systemd and unified cgroup v2, whatever the host has.
//!
//! A [`Vm`] is one QEMU process and an agent inside that runs commands. Everything that it needs is made once and kept
//! below `target/vm`, named by what it was made from ([`store`]): the root disk with the kernel ([`image`], by
//! mmdebstrap and `mke2fs -d`), the initial RAM disk with the agent ([`initrd`]), the job's disk ([`job`]): the
//! workspace with what was built, at the same path as on the host; and saved guests ([`snapshot`]). A guest writes to
//! none of them: QEMU throws its changes away. What shall survive goes to a [`Disk`] of one's own, or back through the
//! agent.
//!
//! For tests that cut the power: [`Vm::boot`] with a [`Disk`], [`Vm::spawn`] for the work, [`Vm::kill`] at a moment of
//! one's choice, and [`Vm::boot`] again with the same disk. The file keeps what the guest's kernel had written to the
//! disk; what was only in its page cache is gone.
//!
//! ```no_run
//! use tests_vm::{Disk, Options, Script, Vm};
//! # fn main() -> anyhow::Result<()> {
//! let disk = Disk::open("data", "/tmp/data.img".as_ref(), tests_vm::FileSystem::Ext4, 2048)?;
//! let options = Options { disks: vec![disk.at("/data").options("noauto_da_alloc,commit=300")], ..Options::default() };
//! let mut vm = Vm::boot(&options)?;
//! let work = vm.spawn(&Script::shell("while :; do date >> /data/log; done"))?;
//! std::thread::sleep(std::time::Duration::from_secs(1));
//! drop(work);
//! vm.kill()?;
//! let mut vm = Vm::boot(&options)?;
//! println!("{}", vm.run(&Script::shell("tail -1 /data/log"))?.stdout_text());
//! # Ok(()) }
//! ```
//!
//! QEMU dies with the process that booted it, also with a killed one; what such a process left in `target/vm/runs` the
//! next one removes.

mod channel;
pub mod cli;
mod disk;
mod image;
mod initrd;
mod job;
mod kvm;
mod modules;
mod qemu;
mod snapshot;
mod store;
mod switch;
mod vm;
pub mod wire;

pub use channel::{Finished, Script, Task};
pub use disk::{Disk, FileSystem};
pub use store::{target, workspace};
pub use switch::Switch;
pub use vm::{Options, Times, Vm, boot_nodes};
