//! From the resources to writes on a v2 host, for what libcgroups leaves out or gets wrong: pure functions.
//!
//! Its weights of devices overflow, huge pages of a size that isn't there fail without the file's name, it takes a process count that isn't given for one of 1, wants swap files that a
//! kernel without swap hasn't got, and follows slashes in the names of `unified` out of the cgroup.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::CgroupError;

/// One write to one file of a v2 cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// The controller that the file belongs to.
    pub(super) controller: String,
    /// The file.
    pub(super) file: String,
    /// What to write.
    pub(super) value: String,
    /// It lifts a limit, or repeats another: the controller or the file may be missing.
    pub(super) lifts: bool,
}

/// What the kernel offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offers {
    /// `io.bfq.weight` is there, which is preferred, as its weights are the specification's.
    pub(super) bfq: bool,
    /// `memory.swap.max` is there.
    pub(super) swap: bool,
}

/// v1's 2 to 262144 as v2's 1 to 10000, so that the defaults, 1024 and 100, meet: a quadratic function of the
/// logarithms, as runc has it since 1.3.2 (opencontainers/cgroups, pull request 20) and the kubelet uses it.
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// v1's 10 to 1000 as v2's 1 to 10000.
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

/// What is written before libcgroups' files: room in swap before memory's limit pushes something there, as its own order
/// is.
pub(super) fn plan_first(memory: &LinuxMemory, offers: Offers) -> Result<Vec<Write>, CgroupError> {
    check_swap(memory)?;
    let swap = swap_beside(memory).filter(|_| offers.swap);
    let mut writes = Vec::from_iter(swap.map(|swap| write("memory", "memory.swap.max", swap)));
    if memory.limit() == Some(-1) {
        writes.push(lift("memory", "memory.max", "max"));
    }
    Ok(writes)
}

/// What is written after libcgroups' files.
pub(super) fn plan(resources: &LinuxResources, offers: Offers) -> Result<Vec<Write>, CgroupError> {
    let mut writes = Vec::new();
    if let Some(pids) = resources.pids() {
        // Unset reads as 0, and the specification's "unlimited" is negative.
        writes.push(match pids.limit() {
            max if max > 0 => write("pids", "pids.max", max),
            _ => lift("pids", "pids.max", "max"),
        });
    }
    for page in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let (size, bytes) = (page.page_size(), page.limit());
        writes.push(write("hugetlb", &format!("hugetlb.{size}.max"), bytes));
        // Reservations are limited besides, where the kernel can (since 5.7).
        writes.push(lift("hugetlb", &format!("hugetlb.{size}.rsvd.max"), bytes));
    }
    if let Some(io) = resources.block_io() {
        plan_io(io, offers, &mut writes)?;
    }
    for (device, max) in resources.rdma().iter().flatten().collect::<BTreeMap<_, _>>() {
        let part = |name: &str, n: Option<u32>| n.map(|n| format!(" {name}={n}")).unwrap_or_default();
        let handles = part("hca_handle", max.hca_handles());
        let objects = part("hca_object", max.hca_objects());
        writes.push(write("rdma", "rdma.max", format!("{device}{handles}{objects}")));
    }
    for (file, value) in resources.unified().iter().flatten().collect::<BTreeMap<_, _>>() {
        if file.contains('/') || file.is_empty() || file == "." || file == ".." {
            return Err(CgroupError::Limit {
                limit: "unified",
                value: file.clone(),
                reason: "it must be the name of a file in the cgroup, without a slash".to_owned(),
            });
        }
        let controller = file.split('.').next().unwrap_or(file);
        writes.push(Write {
            controller: controller.to_owned(),
            ..write("", file, value)
        });
    }
    Ok(writes)
}

fn write(controller: &str, file: &str, value: impl ToString) -> Write {
    Write {
        controller: controller.to_owned(),
        file: file.to_owned(),
        value: value.to_string(),
        lifts: false,
    }
}

fn lift(controller: &str, file: &str, value: impl ToString) -> Write {
    Write {
        lifts: true,
        ..write(controller, file, value)
    }
}

