//! The compiler against a naive reading of the profile: random profiles, random calls, and a BPF interpreter.

use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};
use proptest::prelude::*;

use super::numbers::{NONE, NUMBERS};
use super::*;

/// What the kernel hands to a filter.
#[derive(Debug, Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;

/// Runs a filter as the kernel would, and counts the instructions.
fn run(filter: &Filter, call: Call) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend_from_slice(&call.number.to_le_bytes());
    data.extend_from_slice(&call.arch.to_le_bytes());
    data.extend_from_slice(&0x1234_5678_9abc_def0u64.to_le_bytes());
    call.args
        .iter()
        .for_each(|a| data.extend_from_slice(&a.to_le_bytes()));
    let code: Vec<&[u8]> = filter.program.chunks_exact(8).collect();
    let (mut at, mut accumulator, mut steps) = (0usize, 0u32, 0usize);
    loop {
        let i = code[at];
        let opcode = u16::from_ne_bytes([i[0], i[1]]);
        let (yes, no) = (usize::from(i[2]), usize::from(i[3]));
        let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
        at += 1;
        steps += 1;
        let mut branch = |taken: bool| at += if taken { yes } else { no };
        match opcode {
            bpf::LOAD => {
                let o = k as usize;
                accumulator = u32::from_le_bytes(data[o..o + 4].try_into().unwrap());
            }
            bpf::AND => accumulator &= k,
            bpf::JUMP => at += k as usize,
            bpf::IF_EQUAL => branch(accumulator == k),
            bpf::IF_GREATER => branch(accumulator > k),
            bpf::IF_AT_LEAST => branch(accumulator >= k),
            bpf::RETURN => return (k, steps),
            other => panic!("unknown opcode {other:#x}"),
        }
    }
}

/// The column of the table and the number in it; `None` for an ABI the profile does not list.
fn abi(profile: &LinuxSeccomp, call: Call) -> Option<(usize, u32)> {
    let listed = |arch: Arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    let native = std::env::consts::ARCH;
    match call.arch {
        X86_64 if call.number >= 0x4000_0000 && call.number != u32::MAX => {
            listed(Arch::ScmpArchX32).then_some((1, call.number - 0x4000_0000))
        }
        X86_64 => (native == "x86_64"
            || listed(Arch::ScmpArchX86_64)
            || (call.number == u32::MAX && listed(Arch::ScmpArchX32)))
        .then_some((0, call.number)),
        X86 => listed(Arch::ScmpArchX86).then_some((2, call.number)),
        AARCH64 => (native == "aarch64" || listed(Arch::ScmpArchAarch64)).then_some((3, call.number)),
        ARM => listed(Arch::ScmpArchArm).then_some((4, call.number)),
        _ => None,
    }
}

fn value_of(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::ScmpActErrno => 0x0005_0000 | errno.unwrap_or(1),
        Action::ScmpActTrace => 0x7ff0_0000 | errno.unwrap_or(1),
        other => other.as_u32(None),
    }
}

fn holds(arg: &LinuxSeccompArg, call: Call) -> bool {
    let (a, v) = (call.args[arg.index()], arg.value());
    match arg.op() {
        Op::ScmpCmpNe => a != v,
        Op::ScmpCmpLt => a < v,
        Op::ScmpCmpLe => a <= v,
        Op::ScmpCmpEq => a == v,
        Op::ScmpCmpGe => a >= v,
        Op::ScmpCmpGt => a > v,
        Op::ScmpCmpMaskedEq => a & v == arg.value_two().unwrap_or(0),
    }
}

fn rule_matches(rule: &LinuxSyscall, call: Call) -> bool {
    let args = rule.args().clone().unwrap_or_default();
    let repeated = args
        .iter()
        .enumerate()
        .any(|(i, a)| args[..i].iter().any(|b| b.index() == a.index()));
    if repeated {
        args.iter().any(|a| holds(a, call))
    } else {
        args.iter().all(|a| holds(a, call))
    }
}

