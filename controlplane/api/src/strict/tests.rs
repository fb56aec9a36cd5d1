//! Places, the meaning of scalars, limits, and that nothing goes unnoticed.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;

fn one(text: &str) -> Document {
    let mut documents = parse(text, Limits::default()).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn value(text: &str) -> Value {
    one(&format!("it: {text}\n")).value()["it"].clone()
}

fn complaints<T: DeserializeOwned + fmt::Debug>(text: &str) -> Vec<String> {
    one(text)
        .decode::<T>()
        .expect_err("complaints")
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn scalars_mean_what_sigs_yaml_takes_them_for() {
    for (text, expected) in [
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("y", json!(true)),
        ("yEs", json!("yEs")),
        ("~", json!(null)),
        ("", json!(null)),
        ("NULL", json!(null)),
        ("010", json!(8)),
        ("0o10", json!(8)),
        ("0x1F", json!(31)),
        ("-0x1F", json!(-31)),
        ("0b101", json!(5)),
        ("08", json!(8)),
        ("1_000", json!(1000)),
        ("+12", json!(12)),
        ("1.0", json!(1)),
        ("1e3", json!(1000)),
        ("1.5", json!(1.5)),
        (".5", json!(0.5)),
        ("1.2.3", json!("1.2.3")),
        ("18446744073709551615", json!(u64::MAX)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("2024-01-02", json!("2024-01-02")),
        ("12:30:45", json!("12:30:45")),
        ("100m", json!("100m")),
        ("'1'", json!("1")),
        ("\"yes\"", json!("yes")),
        ("!!str 1", json!("1")),
        ("! 1", json!("1")),
        ("!!int '7'", json!(7)),
        ("!!float 7", json!(7)),
        ("-", json!([null])),
    ] {
        if text == "-" {
            assert_eq!(one("it:\n-\n").value()["it"], expected);
            continue;
        }
        assert_eq!(value(text), expected, "{text}");
    }
}

#[test]
fn what_json_has_no_form_for_is_refused() {
    for text in [
        "it: .nan",
        "it: -.inf",
        "it: !mine 1",
        "it: !!binary aGk=",
        "it: !!int x",
        "? [a]\n: b",
        "~: b",
        "a: &x [*x]",
    ] {
        assert!(parse(text, Limits::default()).is_err(), "{text}");
    }
}

#[test]
fn keys_are_texts_in_the_end() {
    assert_eq!(
        *one("1: a\ntrue: b\n1.5: c\nyes: d").value(),
        json!({"1": "a", "true": "b", "1.5": "c"})
    );
}

#[test]
fn anchors_and_merge_keys_are_followed() {
    let text = "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\nboth:\n  <<: [*base, *other]\n  a: 9\nsame: *base\n";
    let document = one(text);
    assert_eq!(document.value()["both"], json!({"a": 9, "b": 2, "c": 4}));
    assert_eq!(document.value()["same"], json!({"a": 1, "b": 2}));
    assert!(parse("a:\n  <<: 1\n", Limits::default()).is_err());
    assert_eq!(*one("'<<': 1").value(), json!({"<<": 1}));
}

#[test]
fn an_alias_bomb_is_refused_before_it_takes_memory() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let error = parse(&text, Limits::default()).expect_err("a bomb");
    assert_eq!(
        error.finding,
        Finding::Limit("more than 500000 values".to_owned())
    );
    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(1 << 20),
        vec!["*a"; 1000].join(", ")
    );
    assert!(parse(&long, Limits::default()).is_err());
}

#[test]
fn every_limit_holds() {
    let limits = Limits {
        bytes: 100,
        depth: 3,
        nodes: 20,
        documents: 2,
    };
    for (text, complaint) in [
        (" ".repeat(101), "1:1: more than 100 bytes"),
        ("a: {b: {c: {}}}".to_owned(), "1:12: more than 3 levels"),
        (
            "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]".to_owned(),
            "1:40: more than 20 values",
        ),
        ("--- 1\n--- 2\n--- 3\n".to_owned(), "3:1: more than 2 documents"),
    ] {
        assert_eq!(parse(&text, limits).expect_err("a limit").to_string(), complaint);
    }
}

#[test]
fn documents_with_nothing_in_them_are_left_out() {
    let documents =
        parse("---\n# nothing\n---\na: 1\n---\n---\nb: 2\n", Limits::default()).expect("documents");
    let values: Vec<_> = documents.iter().map(Document::value).collect();
    assert_eq!(values, [&json!({"a": 1}), &json!({"b": 2})]);
    assert!(parse("", Limits::default()).expect("nothing").is_empty());
}

#[test]
fn json_is_read_with_tabs_and_escapes() {
    let text =
        "{\n\t\"a\": \"\\ud83d\\ude00 \\/ \\\\ud83d \\ud83d\",\n\t\"b\": [1, 2.50, -0, 1E2, null]\n}\n";
    assert_eq!(
        *one(text).value(),
        json!({"a": "\u{1f600} / \\ud83d \u{fffd}", "b": [1, 2.5, 0, 100, null]})
    );
}

const WEB: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {a: b}
  labels: {c: d}
spec:
  hostNetwork: 'yes'
  containers:
  - name: 5
    imagee: nginx
    ports: {containerPort: 80}
    resources:
      limits: {cpu: 1, memory: 1Gi, x: abc}
  - name: two
    image: nginx
    env:
    - name: A
      value: true
  terminationGracePeriodSeconds: 1.5
";

#[test]
fn everything_that_is_wrong_is_told_with_its_place() {
    let documents = parse_file("pods/web.yaml", WEB, Limits::default()).expect("documents");
    let found: Vec<_> = documents[0]
        .decode::<Pod>()
        .expect_err("findings")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "pods/web.yaml:6:3: duplicate field \"metadata.labels\"",
            "pods/web.yaml:8:16: spec.hostNetwork: expected a boolean, found the string \"yes\"",
            "pods/web.yaml:10:11: spec.containers[0].name: expected a string, found the number 5 (quote it)",
            "pods/web.yaml:11:5: unknown field \"spec.containers[0].imagee\"",
            "pods/web.yaml:12:12: spec.containers[0].ports: expected a list, found a mapping",
            "pods/web.yaml:14:40: spec.containers[0].resources.limits.x: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            "pods/web.yaml:19:14: spec.containers[1].env[0].value: expected a string, found the boolean true (quote it)",
            "pods/web.yaml:20:34: spec.terminationGracePeriodSeconds: expected an integer, found the number 1.5",
        ]
    );
    assert_eq!(
        documents[0].position(&["spec", "containers", "1", "image"]),
        Some(Position { line: 16, column: 5 })
    );
    assert_eq!(documents[0].position(&["spec", "containers", "2"]), None);
    assert_eq!(
        (documents[0].api_version(), documents[0].kind()),
        (Some("v1"), Some("Pod"))
    );
}