fn plan_io(io: &LinuxBlockIo, offers: Offers, writes: &mut Vec<Write>) -> Result<(), CgroupError> {
    let set = |n: Option<u16>| n.filter(|&n| n != 0);
    let devices = io.weight_device().as_deref().unwrap_or_default();
    let leaf = set(io.leaf_weight()).or_else(|| devices.iter().find_map(|d| set(d.leaf_weight())));
    if let Some(weight) = leaf {
        return Err(CgroupError::Limit {
            limit: "blockIO.leafWeight",
            value: weight.to_string(),
            reason: "cgroup v2 has no weights of leaves".to_owned(),
        });
    }
    let weigh = |device: &str, weight: u16| match offers.bfq {
        true => write("io", "io.bfq.weight", format!("{device}{weight}")),
        false => write("io", "io.weight", format!("{device}{}", io_weight(weight))),
    };
    writes.extend(set(io.weight()).map(|weight| weigh("", weight)));
    for d in devices {
        let device = format!("{}:{} ", d.major(), d.minor());
        writes.extend(set(d.weight()).map(|weight| weigh(&device, weight)));
    }
    let throttles: [(&Option<Vec<LinuxThrottleDevice>>, &str); 4] = [
        (io.throttle_read_bps_device(), "rbps"),
        (io.throttle_write_bps_device(), "wbps"),
        (io.throttle_read_iops_device(), "riops"),
        (io.throttle_write_iops_device(), "wiops"),
    ];
    for (devices, key) in throttles {
        for d in devices.as_deref().unwrap_or_default() {
            let device = format!("{}:{}", d.major(), d.minor());
            writes.push(match d.rate() {
                // v1's way of lifting a limit.
                0 => lift("io", "io.max", format!("{device} {key}=max")),
                rate => write("io", "io.max", format!("{device} {key}={rate}")),
            });
        }
    }
    Ok(())
}

/// `memory.swap.max`: what the specification's limit of both leaves beside memory's, `max` where both are lifted.
/// libcgroups writes nothing when nothing is left, which leaves all swap.
fn swap_beside(memory: &LinuxMemory) -> Option<String> {
    let limit = memory.limit().unwrap_or(0);
    match memory.swap() {
        // Lifting memory's limit lifts both.
        None => (limit == -1).then(|| "max".to_owned()),
        // "Not said", as with every limit of memory.
        Some(0) => None,
        Some(both) if both > 0 && limit > 0 => Some(both.saturating_sub(limit).max(0).to_string()),
        // Memory's limit is lifted or not said: both is all that limits swap.
        Some(both) if both > 0 => Some(both.to_string()),
        Some(_) => Some("max".to_owned()),
    }
}

/// What libcgroups isn't to see, but would take for a mistake.
fn check_swap(memory: &LinuxMemory) -> Result<(), CgroupError> {
    let refused = |swap: i64, reason: &str| {
        Err(CgroupError::Limit {
            limit: "memory.swap",
            value: swap.to_string(),
            reason: reason.to_owned(),
        })
    };
    match (memory.swap(), memory.limit()) {
        (Some(swap), _) if swap < -1 => refused(swap, "-1 is unlimited, and nothing is below"),
        (Some(swap), None) if swap > 0 => refused(
            swap,
            "it limits memory and swap together, and needs a limit of memory",
        ),
        (Some(swap), Some(limit)) if swap > 0 && swap < limit => refused(
            swap,
            "it limits memory and swap together, and must not be below the limit of memory",
        ),
        _ => Ok(()),
    }
}

/// What libcgroups is given: the resources without what is planned here. Lifting memory's limit would lift swap's with
/// a file that may not be there, so a lifted one is planned here, too.
pub(super) fn for_libcgroups(resources: &LinuxResources) -> LinuxResources {
    let mut rest = resources.clone();
    rest.set_devices(None)
        .set_pids(None)
        .set_block_io(None)
        .set_hugepage_limits(None)
        .set_rdma(None)
        .set_unified(None);
    if let Some(mut memory) = *rest.memory() {
        memory.set_swap(None);
        if memory.limit() == Some(-1) {
            memory.set_limit(None);
        }
        rest.set_memory(Some(memory));
    }
    rest
}

