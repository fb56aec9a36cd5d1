//! Quantities as numbers: exact, in billionths, rounded up where a whole number is asked for, as upstream rounds.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// Resources by name.
pub(crate) type ResourceList = BTreeMap<String, Quantity>;

/// The value in billionths, rounded away from zero; none where the text is no quantity or far too large.
pub(crate) fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || fraction.contains('.')
        || whole.len() + fraction.len() > 30
    {
        return None;
    }
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let (multiplier, exponent) = scale(suffix)?;
    let exponent = exponent + 9 - i32::try_from(fraction.len()).ok()?;
    let scaled = digits.checked_mul(multiplier)?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent >= 0, power) {
        _ if scaled == 0 => 0,
        (true, power) => scaled.checked_mul(power?)?,
        (false, Some(power)) => scaled.div_euclid(power) + i128::from(scaled.rem_euclid(power) != 0),
        (false, None) => 1,
    };
    Some(if negative { -value } else { value })
}

/// What a suffix multiplies by: a power of two, and an exponent of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |shift: u32| Some((1_i128 << shift, 0));
    match suffix {
        "" => Some((1, 0)),
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-30..=30).contains(&exponent).then_some((1, exponent))
        }
    }
}

fn rounded(nanos: i128, unit: i128) -> i64 {
    let value = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
}

/// A resource in whole units, rounded up; 0 where it isn't named or is no quantity.
pub(crate) fn value(list: Option<&ResourceList>, name: &str) -> i64 {
    rounded(amount(list, name), NANO)
}

/// A resource in thousandths, rounded up; 0 where it isn't named or is no quantity.
pub(crate) fn milli(list: Option<&ResourceList>, name: &str) -> i64 {
    rounded(amount(list, name), NANO / 1000)
}

/// A resource in billionths.
pub(crate) fn amount(list: Option<&ResourceList>, name: &str) -> i128 {
    list.and_then(|list| list.get(name)).and_then(nanos).unwrap_or(0)
}

/// Billionths in whole units, rounded up.
pub(crate) fn whole(nanos: i128) -> i64 {
    rounded(nanos, NANO)
}

/// Billionths in thousandths, rounded up.
pub(crate) fn thousandths(nanos: i128) -> i64 {
    rounded(nanos, NANO / 1000)
}

/// Whole units in billionths.
pub(crate) fn from_whole(value: i64) -> i128 {
    i128::from(value) * NANO
}

/// Thousandths in billionths.
pub(crate) fn from_thousandths(value: i64) -> i128 {
    i128::from(value) * (NANO / 1000)
}
