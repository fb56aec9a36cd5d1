//! JSON values as YAML, the way kubectl prints objects. Pure.

use serde_json::Value;

/// A value as a YAML document.
pub(crate) fn render(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(list) if !list.is_empty() => block(value, 0, &mut text),
        other => text = scalar(other) + "\n",
    }
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                text.push_str(&format!("{pad}{}:", word(key)));
                nested(value, indent, text);
            }
        }
        Value::Array(list) => {
            for value in list {
                let mut inner = String::new();
                match value {
                    Value::Object(map) if !map.is_empty() => block(value, indent + 2, &mut inner),
                    Value::Array(list) if !list.is_empty() => block(value, indent + 2, &mut inner),
                    other => inner = format!("{pad}  {}\n", scalar(other)),
                }
                text.push_str(&format!("{pad}- {}", inner.trim_start()));
            }
        }
        other => text.push_str(&format!("{pad}{}\n", scalar(other))),
    }
}

/// What follows a key.
fn nested(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            block(value, indent + 2, text);
        }
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        other => text.push_str(&format!(" {}\n", scalar(other))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// A string, quoted unless it can't be taken for anything else.
fn word(text: &str) -> String {
    let begins = text
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '/');
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@' | '+'));
    let special = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    if begins && plain && !special.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        // A JSON string is a YAML string.
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use controlplane_api::strict;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_look_as_kubectl_prints_them() {
        let value =
            json!({"a": {"b": [1, {"c": "x y", "d": []}, [2]], "e": {}}, "f": "yes", "g": null, "h": "1"});
        let text =
            "a:\n  b:\n  - 1\n  - c: \"x y\"\n    d: []\n  - - 2\n  e: {}\nf: \"yes\"\ng: null\nh: \"1\"\n";
        assert_eq!(render(&value), text);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z0-9 :#'\"\\-\\n]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z0-9:]{1,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(value in proptest::collection::btree_map("[a-z]{1,4}", any_value(), 1..4)) {
            let value = Value::Object(value.into_iter().collect());
            let text = render(&value);
            let back: Value = strict::parse(&text, strict::Limits::default()).unwrap()[0].decode().unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