/// Whether a limit on swap is asked for that says more than "none" or "any".
pub(super) fn wants_swap(memory: &LinuxMemory) -> bool {
    memory
        .swap()
        .is_some_and(|both| both > 0 && Some(both) != memory.limit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn planned(json: &str, bfq: bool) -> Vec<String> {
        let offers = Offers { bfq, swap: true };
        let text = |w: Write| format!("{}={}", w.file, w.value);
        plan(&resources(json), offers)
            .unwrap()
            .into_iter()
            .map(text)
            .collect()
    }

    #[test]
    fn shares_become_weights_with_equal_ends_and_defaults() {
        for (shares, weight) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (9_999_999, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        let all: Vec<u64> = (2..262_144).step_by(97).map(cpu_weight).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn io_weights_become_weights_with_equal_ends() {
        assert_eq!([10, 1000].map(io_weight), [1, 10_000]);
        assert_eq!(io_weight(500), 4950);
        let weights = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#;
        assert_eq!(planned(weights, false), ["io.weight=4950", "io.weight=8:0 1"]);
        assert_eq!(
            planned(weights, true),
            ["io.bfq.weight=500", "io.bfq.weight=8:0 10"]
        );
    }

    #[test]
    fn throttles_and_the_rest_are_written_to_their_files() {
        let all = r#"{"pids":{"limit":9},"hugepageLimits":[{"pageSize":"2MB","limit":4}],"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":4}},
            "unified":{"memory.oom.group":"1","cgroup.max.depth":"3"},
            "blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#;
        assert_eq!(
            planned(all, false),
            [
                "pids.max=9",
                "hugetlb.2MB.max=4",
                "hugetlb.2MB.rsvd.max=4",
                "io.max=8:0 rbps=600",
                "io.max=8:0 wiops=max",
                "rdma.max=mlx5_1 hca_handle=3 hca_object=4",
                "cgroup.max.depth=3",
                "memory.oom.group=1"
            ]
        );
        assert_eq!(planned(r#"{"pids":{"limit":0}}"#, false), ["pids.max=max"]);
    }

    #[test]
    fn what_can_t_be_is_refused() {
        for bad in [
            r#"{"unified":{"../memory.max":"1"}}"#,
            r#"{"unified":{"":"1"}}"#,
            r#"{"blockIO":{"leafWeight":10}}"#,
        ] {
            assert!(plan(&resources(bad), Offers::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn swap_is_what_both_leave_beside_memory() {
        let offers = Offers {
            bfq: false,
            swap: true,
        };
        for (memory, wanted) in [
            (r#"{"limit":10,"swap":10}"#, vec!["memory.swap.max=0"]),
            (r#"{"limit":10,"swap":30}"#, vec!["memory.swap.max=20"]),
            (r#"{"limit":10,"swap":-1}"#, vec!["memory.swap.max=max"]),
            (r#"{"limit":-1}"#, vec!["memory.swap.max=max", "memory.max=max"]),
            (
                r#"{"limit":-1,"swap":9}"#,
                vec!["memory.swap.max=9", "memory.max=max"],
            ),
            (r#"{"swap":-1}"#, vec!["memory.swap.max=max"]),
            (r#"{"limit":10}"#, vec![]),
            (r#"{"limit":10,"swap":0}"#, vec![]),
        ] {
            let text = |w: Write| format!("{}={}", w.file, w.value);
            let first = plan_first(&serde_json::from_str(memory).unwrap(), offers).unwrap();
            assert_eq!(
                first.into_iter().map(text).collect::<Vec<_>>(),
                wanted,
                "{memory}"
            );
        }
        for bad in [
            r#"{"swap":10}"#,
            r#"{"limit":10,"swap":9}"#,
            r#"{"limit":10,"swap":-2}"#,
        ] {
            assert!(
                plan_first(&serde_json::from_str(bad).unwrap(), offers).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_kernel_without_swap_is_not_told_of_it_and_neither_is_libcgroups() {
        let lifted = resources(r#"{"memory":{"limit":-1,"swap":-1,"reservation":5}}"#);
        let writes = plan_first(&lifted.memory().unwrap(), Offers::default()).unwrap();
        assert_eq!(writes, [lift("memory", "memory.max", "max")]);
        let rest = (*for_libcgroups(&lifted).memory()).unwrap_or_default();
        assert_eq!(
            (rest.limit(), rest.swap(), rest.reservation()),
            (None, None, Some(5))
        );
        let limited = resources(r#"{"memory":{"limit":10,"swap":10}}"#);
        let rest = (*for_libcgroups(&limited).memory()).unwrap_or_default();
        assert_eq!((rest.limit(), rest.swap()), (Some(10), None));
    }
}
