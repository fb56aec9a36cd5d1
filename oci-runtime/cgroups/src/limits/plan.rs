//! From the resources to writes, in an order that the kernel takes: a pure function.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::devices;
use crate::CgroupError;

/// One write to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The controller that the file belongs to.
    pub controller: &'static str,
    /// The file on v1.
    pub file: String,
    /// The file where a hybrid host has the controller on v2; `None` if such a limit can't be there.
    pub v2_file: Option<String>,
    /// Another file to try when the first does not exist.
    pub otherwise: Option<&'static str>,
    /// What to write.
    pub value: String,
    /// What to do if it fails.
    pub kind: WriteKind,
}

/// How much a write matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// It must succeed.
    Limit,
    /// It lifts a limit: where the controller or the file is missing there is none.
    Unlimited,
    /// The kernel may refuse it as not going with what is set now; a later write does it again.
    MayWait,
}

/// What is in force before the writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// v1's `memory.limit_in_bytes`, if memory and swap are both to be set.
    pub memory_limit: Option<u64>,
    /// v1's `memory.usage_in_bytes`, if the update is to be checked against it.
    pub memory_usage: Option<u64>,
}

/// The writes for a host with v1 controllers.
///
/// # Errors
/// A limit that is out of range.
pub fn plan(resources: &LinuxResources, observed: &Observed) -> Result<Vec<Write>, CgroupError> {
    let mut writes = Vec::new();
    for (allow, rule) in devices::rules(resources.devices().as_deref().unwrap_or_default()) {
        let file = if allow { "devices.allow" } else { "devices.deny" };
        // Without the controller on v1, the rules are v2's, and were put there before.
        writes.push(unlimited("devices", file, rule));
    }
    if let Some(memory) = resources.memory() {
        plan_memory(memory, observed, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        plan_cpu(cpu, &mut writes);
    }
    if let Some(pids) = resources.pids() {
        // Unset reads as 0, and the specification's "unlimited" is negative.
        writes.push(match pids.limit() {
            max if max > 0 => limit("pids", "pids.max", max),
            _ => unlimited("pids", "pids.max", "max"),
        });
    }
    for page in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let (size, bytes) = (page.page_size(), page.limit());
        writes.push(Write {
            v2_file: Some(format!("hugetlb.{size}.max")),
            ..limit("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), bytes)
        });
    }
    if let Some(io) = resources.block_io() {
        plan_io(io, &mut writes);
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|&class| class != 0) {
            writes.push(limit("net_cls", "net_cls.classid", class));
        }
        for p in network.priorities().as_deref().unwrap_or_default() {
            writes.push(limit(
                "net_prio",
                "net_prio.ifpriomap",
                format!("{} {}", p.name(), p.priority()),
            ));
        }
    }
    let mut rdma: Vec<_> = resources.rdma().iter().flatten().collect();
    rdma.sort_unstable_by_key(|(device, _)| device.as_str());
    for (device, max) in rdma {
        let part = |name: &str, n: Option<u32>| n.map(|n| format!(" {name}={n}")).unwrap_or_default();
        let handles = part("hca_handle", max.hca_handles());
        let objects = part("hca_object", max.hca_objects());
        writes.push(Write {
            v2_file: Some("rdma.max".to_owned()),
            ..limit("rdma", "rdma.max", format!("{device}{handles}{objects}"))
        });
    }
    Ok(writes)
}

/// Controllers, each with a file of it, that these resources need on a v2 host.
pub(super) fn needed_on_v2(resources: &LinuxResources) -> Vec<(&'static str, &'static str)> {
    let mut needed = Vec::new();
    let mut need = |when: bool, controller, file| {
        if when {
            needed.push((controller, file));
        }
    };
    let limits = |n: Option<i64>| n.is_some_and(|n| n > 0);
    if let Some(memory) = resources.memory() {
        need(limits(memory.limit()), "memory", "memory.max");
        need(limits(memory.reservation()), "memory", "memory.low");
        need(limits(memory.swap()), "memory", "memory.swap.max");
    }
    if let Some(cpu) = resources.cpu() {
        need(cpu.shares().is_some_and(|s| s != 0), "cpu", "cpu.weight");
        need(limits(cpu.quota()), "cpu", "cpu.max");
        need(
            cpu.cpus().as_deref().is_some_and(|c| !c.is_empty()),
            "cpuset",
            "cpuset.cpus",
        );
        need(
            cpu.mems().as_deref().is_some_and(|m| !m.is_empty()),
            "cpuset",
            "cpuset.mems",
        );
    }
    need(
        resources.pids().is_some_and(|p| p.limit() > 0),
        "pids",
        "pids.max",
    );
    need(
        resources
            .hugepage_limits()
            .as_ref()
            .is_some_and(|h| !h.is_empty()),
        "hugetlb",
        "hugetlb.<size>.max",
    );
    need(resources.block_io().is_some(), "io", "io.max");
    need(
        resources.rdma().as_ref().is_some_and(|r| !r.is_empty()),
        "rdma",
        "rdma.max",
    );
    needed
}

