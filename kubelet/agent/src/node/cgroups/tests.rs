use std::sync::Mutex;

use controlplane_api::Quantity;
use controlplane_api::k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;

use super::limits::{page_size, quota, shares};
use super::*;

/// Cgroups in memory; a cgroup needs the one above it, and goes only without children.
#[derive(Default)]
struct Fake {
    there: Mutex<BTreeMap<String, Limits>>,
}

impl Fake {
    fn path(name: &str) -> String {
        oci_runtime_cgroups::Cgroup::path_of(name).unwrap()
    }
}

impl Writer for &Fake {
    fn create(&self, name: &str) -> Result<(), CgroupError> {
        self.there.lock().unwrap().entry(Fake::path(name)).or_default();
        Ok(())
    }

    fn apply(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        *self.there.lock().unwrap().get_mut(&Fake::path(name)).unwrap() = limits.clone();
        Ok(())
    }

    fn exists(&self, name: &str) -> bool {
        self.there.lock().unwrap().contains_key(&Fake::path(name))
    }

    fn remove(&self, name: &str) -> Result<(), CgroupError> {
        self.there.lock().unwrap().remove(&Fake::path(name)).unwrap();
        Ok(())
    }

    fn children(&self, name: &str) -> Vec<String> {
        let above = format!("{}/", Fake::path(name));
        let there = self.there.lock().unwrap();
        let below = there.keys().filter_map(|path| path.strip_prefix(&above));
        below
            .filter(|rest| !rest.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    fn stats(&self, _: &str) -> Result<Stats, CgroupError> {
        Ok(Stats::default())
    }
}

const UID: &str = "0ad1-22-xyz";

fn tree(driver: CgroupDriver) -> Tree {
    Tree::new(driver, "").unwrap()
}

fn settings() -> Settings {
    Settings::of(&KubeletConfiguration::default(), [2 << 20])
}

fn resources(containers: serde_json::Value) -> PodResources {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers}})).unwrap();
    PodResources::of(&pod)
}

#[test]
fn names_are_upstreams_with_both_drivers() {
    use QosClass::{BestEffort, Burstable, Guaranteed};
    let plain = tree(CgroupDriver::Cgroupfs);
    assert_eq!(plain.pod(UID, Burstable), "/kubepods/burstable/pod0ad1-22-xyz");
    assert_eq!(plain.pod(UID, Guaranteed), "/kubepods/pod0ad1-22-xyz");
    assert_eq!(plain.class(BestEffort), "/kubepods/besteffort");
    let slices = tree(CgroupDriver::Systemd);
    assert_eq!(slices.kubepods(), "kubepods.slice");
    assert_eq!(
        slices.pod(UID, Burstable),
        "kubepods-burstable-pod0ad1_22_xyz.slice"
    );
    assert_eq!(
        slices.parent_for_cri(UID, Guaranteed),
        "/kubepods.slice/kubepods-pod0ad1_22_xyz.slice"
    );
    let below = Tree::new(CgroupDriver::Cgroupfs, "/a/b").unwrap();
    assert_eq!(below.kubepods(), "/a/b/kubepods");
    let below = Tree::new(CgroupDriver::Systemd, "/a.slice/a-b.slice").unwrap();
    assert_eq!(below.class(Burstable), "a-b-kubepods-burstable.slice");
    assert_eq!(below.named("/system.slice"), "system.slice");
    for (driver, bad) in [
        (CgroupDriver::Cgroupfs, "a"),
        (CgroupDriver::Cgroupfs, "/a/../b"),
        (CgroupDriver::Systemd, "/a"),
    ] {
        assert!(Tree::new(driver, bad).is_err(), "{bad}");
    }
}

#[test]
fn the_tree_is_made_and_reserved_resources_enforced() {
    let fake = Fake::default();
    let mut settings = settings();
    settings.enforce = vec!["pods".to_owned(), "system-reserved-compressible".to_owned()];
    settings.system_cgroup = "/system".to_owned();
    let amount = |text: &str| text.parse::<Quantity>().unwrap();
    let capacity = Capacity {
        enforced: Amounts::from([
            ("cpu".to_owned(), amount("3500m")),
            ("memory".to_owned(), amount("1Gi")),
            ("pid".to_owned(), amount("1000")),
        ]),
        system_reserved: Amounts::from([
            ("cpu".to_owned(), amount("500m")),
            ("memory".to_owned(), amount("1Gi")),
        ]),
        ..Capacity::default()
    };
    let cgroups = Cgroups::new(tree(CgroupDriver::Cgroupfs), settings, &fake);
    let absent = cgroups.start(&capacity).unwrap_err().to_string();
    assert_eq!(absent, "\"/system\" cgroup does not exist");
    (&fake).create("/system").unwrap();
    cgroups.start(&capacity).unwrap();
    cgroups.start(&capacity).unwrap();
    cgroups.weigh(2500).unwrap();
    let there = fake.there.lock().unwrap();
    let all = &there["/kubepods"];
    assert_eq!(
        (all.shares, all.memory, all.pids),
        (Some(3584), Some(1 << 30), Some(1000))
    );
    assert_eq!(there["/kubepods/besteffort"], Limits::weight(2));
    assert_eq!(there["/kubepods/burstable"], Limits::weight(2560));
    assert_eq!(there["/system"], Limits::weight(512));
}