/// The profile read word for word.
fn naive(profile: &LinuxSeccomp, call: Call) -> u32 {
    let Some((column, number)) = abi(profile, call) else {
        return 0x8000_0000;
    };
    let default = value_of(profile.default_action(), profile.default_errno_ret());
    if call.number == u32::MAX {
        return default;
    }
    let number_of = |name: &str| {
        let row = NUMBERS.iter().find(|(known, _)| *known == name)?;
        Some(row.1[column]).filter(|n| *n != NONE)
    };
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    for rule in rules {
        let named = rule.names().iter().any(|name| number_of(name) == Some(number));
        if named && rule_matches(rule, call) {
            return value_of(rule.action(), rule.errno_ret());
        }
    }
    let end = if column == 4 { 0xf0000 } else { u32::MAX };
    let names = rules.iter().flat_map(|r| r.names());
    let newest = names
        .filter_map(|name| number_of(name))
        .filter(|n| *n < end)
        .max();
    let permissive = matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    match newest {
        Some(newest) if number > newest && number < end && !permissive => 0x0005_0000 | 38,
        _ => default,
    }
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        any::<u32>().prop_map(|v| u64::from(v) << 32),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1u64 << 32),
        Just(0x7e02_0000),
    ]
}

fn action() -> impl Strategy<Value = (Action, Option<u32>)> {
    prop_oneof![
        Just((Action::ScmpActKill, None)),
        Just((Action::ScmpActKillProcess, None)),
        Just((Action::ScmpActKillThread, None)),
        Just((Action::ScmpActTrap, None)),
        Just((Action::ScmpActErrno, None)),
        (0u32..4096).prop_map(|e| (Action::ScmpActErrno, Some(e))),
        (0u32..65536).prop_map(|e| (Action::ScmpActTrace, Some(e))),
        Just((Action::ScmpActAllow, None)),
        Just((Action::ScmpActAllow, None)),
        Just((Action::ScmpActLog, None)),
    ]
}

fn arg() -> impl Strategy<Value = LinuxSeccompArg> {
    let ops = prop::sample::select(vec![
        Op::ScmpCmpNe,
        Op::ScmpCmpLt,
        Op::ScmpCmpLe,
        Op::ScmpCmpEq,
        Op::ScmpCmpGe,
        Op::ScmpCmpGt,
        Op::ScmpCmpMaskedEq,
    ]);
    (0usize..6, interesting(), interesting(), ops).prop_map(|(index, value, two, op)| {
        let two = if op == Op::ScmpCmpMaskedEq {
            two & value
        } else {
            two
        };
        LinuxSeccompArgBuilder::default()
            .index(index)
            .value(value)
            .value_two(two)
            .op(op)
            .build()
            .unwrap()
    })
}

fn rule() -> impl Strategy<Value = LinuxSyscall> {
    let known = prop::sample::select(
        NUMBERS
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect::<Vec<_>>(),
    );
    let few = prop::sample::select(vec![
        "read",
        "write",
        "clone",
        "socket",
        "set_tls",
        "mseal",
        "no_such_call",
    ]);
    let name = prop_oneof![3 => known, 2 => few.prop_map(str::to_owned)];
    let args = prop_oneof![2 => Just(Vec::new()), 3 => prop::collection::vec(arg(), 1..4)];
    (prop::collection::vec(name, 1..25), action(), args).prop_map(|(names, (action, errno), args)| {
        let mut rule = LinuxSyscallBuilder::default()
            .names(names)
            .action(action)
            .build()
            .unwrap();
        rule.set_errno_ret(errno);
        rule.set_args((!args.is_empty()).then_some(args));
        rule
    })
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let archs = prop::sample::subsequence(
        vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
            Arch::ScmpArchAarch64,
            Arch::ScmpArchArm,
            Arch::ScmpArchS390x,
        ],
        0..=6,
    );
    (archs, action(), prop::collection::vec(rule(), 0..9)).prop_map(|(archs, (default, errno), rules)| {
        let mut profile = LinuxSeccompBuilder::default()
            .default_action(default)
            .architectures(archs)
            .syscalls(rules)
            .build()
            .unwrap();
        profile.set_default_errno_ret(errno);
        profile
    })
}

/// Calls near what the profile speaks of.
fn calls(profile: &LinuxSeccomp, seeds: &[(u8, u32, [u64; 6])]) -> Vec<Call> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut calls = Vec::new();
    for &(pick, word, random) in seeds {
        let arch = [X86_64, X86_64, X86, AARCH64, ARM, 0x8000_0016][usize::from(pick) % 6];
        let mut args = random;
        let rule = (!rules.is_empty()).then(|| &rules[word as usize % rules.len()]);
        for arg in rule.and_then(|r| r.args().as_ref()).into_iter().flatten() {
            let near = [
                arg.value(),
                arg.value_two().unwrap_or(0),
                arg.value().wrapping_add(1),
                arg.value().wrapping_sub(1),
            ];
            if word & 7 != 0 {
                args[arg.index()] = near[(word >> 4) as usize % 4];
            }
        }
        let name = rule.map(|r| &r.names()[(word >> 8) as usize % r.names().len()]);
        let row = name.and_then(|n| NUMBERS.iter().find(|(known, _)| known == n));
        let mut number = match row {
            Some((_, columns)) if word % 5 != 0 => columns[usize::from(pick) % 5],
            _ => word % 600,
        };
        number = match (word >> 16) % 12 {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 | 3 => number.wrapping_add(0x4000_0000),
            4 => word,
            _ => number,
        };
        calls.push(Call { arch, number, args });
    }
    calls
}

