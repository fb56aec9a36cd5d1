//! Quantities as numbers: exact, in billionths, rounded up where a whole number is asked for, as upstream rounds.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// Resources by name.
pub(crate) type ResourceList = BTreeMap<String, Quantity>;

/// The value in billionths; none where the text is no quantity.
pub(crate) fn nanos(quantity: &Quantity) -> Option<i128> {
    controlplane_api::Quantity::try_from(quantity)
        .ok()
        .map(|exact| exact.nanos())
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