#[test]
fn what_the_type_itself_refuses_is_gone_around() {
    let text = "apiVersion: v2\nkind: Pod\nmetadata:\n  creationTimestamp: yesterday\n  deletionTimestamp: soon\nspek: {}\n";
    let found = complaints::<Pod>(text);
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(
        found[0],
        "1:13: apiVersion: invalid value: string \"v2\", expected v1"
    );
    assert!(
        found[1].starts_with("4:22: metadata.creationTimestamp: "),
        "{}",
        found[1]
    );
    assert!(
        found[2].starts_with("5:22: metadata.deletionTimestamp: "),
        "{}",
        found[2]
    );
    assert_eq!(found[3], "6:1: unknown field \"spek\"");
    assert!(complaints::<Pod>("just text")[0].contains("expected a mapping, found the string"));
    assert_eq!(
        complaints::<Pod>("spec: {containers: [{ports: [{containerPort: 5000000000}]}]}").len(),
        1
    );
}

#[test]
fn null_is_the_zero_of_its_type() {
    let text = "data: {a: null, b: x}\nmetadata: {name: null, labels: ~}\nimmutable:\n";
    let map: ConfigMap = one(text).decode().expect("a ConfigMap");
    assert_eq!(map.data.expect("data")["a"], "");
    assert_eq!(
        (map.metadata.name, map.metadata.labels, map.immutable),
        (None, None, None)
    );
    let pod: Pod = one("spec: {containers: [~], volumes: [{name: x, emptyDir: }]}")
        .decode()
        .expect("a pod");
    assert_eq!(pod.spec.expect("spec").containers.len(), 1);
}

