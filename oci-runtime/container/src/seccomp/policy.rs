//! What a profile says about each system call of each ABI: the decision, before it is made into code.
//!
//! Rules are taken in the profile's order and the first that matches decides; the default action is last. Peers agree
//! with that wherever their answer does not depend on the order in which their library happens to sort rules. As runc
//! and crun do, a rule that names the same argument twice is read as one rule for each condition; names that an ABI
//! does not have are skipped; and calls newer than the newest that the profile names answer ENOSYS (unless the default
//! is a permissive action), because a profile can't have meant to forbid what its author could not know, and C
//! libraries fall back on ENOSYS only.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompError;
use super::numbers::{NONE, NUMBERS};

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel's MAX_ERRNO.
const MAX_ERRNO: u32 = 4095;

/// x32 shares x86_64's audit architecture, and marks its numbers with this bit.
const X32_BIT: u32 = 0x4000_0000;
/// Where arm's private calls begin, far behind the others.
const ARM_PRIVATE: u32 = 0x000f_0000;
/// The number of no call: a tracer sets it to skip one.
const NO_CALL: u32 = u32::MAX;

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Always the same answer.
    Answer(u32),
    /// The first rule whose conditions all hold decides; if none does, the last field.
    Rules(Vec<Rule>, u32),
}

/// Conditions that must all hold, and the answer then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) answer: u32,
}

/// A comparison of a 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: usize,
    pub(super) compare: Compare,
}

/// How, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    AtLeast(u64),
    Less(u64),
    AtMost(u64),
    Masked { mask: u64, value: u64 },
}

/// The decisions for one audit architecture: each range begins at its number and ends before the next one's. The
/// first begins at 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchPolicy {
    pub(super) audit_arch: u32,
    pub(super) ranges: Vec<(u32, Decision)>,
}

/// The ABIs whose numbers are known here, by their column in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abi {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

impl Abi {
    const ALL: [Self; 5] = [Self::X86_64, Self::X32, Self::X86, Self::Aarch64, Self::Arm];

    /// linux/audit.h
    fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The numbers that calls of this ABI may have, and that the kernel may yet give away.
    fn space(self) -> (u32, u32) {
        match self {
            Self::X32 => (X32_BIT, NO_CALL),
            Self::X86_64 => (0, X32_BIT),
            Self::Arm => (0, ARM_PRIVATE),
            _ => (0, NO_CALL),
        }
    }

    fn native() -> Result<Self, SeccompError> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "x86" => Ok(Self::X86),
            "aarch64" => Ok(Self::Aarch64),
            "arm" => Ok(Self::Arm),
            other => Err(SeccompError::NativeArch(other)),
        }
    }

    /// `None` for an architecture that no machine we run on can execute: its calls never come, and would be killed.
    fn of(arch: Arch) -> Result<Option<Self>, SeccompError> {
        Ok(Some(match arch {
            Arch::ScmpArchNative => Self::native()?,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchArm => Self::Arm,
            _ => return Ok(None),
        }))
    }

    fn number(self, name: &str) -> Option<u32> {
        let row = NUMBERS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
        let number = NUMBERS[row].1[self as usize];
        (number != NONE).then(|| number + if self == Self::X32 { X32_BIT } else { 0 })
    }
}

/// The answer to a call from an architecture that the profile does not list.
pub(super) const FOREIGN: u32 = KILL_PROCESS;

/// Decides every number of every listed architecture, the machine's own first (it is always included).
pub(super) fn decide(profile: &LinuxSeccomp) -> Result<Vec<ArchPolicy>, SeccompError> {
    let default = answer(
        "defaultAction",
        profile.default_action(),
        profile.default_errno_ret(),
    )?;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let rules = rules.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut abis = vec![Abi::native()?];
    for arch in profile.architectures().as_deref().unwrap_or_default() {
        abis.extend(Abi::of(*arch)?.filter(|abi| !abis.contains(abi)));
    }
    let enosys = !matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let mut policies: Vec<ArchPolicy> = Vec::new();
    for abi in &abis {
        let audit_arch = abi.audit_arch();
        if policies.iter().any(|p| p.audit_arch == audit_arch) {
            continue;
        }
        let sharing = Abi::ALL.into_iter().filter(|a| a.audit_arch() == audit_arch);
        let mut ranges = Vec::new();
        for abi in sharing {
            // x86_64 listed without x32, or the other way round: the unlisted one's numbers are foreign.
            let of_abi = if abis.contains(&abi) {
                decide_abi(abi, &rules, default, enosys)
            } else {
                vec![(abi.space().0, Decision::Answer(FOREIGN))]
            };
            of_abi
                .into_iter()
                .for_each(|(from, decision)| push(&mut ranges, from, decision));
        }
        push(&mut ranges, NO_CALL, Decision::Answer(default));
        ranges.dedup_by(|later, earlier| later.1 == earlier.1);
        policies.push(ArchPolicy { audit_arch, ranges });
    }
    Ok(policies)
}

/// A rule of the profile: the names, and what it adds to each.
struct Parsed<'a> {
    names: &'a [String],
    rules: Vec<Rule>,
}

