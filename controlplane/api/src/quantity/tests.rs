//! Upstream's own examples, and properties against a model in plain integers.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Quantity {
    text.parse().unwrap_or_else(|error| panic!("`{text}`: {error}"))
}

#[test]
fn every_suffix_is_understood() {
    let whole = |n: i128| n * NANO;
    for (text, nanos) in [
        ("0", 0),
        ("0n", 0),
        ("1n", 1),
        ("1u", 1_000),
        ("1m", MILLI),
        ("1", NANO),
        ("1k", whole(1_000)),
        ("1M", whole(1_000_000)),
        ("1G", whole(1_000_000_000)),
        ("1T", whole(1_000_000_000_000)),
        ("1P", whole(1_000_000_000_000_000)),
        ("1E", whole(1_000_000_000_000_000_000)),
        ("1Ki", whole(1 << 10)),
        ("1Mi", whole(1 << 20)),
        ("1Gi", whole(1 << 30)),
        ("1Ti", whole(1 << 40)),
        ("1Pi", whole(1 << 50)),
        ("1Ei", whole(1 << 60)),
        ("1e3", whole(1_000)),
        ("1E3", whole(1_000)),
        ("1e-3", MILLI),
        ("1E+2", whole(100)),
        ("+5", whole(5)),
        ("-5", whole(-5)),
        ("-0.5", -NANO / 2),
        (".5", NANO / 2),
        ("5.", whole(5)),
        ("1.5Gi", whole(3 << 29)),
        ("0.1m", 100_000),
        ("00012", whole(12)),
    ] {
        assert_eq!(parse(text).nanos(), nanos, "{text}");
    }
}

#[test]
fn what_is_no_quantity_is_refused_in_upstreams_words() {
    for text in [
        "", " 1", "1 ", "1.1.M", "1+1.0M", "0.1mi", "0.1am", "aoeu", ".5i", "1i", "-3.01i", "-3.01e-", "1e",
        "1e2e3", "1KiB", "--1", "١",
    ] {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }
    assert_eq!(
        "1x".parse::<Quantity>().expect_err("no suffix").to_string(),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    );
    assert_eq!(
        "1mi".parse::<Quantity>().expect_err("no suffix").to_string(),
        "unable to parse quantity's suffix"
    );
}

#[test]
fn the_canonical_form_is_upstreams() {
    for (text, canonical) in [
        ("1.5", "1500m"),
        ("1.5Gi", "1536Mi"),
        ("1024Ki", "1Mi"),
        ("1000Ki", "1000Ki"),
        ("512Mi", "512Mi"),
        ("0.5Ki", "512"),
        ("1023.5Ki", "1048064"),
        ("1.1Ki", "1126400m"),
        ("100k", "100k"),
        ("1000k", "1M"),
        ("1000000", "1M"),
        ("0.1m", "100u"),
        ("0.1n", "1n"),
        ("-0.1n", "-1n"),
        ("12e4", "120e3"),
        ("1E6", "1e6"),
        ("12e0", "12"),
        ("9223372036854775808", "9223372036854775808"),
        ("-1Ki", "-1Ki"),
        ("0Ki", "0"),
        ("100000000000000000000Ei", "9223372036854775807"),
        ("1000E", "1000E"),
        ("1234567890123456789.123456789", "1234567890123456789123456789n"),
    ] {
        assert_eq!(parse(text).canonical(), canonical, "{text}");
    }
}

#[test]
fn a_text_that_upstream_keeps_is_written_again_until_it_is_changed() {
    for (text, written) in [
        ("1.500", "1.500"),
        ("+5", "+5"),
        ("0005", "0005"),
        ("1.5", "1500m"),
        ("1E6", "1E6"),
        ("8Ki", "8Ki"),
        ("1000", "1k"),
    ] {
        assert_eq!(parse(text).to_string(), written, "{text}");
    }
    let mut kept = parse("1.500");
    kept.round_up_to_milli();
    assert_eq!(kept.to_string(), "1.500");
    kept.add(&parse("0"));
    assert_eq!(kept.to_string(), "1500m");
    let mut fine = parse("1.234500");
    fine.round_up_to_milli();
    assert_eq!(fine.to_string(), "1235m");
}

#[test]
fn values_round_away_from_zero_and_stay_in_bounds() {
    assert_eq!(parse("1.1").value(), 2);
    assert_eq!(parse("-1.1").value(), -2);
    assert_eq!(parse("1n").milli_value(), 1);
    assert_eq!(parse("250m").milli_value(), 250);
    assert_eq!(parse("250m").value(), 1);
    assert_eq!(parse("100E").value(), i64::MAX);
    assert_eq!(parse("-100E").value(), i64::MIN);
    assert_eq!(parse("1e1000000").value(), i64::MAX);
    assert_eq!(parse("1e-99999999999").nanos(), 1);
    assert_eq!(parse("1e99999").nanos(), i128::MAX);
}

