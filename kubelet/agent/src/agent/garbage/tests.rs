//! What goes and what stays.

use super::*;
use crate::runtime::observe::labels;

const LATE: i64 = 1 << 60;

fn late() -> Timestamp {
    Timestamp::from_nanosecond(i128::from(LATE)).expect("a time")
}

fn container(id: &str, name: &str, created_at: i64, state: v1::ContainerState) -> v1::Container {
    v1::Container {
        id: id.to_owned(),
        pod_sandbox_id: "s".to_owned(),
        state: state.into(),
        created_at,
        labels: [
            (labels::POD_UID.to_owned(), "u".to_owned()),
            (labels::CONTAINER_NAME.to_owned(), name.to_owned()),
        ]
        .into(),
        ..Default::default()
    }
}

fn sandbox(id: &str, created_at: i64, state: v1::PodSandboxState) -> v1::PodSandbox {
    v1::PodSandbox {
        id: id.to_owned(),
        created_at,
        state: state.into(),
        labels: [(labels::POD_UID.to_owned(), "u".to_owned())].into(),
        ..Default::default()
    }
}

fn alive(_: &str) -> PodState {
    PodState::Alive
}

#[test]
fn the_current_container_and_the_one_before_stay() {
    use v1::ContainerState::{ContainerExited, ContainerRunning};
    let mut all = vec![
        container("first", "web", 1, ContainerExited),
        container("second", "web", 2, ContainerExited),
        container("third", "web", 3, ContainerRunning),
        container("other", "init", 1, ContainerExited),
    ];
    assert_eq!(plan(&[], &all, alive, false, late()).containers, ["first"]);
    let early = Timestamp::from_nanosecond(10).expect("a time");
    assert_eq!(
        plan(&[], &all, alive, false, early),
        Plan::default(),
        "young ones stay"
    );
    all[2].state = ContainerExited.into();
    assert_eq!(plan(&[], &all, alive, true, late()).containers, ["first"]);
}

#[test]
fn when_room_is_short_nothing_of_ended_pods_stays() {
    use v1::ContainerState::ContainerExited;
    let all = [
        container("first", "web", 1, ContainerExited),
        container("second", "web", 2, ContainerExited),
    ];
    let sandboxes = [sandbox("s", 1, v1::PodSandboxState::SandboxNotready)];
    let mut gone = plan(&sandboxes, &all, |_| PodState::Ended, true, late());
    gone.containers.sort();
    assert_eq!(gone.containers, ["first", "second"]);
    assert_eq!(gone.sandboxes, ["s"]);
    assert_eq!(
        plan(&sandboxes, &all, |_| PodState::Ended, false, late()),
        Plan::default()
    );
}

#[test]
fn a_sandbox_goes_when_it_is_old_over_and_empty() {
    use v1::PodSandboxState::{SandboxNotready, SandboxReady};
    let all = [
        sandbox("s", 1, SandboxNotready),
        sandbox("empty", 2, SandboxNotready),
        sandbox("new", 3, SandboxReady),
    ];
    let held = [container("c", "web", 1, v1::ContainerState::ContainerExited)];
    assert_eq!(plan(&all, &held, alive, false, late()).sandboxes, ["empty"]);
    let last = [sandbox("alone", 1, SandboxNotready)];
    assert_eq!(plan(&last, &[], alive, false, late()), Plan::default());
}

#[test]
fn images_are_in_use_by_whatever_name_containers_tell() {
    let image = |id: &str, tag: &str, digest: &str| v1::Image {
        id: id.to_owned(),
        repo_tags: vec![tag.to_owned()],
        repo_digests: vec![digest.to_owned()],
        ..Default::default()
    };
    let images = [
        image("sha256:1", "a:1", "a@sha256:x"),
        image("sha256:2", "b:1", "b@sha256:y"),
        image("sha256:3", "c:1", "c@sha256:z"),
        image("sha256:4", "", ""),
    ];
    let by = |image_id: &str, image_ref: &str, name: &str| v1::Container {
        image_id: image_id.to_owned(),
        image_ref: image_ref.to_owned(),
        image: Some(v1::ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let containers = [
        by("sha256:1", "", ""),
        by("", "b@sha256:y", ""),
        by("", "", "c:1"),
    ];
    let used: Vec<String> = in_use(&images, &containers, &BTreeSet::new())
        .into_iter()
        .collect();
    assert_eq!(used, ["sha256:1", "sha256:2", "sha256:3"]);
}

#[test]
fn images_that_volumes_are_made_of_are_in_use() {
    let manifest = serde_json::json!({"spec": {"containers": [], "volumes": [
        {"name": "a", "image": {"reference": "data"}},
        {"name": "b", "image": {"reference": "example.org/models/small:1"}},
        {"name": "c", "image": {"reference": "example.org/big:2@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},
        {"name": "d", "emptyDir": {}},
    ]}});
    let pod: Pod = serde_json::from_value(manifest).expect("a pod");
    let image = |id: &str, tag: &str, digest: &str| v1::Image {
        id: id.to_owned(),
        repo_tags: vec![tag.to_owned()],
        repo_digests: vec![digest.to_owned()],
        ..Default::default()
    };
    let images = [
        image("sha256:1", "docker.io/library/data:latest", ""),
        image("sha256:2", "example.org/models/small:1", ""),
        image(
            "sha256:3",
            "",
            "example.org/big@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        image("sha256:4", "docker.io/library/data:2", ""),
    ];
    let mounted = mounted_images(&[Arc::new(pod)]);
    let used: Vec<String> = in_use(&images, &[], &mounted).into_iter().collect();
    assert_eq!(used, ["sha256:1", "sha256:2", "sha256:3"]);
    assert!(mounted.contains("data:latest") && mounted.contains("data"));
}

#[test]
fn the_current_container_is_the_last_attempt_whatever_the_clock_said() {
    use v1::ContainerState::ContainerExited;
    let noted = |id: &str, attempt: &str, created_at| {
        let mut one = container(id, "web", created_at, ContainerExited);
        let note = (RESTART_COUNT.to_owned(), attempt.to_owned());
        one.annotations = [note].into();
        one
    };
    // Before the second one the clock stepped back.
    let all = [noted("0", "0", 50), noted("1", "1", 10), noted("2", "2", 20)];
    assert_eq!(plan(&[], &all, alive, false, late()).containers, ["0"]);
    let mut told = container("told", "web", 1, ContainerExited);
    told.metadata = Some(v1::ContainerMetadata {
        name: "web".to_owned(),
        attempt: 7,
    });
    assert_eq!(attempt(&told), 7);
}

#[test]
fn a_log_goes_with_what_it_was_rotated_to() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in [
        "0.log",
        "0.log.20260101-000000",
        "0.log.20260101-000000.gz",
        "1.log",
        "10.log",
    ] {
        fs::write(dir.path().join(name), "").expect("written");
    }
    remove_log_files(&dir.path().join("0.log")).expect("removed");
    let mut left: Vec<String> = fs::read_dir(dir.path())
        .expect("listed")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    left.sort();
    assert_eq!(left, ["1.log", "10.log"]);
    remove_log_files(&dir.path().join("none/0.log")).expect("nothing to remove");
}