fn parse(call: &LinuxSyscall) -> Result<Parsed<'_>, SeccompError> {
    let place = call.names().first().map_or("", String::as_str);
    let answer = answer(place, call.action(), call.errno_ret())?;
    let args = call.args().as_deref().unwrap_or_default();
    let conditions = args
        .iter()
        .map(|arg| condition(place, arg))
        .collect::<Result<Vec<_>, _>>()?;
    let twice = (0..conditions.len()).any(|i| conditions[..i].iter().any(|c| c.index == conditions[i].index));
    let rules = if twice {
        conditions
            .into_iter()
            .map(|c| Rule {
                conditions: vec![c],
                answer,
            })
            .collect()
    } else {
        vec![Rule { conditions, answer }]
    };
    Ok(Parsed {
        names: call.names(),
        rules,
    })
}

/// The ranges of one ABI, from the start of its numbers.
fn decide_abi(abi: Abi, rules: &[Parsed<'_>], default: u32, enosys: bool) -> Vec<(u32, Decision)> {
    // Number and rule, in the profile's order for each number as the sort is stable.
    let mut named: Vec<(u32, usize)> = Vec::new();
    for (index, parsed) in rules.iter().enumerate() {
        named.extend(
            parsed
                .names
                .iter()
                .filter_map(|name| Some((abi.number(name)?, index))),
        );
    }
    named.sort_by_key(|(number, _)| *number);
    let (start, end) = abi.space();
    // What differs from the default: single numbers, and the stretch behind the newest.
    let mut parts: Vec<(u32, u32, Decision)> = named
        .chunk_by(|a, b| a.0 == b.0)
        .map(|same| {
            let number = same[0].0;
            let rules = same.iter().flat_map(|(_, index)| &rules[*index].rules);
            (number, number + 1, combine(rules, default))
        })
        .collect();
    let newest = named
        .iter()
        .map(|(number, _)| *number)
        .filter(|&number| number < end)
        .max();
    if let Some(newest) = newest.filter(|_| enosys) {
        parts.push((newest + 1, end, Decision::Answer(ERRNO | ENOSYS)));
        parts.sort_by_key(|(from, _, _)| *from);
    }
    let mut ranges = vec![(start, Decision::Answer(default))];
    for (from, to, decision) in parts {
        push(&mut ranges, from, decision);
        push(&mut ranges, to, Decision::Answer(default));
    }
    ranges
}

/// Adds a range; one that it leaves without a number goes.
fn push(ranges: &mut Vec<(u32, Decision)>, from: u32, decision: Decision) {
    if ranges.last().is_some_and(|(start, _)| *start == from) {
        ranges.pop();
    }
    ranges.push((from, decision));
}

/// Rules behind one without conditions never get a say.
fn combine<'a>(rules: impl Iterator<Item = &'a Rule>, default: u32) -> Decision {
    let mut conditional = Vec::new();
    let mut otherwise = default;
    for rule in rules {
        if rule.conditions.is_empty() {
            otherwise = rule.answer;
            break;
        }
        conditional.push(rule.clone());
    }
    // Nor does a last rule that answers what would be answered anyway.
    while conditional.last().is_some_and(|rule| rule.answer == otherwise) {
        conditional.pop();
    }
    if conditional.is_empty() {
        Decision::Answer(otherwise)
    } else {
        Decision::Rules(conditional, otherwise)
    }
}

fn condition(place: &str, arg: &LinuxSeccompArg) -> Result<Condition, SeccompError> {
    if arg.index() > 5 {
        return Err(SeccompError::ArgumentIndex {
            syscall: place.to_owned(),
            index: arg.index(),
        });
    }
    let value = arg.value();
    let compare = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Compare::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Compare::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Compare::AtMost(value),
        LinuxSeccompOperator::ScmpCmpEq => Compare::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Compare::AtLeast(value),
        LinuxSeccompOperator::ScmpCmpGt => Compare::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Compare::Masked {
            mask: value,
            value: arg.value_two().unwrap_or(0),
        },
    };
    Ok(Condition {
        index: arg.index(),
        compare,
    })
}

/// The filter's answer for an action. `errnoRet` belongs to ERRNO and TRACE and is an error anywhere else, as the
/// runtime specification demands.
fn answer(place: &str, action: Action, errno_ret: Option<u32>) -> Result<u32, SeccompError> {
    let with_number = |base: u32, max: u32| match errno_ret.unwrap_or(EPERM) {
        number if number <= max => Ok(base | number),
        number => Err(SeccompError::ErrnoRange {
            place: place.to_owned(),
            number,
            max,
        }),
    };
    let plain = match action {
        Action::ScmpActErrno => return with_number(ERRNO, MAX_ERRNO),
        Action::ScmpActTrace => return with_number(TRACE, 0xffff),
        Action::ScmpActNotify => {
            return Err(SeccompError::Notify {
                place: place.to_owned(),
            });
        }
        Action::ScmpActKill | Action::ScmpActKillThread => KILL_THREAD,
        Action::ScmpActKillProcess => KILL_PROCESS,
        Action::ScmpActTrap => TRAP,
        Action::ScmpActLog => LOG,
        Action::ScmpActAllow => ALLOW,
    };
    match errno_ret {
        None => Ok(plain),
        Some(_) => Err(SeccompError::ErrnoWithoutUse {
            place: place.to_owned(),
            action: action.to_string(),
        }),
    }
}