#[test]
fn a_zero_takes_over_the_others_format() {
    let mut sum = Quantity::default();
    sum.add(&parse("1Gi"));
    sum.add(&parse("1M"));
    assert_eq!(sum.format(), Format::BinarySi);
    sum.sub(&parse("1M"));
    assert_eq!(sum.to_string(), "1Gi");
    sum.mul(3);
    assert_eq!(sum.to_string(), "3Gi");
}

#[test]
fn the_wire_form_may_have_blanks_around_it() {
    assert_eq!(
        Quantity::try_from(&Wire(" 1Gi ".to_owned())),
        Ok(Quantity::from_bytes(1 << 30))
    );
    assert_eq!(Quantity::try_from(&Wire(String::new())), Ok(Quantity::default()));
    assert!(Quantity::try_from(&Wire("   ".to_owned())).is_err());
    assert_eq!(Wire::from(Quantity::from_milli(100)), Wire("100m".to_owned()));
}

fn any_quantity() -> impl Strategy<Value = String> {
    let suffix = prop_oneof![
        Just(""),
        Just("n"),
        Just("u"),
        Just("m"),
        Just("k"),
        Just("M"),
        Just("G"),
        Just("T"),
        Just("P"),
        Just("E"),
        Just("Ki"),
        Just("Mi"),
        Just("Gi"),
        Just("Ti"),
        Just("Pi"),
        Just("Ei"),
        Just("e3"),
        Just("E-2"),
        Just("e+5")
    ];
    (
        prop_oneof![Just(""), Just("-"), Just("+")],
        "[0-9]{1,9}(\\.[0-9]{0,9})?",
        suffix,
    )
        .prop_map(|(sign, number, suffix)| format!("{sign}{number}{suffix}"))
}

/// The model: at most nine digits on each side, so that the text is a whole number of nanos times the suffix, and the
/// product fits.
fn model(text: &str) -> i128 {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let text = text.trim_start_matches('+');
    let split = text
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let (top, bottom): (i128, i128) = match suffix {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" | "e3" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000 * NANO, 1),
        "P" => (1_000_000 * NANO, 1),
        "E" => (NANO * NANO, 1),
        "E-2" => (1, 100),
        "e+5" => (100_000, 1),
        binary => (
            1 << (10 * (1 + "KMGTPE".find(&binary[..1]).expect("a binary suffix"))),
            1,
        ),
    };
    let nanos: i128 = format!("{whole}{fraction:0<9}").parse().expect("digits");
    let product = nanos * top;
    let nanos = product / bottom + i128::from(product % bottom != 0);
    let nanos = if suffix.ends_with('i') {
        nanos.min(i128::from(i64::MAX) * NANO)
    } else {
        nanos
    };
    if negative { -nanos } else { nanos }
}

proptest! {
    #[test]
    fn parsing_is_exact(text in any_quantity()) {
        prop_assert_eq!(parse(&text).nanos(), model(&text));
    }

    #[test]
    fn what_is_written_reads_the_same(text in any_quantity()) {
        let quantity = parse(&text);
        let canonical = parse(&quantity.canonical());
        prop_assert_eq!(canonical.nanos(), quantity.nanos());
        prop_assert_eq!(canonical.canonical(), quantity.canonical());
        prop_assert_eq!(parse(&quantity.to_string()).nanos(), quantity.nanos());
    }

    #[test]
    fn arithmetic_is_exact(left in any_quantity(), right in any_quantity(), factor in -1000i64..1000) {
        let (left, right) = (parse(&left), parse(&right));
        let mut sum = left.clone();
        sum.add(&right);
        prop_assert_eq!(sum.nanos(), left.nanos() + right.nanos());
        sum.sub(&right);
        prop_assert_eq!(&sum, &left);
        let mut product = Quantity::from_milli(factor);
        product.mul(factor);
        prop_assert_eq!(product.nanos(), i128::from(factor) * i128::from(factor) * MILLI);
        prop_assert_eq!(left.cmp(&right), left.nanos().cmp(&right.nanos()));
    }

    #[test]
    fn the_whole_value_is_the_next_one_from_zero(milli in any::<i64>()) {
        let quantity = Quantity::from_milli(milli);
        prop_assert_eq!(quantity.milli_value(), milli);
        let value = quantity.value();
        prop_assert!(i128::from(value.unsigned_abs()) * 1000 >= i128::from(milli.unsigned_abs()));
        prop_assert!((i128::from(value.unsigned_abs()) - 1) * 1000 < i128::from(milli.unsigned_abs()).max(1));
    }

    #[test]
    fn no_text_is_too_much(text in "\\PC{0,40}") {
        let _ = text.parse::<Quantity>().map(|quantity| quantity.to_string());
    }
}
