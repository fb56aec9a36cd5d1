//! What NRI plugins wish of containers, without the plugins.

use cri_nri::v1alpha1 as nri;

use super::*;

fn shares(id: &str, value: u64) -> nri::ContainerUpdate {
    let cpu = nri::LinuxCpu {
        shares: Some(nri::OptionalUInt64 { value }),
        ..nri::LinuxCpu::default()
    };
    nri::ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(nri::LinuxContainerUpdate {
            resources: Some(nri::LinuxResources {
                cpu: Some(cpu),
                ..nri::LinuxResources::default()
            }),
        }),
        ignore_failure: false,
    }
}

fn shares_of(container: &Container) -> i64 {
    let config = container.record().config.clone();
    let linux = config.linux.clone().unwrap_or_default();
    linux.resources.unwrap_or_default().cpu_shares
}

#[tokio::test]
async fn an_update_of_another_container_fails_nobody_and_keeps_no_later_one() {
    let world = World::new().await;
    let pod = world.pod().await;
    let (gone, refuses, good) = (
        world.running(1, &pod).await,
        world.running(2, &pod).await,
        world.running(3, &pod).await,
    );
    world.node.stop_container(&gone, 0).await.unwrap();
    let shim = world.shims.shim(&pod.id).unwrap();
    shim.fail_next("update", ErrorKind::Busy, "no");
    let updates = [("nobody", 1), (gone.id.as_str(), 2), (refuses.id.as_str(), 3)];
    let mut updates: Vec<_> = updates.map(|(id, value)| shares(id, value)).into();
    updates.push(shares(good.id.as_str(), 4));
    world.node.apply_updates("cause", updates).await;
    assert_eq!((shares_of(&refuses), shares_of(&good)), (0, 4));
    let update = shares("nobody", 1);
    let error = world.node.apply_update(&update).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn an_update_of_a_container_that_is_being_made_is_set_when_it_is() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(1, &pod).await;
    let id = container.id.as_str();
    let created = container.record().phase.clone();
    container.entry.note(|r| r.phase = ContainerPhase::Creating);
    for value in [5, 6] {
        world.node.apply_update(&shares(id, value)).await.unwrap();
    }
    assert_eq!(shares_of(&container), 0);
    // What makes no sense is told at once.
    let bad = nri::ContainerUpdate {
        linux: Some(nri::LinuxContainerUpdate {
            resources: Some(nri::LinuxResources {
                blockio_class: Some(nri::OptionalString { value: "x".into() }),
                ..nri::LinuxResources::default()
            }),
        }),
        ..shares(id, 1)
    };
    world.node.apply_update(&bad).await.unwrap_err();
    container.entry.note(|r| r.phase = created);
    // As its creation's last step; the later wish is set last.
    world.node.plugins_waited(&container).await;
    assert_eq!(shares_of(&container), 6);
    world.node.plugins_waited(&container).await;
    let shim = world.shims.shim(&pod.id).unwrap();
    let count = shim.calls().iter().filter(|c| c.starts_with("update")).count();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn only_so_many_updates_wait_for_a_creation() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(1, &pod).await;
    container.entry.note(|r| r.phase = ContainerPhase::Creating);
    let update = shares(container.id.as_str(), 5);
    for _ in 0..64 {
        world.node.apply_update(&update).await.unwrap();
    }
    let error = world.node.apply_update(&update).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn an_end_is_told_only_after_the_start_even_if_nobody_was_asked() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(1, &pod).await;
    let starting = world.node.plugins_start(&container).await.unwrap();
    assert!(container.told.is_starting());
    drop(starting);
    assert!(!container.told.is_starting());
}
