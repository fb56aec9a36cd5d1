//! Amounts as Kubernetes writes them: `100m`, `1.5Gi`, `2e3`. Read into whole units, rounded up as upstream does.

pub use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The amount in thousandths, rounded up: CPUs.
pub fn millis(text: &str) -> Option<i64> {
    scaled(text, 3)
}

/// The amount in whole units, rounded up: bytes, counts.
pub fn bytes(text: &str) -> Option<i64> {
    scaled(text, 0)
}

/// `text` times 10 to the power of `places`, rounded up (away from zero), held at `i64`'s ends.
fn scaled(text: &str, places: i32) -> Option<i64> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (binary, decimal) = factor(suffix)?;
    // Digits past these can't matter: i128 holds 38, of which binary suffixes take 19.
    let fraction = fraction.get(..12).unwrap_or(fraction);
    let digits = whole.trim_start_matches('0').to_owned() + fraction;
    let digits: i128 = if digits.is_empty() {
        0
    } else {
        parse_bounded(&digits)
    };
    let power = decimal + places - i32::try_from(fraction.len()).ok()?;
    let amount = digits.saturating_mul(1_i128 << binary);
    let amount = if power >= 0 {
        amount.saturating_mul(ten_to(power))
    } else {
        let divisor = ten_to(-power);
        amount / divisor + i128::from(amount % divisor != 0)
    };
    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
    Some(if negative { -amount } else { amount })
}

fn parse_bounded(digits: &str) -> i128 {
    digits.parse().unwrap_or(i128::MAX)
}

fn ten_to(power: i32) -> i128 {
    10_i128.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX)
}

/// What a suffix multiplies with: 2 to the first, 10 to the second.
fn factor(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            (0, exponent.parse::<i32>().ok()?.clamp(-40, 40))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_every_notation() {
        let cpu = ["1", "100m", "0.5", "1.0005", "1e-3", "2k", "1u"].map(|text| millis(text).unwrap());
        assert_eq!(cpu, [1000, 100, 500, 1001, 1, 2_000_000, 1]);
        let memory = [
            "1Ki",
            "1.5Gi",
            "128974848",
            "129e6",
            "129M",
            "123Mi",
            "100m",
            "8Ei",
        ]
        .map(|text| bytes(text).unwrap());
        assert_eq!(
            memory,
            [
                1024,
                1_610_612_736,
                128_974_848,
                129_000_000,
                129_000_000,
                128_974_848,
                1,
                i64::MAX
            ]
        );
        assert_eq!(bytes("-2k"), Some(-2000));
        for wrong in ["", "m", "1.2.3", "1Kb", "one", "1 Gi", "."] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
