//! What a plain scalar means: the rules of sigs.k8s.io/yaml (YAML 1.1 as its Go library reads it), not YAML 1.2's.

use serde_json::Number;

use super::Data;

/// The value of a plain scalar without a tag, or why there is none that JSON could hold.
pub(super) fn resolve(text: &str) -> Result<Data, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Data::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(Data::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(Data::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Err(format!("{text} is a number that JSON has no form for")),
        _ => {}
    }
    let number = match text.as_bytes().first() {
        Some(b'.') => float(text),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let plain: String = text.chars().filter(|c| *c != '_').collect();
            integer(&plain).or_else(|| float(&plain))
        }
        _ => None,
    };
    Ok(number.map_or_else(|| Data::Text(text.to_owned()), Data::Number))
}

/// An integer with a sign and one of the prefixes 0x, 0o, 0b and 0, that 64 bits hold.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let prefixed = |base: u32, prefixes: [&str; 2]| {
        let rest = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
        Some((base, rest))
    };
    let (base, digits) = prefixed(16, ["0x", "0X"])
        .or_else(|| prefixed(8, ["0o", "0O"]))
        .or_else(|| prefixed(2, ["0b", "0B"]))
        .or_else(|| {
            digits
                .strip_prefix('0')
                .filter(|rest| !rest.is_empty())
                .map(|rest| (8, rest))
        })
        .unwrap_or((10, digits));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    if negative {
        return i64::from_str_radix(&format!("-{digits}"), base)
            .ok()
            .map(Number::from);
    }
    // An unsigned number beyond i64 may not have a sign.
    let value = u64::from_str_radix(digits, base).ok()?;
    (i64::try_from(value).is_ok() || !text.starts_with('+')).then(|| Number::from(value))
}

/// A decimal float, as an integer if it is whole.
fn float(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (number, exponent) = unsigned
        .split_once(['e', 'E'])
        .map_or((unsigned, None), |(n, e)| (n, Some(e)));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let is_exponent = |text: &str| {
        let digits_only = text.strip_prefix(['+', '-']).unwrap_or(text);
        !digits_only.is_empty() && digits(digits_only)
    };
    if whole.len() + fraction.len() == 0
        || !digits(whole)
        || !digits(fraction)
        || !exponent.is_none_or(is_exponent)
    {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    whole_float(value).or_else(|| Number::from_f64(value))
}

/// A float below 2^53 that is whole, as the integer that Go's JSON would write for it.
fn whole_float(value: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    // The cast is exact: a whole number between -2^53 and 2^53.
    (value.fract() == 0.0 && value.abs() < EXACT).then(|| Number::from(value as i64))
}

/// What Go writes for a number that stands as a mapping's key.
pub(super) fn key(data: Data) -> Option<String> {
    match data {
        Data::Text(text) => Some(text),
        Data::Bool(value) => Some(value.to_string()),
        Data::Number(number) => Some(number.to_string()),
        Data::Null | Data::List(_) | Data::Map(_) => None,
    }
}
