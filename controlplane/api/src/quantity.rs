//! Amounts of resources as Kubernetes writes them: `100m`, `1.5Gi`, `12e6`.
//!
//! The grammar, the canonical form and the rounding are those of apimachinery's `resource.Quantity`. An amount is held
//! exactly, as a number of nanos in an `i128`; what is finer than a nano is rounded away from zero, what is larger than
//! about 1.7e29 is capped there, and an amount with a binary suffix is capped at 2^63-1 as upstream does. The family of
//! the suffix (decimal, binary, exponent) is remembered for writing. A text that upstream takes for canonical is kept
//! and written again as it was, until arithmetic changes the amount.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

const NANO: i128 = 1_000_000_000;
const MILLI: i128 = 1_000_000;
const LARGEST_BINARY: i128 = i64::MAX as i128 * NANO;
const SUFFIX_LETTERS: &str = "eEinumkKMGTP";
const DECIMAL: [(i32, &str); 10] = [
    (18, "E"),
    (15, "P"),
    (12, "T"),
    (9, "G"),
    (6, "M"),
    (3, "k"),
    (0, ""),
    (-3, "m"),
    (-6, "u"),
    (-9, "n"),
];
const BINARY: [(u32, &str); 6] = [
    (60, "Ei"),
    (50, "Pi"),
    (40, "Ti"),
    (30, "Gi"),
    (20, "Mi"),
    (10, "Ki"),
];

/// The family of suffixes that an amount is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `12e6`.
    DecimalExponent,
    /// `12Mi`.
    BinarySi,
    /// `12M`.
    #[default]
    DecimalSi,
}

/// Why a text is no quantity; the wording is upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has another form.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The suffix is none of those there are.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount with the format that it is written in. Compared by amount alone.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
    kept: Option<Box<str>>,
}

/// A text taken apart; digits only in `whole` (no leading zeros, but at least one digit) and `fraction`.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl Quantity {
    /// A whole number of units.
    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity::of_nanos(i128::from(value) * NANO, format)
    }

    /// A number of thousandths, written with decimal suffixes.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity::of_nanos(i128::from(milli) * MILLI, Format::DecimalSi)
    }

    /// A number of bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity::new(bytes, Format::BinarySi)
    }

    fn of_nanos(nanos: i128, format: Format) -> Quantity {
        Quantity {
            nanos,
            format,
            kept: None,
        }
    }

    /// The format that it is written in, where the amount allows it.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The amount in nanos, exactly.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Whether the amount is 0.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        match self.nanos.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// The amount as a whole number, rounded away from zero, within the bounds of `i64`.
    pub fn value(&self) -> i64 {
        saturate(divide_away(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded away from zero, within the bounds of `i64`.
    pub fn milli_value(&self) -> i64 {
        saturate(divide_away(self.nanos, MILLI))
    }

    /// The nearest floating-point number.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Rounds away from zero to whole thousandths, as upstream does with every resource list.
    pub fn round_up_to_milli(&mut self) {
        if self.nanos % MILLI != 0 {
            self.nanos = divide_away(self.nanos, MILLI).saturating_mul(MILLI);
            self.kept = None;
        }
    }

    /// Adds `other`; a zero takes over the other's format.
    pub fn add(&mut self, other: &Quantity) {
        self.change(other, self.nanos.saturating_add(other.nanos));
    }

    /// Takes `other` away; a zero takes over the other's format.
    pub fn sub(&mut self, other: &Quantity) {
        self.change(other, self.nanos.saturating_sub(other.nanos));
    }

    /// Multiplies by a whole number.
    pub fn mul(&mut self, factor: i64) {
        self.kept = None;
        self.nanos = self.nanos.saturating_mul(i128::from(factor));
    }

    fn change(&mut self, other: &Quantity, nanos: i128) {
        self.kept = None;
        if self.is_zero() {
            self.format = other.format;
        }
        self.nanos = nanos;
    }

    /// The canonical form: no fraction, the largest suffix that keeps the amount exact. Where upstream would lose the
    /// suffix (above E and Ei), the number is written longer instead.
    pub fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let whole = self.nanos / NANO;
        match self.format {
            Format::BinarySi if self.is_whole() && whole.unsigned_abs() >= 1024 => binary(whole),
            Format::BinarySi | Format::DecimalSi => {
                let (mantissa, exponent) = decimal(self.nanos, 18);
                let suffix = DECIMAL
                    .iter()
                    .find(|(e, _)| *e == exponent)
                    .map_or("", |(_, suffix)| suffix);
                format!("{mantissa}{suffix}")
            }
            Format::DecimalExponent => match decimal(self.nanos, 27) {
                (mantissa, 0) => mantissa.to_string(),
                (mantissa, exponent) => format!("{mantissa}e{exponent}"),
            },
        }
    }
}

/// `whole` by the largest power of 1024 that divides it.
fn binary(whole: i128) -> String {
    for (bits, suffix) in BINARY {
        if whole % (1 << bits) == 0 {
            return format!("{}{suffix}", whole >> bits);
        }
    }
    whole.to_string()
}

/// Mantissa and the largest exponent, a multiple of 3 up to `largest`, that keep the amount exact.
fn decimal(nanos: i128, largest: i32) -> (i128, i32) {
    let mut mantissa = nanos;
    let mut exponent = -9;
    while exponent < largest && mantissa % 1000 == 0 {
        mantissa /= 1000;
        exponent += 3;
    }
    (mantissa, exponent)
}

fn divide_away(nanos: i128, unit: i128) -> i128 {
    nanos / unit + if nanos % unit == 0 { 0 } else { nanos.signum() }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn take_apart(text: &str) -> Result<Parts<'_>, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Form);
    }
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (whole, rest) = digits(rest.trim_start_matches('0'));
    let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), digits);
    let after = suffix.trim_start_matches(|c| SUFFIX_LETTERS.contains(c));
    let after = after.strip_prefix(['+', '-']).unwrap_or(after);
    if !after.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Form);
    }
    Ok(Parts {
        negative,
        whole: if whole.is_empty() { "0" } else { whole },
        fraction,
        suffix,
    })
}

