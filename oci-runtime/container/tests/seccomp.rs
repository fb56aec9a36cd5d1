//! Compiled profiles in the real kernel: a forked child loads one and tries what it may not do.
//!
//! Forking takes a process with one thread, so this is a program of its own that reports like libtest does. Names on
//! its command line select tests.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use oci_runtime_container::seccomp::{Filter, compile};
use oci_runtime_sys::clone::{Forked, exit_now, fork};
use oci_runtime_sys::process::{Exit, execve, set_no_new_privs, wait};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};

const SIGSYS: i32 = 31;
const AF_UNIX: u64 = 1;

fn rule(names: &str, action: Action) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    LinuxSyscallBuilder::default()
        .names(names)
        .action(action)
        .build()
        .unwrap()
}

fn errno(names: &str, number: u32) -> LinuxSyscall {
    let mut rule = rule(names, Action::ScmpActErrno);
    rule.set_errno_ret(Some(number));
    rule
}

fn profile(default: Action, rules: Vec<LinuxSyscall>) -> LinuxSeccomp {
    let built = LinuxSeccompBuilder::default()
        .default_action(default)
        .syscalls(rules);
    built
        .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32])
        .build()
        .unwrap()
}

/// Runs `work` in a child below the filter.
fn under(filter: &Filter, work: impl FnOnce() -> i32) -> Exit {
    match fork(0, None).unwrap() {
        Forked::Parent(pid) => wait(pid, true).unwrap().unwrap().1,
        Forked::Child => {
            set_no_new_privs().unwrap();
            match oci_runtime_sys::seccomp::load(&filter.program, filter.flags) {
                Ok(()) => exit_now(work()),
                Err(e) => exit_now(200 + e.raw_os_error().unwrap_or(0)),
            }
        }
    }
}

fn number_of<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|e| e.raw_os_error().unwrap_or(199), |_| 0)
}

fn a_refused_call_fails_with_the_profile_s_errno() {
    let filter = compile(&profile(Action::ScmpActAllow, vec![errno("mkdir mkdirat", 77)])).unwrap();
    let made = under(&filter, || number_of(fs::create_dir("/proc/never")));
    assert_eq!(made, Exit::Code(77));
    let read = under(&filter, || number_of(fs::read("/proc/self/stat")));
    assert_eq!(read, Exit::Code(0));
}

fn kill_process_ends_with_sigsys() {
    for action in [
        Action::ScmpActKillProcess,
        Action::ScmpActKill,
        Action::ScmpActTrap,
    ] {
        let filter = compile(&profile(
            Action::ScmpActAllow,
            vec![rule("mkdir mkdirat", action)],
        ))
        .unwrap();
        let ended = under(&filter, || number_of(fs::create_dir("/proc/never")));
        assert_eq!(ended, Exit::Signal(SIGSYS), "{action:?}");
    }
}

fn arguments_decide() {
    let mut not_unix = errno("socket", 97);
    let other = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .op(Op::ScmpCmpNe)
        .value(AF_UNIX)
        .build();
    not_unix.set_args(Some(vec![other.unwrap()]));
    let filter = compile(&profile(Action::ScmpActAllow, vec![not_unix])).unwrap();
    assert_eq!(
        under(&filter, || number_of(UnixDatagram::unbound())),
        Exit::Code(0)
    );
    assert_eq!(
        under(&filter, || number_of(UdpSocket::bind("127.0.0.1:0"))),
        Exit::Code(97)
    );
}

/// Enough for a small C program; everything else is refused.
const ENOUGH: &str = "access arch_prctl brk close execve exit exit_group faccessat2 fstat getrandom mmap mprotect munmap \
    newfstatat openat pread64 prlimit64 read rseq set_robust_list set_tid_address write";

fn a_program_runs_under_an_allow_list() {
    let filter = compile(&profile(
        Action::ScmpActErrno,
        vec![rule(ENOUGH, Action::ScmpActAllow)],
    ))
    .unwrap();
    let run = |program: &str| {
        let program = CString::new(program).unwrap();
        under(&filter, || {
            150 + execve(&program, std::slice::from_ref(&program), &[])
                .raw_os_error()
                .unwrap_or(0)
        })
    };
    assert_eq!(run("/bin/true"), Exit::Code(0));
    assert_eq!(run("/bin/false"), Exit::Code(1));
    let refused = under(&filter, || number_of(fs::create_dir("/proc/never")));
    assert_eq!(refused, Exit::Code(1), "EPERM");
}

fn every_flag_is_taken_by_the_kernel() {
    let mut profile = profile(Action::ScmpActAllow, vec![errno("mkdir", 5)]);
    for flags in [
        None,
        Some(vec![]),
        Some(vec![LinuxSeccompFilterFlag::SeccompFilterFlagLog]),
        Some(vec![
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
        ]),
    ] {
        profile.set_flags(flags);
        assert_eq!(under(&compile(&profile).unwrap(), || 0), Exit::Code(0));
    }
}

/// Many answers and many conditions, up to what the kernel takes: its checker finds every bad jump.
fn the_kernel_takes_large_filters() {
    let mut largest = 0;
    for count in [1u64, 10, 100, 190] {
        let rules = (0..count).map(|value| {
            let mut rule = errno("ioctl fcntl", 1 + value as u32);
            let arg = |index: usize, op, value| {
                LinuxSeccompArgBuilder::default()
                    .index(index)
                    .op(op)
                    .value(value)
                    .build()
                    .unwrap()
            };
            rule.set_args(Some(vec![
                arg(1, Op::ScmpCmpGe, value << 31),
                arg(2, Op::ScmpCmpEq, value),
            ]));
            rule
        });
        let filter = compile(&profile(Action::ScmpActAllow, rules.collect())).unwrap();
        largest = largest.max(filter.instructions());
        let started = Instant::now();
        assert_eq!(
            under(&filter, || 0),
            Exit::Code(0),
            "{count} rules, {} instructions",
            filter.instructions()
        );
        eprintln!(
            "  {} instructions: fork, load and exit in {:?}",
            filter.instructions(),
            started.elapsed()
        );
    }
    assert!(largest > 2000, "{largest} instructions at most");
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), $name as fn())),*] };
}

fn main() -> ExitCode {
    let tests = tests![
        a_refused_call_fails_with_the_profile_s_errno,
        kill_process_ends_with_sigsys,
        arguments_decide,
        a_program_runs_under_an_allow_list,
        every_flag_is_taken_by_the_kernel,
        the_kernel_takes_large_filters,
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|a| a == "--exact");
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| {
        wanted.is_empty()
            || wanted.iter().any(|w| {
                if exact {
                    name == *w
                } else {
                    name.contains(w.as_str())
                }
            })
    };
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| chosen(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored",
        chosen.len() as u32 - failed
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