fn limit(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
    Write {
        controller,
        file: file.into(),
        v2_file: None,
        otherwise: None,
        value: value.to_string(),
        kind: WriteKind::Limit,
    }
}

fn unlimited(controller: &'static str, file: &str, value: impl ToString) -> Write {
    Write {
        kind: WriteKind::Unlimited,
        ..limit(controller, file, value)
    }
}

/// -1 lifts a limit, 0 is "not said".
fn bytes(controller: &'static str, file: &str, value: i64) -> Option<Write> {
    match value {
        0 => None,
        -1 => Some(unlimited(controller, file, value)),
        _ => Some(limit(controller, file, value)),
    }
}

const MEMORY: &str = "memory.limit_in_bytes";
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

/// A limit below what is in use, where that was asked for.
pub(super) fn check_usage(limit: i64, usage: Option<u64>) -> Result<(), CgroupError> {
    match usage.filter(|&usage| limit > 0 && usage > limit.unsigned_abs()) {
        None => Ok(()),
        Some(usage) => Err(CgroupError::Limit {
            limit: "memory.limit",
            value: limit.to_string(),
            reason: format!("{usage} bytes are in use"),
        }),
    }
}

fn plan_memory(
    memory: &LinuxMemory,
    observed: &Observed,
    writes: &mut Vec<Write>,
) -> Result<(), CgroupError> {
    let refuse = |limit, value: String, reason: String| Err(CgroupError::Limit { limit, value, reason });
    let max = memory.limit().unwrap_or(0);
    // Without a memory limit, one on both together is none; the kernel wants it lifted first.
    let both = memory.swap().unwrap_or(if max == -1 { -1 } else { 0 });
    for (name, value) in [("memory.limit", max), ("memory.swap", both)] {
        if value < -1 {
            return refuse(
                name,
                value.to_string(),
                "it must be -1 (unlimited) or more".to_owned(),
            );
        }
    }
    if both > 0 && max > both {
        let reason = format!("memory and swap together can't be less than the memory limit {max}");
        return refuse("memory.swap", both.to_string(), reason);
    }
    check_usage(max, observed.memory_usage)?;
    let memory_write = bytes("memory", MEMORY, max);
    let both_write = bytes("memory", MEMORY_AND_SWAP, both);
    // The kernel keeps memory <= memory and swap at every moment, so what grows grows from above.
    let grows = both == -1
        || observed
            .memory_limit
            .is_none_or(|now| both > 0 && now < both.unsigned_abs());
    if grows {
        writes.extend(both_write.into_iter().chain(memory_write));
    } else {
        writes.extend(memory_write.into_iter().chain(both_write));
    }
    writes.extend(bytes(
        "memory",
        "memory.soft_limit_in_bytes",
        memory.reservation().unwrap_or(0),
    ));
    if memory.disable_oom_killer() == Some(true) {
        writes.push(limit("memory", "memory.oom_control", 1));
    }
    match memory.swappiness() {
        Some(value) if value > 100 => {
            return refuse(
                "memory.swappiness",
                value.to_string(),
                "it must be 0 to 100".to_owned(),
            );
        }
        Some(value) => writes.push(limit("memory", "memory.swappiness", value)),
        None => {}
    }
    // memory.kernel is gone from the kernel, and the specification says not to use it. This one still works.
    writes.extend(bytes(
        "memory",
        "memory.kmem.tcp.limit_in_bytes",
        memory.kernel_tcp().unwrap_or(0),
    ));
    Ok(())
}