/// The filter, unless chance made a profile that no kernel takes.
fn fitting(profile: &LinuxSeccomp) -> Option<Filter> {
    match compile(profile) {
        Err(SeccompError::TooLong(_)) => None,
        compiled => Some(compiled.unwrap()),
    }
}

fn seeds() -> impl Strategy<Value = Vec<(u8, u32, [u64; 6])>> {
    prop::collection::vec(
        (any::<u8>(), any::<u32>(), prop::array::uniform6(interesting())),
        60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_call_gets_what_the_profile_says(profile in profile(), seeds in seeds()) {
        let Some(filter) = fitting(&profile) else { return Ok(()) };
        prop_assert_eq!(filter.program.len() % 8, 0);
        for call in calls(&profile, &seeds) {
            let (got, _) = run(&filter, call);
            let wanted = naive(&profile, call);
            prop_assert_eq!(got, wanted, "{:x?}: got {:#x}, not {:#x}", call, got, wanted);
        }
    }

    #[test]
    fn jumps_stay_inside_the_program(profile in profile()) {
        let Some(filter) = fitting(&profile) else { return Ok(()) };
        let length = filter.instructions();
        for (at, i) in filter.program.chunks_exact(8).enumerate() {
            let opcode = u16::from_ne_bytes([i[0], i[1]]);
            let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]) as usize;
            match opcode {
                bpf::JUMP => prop_assert!(at + 1 + k < length),
                bpf::RETURN => {}
                _ => prop_assert!(at + 1 + usize::from(i[2].max(i[3])) < length),
            }
        }
    }
}

fn simple(default: Action, rules: Vec<LinuxSyscall>) -> LinuxSeccomp {
    LinuxSeccompBuilder::default()
        .default_action(default)
        .syscalls(rules)
        .build()
        .unwrap()
}

fn named(name: &str, action: Action) -> LinuxSyscall {
    LinuxSyscallBuilder::default()
        .names([name.to_owned()])
        .action(action)
        .build()
        .unwrap()
}

#[test]
fn the_table_is_sorted_and_every_abi_has_its_calls() {
    assert!(NUMBERS.windows(2).all(|w| w[0].0 < w[1].0));
    let row = |name: &str| NUMBERS.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(row("read"), [0, 0, 3, 63, 3]);
    assert_eq!(row("execve"), [59, 520, 11, 221, 11]);
    assert_eq!(row("clone3"), [435; 5]);
    assert_eq!(row("openat2"), [437; 5]);
    assert_eq!(row("set_tls")[4], 0xf0005);
    assert_eq!(row("mmap")[3], 222);
}

#[test]
fn a_large_profile_makes_a_short_path() {
    let names: Vec<String> = NUMBERS.iter().step_by(2).map(|(n, _)| (*n).to_owned()).collect();
    let mut rule = named("read", Action::ScmpActAllow);
    rule.set_names(names);
    let mut profile = simple(Action::ScmpActErrno, vec![rule]);
    profile.set_architectures(Some(vec![
        Arch::ScmpArchX86_64,
        Arch::ScmpArchX86,
        Arch::ScmpArchX32,
    ]));
    let filter = compile(&profile).unwrap();
    let longest = (0..600)
        .map(|number| {
            run(
                &filter,
                Call {
                    arch: X86_64,
                    number,
                    args: [0; 6],
                },
            )
            .1
        })
        .max();
    assert!(longest.unwrap() < 20, "{longest:?} instructions for one call");
    assert!(
        filter.instructions() < 1200,
        "{} instructions",
        filter.instructions()
    );
}

