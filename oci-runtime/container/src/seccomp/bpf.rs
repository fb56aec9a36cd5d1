//! A tiny assembler for the classic BPF that seccomp(2) takes.
//!
//! Jumps go forward only and reach 255 instructions, so code is written from its end to its start: whatever a jump
//! leads to is there already, its distance is known, and where it is too far an unconditional jump (which reaches
//! anywhere) is put in between.

/// Loads a 32-bit word of `struct seccomp_data` into the accumulator.
pub(super) const LOAD: u16 = 0x20;
/// Masks the accumulator.
pub(super) const AND: u16 = 0x54;
/// Jumps always.
pub(super) const JUMP: u16 = 0x05;
/// Jumps if the accumulator equals the constant.
pub(super) const IF_EQUAL: u16 = 0x15;
/// Jumps if it is greater.
pub(super) const IF_GREATER: u16 = 0x25;
/// Jumps if it is greater or equal.
pub(super) const IF_AT_LEAST: u16 = 0x35;
/// Ends with the constant as the filter's answer.
pub(super) const RETURN: u16 = 0x06;

/// Where the parts of `struct seccomp_data` are.
pub(super) const OFFSET_NUMBER: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// The offset of the lower or upper half of an argument (little-endian machines).
pub(super) fn offset_of_argument(index: usize, upper: bool) -> u32 {
    OFFSET_ARGS + index as u32 * 8 + if upper { 4 } else { 0 }
}

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) constant: u32,
}

/// A place in the code, counted from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// The code written so far, last instruction first.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    /// The nearest `RETURN` of each answer.
    answers: Vec<(u32, Label)>,
}

impl Assembler {
    /// How many instructions would lie between one written next and the label.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - 1 - to.0
    }

    fn push(&mut self, code: u16, if_true: u8, if_false: u8, constant: u32) -> Label {
        self.reversed.push(Instruction {
            code,
            if_true,
            if_false,
            constant,
        });
        Label(self.reversed.len() - 1)
    }

    /// A label that a conditional jump can reach even if `spare` instructions come in between.
    fn near(&mut self, to: Label, spare: usize) -> Label {
        let distance = self.distance(to);
        if distance + spare <= usize::from(u8::MAX) {
            return to;
        }
        self.push(JUMP, 0, 0, distance as u32)
    }

    /// An instruction that goes on with the next one, which must be what was written last.
    pub(super) fn then(&mut self, code: u16, constant: u32, next: Label) -> Label {
        if self.distance(next) != 0 {
            let distance = self.distance(next) as u32;
            self.push(JUMP, 0, 0, distance);
        }
        self.push(code, 0, 0, constant)
    }

    /// A conditional jump.
    pub(super) fn branch(&mut self, code: u16, constant: u32, if_true: Label, if_false: Label) -> Label {
        // The second trampoline may push the first target one further away.
        let if_false = self.near(if_false, 1);
        let if_true = self.near(if_true, 0);
        let (if_true, if_false) = (self.distance(if_true), self.distance(if_false));
        let reach = |d: usize| u8::try_from(d).expect("near() keeps distances within a byte");
        self.push(code, reach(if_true), reach(if_false), constant)
    }

    /// Where the filter answers so: an answer written before if it is near, else a new one.
    pub(super) fn answer(&mut self, value: u32) -> Label {
        let known = self.answers.iter().position(|(v, _)| *v == value);
        // A tree's node lies a few instructions before its leaves, which is what the margin is for.
        if let Some(index) = known {
            let label = self.answers[index].1;
            if self.reversed.len() - label.0 < 200 {
                return label;
            }
        }
        let label = self.push(RETURN, 0, 0, value);
        match known {
            Some(index) => self.answers[index].1 = label,
            None => self.answers.push((value, label)),
        }
        label
    }

    /// The code from its start; `entry` must be what was written last.
    pub(super) fn finish(mut self, entry: Label) -> Vec<Instruction> {
        if self.distance(entry) != 0 {
            let distance = self.distance(entry) as u32;
            self.push(JUMP, 0, 0, distance);
        }
        self.reversed.reverse();
        self.reversed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_over_far_targets_goes_through_jumps() {
        let mut code = Assembler::default();
        let a = code.push(RETURN, 0, 0, 1);
        let b = code.push(RETURN, 0, 0, 2);
        for _ in 0..254 {
            code.push(RETURN, 0, 0, 9);
        }
        let entry = code.branch(IF_EQUAL, 7, a, b);
        let code = code.finish(entry);
        let branch = code[0];
        let target = |jump: u8| {
            let at = usize::from(jump) + 1;
            match code[at].code {
                JUMP => code[at + 1 + code[at].constant as usize],
                _ => code[at],
            }
        };
        assert_eq!(target(branch.if_true).constant, 1);
        assert_eq!(target(branch.if_false).constant, 2);
    }

    #[test]
    fn answers_are_shared_while_they_are_near() {
        let mut code = Assembler::default();
        let first = code.answer(5);
        assert_eq!(code.answer(5), first);
        for _ in 0..300 {
            code.push(AND, 0, 0, 0);
        }
        assert_ne!(code.answer(5), first);
    }
}
