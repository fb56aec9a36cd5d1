//! Environments and expansion.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cri::env::{EnvObjects, environment, static_variables};
use crate::cri::expansion::{expand, expand_sub_path};

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn objects() -> EnvObjects {
    EnvObjects {
        config_maps: [(
            "cm".to_owned(),
            texts(&[("A", "1"), ("B", "2"), ("bad=key", "3")]),
        )]
        .into(),
        secrets: [("s".to_owned(), [("P".to_owned(), b"secret".to_vec())].into())].into(),
        files: [(("v".to_owned(), "f.env".to_owned()), texts(&[("K", "file")]))].into(),
        services: texts(&[("A", "service"), ("SVC_HOST", "10.96.0.1")]),
    }
}

fn run(container: Value) -> Result<crate::cri::env::Environment, String> {
    let pod = one(container);
    environment(
        &pod,
        &first(&pod),
        &facts(),
        &objects(),
        &[("DEV".into(), "0".into())],
        &ips(&["10.0.0.5"]),
    )
    .map_err(|error| error.to_string())
}

fn variables(container: Value) -> Vec<String> {
    run(container)
        .unwrap()
        .variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[test]
fn references_are_expanded_as_upstream_does() {
    let known = texts(&[("A", "1"), ("B", "$(A)"), ("", "empty")]);
    let expanded = |text: &str| expand(text, |name| known.get(name).cloned());
    for (text, expected) in [
        ("$(A)", "1"),
        ("$(A)$(A)", "11"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(B)", "$(A)"),
        ("$(C)", "$(C)"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("$", "$"),
        ("$$", "$"),
        ("x$", "x$"),
        ("$()", "empty"),
        ("$(A$(A))", "$(A$(A))"),
        ("$($(A)", "$($(A)"),
        ("ü$ü$(A)ü", "ü$ü1ü"),
    ] {
        assert_eq!(expanded(text), expected, "{text}");
    }
    assert_eq!(expand_sub_path("x/$(A)", &known).unwrap(), "x/1");
    assert_eq!(
        expand_sub_path("$(NO)/x", &known).unwrap_err().to_string(),
        "missing value for \"NO\""
    );
}

#[test]
fn variables_come_in_the_specs_order_and_later_ones_win() {
    let seen = variables(json!({
        "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "X_", "secretRef": {"name": "s"}}],
        "env": [
            {"name": "C", "value": "$(A)-$(DEV)-$(D)-$(SVC_HOST)"},
            {"name": "A", "value": "own"},
            {"name": "D", "value": "$(A)"},
            {"name": "EMPTY"}
        ]
    }));
    assert_eq!(
        seen,
        [
            "DEV=0",
            "A=own",
            "B=2",
            "X_P=secret",
            "C=1-0-$(D)-10.96.0.1",
            "D=own",
            "EMPTY=",
            "SVC_HOST=10.96.0.1"
        ]
    );
    let warnings = run(json!({"envFrom": [{"configMapRef": {"name": "cm"}}]}))
        .unwrap()
        .warnings;
    assert_eq!(
        warnings,
        [
            "Keys [bad=key] from the EnvFrom configMap default/cm were skipped since they are considered invalid \
             environment variable names."
        ]
    );
}

#[test]
fn variables_from_every_source() {
    let seen = variables(json!({
        "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "1Mi"}},
        "env": [
            {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "B"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}},
            {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "f.env", "key": "K"}}},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "HOSTS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIPs"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MILLI", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Ki"}}}
        ]
    }));
    let expected = [
        "DEV=0",
        "CM=2",
        "S=secret",
        "F=file",
        "POD=web",
        "IP=10.0.0.5",
        "HOSTS=192.0.2.1,2001:db8::1",
        "CPU=2",
        "MILLI=1500",
        "MEM=1024",
        "A=service",
        "SVC_HOST=10.96.0.1",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_is_missing_is_an_error_unless_it_is_optional() {
    let of = |source: Value| run(json!({"env": [{"name": "X", "valueFrom": source}]}));
    let error = |source: Value| of(source).unwrap_err();
    assert_eq!(
        error(json!({"configMapKeyRef": {"name": "no", "key": "A"}})),
        "configmap \"no\" not found"
    );
    assert_eq!(
        error(json!({"configMapKeyRef": {"name": "cm", "key": "no"}})),
        "couldn't find key no in ConfigMap default/cm"
    );
    assert_eq!(
        error(json!({"secretKeyRef": {"name": "no", "key": "A"}})),
        "secret \"no\" not found"
    );
    assert_eq!(
        error(json!({"secretKeyRef": {"name": "s", "key": "no"}})),
        "couldn't find key no in Secret default/s"
    );
    assert!(
        error(json!({"fileKeyRef": {"volumeName": "v", "path": "f.env", "key": "no"}}))
            .contains("key \"no\"")
    );
    assert_eq!(
        error(json!({"fieldRef": {"fieldPath": "spec.no"}})),
        "unsupported fieldPath: spec.no"
    );
    for source in [
        json!({"configMapKeyRef": {"name": "no", "key": "A", "optional": true}}),
        json!({"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}),
        json!({"secretKeyRef": {"name": "no", "key": "A", "optional": true}}),
        json!({"fileKeyRef": {"volumeName": "v", "path": "no", "key": "A", "optional": true}}),
    ] {
        assert!(of(source).unwrap().variables.iter().all(|(name, _)| name != "X"));
    }
    let from = |source: Value| run(json!({"envFrom": [source]}));
    assert_eq!(
        from(json!({"secretRef": {"name": "no"}})).unwrap_err(),
        "secret \"no\" not found"
    );
    assert!(from(json!({"configMapRef": {"name": "no", "optional": true}})).is_ok());
}

#[test]
fn commands_of_probes_know_plain_variables_only() {
    let pod = one(json!({"env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"},
        {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]}));
    assert_eq!(static_variables(&first(&pod)), texts(&[("A", "1"), ("B", "12")]));
}

/// Byte by byte, as the rule is told: an independent reading of it.
fn model(text: &[u8], known: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            (b'$', Some(b'$')) => {
                out.push(b'$');
                at += 2;
            }
            (b'$', Some(b'(')) => match text[at + 2..].iter().position(|byte| *byte == b')') {
                Some(length) => {
                    let whole = &text[at..at + 3 + length];
                    let name = std::str::from_utf8(&whole[2..2 + length]).unwrap();
                    out.extend(known.get(name).map_or(whole, |value| value.as_bytes()));
                    at += whole.len();
                }
                None => {
                    out.extend(b"$(");
                    at += 2;
                }
            },
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn expansion_agrees_with_a_model(text in "[$()ABé]{0,24}") {
        let known = texts(&[("A", "x"), ("AB", "$(A)"), ("", "e")]);
        let expanded = expand(&text, |name| known.get(name).cloned());
        prop_assert_eq!(expanded.as_bytes(), model(text.as_bytes(), &known));
    }

    #[test]
    fn escaped_texts_come_back(text in ".{0,24}") {
        let escaped = text.replace('$', "$$");
        prop_assert_eq!(expand(&escaped, |_| Some("never".to_owned())), text);
    }
}
