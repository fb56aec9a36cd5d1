//! Manifests: YAML and JSON, read strictly, and what is done with the pods in them.
#![no_main]

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use controlplane_api::pod::{defaults, resources, validation};
use controlplane_api::strict::{Limits, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let limits = Limits {
        bytes: 64 << 10,
        nodes: 10_000,
        ..Limits::default()
    };
    for document in parse(text, limits).unwrap_or_default() {
        let strict = document.decode::<Pod>();
        let Ok((mut pod, warnings)) = document.decode_leniently::<Pod>() else {
            assert!(strict.is_err(), "strict is not looser than lenient");
            continue;
        };
        assert_eq!(
            strict.is_ok(),
            warnings.is_empty(),
            "strict refuses just what lenient warns of"
        );
        defaults::default_pod(&mut pod);
        let once = pod.clone();
        defaults::default_pod(&mut pod);
        assert_eq!(once, pod, "defaults twice are as once");
        let _ = validation::validate_pod(&pod, validation::Options::default()).to_string();
        let _ = resources::pod_requests(&pod, resources::Counting::default());
        let _ = resources::qos_class(&pod);
    }
});
