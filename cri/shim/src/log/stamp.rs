//! Time stamps of log records: RFC 3339 in UTC with nanoseconds, without a time zone library.

use std::time::{SystemTime, UNIX_EPOCH};

/// The length of a stamp.
pub(crate) const STAMP_BYTES: usize = 30;

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2016-10-06T00:17:09.669794202Z`.
pub(crate) fn stamp(nanos: i64) -> [u8; STAMP_BYTES] {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second / 3600);
    digits(&mut text[14..16], second / 60 % 60);
    digits(&mut text[17..19], second % 60);
    digits(&mut text[20..29], fraction);
    text
}

fn digits(to: &mut [u8], mut number: i64) {
    for digit in to.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from March, so that the leap day is the
/// last of its year, in eras of 400 years, which all have the same number of days.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 146_097;
    let from_march_of_year_0 = days + 719_468;
    let (era, day_of_era) = (
        from_march_of_year_0.div_euclid(ERA_DAYS),
        from_march_of_year_0.rem_euclid(ERA_DAYS),
    );
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: i64, nanos: i64) -> String {
        String::from_utf8(stamp(seconds * 1_000_000_000 + nanos).to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(1_475_713_029, 669_794_202), "2016-10-06T00:17:09.669794202Z");
        assert_eq!(text(951_782_399, 1), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(951_868_800, 0), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(text(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_day_before() {
        let (mut year, mut month, mut day) = date(0);
        for days in 1..146_097 {
            let next = date(days);
            let same_month = next == (year, month, day + 1);
            let new_month = next == (year, month + 1, 1) && day >= 28;
            let new_year = next == (year + 1, 1, 1) && (month, day) == (12, 31);
            assert!(
                same_month || new_month || new_year,
                "{next:?} after {year}-{month}-{day}"
            );
            (year, month, day) = next;
        }
    }
}
