//! Limits: the CRI's resources as OCI resources, for creation and for updates.
//!
//! Zero means "not set" in the CRI. A limit that this host can't enforce is refused when it was really asked for, and
//! left out when it is only the kubelet naming every limit there is (huge pages of 0 bytes).

use std::collections::HashMap;

use cri_api::v1;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder,
};

use super::{HostFacts, SpecError, SpecInput, devices};

const OOM_SCORE_RANGE: std::ops::RangeInclusive<i64> = -1000..=1000;

/// The limits of a new container, with its device rules.
pub(super) fn container_resources(input: &SpecInput<'_>) -> Result<LinuxResources, SpecError> {
    let none = v1::LinuxContainerResources::default();
    let asked = input
        .container
        .linux
        .as_ref()
        .and_then(|l| l.resources.as_ref())
        .unwrap_or(&none);
    let mut resources = linux_resources(asked, input.host)?;
    resources.set_devices(Some(devices::device_rules(input)?));
    if let Some(limit) = input.defaults.pids_limit {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    Ok(resources)
}

/// CRI limits as OCI limits: for a new container, and for `UpdateContainerResources`, where a field that is not set
/// leaves the old limit.
pub fn linux_resources(
    asked: &v1::LinuxContainerResources,
    host: &HostFacts,
) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResourcesBuilder::default().build()?;
    set_cpu(&mut resources, asked)?;
    set_memory(&mut resources, asked, host)?;
    set_hugepages(&mut resources, asked, host)?;
    if !asked.unified.is_empty() {
        if !host.cgroup_v2 {
            return Err(refuse(
                "unified",
                "{...}",
                "this host has no cgroup v2, whose files these are",
            ));
        }
        resources.set_unified(Some(unified(&asked.unified)?));
    }
    Ok(resources)
}

fn refuse(field: &str, value: impl ToString, why: &'static str) -> SpecError {
    SpecError::Resource {
        field: field.to_owned(),
        value: value.to_string(),
        why,
    }
}

fn positive(field: &str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(refuse(field, value, "must not be negative")),
    }
}

fn set_cpu(resources: &mut LinuxResources, asked: &v1::LinuxContainerResources) -> Result<(), SpecError> {
    let shares = positive("cpu_shares", asked.cpu_shares)?;
    let period = positive("cpu_period", asked.cpu_period)?;
    let quota = (asked.cpu_quota != 0).then_some(asked.cpu_quota);
    if quota.is_some_and(|q| q < -1) {
        return Err(refuse(
            "cpu_quota",
            asked.cpu_quota,
            "must be positive, 0 for unset or -1 for no limit",
        ));
    }
    let text = |t: &String| (!t.is_empty()).then(|| t.clone());
    let (cpus, mems) = (text(&asked.cpuset_cpus), text(&asked.cpuset_mems));
    if shares.is_none() && period.is_none() && quota.is_none() && cpus.is_none() && mems.is_none() {
        return Ok(());
    }
    let mut cpu = LinuxCpuBuilder::default().build()?;
    cpu.set_shares(shares)
        .set_period(period)
        .set_quota(quota)
        .set_cpus(cpus)
        .set_mems(mems);
    resources.set_cpu(Some(cpu));
    Ok(())
}

