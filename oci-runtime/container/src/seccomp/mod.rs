//! Seccomp: an OCI `linux.seccomp` profile becomes a classic BPF program for seccomp(2).
//!
//! The story: the `policy` module works out, for each architecture, what each range of system call numbers gets; here that list
//! becomes a balanced tree of comparisons, so that the kernel runs a call through about ten instructions, where a
//! linear chain (libseccomp's) needs hundreds, checks and compiles a third of the code at load, and the whole costs a tenth
//! of libseccomp's time to make. The `cache` module keeps compiled filters on disk by content. Everything here is pure but that.
//!
//! Not supported, and refused by name: SCMP_ACT_NOTIFY and what belongs to it.

mod bpf;
mod cache;
#[rustfmt::skip]
mod numbers;
mod policy;
#[cfg(test)]
mod tests;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag as FilterFlag};

use bpf::{
    AND, Assembler, IF_AT_LEAST, IF_EQUAL, IF_GREATER, Instruction, LOAD, Label, OFFSET_ARCH, OFFSET_NUMBER,
    offset_of_argument,
};
pub use cache::compile_cached;
use policy::{ArchPolicy, Compare, Condition, Decision, FOREIGN, Rule};

/// The kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;
/// SECCOMP_FILTER_FLAG_LOG.
const FLAG_LOG: u32 = 1 << 1;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW.
const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// An array of `struct sock_filter` (8 bytes each) in the machine's byte order.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` for seccomp(2).
    pub flags: u32,
}

impl Filter {
    /// How many instructions the program has: `sock_fprog.len`.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.program.len() / 8
    }
}

/// A profile that can't be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The action that asks a supervisor.
    #[error("seccomp: SCMP_ACT_NOTIFY (used for `{place}`) is not supported; use another action")]
    Notify {
        /// A system call of the rule, or `defaultAction`.
        place: String,
    },
    /// A return code where none can be given.
    #[error("seccomp: errnoRet is set for `{place}`, but the action {action} does not return one")]
    ErrnoWithoutUse {
        /// A system call of the rule, or `defaultAction`.
        place: String,
        /// The action.
        action: String,
    },
    /// A return code that the kernel does not pass on.
    #[error("seccomp: errnoRet {number} for `{place}` is greater than {max}")]
    ErrnoRange {
        /// A system call of the rule, or `defaultAction`.
        place: String,
        /// The number.
        number: u32,
        /// The largest that is possible.
        max: u32,
    },
    /// System calls have six arguments.
    #[error("seccomp: a rule for `{syscall}` compares argument {index}, but there are only 0 to 5")]
    ArgumentIndex {
        /// A system call of the rule.
        syscall: String,
        /// The index.
        index: usize,
    },
    /// A filter flag that goes with SCMP_ACT_NOTIFY.
    #[error("seccomp: the flag {0} needs SCMP_ACT_NOTIFY, which is not supported")]
    Flag(&'static str),
    /// A profile with a listener.
    #[error("seccomp: listenerPath is set, but SCMP_ACT_NOTIFY is not supported")]
    Listener,
    /// More rules than a filter can hold.
    #[error(
        "seccomp: the profile compiles to {0} instructions, and the kernel takes 4096; use fewer conditions"
    )]
    TooLong(usize),
    /// A machine without a table.
    #[error("seccomp: the system call numbers of this machine ({0}) are not known")]
    NativeArch(&'static str),
}

/// Compiles a profile for this machine.
///
/// # Errors
/// What the profile asks for and can't have; see [`SeccompError`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let flags = flags(profile)?;
    let code = program(&policy::decide(profile)?);
    if code.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(code.len()));
    }
    let mut program = Vec::with_capacity(code.len() * 8);
    for Instruction {
        code,
        if_true,
        if_false,
        constant,
    } in code
    {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[if_true, if_false]);
        program.extend_from_slice(&constant.to_ne_bytes());
    }
    Ok(Filter { program, flags })
}

/// As runc: a profile that says nothing about flags does not pay for the speculation barrier.
fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    if profile
        .listener_path()
        .as_ref()
        .is_some_and(|path| !path.as_os_str().is_empty())
    {
        return Err(SeccompError::Listener);
    }
    let Some(flags) = profile.flags() else {
        return Ok(FLAG_SPEC_ALLOW);
    };
    flags.iter().try_fold(0, |all, flag| match flag {
        FilterFlag::SeccompFilterFlagLog => Ok(all | FLAG_LOG),
        FilterFlag::SeccompFilterFlagSpecAllow => Ok(all | FLAG_SPEC_ALLOW),
        // The filter is loaded by a process with one thread.
        FilterFlag::SeccompFilterFlagTsync => Ok(all),
        FilterFlag::SeccompFilterFlagWaitKillableRecv => {
            Err(SeccompError::Flag("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"))
        }
    })
}