fn plan_cpu(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    let set = |n: Option<u64>| n.filter(|&n| n != 0);
    writes.extend(set(cpu.shares()).map(|n| limit("cpu", "cpu.shares", n)));
    let period = set(cpu.period()).map(|n| limit("cpu", "cpu.cfs_period_us", n));
    let quota = cpu.quota().filter(|&n| n != 0).map(|n| match n {
        n if n < 0 => unlimited("cpu", "cpu.cfs_quota_us", -1),
        n => limit("cpu", "cpu.cfs_quota_us", n),
    });
    // Whether quota or period has to go first depends on what is set and on the parent's ratio.
    if let (Some(period), Some(_)) = (&period, &quota) {
        writes.push(Write {
            kind: WriteKind::MayWait,
            ..period.clone()
        });
    }
    writes.extend(quota);
    writes.extend(period);
    writes.extend(cpu.burst().map(|n| match n {
        0 => unlimited("cpu", "cpu.cfs_burst_us", 0),
        n => limit("cpu", "cpu.cfs_burst_us", n),
    }));
    writes.extend(set(cpu.realtime_period()).map(|n| limit("cpu", "cpu.rt_period_us", n)));
    writes.extend(
        cpu.realtime_runtime()
            .filter(|&n| n != 0)
            .map(|n| limit("cpu", "cpu.rt_runtime_us", n)),
    );
    writes.extend(cpu.idle().map(|n| match n {
        0 => unlimited("cpu", "cpu.idle", 0),
        n => limit("cpu", "cpu.idle", n),
    }));
    let list = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    writes.extend(list(cpu.cpus()).map(|s| limit("cpuset", "cpuset.cpus", s)));
    writes.extend(list(cpu.mems()).map(|s| limit("cpuset", "cpuset.mems", s)));
}