fn set_memory(
    resources: &mut LinuxResources,
    asked: &v1::LinuxContainerResources,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let (limit, swap) = (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    for (field, value) in [
        ("memory_limit_in_bytes", limit),
        ("memory_swap_limit_in_bytes", swap),
    ] {
        if value < -1 {
            return Err(refuse(
                field,
                value,
                "must be positive, 0 for unset or -1 for no limit",
            ));
        }
    }
    if swap > 0 && swap < limit {
        let why = "the limit of memory and swap together must not be below the memory limit";
        return Err(refuse("memory_swap_limit_in_bytes", swap, why));
    }
    if limit == 0 && swap == 0 {
        return Ok(());
    }
    let mut memory = LinuxMemoryBuilder::default().build()?;
    memory.set_limit((limit != 0).then_some(limit));
    if host.swap_accounting {
        // Memory and swap together; a container whose limit says nothing of swap gets none.
        let both = if swap == 0 { limit } else { swap };
        memory.set_swap((both != 0).then_some(both));
    }
    resources.set_memory(Some(memory));
    Ok(())
}

fn set_hugepages(
    resources: &mut LinuxResources,
    asked: &v1::LinuxContainerResources,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let mut limits = Vec::new();
    for wanted in &asked.hugepage_limits {
        let field = format!("hugepage_limits[{}]", wanted.page_size);
        if !host.hugepage_sizes.contains(&wanted.page_size) {
            if wanted.limit == 0 {
                continue;
            }
            return Err(refuse(
                &field,
                wanted.limit,
                "this host can't limit huge pages of that size",
            ));
        }
        let bytes = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
        let limit = LinuxHugepageLimitBuilder::default()
            .page_size(wanted.page_size.clone())
            .limit(bytes)
            .build()?;
        limits.push(limit);
    }
    if !limits.is_empty() {
        resources.set_hugepage_limits(Some(limits));
    }
    Ok(())
}

/// Each key is the name of a file in the container's cgroup, and nothing else.
fn unified(asked: &HashMap<String, String>) -> Result<HashMap<String, String>, SpecError> {
    let bad =
        |key: &&String| key.contains('/') || !key.contains('.') || key.starts_with('.') || key.contains('\0');
    match asked.keys().find(bad) {
        Some(key) => Err(refuse(
            "unified",
            key,
            "is not the name of a cgroup file, such as `memory.high`",
        )),
        None => Ok(asked.clone()),
    }
}

/// The process's OOM score adjustment.
pub(super) fn oom_score_adj(input: &SpecInput<'_>) -> Result<Option<i32>, SpecError> {
    // Nothing asked for is 0: left unset, it would be the daemon's own, which its unit may put out of the OOM killer's
    // reach.
    let resources = input.container.linux.as_ref().and_then(|l| l.resources.as_ref());
    let asked = resources.map_or(0, |resources| resources.oom_score_adj);
    if !OOM_SCORE_RANGE.contains(&asked) {
        return Err(refuse("oom_score_adj", asked, "must be between -1000 and 1000"));
    }
    // Without CAP_SYS_RESOURCE the kernel refuses anything below what the daemon itself has.
    let floor = input.host.oom_score_floor.map_or(-1000, i64::from);
    Ok(i32::try_from(asked.max(floor)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts {
            hugepage_sizes: vec!["2MB".to_owned()],
            swap_accounting: true,
            ..HostFacts::default()
        }
    }

    fn asked() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources::default()
    }

    fn error(asked: v1::LinuxContainerResources) -> String {
        linux_resources(&asked, &host()).unwrap_err().to_string()
    }

    #[test]
    fn nothing_asked_is_nothing_limited() {
        let resources = linux_resources(&asked(), &host()).unwrap();
        assert_eq!(resources, LinuxResourcesBuilder::default().build().unwrap());
    }

    #[test]
    fn cpu_and_memory_pass_through() {
        let asked = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0-1".to_owned(),
            ..asked()
        };
        let resources = linux_resources(&asked, &host()).unwrap();
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.period(), cpu.quota(), cpu.shares()),
            (Some(100_000), Some(-1), Some(512))
        );
        assert_eq!(
            (cpu.cpus().as_deref(), cpu.mems().as_deref()),
            (Some("0-1"), None)
        );
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!(
            (memory.limit(), memory.swap()),
            (Some(1 << 20), Some(1 << 20)),
            "no swap beside memory"
        );
    }

    #[test]
    fn swap_needs_accounting() {
        let asked = v1::LinuxContainerResources {
            memory_limit_in_bytes: 100,
            memory_swap_limit_in_bytes: 300,
            ..asked()
        };
        let with = linux_resources(&asked, &host()).unwrap();
        assert_eq!(with.memory().as_ref().unwrap().swap(), Some(300));
        let without = HostFacts {
            swap_accounting: false,
            ..host()
        };
        let without = linux_resources(&asked, &without).unwrap();
        assert_eq!(without.memory().as_ref().unwrap().swap(), None);
    }

    #[test]
    fn huge_pages_that_the_host_lacks_are_refused_only_when_asked_for() {
        let limit = |size: &str, limit| v1::HugepageLimit {
            page_size: size.to_owned(),
            limit,
        };
        let asked_for = |limits| v1::LinuxContainerResources {
            hugepage_limits: limits,
            ..asked()
        };
        let some =
            linux_resources(&asked_for(vec![limit("1GB", 0), limit("2MB", 4 << 20)]), &host()).unwrap();
        let some = some.hugepage_limits().as_ref().unwrap();
        assert_eq!(
            (some.len(), some[0].page_size().as_str(), some[0].limit()),
            (1, "2MB", 4 << 20)
        );
        assert_eq!(
            error(asked_for(vec![limit("1GB", 7)])),
            "hugepage_limits[1GB] = 7: this host can't limit huge pages of that size"
        );
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert!(
            error(v1::LinuxContainerResources {
                cpu_shares: -2,
                ..asked()
            })
            .starts_with("cpu_shares = -2")
        );
        assert!(
            error(v1::LinuxContainerResources {
                cpu_quota: -5,
                ..asked()
            })
            .starts_with("cpu_quota = -5")
        );
        let less = v1::LinuxContainerResources {
            memory_limit_in_bytes: 300,
            memory_swap_limit_in_bytes: 100,
            ..asked()
        };
        assert!(error(less).starts_with("memory_swap_limit_in_bytes = 100"));
    }

    #[test]
    fn unified_needs_cgroup_v2_and_plain_names() {
        let with = |key: &str| v1::LinuxContainerResources {
            unified: [(key.to_owned(), "1".to_owned())].into(),
            ..asked()
        };
        assert!(error(with("memory.high")).contains("no cgroup v2"));
        let v2 = HostFacts {
            cgroup_v2: true,
            ..host()
        };
        assert!(
            linux_resources(&with("memory.high"), &v2)
                .unwrap()
                .unified()
                .is_some()
        );
        for bad in ["../memory.high", "memory", "/x.y", ".x"] {
            assert!(linux_resources(&with(bad), &v2).is_err(), "{bad}");
        }
    }
}