#[test]
fn the_lenient_way_only_warns_of_what_is_unknown_or_twice() {
    let (pod, warnings) = one("kind: Pod\nmore: 1\nmetadata: {name: a, name: b}\n")
        .decode_leniently::<Pod>()
        .expect("a pod");
    assert_eq!(pod.metadata.name.as_deref(), Some("a"));
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "2:1: unknown field \"more\"",
            "3:21: duplicate field \"metadata.name\""
        ]
    );
    assert!(one("metadata: {name: 1}").decode_leniently::<Pod>().is_err());
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Config {
    level: Level,
    share: f64,
    depth: Option<u8>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            level: Level::Low,
            share: 0.5,
            depth: Some(3),
        }
    }
}

#[derive(Debug, Deserialize, PartialEq)]
enum Level {
    Low,
    High,
}

#[test]
fn derived_types_are_read_too() {
    let config: Config = one("{level: High, share: 1, depth: null}")
        .decode()
        .expect("a configuration");
    assert_eq!(
        config,
        Config {
            level: Level::High,
            share: 1.0,
            depth: Some(3)
        }
    );
    let found = complaints::<Config>("level: Highest\ndepth: 300\nother: 1\nshare: x");
    assert_eq!(
        found,
        [
            "1:8: level: unknown variant `Highest`, expected `Low` or `High`",
            "2:8: depth: invalid value: integer `300`, expected u8",
            "3:1: other: unknown field `other`, expected one of `level`, `share`, `depth`",
            "4:8: share: expected a number, found the string \"x\"",
        ]
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9f64..1e9)
            .prop_map(|float| json!(float + 0.25))
            .prop_filter("not whole", |v| v.as_f64().is_some_and(|f| f.fract() != 0.0)),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof![
            Just("yes"),
            Just("~"),
            Just("0x1"),
            Just("<<"),
            Just("a: b"),
            Just("- x"),
            Just("\n\t\r\u{85}\u{2028}\u{7f}")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_was_written_as_json_reads_the_same(value in any_value()) {
        let value = json!({"it": value});
        let short = serde_json::to_string(&value).expect("json");
        prop_assert_eq!(one(&short).value().clone(), value.clone(), "{}", short);
        let long = serde_json::to_string_pretty(&value).expect("json");
        prop_assert_eq!(one(&long).value().clone(), value.clone(), "{}", long);
        prop_assert_eq!(&one(&long).decode::<Value>().expect("a value"), &value);
    }

    #[test]
    fn no_text_is_too_much(text in "[-a-z0-9:&*<>{}\\[\\],'\"#|%@`!? \n\t]{0,80}") {
        for document in parse(&text, Limits::default()).unwrap_or_default() {
            let _ = document.decode::<Pod>();
        }
    }
}

#[test]
fn bad_manifests_get_just_the_expected_complaints() {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/strict");
    for name in ["web.yaml", "broken.yaml", "tag.yaml"] {
        let text = std::fs::read_to_string(folder.join(name)).expect("a manifest");
        let found = match parse_file(name, &text, Limits::default()) {
            Err(error) => format!("{error}\n"),
            Ok(documents) => {
                let errors = documents[0].decode::<Pod>().expect_err("complaints");
                errors.iter().map(|error| format!("{error}\n")).collect()
            }
        };
        let expected =
            std::fs::read_to_string(folder.join(name).with_extension("expected")).unwrap_or_default();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn what_validation_complains_of_is_found_again() {
    let text = "metadata: {name: web}\nspec:\n  containers:\n  - name: a\n    resources:\n      limits:\n        a.b/c: 1\n";
    let document = one(text);
    let at = |path: &str| {
        let Position { line, column } = document.place_of(&Path::new(path));
        (line, column)
    };
    assert_eq!(at("spec.containers[0].resources.limits[a.b/c]"), (7, 9));
    assert_eq!(at("spec.containers[0].image"), (4, 5));
    assert_eq!(at("spec.containers[1].image"), (3, 3));
    assert_eq!(at("metadata.namespace"), (1, 1));
    assert_eq!(at("status"), (1, 1));
    assert_eq!(at(""), (1, 1));
}
