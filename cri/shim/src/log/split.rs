//! Bytes to lines: where a container's output is cut into records of its log.

/// One record: a whole line or a part of one, without the line's end.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// The record's bytes: what was kept from earlier reads, then what came now.
    pub(crate) parts: [&'a [u8]; 2],
    /// Tagged `F`: the line ends here. Otherwise `P`, and the next record of the stream continues it.
    pub(crate) whole: bool,
}

/// Cuts one stream into records, keeping an unfinished line until the rest comes.
#[derive(Debug)]
pub(crate) struct Splitter {
    kept: Vec<u8>,
    max: usize,
}

/// Above this, an emptied buffer is given back rather than kept for the next unfinished line.
const KEEP_CAPACITY: usize = 512;

impl Splitter {
    /// Lines longer than `max` bytes are cut into parts.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            kept: Vec::new(),
            max: max.max(1),
        }
    }

    /// Takes output as it came and hands on every record that is complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut sink: impl FnMut(Record<'_>)) {
        while !bytes.is_empty() {
            let room = self.max - self.kept.len();
            // One byte more than there is room for: a line of exactly `max` bytes is still whole.
            let window = &bytes[..bytes.len().min(room + 1)];
            let (part, whole, used) = match window.iter().position(|b| *b == b'\n') {
                Some(end) => (&bytes[..end], true, end + 1),
                None if bytes.len() > room => (&bytes[..room], false, room),
                None => {
                    self.kept.extend_from_slice(bytes);
                    return;
                }
            };
            sink(Record {
                parts: [&self.kept, part],
                whole,
            });
            self.forget();
            bytes = &bytes[used..];
        }
    }

    /// Hands on what is kept, as a part: nothing more is expected soon.
    pub(crate) fn flush(&mut self, mut sink: impl FnMut(Record<'_>)) {
        if !self.kept.is_empty() {
            sink(Record {
                parts: [&self.kept, &[]],
                whole: false,
            });
            self.forget();
        }
    }

    fn forget(&mut self) {
        if self.kept.capacity() > KEEP_CAPACITY {
            self.kept = Vec::new();
        } else {
            self.kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(max: usize, reads: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut splitter, mut got) = (Splitter::new(max), Vec::new());
        for read in reads {
            splitter.push(read, |r| got.push((r.parts.concat(), r.whole)));
        }
        splitter.flush(|r| got.push((r.parts.concat(), r.whole)));
        got
    }

    fn text(got: &[(Vec<u8>, bool)]) -> Vec<(&str, bool)> {
        got.iter()
            .map(|(b, w)| (std::str::from_utf8(b).unwrap(), *w))
            .collect()
    }

    #[test]
    fn lines_may_come_in_pieces() {
        let got = records(100, &[b"one\ntw", b"o", b"\n\nthree"]);
        assert_eq!(
            text(&got),
            [("one", true), ("two", true), ("", true), ("three", false)]
        );
    }

    #[test]
    fn a_line_at_the_limit_is_whole_and_one_over_it_is_cut() {
        assert_eq!(text(&records(4, &[b"abcd\n"])), [("abcd", true)]);
        assert_eq!(text(&records(4, &[b"abcd", b"\n"])), [("abcd", true)]);
        assert_eq!(text(&records(4, &[b"abcde\n"])), [("abcd", false), ("e", true)]);
        assert_eq!(
            text(&records(4, &[b"abcdefgh\n"])),
            [("abcd", false), ("efgh", true)]
        );
    }

    #[test]
    fn a_long_line_leaves_no_memory_behind() {
        let mut splitter = Splitter::new(1 << 20);
        splitter.push(&[b'x'; 100_000], |_| {});
        splitter.push(b"\n", |_| {});
        assert_eq!(splitter.kept.capacity(), 0);
    }

    proptest! {
        /// Whatever the reads and the limit, the records joined are the bytes that went in, no record is over the
        /// limit, and the cuts don't depend on how the bytes came.
        #[test]
        fn nothing_is_lost_or_added(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
            cuts in proptest::collection::vec(1usize..50, 0..20),
            max in 1usize..40,
        ) {
            let (mut reads, mut rest) = (Vec::new(), &bytes[..]);
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                reads.push(head);
                rest = tail;
            }
            reads.push(rest);
            let got = records(max, &reads);
            let joined: Vec<u8> = got
                .iter()
                .flat_map(|(bytes, whole)| bytes.iter().copied().chain(whole.then_some(b'\n')))
                .collect();
            prop_assert_eq!(&joined, &bytes);
            prop_assert!(got.iter().all(|(bytes, _)| bytes.len() <= max && !bytes.contains(&b'\n')));
            prop_assert_eq!(got, records(max, &[&bytes]));
        }
    }
}