fn plan_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let weight = |file: &str, bfq: Option<&'static str>, value: String| Write {
        otherwise: bfq,
        ..limit("blkio", file, value)
    };
    let set = |n: Option<u16>| n.filter(|&n| n != 0);
    writes.extend(set(io.weight()).map(|n| weight("blkio.weight", Some("blkio.bfq.weight"), n.to_string())));
    writes.extend(set(io.leaf_weight()).map(|n| weight("blkio.leaf_weight", None, n.to_string())));
    for d in io.weight_device().as_deref().unwrap_or_default() {
        let value = |n: u16| format!("{}:{} {n}", d.major(), d.minor());
        let bfq = Some("blkio.bfq.weight_device");
        writes.extend(set(d.weight()).map(|n| weight("blkio.weight_device", bfq, value(n))));
        writes.extend(set(d.leaf_weight()).map(|n| weight("blkio.leaf_weight_device", None, value(n))));
    }
    let throttles: [(&Option<Vec<LinuxThrottleDevice>>, &str); 4] = [
        (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device"),
        (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device"),
        (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device"),
        (
            io.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
        ),
    ];
    for (devices, file) in throttles {
        for d in devices.as_deref().unwrap_or_default() {
            writes.push(limit(
                "blkio",
                file,
                format!("{}:{} {}", d.major(), d.minor(), d.rate()),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use oci_spec::runtime::{
        LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder,
        LinuxPidsBuilder, LinuxResourcesBuilder,
    };

    use super::*;

    fn short(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    fn memory(limit: i64, swap: Option<i64>, now: Option<u64>) -> Result<Vec<String>, CgroupError> {
        let mut memory = LinuxMemoryBuilder::default().limit(limit).build().unwrap();
        memory.set_swap(swap);
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        plan(
            &resources,
            &Observed {
                memory_limit: now,
                memory_usage: None,
            },
        )
        .map(|w| short(&w))
    }

    #[test]
    fn memory_and_swap_are_written_in_the_order_that_the_kernel_takes() {
        let (m, s) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let grow = memory(200, Some(300), Some(100)).unwrap();
        assert_eq!(grow, [format!("{s}=300"), format!("{m}=200")]);
        let shrink = memory(200, Some(300), Some(1000)).unwrap();
        assert_eq!(shrink, [format!("{m}=200"), format!("{s}=300")]);
        assert_eq!(
            memory(200, Some(-1), Some(1000)).unwrap(),
            [format!("{s}=-1"), format!("{m}=200")]
        );
        assert_eq!(
            memory(-1, None, None).unwrap(),
            [format!("{s}=-1"), format!("{m}=-1")]
        );
        assert_eq!(memory(200, None, None).unwrap(), [format!("{m}=200")]);
        assert!(memory(0, None, None).unwrap().is_empty());
    }

    #[test]
    fn impossible_memory_limits_are_refused_before_anything_is_written() {
        assert!(
            memory(300, Some(200), None)
                .unwrap_err()
                .to_string()
                .contains("memory.swap")
        );
        assert!(memory(-7, None, None).unwrap_err().to_string().contains("-7"));
        let memory = LinuxMemoryBuilder::default().swappiness(101u64).build().unwrap();
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        assert!(
            plan(&resources, &Observed::default())
                .unwrap_err()
                .to_string()
                .contains("swappiness")
        );
        let memory = LinuxMemoryBuilder::default()
            .limit(10)
            .check_before_update(true)
            .build()
            .unwrap();
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        let used = Observed {
            memory_usage: Some(20),
            ..Observed::default()
        };
        assert!(
            plan(&resources, &used)
                .unwrap_err()
                .to_string()
                .contains("20 bytes are in use")
        );
    }

    #[test]
    fn pids_that_are_unset_or_negative_mean_max() {
        for (given, wanted) in [(0, "max"), (-1, "max"), (7, "7")] {
            let pids = LinuxPidsBuilder::default().limit(given).build().unwrap();
            let resources = LinuxResourcesBuilder::default().pids(pids).build().unwrap();
            let writes = plan(&resources, &Observed::default()).unwrap();
            let of_pids: Vec<_> = writes.iter().filter(|w| w.controller == "pids").collect();
            assert_eq!((of_pids.len(), of_pids[0].value.as_str()), (1, wanted));
            assert_eq!(of_pids[0].kind == WriteKind::Unlimited, given <= 0);
        }
    }

    #[test]
    fn quota_and_period_are_written_so_that_either_order_works() {
        let cpu = LinuxCpuBuilder::default()
            .shares(512u64)
            .quota(5000)
            .period(20_000u64)
            .cpus("0");
        let resources = LinuxResourcesBuilder::default()
            .cpu(cpu.build().unwrap())
            .build()
            .unwrap();
        let writes = plan(&resources, &Observed::default()).unwrap();
        assert_eq!(
            short(&writes),
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=20000",
                "cpu.cfs_quota_us=5000",
                "cpu.cfs_period_us=20000",
                "cpuset.cpus=0"
            ]
        );
        assert_eq!(writes[1].kind, WriteKind::MayWait);
    }

    #[test]
    fn io_weights_know_bfq_and_hugetlb_knows_v2() {
        let io = LinuxBlockIoBuilder::default().weight(300u16).build().unwrap();
        let page = LinuxHugepageLimitBuilder::default()
            .page_size("2MB")
            .limit(4096)
            .build()
            .unwrap();
        let resources = LinuxResourcesBuilder::default()
            .block_io(io)
            .hugepage_limits(vec![page])
            .build()
            .unwrap();
        let writes = plan(&resources, &Observed::default()).unwrap();
        assert_eq!(writes[0].v2_file.as_deref(), Some("hugetlb.2MB.max"));
        assert_eq!(writes[1].otherwise, Some("blkio.bfq.weight"));
    }

    #[test]
    fn v2_needs_are_named_by_controller_and_file() {
        let pids = LinuxPidsBuilder::default().limit(5).build().unwrap();
        let memory = LinuxMemoryBuilder::default().limit(-1).build().unwrap();
        let resources = LinuxResourcesBuilder::default()
            .pids(pids)
            .memory(memory)
            .build()
            .unwrap();
        assert_eq!(needed_on_v2(&resources), [("pids", "pids.max")]);
    }

    /// The kernel's rule for v1: at every moment memory <= memory and swap; `None` is unlimited.
    fn write(state: &mut (Option<u64>, Option<u64>), file: &str, value: &str) -> Result<(), String> {
        let value = value.parse::<u64>().ok();
        let next = if file == MEMORY {
            (value, state.1)
        } else {
            (state.0, value)
        };
        let holds = match next {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(memory), Some(both)) => memory <= both,
        };
        if !holds {
            return Err(format!("{file}={value:?} in {state:?}"));
        }
        *state = next;
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any series of updates that name both limits goes through, and ends with the last one in force.
        #[test]
        fn updates_of_memory_and_swap_never_break_the_kernel_s_rule(
            updates in prop::collection::vec((1i64..50, prop_oneof![Just(-1i64), 0i64..50]), 1..12)
        ) {
            let mut state = (None, None);
            for (limit, extra) in updates {
                let swap = if extra < 0 { -1 } else { limit + extra };
                let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
                let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
                let now = Observed { memory_limit: Some(state.0.unwrap_or(u64::MAX >> 1)), memory_usage: None };
                for w in plan(&resources, &now).unwrap().iter().filter(|w| w.controller == "memory") {
                    let refused = write(&mut state, &w.file, &w.value);
                    prop_assert!(refused.is_ok(), "{refused:?}");
                }
                prop_assert_eq!(state, (Some(limit as u64), u64::try_from(swap).ok()));
            }
        }
    }
}
