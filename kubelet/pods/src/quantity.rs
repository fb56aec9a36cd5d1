//! Amounts of resources as whole numbers: CPUs in thousandths, all else in units, rounded up as upstream does.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use controlplane_api::quantity::Quantity as Exact;

/// What a pod or container asks for or is limited to, by resource name.
pub(crate) type Resources = BTreeMap<String, Quantity>;

/// The amount of a resource: `cpu` in thousandths, others in units. None where it isn't given or can't be read.
pub(crate) fn amount(list: Option<&Resources>, name: &str) -> Option<i64> {
    let exact: Exact = list?.get(name)?.0.parse().ok()?;
    Some(if name == "cpu" {
        exact.milli_value()
    } else {
        exact.value()
    })
}