/// The machine's own architecture is asked for first; what is not listed is foreign.
fn program(policies: &[ArchPolicy]) -> Vec<Instruction> {
    let mut code = Assembler::default();
    // From the end to the start, so the native one, which comes first, last.
    let mut entries = Vec::with_capacity(policies.len());
    for policy in policies.iter().rev() {
        let root = tree(&mut code, &policy.ranges, &mut Vec::new());
        entries.push((policy.audit_arch, code.then(LOAD, OFFSET_NUMBER, root)));
    }
    let mut next = code.answer(FOREIGN);
    for (audit_arch, entry) in entries {
        next = code.branch(IF_EQUAL, audit_arch, entry, next);
    }
    let start = code.then(LOAD, OFFSET_ARCH, next);
    code.finish(start)
}

/// Conditional decisions written already: system calls next to each other in meaning share one.
type Written<'a> = Vec<(&'a Decision, Label)>;

/// A balanced search for the range that the number in the accumulator is in.
fn tree<'a>(code: &mut Assembler, ranges: &'a [(u32, Decision)], written: &mut Written<'a>) -> Label {
    if let [(_, decision)] = ranges {
        return leaf(code, decision, written);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let at_least = right[0].0;
    let if_true = tree(code, right, written);
    let if_false = tree(code, left, written);
    code.branch(IF_AT_LEAST, at_least, if_true, if_false)
}

fn leaf<'a>(code: &mut Assembler, decision: &'a Decision, written: &mut Written<'a>) -> Label {
    match decision {
        Decision::Answer(value) => code.answer(*value),
        Decision::Rules(rules, otherwise) => {
            if let Some((_, label)) = written.iter().find(|(known, _)| *known == decision) {
                return *label;
            }
            let mut next = code.answer(*otherwise);
            for Rule { conditions, answer } in rules.iter().rev() {
                let mut matched = code.answer(*answer);
                for condition in conditions.iter().rev() {
                    matched = compare(code, condition, matched, next);
                }
                next = matched;
            }
            written.push((decision, next));
            next
        }
    }
}

/// One 64-bit comparison by its halves.
fn compare(code: &mut Assembler, condition: &Condition, yes: Label, no: Label) -> Label {
    match condition.compare {
        Compare::Equal(v) => equal(code, condition.index, u64::MAX, v, yes, no),
        Compare::NotEqual(v) => equal(code, condition.index, u64::MAX, v, no, yes),
        Compare::Masked { mask, value } => equal(code, condition.index, mask, value, yes, no),
        Compare::Greater(v) => above(code, condition.index, IF_GREATER, v, yes, no),
        Compare::AtLeast(v) => above(code, condition.index, IF_AT_LEAST, v, yes, no),
        Compare::AtMost(v) => above(code, condition.index, IF_GREATER, v, no, yes),
        Compare::Less(v) => above(code, condition.index, IF_AT_LEAST, v, no, yes),
    }
}

fn equal(code: &mut Assembler, index: usize, mask: u64, value: u64, yes: Label, no: Label) -> Label {
    let mut next = yes;
    for upper in [false, true] {
        let half = |v: u64| if upper { (v >> 32) as u32 } else { v as u32 };
        if half(mask) == 0 && half(value) == 0 {
            // Nothing is asked of this half.
            continue;
        }
        next = code.branch(IF_EQUAL, half(value), next, no);
        if half(mask) != u32::MAX {
            next = code.then(AND, half(mask), next);
        }
        next = code.then(LOAD, offset_of_argument(index, upper), next);
    }
    next
}

/// Greater, or greater or equal: decided by the upper halves unless they are the same.
fn above(code: &mut Assembler, index: usize, test: u16, value: u64, yes: Label, no: Label) -> Label {
    let (upper, lower) = ((value >> 32) as u32, value as u32);
    let lower_test = code.branch(test, lower, yes, no);
    let load_lower = code.then(LOAD, offset_of_argument(index, false), lower_test);
    let same = code.branch(IF_EQUAL, upper, load_lower, no);
    let greater = code.branch(IF_GREATER, upper, yes, same);
    code.then(LOAD, offset_of_argument(index, true), greater)
}
