use std::sync::Mutex as StdMutex;

use tonic::Status;

use super::*;
use crate::testing::{FakeCri, Running};

fn wanted(pod: &str, policy: PullPolicy) -> Wanted {
    Wanted {
        pod_uid: pod.to_owned(),
        image: "r.test/demo:1".to_owned(),
        policy,
        handler: String::new(),
        keyring: Arc::default(),
        sandbox: v1::PodSandboxConfig::default(),
    }
}

fn pulls(daemon: &Running) -> Vec<String> {
    let asked = daemon.fake.held().asked.clone();
    asked
        .into_iter()
        .filter(|line| line.starts_with("pull_image"))
        .collect()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

#[tokio::test]
async fn an_image_that_is_there_is_not_pulled_unless_always() {
    let daemon = FakeCri::start();
    daemon.fake.held().images.insert("r.test/demo:1".to_owned());
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let told = StdMutex::new(Vec::new());
    let tell = |progress| told.lock().expect("unpoisoned").push(progress);
    let found = puller
        .ensure(&wanted("u", PullPolicy::IfNotPresent), || at(1), tell)
        .await
        .expect("there");
    assert_eq!(found.how, How::Found);
    assert_eq!(pulls(&daemon), Vec::<String>::new());
    let pulled = puller
        .ensure(&wanted("u", PullPolicy::Always), || at(1), tell)
        .await
        .expect("there");
    assert!(matches!(pulled.how, How::Pulled(_, _, 7)), "{pulled:?}");
    assert_eq!(pulls(&daemon), ["pull_image r.test/demo:1"]);
    let image = "r.test/demo:1".to_owned();
    assert_eq!(
        *told.lock().expect("unpoisoned"),
        [Progress::AlreadyPresent(image.clone()), Progress::Pulling(image)]
    );
}

#[tokio::test]
async fn never_means_never() {
    let daemon = FakeCri::start();
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let missing = puller
        .ensure(&wanted("u", PullPolicy::Never), || at(1), |_| {})
        .await
        .expect_err("absent");
    assert_eq!(missing.reason, "ErrImageNeverPull");
    assert_eq!(
        missing.message,
        "Container image \"r.test/demo:1\" is not present with pull policy of Never"
    );
    assert_eq!(pulls(&daemon), Vec::<String>::new());
}

#[tokio::test]
async fn many_pods_that_want_one_image_at_once_pull_it_once() {
    let daemon = FakeCri::start();
    daemon
        .fake
        .held()
        .delays
        .insert("pull_image", Duration::from_millis(50));
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let pods: Vec<_> = (0..20)
        .map(|pod| wanted(&pod.to_string(), PullPolicy::IfNotPresent))
        .collect();
    let all = pods.iter().map(|pod| puller.ensure(pod, || at(1), |_| {}));
    for answer in futures_util::future::join_all(all).await {
        answer.expect("pulled");
    }
    assert_eq!(pulls(&daemon).len(), 1);
    assert!(puller.pulls.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn a_pull_goes_on_when_who_began_it_goes_away() {
    let daemon = FakeCri::start();
    daemon
        .fake
        .held()
        .delays
        .insert("pull_image", Duration::from_millis(100));
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let first = wanted("a", PullPolicy::IfNotPresent);
    let left = tokio::time::timeout(Duration::from_millis(60), puller.ensure(&first, || at(1), |_| {})).await;
    assert!(left.is_err(), "it left before the pull ended");
    puller
        .ensure(&wanted("b", PullPolicy::IfNotPresent), || at(1), |_| {})
        .await
        .expect("pulled");
    assert_eq!(pulls(&daemon).len(), 1);
}

#[tokio::test]
async fn a_failure_is_told_then_waited_out_and_forgotten_after_success() {
    let daemon = FakeCri::start();
    daemon
        .fake
        .fail("pull_image", 1, Status::not_found("no such image"));
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let pod = wanted("u", PullPolicy::IfNotPresent);
    let failed = puller
        .ensure(&pod, || at(100), |_| {})
        .await
        .expect_err("refused");
    assert_eq!((failed.reason, failed.again_at), ("ErrImagePull", Some(at(102))));
    assert_eq!(failed.message, "rpc error: code = NotFound desc = no such image");
    let waits = puller.ensure(&pod, || at(105), |_| {}).await.expect_err("waits");
    assert_eq!(waits.reason, "ImagePullBackOff");
    assert_eq!(
        waits.message,
        "Back-off pulling image \"r.test/demo:1\": ErrImagePull: rpc error: code = NotFound desc = no such image"
    );
    puller.ensure(&pod, || at(111), |_| {}).await.expect("pulled");
    assert_eq!(pulls(&daemon).len(), 2);
}

#[tokio::test]
async fn credentials_are_tried_one_after_the_other() {
    let daemon = FakeCri::start();
    daemon
        .fake
        .fail("pull_image", 1, Status::permission_denied("who are you"));
    let puller = Arc::new(Puller::new(daemon.cri.clone(), 2));
    let mut keyring = Keyring::default();
    let auths = serde_json::json!({ "auths": {
        "r.test": { "username": "second", "password": "p" },
        "r.test/demo": { "username": "first", "password": "p" },
    }});
    let secret = controlplane_api::k8s_openapi::api::core::v1::Secret {
        data: Some(
            [(
                ".dockerconfigjson".to_owned(),
                controlplane_api::k8s_openapi::ByteString(auths.to_string().into_bytes()),
            )]
            .into(),
        ),
        ..Default::default()
    };
    keyring.add_secret(&secret).expect("credentials");
    let pod = Wanted {
        keyring: Arc::new(keyring),
        ..wanted("u", PullPolicy::Always)
    };
    puller
        .ensure(&pod, || at(1), |_| {})
        .await
        .expect("the second may");
    assert_eq!(
        pulls(&daemon),
        [
            "pull_image r.test/demo:1 first",
            "pull_image r.test/demo:1 second"
        ]
    );
}

#[test]
fn special_reasons_of_daemons_are_passed_on() {
    let error = CallError::from(Status::unknown("RegistryUnavailable: no route"));
    assert_eq!(
        told("demo", &error),
        (
            "RegistryUnavailable",
            "image pull failed for demo because the registry is unavailable: no route".to_owned()
        )
    );
}