#[test]
fn x32_is_killed_unless_listed() {
    let mut profile = simple(Action::ScmpActAllow, vec![]);
    let call = Call {
        arch: X86_64,
        number: 0x4000_0000,
        args: [0; 6],
    };
    assert_eq!(run(&compile(&profile).unwrap(), call).0, 0x8000_0000);
    profile.set_architectures(Some(vec![Arch::ScmpArchX32]));
    assert_eq!(run(&compile(&profile).unwrap(), call).0, 0x7fff_0000);
}

#[test]
fn newer_calls_than_the_profile_knows_answer_enosys() {
    let profile = simple(Action::ScmpActErrno, vec![named("openat2", Action::ScmpActAllow)]);
    let filter = compile(&profile).unwrap();
    let answer = |number| {
        run(
            &filter,
            Call {
                arch: X86_64,
                number,
                args: [0; 6],
            },
        )
        .0
    };
    assert_eq!(answer(437), 0x7fff_0000);
    assert_eq!(answer(438), 0x0005_0026);
    assert_eq!(answer(436), 0x0005_0001);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = |profile: &LinuxSeccomp| compile(profile).unwrap_err().to_string();
    let notify = simple(Action::ScmpActAllow, vec![named("mount", Action::ScmpActNotify)]);
    assert!(refused(&notify).contains("SCMP_ACT_NOTIFY (used for `mount`)"));
    let mut errno = named("mount", Action::ScmpActAllow);
    errno.set_errno_ret(Some(5));
    assert!(refused(&simple(Action::ScmpActAllow, vec![errno])).contains("errnoRet is set for `mount`"));
    let mut large = named("mount", Action::ScmpActErrno);
    large.set_errno_ret(Some(5000));
    assert!(refused(&simple(Action::ScmpActAllow, vec![large])).contains("greater than 4095"));
    let mut seventh = named("mount", Action::ScmpActErrno);
    seventh.set_args(Some(vec![
        LinuxSeccompArgBuilder::default().index(6usize).build().unwrap(),
    ]));
    assert!(refused(&simple(Action::ScmpActAllow, vec![seventh])).contains("argument 6"));
    let mut flag = simple(Action::ScmpActAllow, vec![]);
    flag.set_flags(Some(vec![FilterFlag::SeccompFilterFlagWaitKillableRecv]));
    assert!(refused(&flag).contains("WAIT_KILLABLE_RECV"));
}

#[test]
fn a_profile_too_large_for_the_kernel_is_refused() {
    let arg = |value: u64| {
        LinuxSeccompArgBuilder::default()
            .index(0usize)
            .value(value)
            .op(Op::ScmpCmpEq)
            .build()
            .unwrap()
    };
    let rules = (0..2000u64).map(|value| {
        let mut rule = named("ioctl", Action::ScmpActAllow);
        rule.set_args(Some(vec![arg(value)]));
        rule
    });
    let error = compile(&simple(Action::ScmpActErrno, rules.collect())).unwrap_err();
    assert!(matches!(error, SeccompError::TooLong(_)), "{error}");
}

#[test]
fn the_cache_survives_damage_and_tells_profiles_apart() {
    let tmp = tempfile::tempdir().unwrap();
    let directory = tmp.path().join("seccomp");
    let one = simple(Action::ScmpActErrno, vec![named("read", Action::ScmpActAllow)]);
    let other = simple(Action::ScmpActErrno, vec![named("write", Action::ScmpActAllow)]);
    let fresh = compile_cached(&one, &directory).unwrap();
    assert_eq!(fresh, compile(&one).unwrap());
    compile_cached(&other, &directory).unwrap();
    let entries = || {
        std::fs::read_dir(&directory)
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect::<Vec<_>>()
    };
    assert_eq!(entries().len(), 2);
    for damage in [&b""[..], b"short", &[0u8; 4000], &[0u8; 200_000]] {
        for entry in entries() {
            std::fs::write(entry, damage).unwrap();
        }
        assert_eq!(compile_cached(&one, &directory).unwrap(), fresh);
    }
    // A flipped bit in an otherwise whole entry.
    for entry in entries() {
        let mut bytes = std::fs::read(&entry).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&entry, bytes).unwrap();
    }
    assert_eq!(compile_cached(&one, &directory).unwrap(), fresh);
    assert_eq!(compile_cached(&one, &directory).unwrap(), fresh);
    assert_eq!(entries().len(), 2);
}

#[test]
fn a_cache_that_can_not_be_written_fails_nothing() {
    let profile = simple(Action::ScmpActAllow, vec![]);
    assert!(compile_cached(&profile, Path::new("/proc/no-such/seccomp")).is_ok());
}