#[test]
fn pods_come_change_and_go() {
    for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
        let fake = Fake::default();
        let cgroups = Cgroups::new(tree(driver), settings(), &fake);
        cgroups.start(&Capacity::default()).unwrap();
        let small =
            resources(json!([{"name": "a", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}]));
        cgroups.ensure(UID, QosClass::Guaranteed, &small).unwrap();
        cgroups
            .ensure("b", QosClass::BestEffort, &PodResources::default())
            .unwrap();
        assert_eq!(cgroups.list(), [UID, "b"]);
        assert!(cgroups.stats(UID, QosClass::Guaranteed).is_some());
        let path = Fake::path(&cgroups.tree().pod(UID, QosClass::Guaranteed));
        {
            let there = fake.there.lock().unwrap();
            let limits = &there[&path];
            assert_eq!(
                (limits.shares, limits.quota, limits.memory),
                (Some(256), Some(25_000), Some(64 << 20))
            );
            assert_eq!(limits.hugepages, BTreeMap::from([("2MB".to_owned(), 0)]));
        }
        let large = resources(json!([{"name": "a", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}]));
        cgroups.ensure(UID, QosClass::Guaranteed, &large).unwrap();
        assert_eq!(fake.there.lock().unwrap()[&path].quota, Some(200_000));
        let (removed, failed) = cgroups.remove_orphans(|uid| uid == UID);
        assert_eq!((removed, failed.len()), (vec!["b".to_owned()], 0));
        cgroups.remove(UID).unwrap();
        cgroups.remove(UID).unwrap();
        assert!(cgroups.list().is_empty());
    }
}

#[test]
fn limits_are_upstreams() {
    let some = json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {"name": "b"}]);
    let burstable = limits::of_pod(QosClass::Burstable, &resources(some), &settings());
    // One container without limits, and the pod has none.
    assert_eq!(
        (burstable.shares, burstable.quota, burstable.memory),
        (Some(1024), Some(-1), Some(-1))
    );
    let mut without_quota = settings();
    without_quota.quota = false;
    without_quota.pod_pids = Some(100);
    let one = json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]);
    let limits = limits::of_pod(QosClass::Guaranteed, &resources(one), &without_quota);
    assert_eq!((limits.quota, limits.pids), (Some(-1), Some(100)));
    assert_eq!((shares(0), shares(100), shares(i64::MAX)), (2, 102, 262_144));
    assert_eq!(
        (quota(1, 100_000), quota(0, 100_000), quota(1500, 100_000)),
        (Some(1000), None, Some(150_000))
    );
    assert_eq!(page_size(1 << 30), ("1GB".to_owned(), "hugepages-1Gi".to_owned()));
    let oci = limits.to_oci().unwrap();
    assert_eq!(oci.cpu().as_ref().unwrap().shares(), Some(1024));
    assert_eq!(oci.pids().unwrap().limit(), 100);
}

#[test]
fn the_kernel_has_none_of_the_pods_that_it_has_not() {
    assert!(!Kernel.exists("/kubepods-that-nobody-made/podx"));
    assert!(Kernel.children("/kubepods-that-nobody-made").is_empty());
    assert!(Kernel.stats("/kubepods-that-nobody-made").is_err());
}

proptest! {
    #[test]
    fn a_pods_directory_leads_back_to_it(uid in "[0-9a-f]{4,8}(-[0-9a-f]{2,4}){0,4}", systemd in any::<bool>(), class in 0..3_usize) {
        let tree = tree(if systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs });
        let class = QosClass::ALL[class];
        let path = Fake::path(&tree.pod(&uid, class));
        let (above, last) = path.rsplit_once('/').unwrap();
        prop_assert_eq!(above, Fake::path(&tree.class(class)));
        prop_assert_eq!(tree.uid_of(last, class), Some(uid));
        // A class is no pod.
        let burstable = Fake::path(&tree.class(QosClass::Burstable));
        prop_assert_eq!(tree.uid_of(burstable.rsplit_once('/').unwrap().1, QosClass::Guaranteed), None);
    }
}