/// The format and the exponent, of 10 or (binary) of 2.
fn interpret(suffix: &str) -> Result<(Format, i32), QuantityError> {
    if let Some((exponent, _)) = DECIMAL.iter().find(|(_, s)| *s == suffix) {
        return Ok((Format::DecimalSi, *exponent));
    }
    if let Some((bits, _)) = BINARY.iter().find(|(_, s)| *s == suffix) {
        return Ok((Format::BinarySi, i32::try_from(*bits).unwrap_or(0)));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent: i64 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((
        Format::DecimalExponent,
        i32::try_from(exponent.clamp(-1_000_000, 1_000_000)).unwrap_or(0),
    ))
}

/// Nanos of a decimal number; what is finer is rounded up.
fn decimal_nanos(parts: &Parts<'_>, exponent: i32) -> i128 {
    let all = format!("{}{}", parts.whole, parts.fraction);
    let all = all.trim_start_matches('0');
    let shift = i64::from(exponent) + 9 - i64::try_from(parts.fraction.len()).unwrap_or(i64::MAX);
    if all.is_empty() {
        return 0;
    }
    if let Ok(up) = u32::try_from(shift) {
        let factor = 10i128.checked_pow(up);
        return factor
            .and_then(|factor| all.parse::<i128>().ok()?.checked_mul(factor))
            .unwrap_or(i128::MAX);
    }
    let drop = usize::try_from(shift.unsigned_abs())
        .unwrap_or(usize::MAX)
        .min(all.len());
    let (kept, dropped) = all.split_at(all.len() - drop);
    let kept = if kept.is_empty() {
        Ok(0)
    } else {
        kept.parse::<i128>()
    };
    let more = i128::from(dropped.bytes().any(|b| b != b'0'));
    kept.map_or(i128::MAX, |kept| kept.saturating_add(more))
}

/// Nanos of a number of `2^bits`; what is finer is rounded up, and the whole is capped as upstream caps it.
fn binary_nanos(parts: &Parts<'_>, bits: i32) -> i128 {
    let unit = NANO << bits;
    // Rounding up at each digit from the right is the same as rounding the sum up once.
    let fraction = parts.fraction.bytes().rev().fold(0, |below, digit| {
        (i128::from(digit - b'0') * unit + below + 9) / 10
    });
    let whole = parts
        .whole
        .parse::<i128>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit));
    whole
        .and_then(|whole| whole.checked_add(fraction))
        .unwrap_or(i128::MAX)
        .min(LARGEST_BINARY)
}

/// Whether upstream writes a text again just as it was read.
fn is_kept(parts: &Parts<'_>, format: Format, exponent: i32) -> bool {
    let length = parts.whole.len() + parts.fraction.len();
    let value = || {
        format!("{}{}", parts.whole, parts.fraction)
            .parse::<i64>()
            .unwrap_or(0)
    };
    match format {
        Format::BinarySi => {
            let length = i32::try_from(length).unwrap_or(i32::MAX);
            parts.fraction.is_empty()
                && 14_i32.saturating_sub(length) - exponent * 3 / 10 >= 0
                && value() & 7 != 0
                && value().checked_mul(1 << exponent).is_some()
        }
        Format::DecimalSi | Format::DecimalExponent => {
            let scale = exponent - i32::try_from(parts.fraction.len()).unwrap_or(i32::MAX / 2);
            length <= 18
                && scale >= -9
                && scale % 3 == 0
                && !parts.whole.starts_with('0')
                && value() % 1000 != 0
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        let parts = take_apart(text)?;
        let (mut format, exponent) = interpret(parts.suffix)?;
        let kept = text == "0" || is_kept(&parts, format, exponent);
        let nanos = match format {
            Format::BinarySi => binary_nanos(&parts, exponent),
            Format::DecimalSi | Format::DecimalExponent => decimal_nanos(&parts, exponent),
        };
        if format == Format::BinarySi && 0 < nanos && nanos < NANO {
            format = Format::DecimalSi;
        }
        let nanos = if parts.negative { -nanos } else { nanos };
        Ok(Quantity {
            nanos,
            format,
            kept: kept.then(|| text.into()),
        })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kept {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl TryFrom<&Wire> for Quantity {
    type Error = QuantityError;

    /// Blanks around the text don't count, and an absent amount is 0.
    fn try_from(wire: &Wire) -> Result<Quantity, QuantityError> {
        match wire.0.trim() {
            "" if wire.0.is_empty() => Ok(Quantity::default()),
            text => text.parse(),
        }
    }
}

impl From<&Quantity> for Wire {
    fn from(quantity: &Quantity) -> Wire {
        Wire(quantity.to_string())
    }
}

impl From<Quantity> for Wire {
    fn from(quantity: Quantity) -> Wire {
        Wire::from(&quantity)
    }
}

#[cfg(test)]
mod tests;
