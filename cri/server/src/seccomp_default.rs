//! The RuntimeDefault seccomp profile: what a container may ask of the kernel when nobody chose a profile.
//!
//! An allow list with EPERM for the rest. It is the list that container engines agree on (facts, kept here by topic):
//! everything an ordinary program needs, without what reaches the whole host. Some groups come with the capability
//! that they are useless without, so that a capability given to a container works and nothing more. `clone` is allowed
//! for processes and threads but not for new namespaces, and `clone3`, whose arguments a filter can't see, says ENOSYS,
//! so that C libraries go back to `clone`. Pure data: the compiler that makes a filter of it is the OCI runtime's.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Virtual machine sockets: they would reach the hypervisor past the network namespace.
const AF_VSOCK: u64 = 40;
/// Every CLONE_NEW* flag that clone(2) takes: cgroup, ipc, net, mount, pid, user and uts.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Linux, UNAME26, READ_IMPLIES_EXEC-free combinations, and the query: the personalities that programs really use.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
    fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch \
    inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listmount listxattr \
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 \
    setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range \
    syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev";

const EVENTS: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
    io_submit _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4";

const MEMORY: &str = "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall \
    mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    remap_file_pages";

const PROCESSES: &str = "capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit \
    get_robust_list getrusage getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl \
    prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit set_robust_list setsid set_thread_area set_tid_address setuid setuid32 sigaltstack \
    sigprocmask sigreturn sysinfo tgkill tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid";

const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";

const TIME: &str = "adjtimex alarm cachestat clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer \
    time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times";

/// What a capability unlocks.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The profile for a container with these capabilities (its bounding set, with or without `CAP_`) on a machine of this
/// architecture (`x86_64`, `aarch64`, or Go's `amd64`, `arm64`; any other gets its native ABI only).
#[must_use]
pub fn runtime_default(capabilities: &[String], arch: &str) -> LinuxSeccomp {
    let has = |name: &str| {
        let short = name.trim_start_matches("CAP_");
        capabilities
            .iter()
            .any(|c| c.trim_start_matches("CAP_").eq_ignore_ascii_case(short))
    };
    let (abis, of_machine) = machine(arch);
    let mut rules = vec![allow(
        [FILES, EVENTS, MEMORY, PROCESSES, SOCKETS, IPC, TIME, of_machine].join(" "),
    )];
    rules.extend(
        PERSONALITIES.map(|p| allow_if("personality", argument(0, LinuxSeccompOperator::ScmpCmpEq, p))),
    );
    rules.push(allow_if(
        "socket",
        argument(0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK),
    ));
    rules.extend(
        BY_CAPABILITY
            .iter()
            .filter(|(name, _)| has(name))
            .map(|(_, names)| allow(*names)),
    );
    if !has("CAP_SYS_ADMIN") {
        rules.push(allow_if(
            "clone",
            argument(0, LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES),
        ));
        let refused = LinuxSyscallBuilder::default().names(["clone3".to_owned()]);
        let refused = refused.action(LinuxSeccompAction::ScmpActErrno).errno_ret(ENOSYS);
        rules.push(refused.build().expect("every field has a default"));
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(abis)
        .syscalls(rules)
        .build()
        .expect("every field has a default")
}

/// The ABIs that a machine runs, and the calls that only it has.
fn machine(arch: &str) -> (Vec<Arch>, &'static str) {
    match arch {
        "x86_64" | "amd64" => (
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
            "arch_prctl modify_ldt",
        ),
        "aarch64" | "arm64" => (
            vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
            "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
        ),
        "riscv64" => (vec![Arch::ScmpArchRiscv64], "riscv_flush_icache riscv_hwprobe"),
        _ => (vec![Arch::ScmpArchNative], ""),
    }
}

fn allow(names: impl AsRef<str>) -> LinuxSyscall {
    let names: Vec<String> = names.as_ref().split_whitespace().map(str::to_owned).collect();
    let rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow);
    rule.build().expect("every field has a default")
}

fn allow_if(name: &str, argument: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allow(name);
    rule.set_args(Some(vec![argument]));
    rule
}

/// For MASKED_EQ the value is the mask, and the masked bits must all be 0.
fn argument(index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    let built = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(0u64);
    built.build().expect("every field has a default")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rules<'a>(profile: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
        let all = profile.syscalls().as_ref().unwrap();
        all.iter()
            .filter(|rule| rule.names().iter().any(|n| n == name))
            .collect()
    }

    fn allowed(profile: &LinuxSeccomp, name: &str) -> bool {
        rules(profile, name)
            .iter()
            .any(|r| r.action() == LinuxSeccompAction::ScmpActAllow && r.args().is_none())
    }

    #[test]
    fn without_capabilities_nothing_that_reaches_the_host_is_allowed() {
        let profile = runtime_default(&[], "x86_64");
        for name in [
            "mount",
            "unshare",
            "setns",
            "reboot",
            "init_module",
            "bpf",
            "keyctl",
            "kexec_load",
            "io_uring_setup",
        ] {
            assert!(!allowed(&profile, name), "{name} is allowed");
        }
        for name in [
            "read",
            "openat2",
            "execve",
            "futex",
            "arch_prctl",
            "ptrace",
            "statx",
        ] {
            assert!(allowed(&profile, name), "{name} is not allowed");
        }
        let clone3 = rules(&profile, "clone3");
        assert_eq!((clone3.len(), clone3[0].errno_ret()), (1, Some(ENOSYS)));
        let clone = rules(&profile, "clone")[0].args().as_ref().unwrap()[0];
        assert_eq!((clone.value(), clone.value_two()), (NEW_NAMESPACES, Some(0)));
    }

    #[test]
    fn a_capability_unlocks_its_calls_and_no_others() {
        let profile = runtime_default(&["CAP_SYS_ADMIN".to_owned(), "sys_chroot".to_owned()], "amd64");
        for name in ["mount", "unshare", "clone", "clone3", "chroot"] {
            assert!(allowed(&profile, name), "{name} is not allowed");
        }
        assert!(!allowed(&profile, "reboot"));
        assert_eq!(rules(&profile, "clone").len(), 1);
    }

    #[test]
    fn every_name_is_listed_once() {
        let mut seen = BTreeSet::new();
        for name in [FILES, EVENTS, MEMORY, PROCESSES, SOCKETS, IPC, TIME]
            .join(" ")
            .split_whitespace()
        {
            assert!(seen.insert(name.to_owned()), "{name} is listed twice");
        }
        assert!(seen.len() > 330, "only {} names", seen.len());
    }

    #[test]
    fn arm_gets_its_own_abis_and_calls() {
        let profile = runtime_default(&[], "arm64");
        assert_eq!(
            profile.architectures().as_ref().unwrap().as_slice(),
            [Arch::ScmpArchAarch64, Arch::ScmpArchArm]
        );
        assert!(allowed(&profile, "set_tls") && !allowed(&profile, "arch_prctl"));
    }
}
