use super::*;

fn pod(spec: &str) -> Pod {
    serde_json::from_str(&format!(r#"{{"metadata": {{}}, "spec": {spec}}}"#)).unwrap()
}

fn limited(name: &str, memory: &str) -> String {
    format!(r#"{{"name": "{name}", "resources": {{"limits": {{"memory": "{memory}"}}}}}}"#)
}

#[test]
fn a_volume_in_memory_is_no_larger_than_the_least_limit() {
    let (a, b) = (limited("a", "10Mi"), limited("b", "20Mi"));
    let both = pod(&format!(r#"{{"containers": [{a}, {b}]}}"#));
    let open = pod(&format!(r#"{{"containers": [{a}, {{"name": "b"}}]}}"#));
    let limit = |text: &str| Some(Wire(text.to_owned()));
    assert_eq!(memory_size(1 << 30, &both, None), 30 << 20);
    assert_eq!(memory_size(1 << 30, &open, None), 1 << 30);
    assert_eq!(memory_size(1 << 20, &both, None), 1 << 20);
    assert_eq!(memory_size(1 << 30, &both, limit("5Mi").as_ref()), 5 << 20);
    assert_eq!(memory_size(1 << 30, &both, limit("0").as_ref()), 30 << 20);
    assert_eq!(memory_size(1 << 30, &both, limit("1Gi").as_ref()), 30 << 20);
}

#[test]
fn init_containers_sidecars_overhead_and_the_pods_own_limit_count() {
    let (a, b) = (limited("a", "10Mi"), limited("b", "100Mi"));
    let sidecar = b.replace("\"name\"", r#""restartPolicy": "Always", "name""#);
    let size = |spec: &str| memory_size(1 << 40, &pod(spec), None) >> 20;
    assert_eq!(
        size(&format!(r#"{{"initContainers": [{b}], "containers": [{a}]}}"#)),
        100
    );
    assert_eq!(
        size(&format!(
            r#"{{"initContainers": [{sidecar}], "containers": [{a}]}}"#
        )),
        110
    );
    assert_eq!(
        size(&format!(
            r#"{{"initContainers": [{sidecar}, {b}], "containers": [{a}]}}"#
        )),
        200
    );
    assert_eq!(
        size(&format!(
            r#"{{"overhead": {{"memory": "7Mi"}}, "containers": [{a}]}}"#
        )),
        17
    );
    let whole = r#""resources": {"limits": {"memory": "50Mi"}}"#;
    assert_eq!(
        size(&format!(r#"{{{whole}, "containers": [{a}, {{"name": "x"}}]}}"#)),
        50
    );
}

#[test]
fn huge_pages_are_those_of_the_medium_or_the_only_ones_requested() {
    let requesting = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| format!(r#""{name}": "1Gi""#)).collect();
        let requests = names.join(", ");
        pod(&format!(
            r#"{{"containers": [{{"name": "a", "resources": {{"requests": {{{requests}}}}}}}]}}"#
        ))
    };
    let both = requesting(&["memory", "hugepages-2Mi", "hugepages-1Gi"]);
    assert_eq!(page_size("HugePages-2Mi", &both), Ok(2 << 20));
    assert_eq!(page_size("HugePages-1Gi", &both), Ok(1 << 30));
    assert_eq!(
        page_size("HugePages", &requesting(&["hugepages-2Mi"])),
        Ok(2 << 20)
    );
    assert_eq!(
        page_size("HugePages", &both),
        Err("medium: HugePages can't be used if container requests multiple huge page sizes".to_owned())
    );
    assert_eq!(
        page_size("HugePages-2Mi", &requesting(&["hugepages-1Gi"])),
        Err(
            "medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages"
                .to_owned()
        )
    );
    assert!(page_size("HugePages-x", &both).is_err());
}
