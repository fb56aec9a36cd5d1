//! Arithmetic with timestamps that stops at their ends instead of failing.

use jiff::{SignedDuration, Timestamp};

/// `duration` after `from`.
pub(crate) fn after(from: Timestamp, duration: SignedDuration) -> Timestamp {
    let end = if duration.is_negative() {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    from.checked_add(duration).unwrap_or(end)
}

/// `seconds` after `from`.
pub(crate) fn seconds_after(from: Timestamp, seconds: i64) -> Timestamp {
    after(from, SignedDuration::from_secs(seconds))
}

/// The earlier of two times that may not be known.
pub(crate) fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A duration as Go prints it: `10s`, `2m40s`, `1h0m0s`.
pub(crate) fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let go = |seconds| go_duration(SignedDuration::from_secs(seconds));
        assert_eq!(
            [go(10), go(160), go(300), go(3600)],
            ["10s", "2m40s", "5m0s", "1h0m0s"]
        );
    }

    #[test]
    fn sums_stop_at_the_ends_of_time() {
        assert_eq!(seconds_after(Timestamp::MAX, 1), Timestamp::MAX);
        assert_eq!(seconds_after(Timestamp::MIN, -1), Timestamp::MIN);
        assert_eq!(seconds_after(Timestamp::UNIX_EPOCH, 5).as_second(), 5);
    }
}
