//! Device rules on v2: an eBPF program that the kernel asks at every open and mknod of a device.
//!
//! The rules are first brought to what v1's controller would hold after them: a default, and exceptions to it; then
//! each exception is a few comparisons. Programs of a cgroup and of its ancestors must all allow, as on v1. A cgroup
//! keeps one program of ours: another set of rules takes its place in one step, so that there is no moment without.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use oci_runtime_sys::bpf;

use crate::CgroupError;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// What differs from the default: `None` is any number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    kind: u32,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// The state of v1's controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceFilter {
    allow: bool,
    exceptions: Vec<Exception>,
}

impl DeviceFilter {
    /// Takes rules in the kernel's v1 form, in their order: whether to allow, and `c 1:3 rwm`.
    pub(super) fn new(rules: &[(bool, String)]) -> Result<Self, CgroupError> {
        let mut filter = Self {
            allow: true,
            exceptions: Vec::new(),
        };
        for (allow, rule) in rules {
            if rule == "a" {
                filter = Self {
                    allow: *allow,
                    exceptions: Vec::new(),
                };
            } else if let Some(exception) = parse(rule)? {
                filter.add(*allow, &exception);
            }
        }
        Ok(filter)
    }

    fn add(&mut self, allow: bool, rule: &Exception) {
        let same = |e: &Exception| (e.kind, e.major, e.minor) == (rule.kind, rule.major, rule.minor);
        let known = self.exceptions.iter_mut().find(|e| same(e));
        match (allow == self.allow, known) {
            // A rule that says what the default says takes back what was excepted.
            (true, Some(known)) => known.access &= !rule.access,
            (true, None) => {}
            (false, Some(known)) => known.access |= rule.access,
            (false, None) => self.exceptions.push(rule.clone()),
        }
        self.exceptions.retain(|e| e.access != 0);
    }

    /// The program, as `struct bpf_insn`s.
    pub(super) fn program(&self) -> Vec<u64> {
        // r1 points to `struct bpf_cgroup_dev_ctx`: access << 16 | type, major, minor.
        let mut code = vec![
            load(2, 0),
            move_register(3, 2),
            and(2, 0xffff),
            shift_right(3, 16),
            load(4, 4),
            load(5, 8),
        ];
        for e in &self.exceptions {
            let mut checks: Vec<fn(i16, u32) -> u64> = vec![|to, v| unless_equal(2, v, to)];
            let mut values = vec![e.kind];
            for (number, check) in [
                (e.major, (|to, v| unless_equal(4, v, to)) as fn(i16, u32) -> u64),
                (e.minor, |to, v| unless_equal(5, v, to)),
            ] {
                if let Some(number) = number {
                    checks.push(check);
                    values.push(number);
                }
            }
            // An allowed exception must cover all that is asked; a denied one need only touch it.
            let asked = if self.allow {
                e.access
            } else {
                !e.access & (MKNOD | READ | WRITE)
            };
            let access: [u64; 3] = [
                move_register(0, 3),
                and(0, asked),
                if self.allow {
                    if_equal(0, 0, 2)
                } else {
                    unless_equal(0, 0, 2)
                },
            ];
            let length = checks.len();
            for (at, (check, value)) in checks.into_iter().zip(values).enumerate() {
                // Over the other checks, those of the access, and the answer.
                code.push(check((length - at - 1 + access.len() + 2) as i16, value));
            }
            code.extend(access);
            code.extend([answer(!self.allow), EXIT]);
        }
        code.extend([answer(self.allow), EXIT]);
        code
    }
}

/// Puts the filter on the cgroup with this v2 directory.
pub(super) fn attach(directory: &Path, filter: &DeviceFilter) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::DeviceFilter {
        path: directory.to_owned(),
        source,
    };
    let flags = nix::fcntl::OFlag::O_DIRECTORY.bits();
    let cgroup: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(directory)
        .map_err(|source| CgroupError::Open {
            path: directory.to_owned(),
            source,
        })?;
    let program = bpf::load_device_filter(&filter.program()).map_err(failed)?;
    let mut before = bpf::device_filters(cgroup.as_fd()).map_err(failed)?.into_iter();
    let replaced = before.next();
    let replaced = replaced.as_ref().map(|fd| fd.as_fd());
    bpf::attach_device_filter(cgroup.as_fd(), program.as_fd(), replaced).map_err(failed)?;
    // More than one is another runtime's doing; together they would allow less than these rules.
    before
        .try_for_each(|old| bpf::detach_device_filter(cgroup.as_fd(), old.as_fd()))
        .map_err(failed)
}

/// `c 1:3 rwm`; a pipe (`p`) is no device to the filter, nor is what isn't a rule at all.
fn parse(rule: &str) -> Result<Option<Exception>, CgroupError> {
    let mut words = rule.split(' ');
    let kind = match words.next() {
        Some("c") => CHAR,
        Some("b") => BLOCK,
        _ => return Ok(None),
    };
    let Some((major, minor)) = words.next().and_then(|numbers| numbers.split_once(':')) else {
        return Ok(None);
    };
    let access = words.next().unwrap_or_default().chars().fold(0, |access, c| {
        access
            | match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => 0,
            }
    });
    Ok(Some(Exception {
        kind,
        major: number(rule, major)?,
        minor: number(rule, minor)?,
        access,
    }))
}

