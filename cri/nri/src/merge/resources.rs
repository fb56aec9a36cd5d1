//! Limits: who sets which, and one set laid over another.

use crate::error::NriError;
use crate::owners::Owners;
use crate::v1alpha1::{Field, LinuxResources};

/// Takes every limit that is set.
pub(super) fn claim(owners: &mut Owners<'_>, wish: &LinuxResources) -> Result<(), NriError> {
    let memory = wish.memory.unwrap_or_default();
    let cpu = wish.cpu.clone().unwrap_or_default();
    let set = [
        (memory.limit.is_some(), Field::MemLimit),
        (memory.reservation.is_some(), Field::MemReservation),
        (memory.swap.is_some(), Field::MemSwapLimit),
        (memory.kernel.is_some(), Field::MemKernelLimit),
        (memory.kernel_tcp.is_some(), Field::MemTcpLimit),
        (memory.swappiness.is_some(), Field::MemSwappiness),
        (memory.disable_oom_killer.is_some(), Field::MemDisableOomKiller),
        (memory.use_hierarchy.is_some(), Field::MemUseHierarchy),
        (cpu.shares.is_some(), Field::CpuShares),
        (cpu.quota.is_some(), Field::CpuQuota),
        (cpu.period.is_some(), Field::CpuPeriod),
        (cpu.realtime_runtime.is_some(), Field::CpuRealtimeRuntime),
        (cpu.realtime_period.is_some(), Field::CpuRealtimePeriod),
        (!cpu.cpus.is_empty(), Field::CpuSetCpUs),
        (!cpu.mems.is_empty(), Field::CpuSetMems),
        (wish.blockio_class.is_some(), Field::BlockioClass),
        (wish.rdt_class.is_some(), Field::RdtClass),
        (wish.pids.is_some(), Field::PidsLimit),
    ];
    for (_, field) in set.into_iter().filter(|(set, _)| *set) {
        owners.claim(field)?;
    }
    for limit in &wish.hugepage_limits {
        owners.claim_entry(Field::HugepageLimits, &limit.page_size)?;
    }
    for key in wish.unified.keys() {
        owners.claim_entry(Field::CgroupsUnified, key)?;
    }
    Ok(())
}

/// Takes over into `to` what is set in `from`.
pub(super) fn overlay(to: &mut LinuxResources, from: &LinuxResources) {
    fn set<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
        if from.is_some() {
            to.clone_from(from);
        }
    }
    if let Some(from) = &from.memory {
        let to = to.memory.get_or_insert_default();
        set(&mut to.limit, &from.limit);
        set(&mut to.reservation, &from.reservation);
        set(&mut to.swap, &from.swap);
        set(&mut to.kernel, &from.kernel);
        set(&mut to.kernel_tcp, &from.kernel_tcp);
        set(&mut to.swappiness, &from.swappiness);
        set(&mut to.disable_oom_killer, &from.disable_oom_killer);
        set(&mut to.use_hierarchy, &from.use_hierarchy);
    }
    if let Some(from) = &from.cpu {
        let to = to.cpu.get_or_insert_default();
        set(&mut to.shares, &from.shares);
        set(&mut to.quota, &from.quota);
        set(&mut to.period, &from.period);
        set(&mut to.realtime_runtime, &from.realtime_runtime);
        set(&mut to.realtime_period, &from.realtime_period);
        for (to, from) in [(&mut to.cpus, &from.cpus), (&mut to.mems, &from.mems)] {
            if !from.is_empty() {
                to.clone_from(from);
            }
        }
    }
    for limit in &from.hugepage_limits {
        to.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        to.hugepage_limits.push(limit.clone());
    }
    to.devices.extend_from_slice(&from.devices);
    to.unified.extend(from.unified.clone());
    set(&mut to.blockio_class, &from.blockio_class);
    set(&mut to.rdt_class, &from.rdt_class);
    set(&mut to.pids, &from.pids);
}
