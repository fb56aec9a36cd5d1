//! When memory is given back: the heap's rest and the program's own pages.
//!
//! Dealing with a line of output maps half a megabyte of the program, sixteen pages around each that is used. Finding
//! them again takes microseconds, so where output comes now and then they are let go after each time. Where it comes
//! all the time that would cost more than it saves. Anything else (a request, a child's end) has more to follow, and
//! memory goes back a while after it; not only once it's quiet, which may never be.

use std::time::{Duration, Instant};

/// How long after something happened memory is given back.
const LATER: Duration = Duration::from_millis(500);
/// Output that comes so long after whatever came before has nothing following at its heels.
const SELDOM: Duration = Duration::from_millis(10);

/// What to give back before waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveBack {
    Nothing,
    /// The program's pages.
    Text,
    /// Those, and what the heap keeps.
    All,
}

/// When something last happened, and what follows from that.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    last: Option<Instant>,
    later: Option<Instant>,
    alone: bool,
}

impl Rest {
    /// Something has happened; `output`: nothing but output of containers came.
    pub(crate) fn heard(&mut self, now: Instant, output: bool) {
        let quiet = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= SELDOM);
        self.alone = output && quiet;
        self.last = Some(now);
        self.later.get_or_insert(now + LATER);
    }

    /// What to give back now.
    pub(crate) fn give_back(&mut self, now: Instant) -> GiveBack {
        let alone = std::mem::take(&mut self.alone);
        if self.later.is_some_and(|later| now >= later) {
            self.later = None;
            return GiveBack::All;
        }
        if alone { GiveBack::Text } else { GiveBack::Nothing }
    }

    /// When to ask again, even if nothing happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(begin: Instant, millis: u64) -> Instant {
        begin + Duration::from_millis(millis)
    }

    #[test]
    fn seldom_output_gives_the_text_back_at_once_and_frequent_output_does_not() {
        let (begin, mut rest) = (Instant::now(), Rest::default());
        for (at, expected) in [
            (0, GiveBack::Text),
            (100, GiveBack::Text),
            (105, GiveBack::Nothing),
            (114, GiveBack::Nothing),
            (124, GiveBack::Text),
        ] {
            rest.heard(after(begin, at), true);
            assert_eq!(rest.give_back(after(begin, at)), expected, "{at}");
            assert_eq!(rest.give_back(after(begin, at)), GiveBack::Nothing);
        }
    }

    #[test]
    fn all_goes_back_a_while_after_anything_even_if_more_comes() {
        let (begin, mut rest) = (Instant::now(), Rest::default());
        assert_eq!(rest.next(), None);
        for at in [0, 200, 499] {
            rest.heard(after(begin, at), false);
            assert_eq!(rest.give_back(after(begin, at)), GiveBack::Nothing, "{at}");
        }
        assert_eq!(rest.next(), Some(after(begin, 500)));
        assert_eq!(rest.give_back(after(begin, 500)), GiveBack::All);
        assert_eq!(
            (rest.next(), rest.give_back(after(begin, 501))),
            (None, GiveBack::Nothing)
        );
    }
}