/// None for any. A number that no device can have must not become any.
fn number(rule: &str, text: &str) -> Result<Option<u32>, CgroupError> {
    if text == "*" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| CgroupError::Limit {
        limit: "devices",
        value: format!("`{rule}`"),
        reason: format!("a device's number goes from 0 to {}", u32::MAX),
    })
}

/// `struct bpf_insn`: the opcode, the registers, a jump's distance and a constant.
const fn instruction(code: u8, to: u8, from: u8, jump: i16, constant: u32) -> u64 {
    u64::from_le_bytes([
        code,
        from << 4 | to,
        jump.to_le_bytes()[0],
        jump.to_le_bytes()[1],
        constant.to_le_bytes()[0],
        constant.to_le_bytes()[1],
        constant.to_le_bytes()[2],
        constant.to_le_bytes()[3],
    ])
}

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

fn load(to: u8, offset: i16) -> u64 {
    instruction(0x61, to, 1, offset, 0)
}

fn move_register(to: u8, from: u8) -> u64 {
    instruction(0xbc, to, from, 0, 0)
}

fn and(register: u8, mask: u32) -> u64 {
    instruction(0x54, register, 0, 0, mask)
}

fn shift_right(register: u8, bits: u32) -> u64 {
    instruction(0x74, register, 0, 0, bits)
}

fn unless_equal(register: u8, value: u32, jump: i16) -> u64 {
    instruction(0x56, register, 0, jump, value)
}

fn if_equal(register: u8, value: u32, jump: i16) -> u64 {
    instruction(0x16, register, 0, jump, value)
}

fn answer(allow: bool) -> u64 {
    instruction(0xb7, 0, 0, 0, u32::from(allow))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel would.
    fn run(code: &[u64], (kind, access, major, minor): (u32, u32, u32, u32)) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0i64;
        loop {
            let i = code[at as usize].to_le_bytes();
            let (to, from) = (usize::from(i[1] & 15), usize::from(i[1] >> 4));
            let jump = i64::from(i16::from_le_bytes([i[2], i[3]]));
            let constant = u32::from_le_bytes([i[4], i[5], i[6], i[7]]);
            at += 1;
            match i[0] {
                0x61 => registers[to] = context[jump as usize / 4],
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= constant,
                0x74 => registers[to] >>= constant,
                0x56 if registers[to] != constant => at += jump,
                0x16 if registers[to] == constant => at += jump,
                0x56 | 0x16 => {}
                0xb7 => registers[to] = constant,
                0x95 => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    /// What v1's controller would answer, by its documentation: exceptions to a default.
    fn wanted(filter: &DeviceFilter, (kind, access, major, minor): (u32, u32, u32, u32)) -> bool {
        let fits = |e: &&Exception| {
            e.kind == kind && e.major.is_none_or(|m| m == major) && e.minor.is_none_or(|m| m == minor)
        };
        let mut fitting = filter.exceptions.iter().filter(fits);
        if filter.allow {
            !fitting.any(|e| e.access & access != 0)
        } else {
            fitting.any(|e| access & !e.access == 0)
        }
    }

    fn rule() -> impl Strategy<Value = (bool, String)> {
        let number = prop_oneof![Just("*".to_owned()), (0u32..4).prop_map(|n| n.to_string())];
        let access = prop::sample::select(vec!["r", "w", "m", "rw", "rwm"]);
        let some = (
            prop::sample::select(vec!["c", "b"]),
            number.clone(),
            number,
            access,
        )
            .prop_map(|(kind, major, minor, access)| format!("{kind} {major}:{minor} {access}"));
        (any::<bool>(), prop_oneof![1 => Just("a".to_owned()), 6 => some])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_program_says_what_v1_would_say(
            rules in prop::collection::vec(rule(), 0..12),
            kind in 1u32..3, access in 1u32..8, major in 0u32..5, minor in 0u32..5,
        ) {
            let filter = DeviceFilter::new(&rules).unwrap();
            let asked = (kind, access, major, minor);
            prop_assert_eq!(run(&filter.program(), asked), wanted(&filter, asked));
        }
    }

    #[test]
    fn denying_all_and_allowing_null_leaves_null() {
        let rules = [
            (false, "a".to_owned()),
            (true, "c 1:3 rwm".to_owned()),
            (true, "c *:* m".to_owned()),
        ];
        let code = DeviceFilter::new(&rules).unwrap().program();
        assert!(run(&code, (CHAR, READ | WRITE, 1, 3)));
        assert!(run(&code, (CHAR, MKNOD, 10, 229)));
        assert!(!run(&code, (CHAR, READ, 1, 11)));
        assert!(!run(&code, (BLOCK, READ, 1, 3)));
    }

    #[test]
    fn a_number_that_no_device_has_is_refused_and_not_taken_for_any() {
        for bad in ["c 4294967296:3 rwm", "b 8:4294967296 r", "c :3 r"] {
            let error = DeviceFilter::new(&[(true, bad.to_owned())])
                .unwrap_err()
                .to_string();
            assert!(error.contains(bad), "{error}");
        }
        DeviceFilter::new(&[(true, "c 4294967295:* rwm".to_owned())]).unwrap();
    }

    #[test]
    fn a_rule_can_be_taken_back() {
        let rules = [
            (false, "a".to_owned()),
            (true, "c 1:3 rw".to_owned()),
            (false, "c 1:3 w".to_owned()),
        ];
        let code = DeviceFilter::new(&rules).unwrap().program();
        assert!(run(&code, (CHAR, READ, 1, 3)) && !run(&code, (CHAR, WRITE, 1, 3)));
    }
}
