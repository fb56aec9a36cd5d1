//! The words of every kind.

use super::*;

#[test]
fn complaints_have_upstreams_wording() {
    let path = Path::new("spec").child("containers").index(0).child("name");
    let mut errors = FieldErrors::default();
    errors.required(&path, "");
    errors.required(&path, "must be there");
    errors.invalid(&path, "a\"b\n\u{1}\u{85}", "must be plain");
    errors.invalid(&path, 5, "");
    errors.invalid(&path, Shown::json(&["a", "b"]), "must be one");
    errors.not_supported(&path, "x", &["a", "b"]);
    errors.forbidden(&path, "not here");
    errors.duplicate(&path, "x");
    errors.not_found(&path, "x", "");
    errors.too_long(&path, 63);
    errors.too_many(&Path::new("list").key("a/b"), 21, 20);
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "spec.containers[0].name: Required value",
            "spec.containers[0].name: Required value: must be there",
            r#"spec.containers[0].name: Invalid value: "a\"b\n\x01\u0085": must be plain"#,
            "spec.containers[0].name: Invalid value: 5",
            r#"spec.containers[0].name: Invalid value: ["a","b"]: must be one"#,
            r#"spec.containers[0].name: Unsupported value: "x": supported values: "a", "b""#,
            "spec.containers[0].name: Forbidden: not here",
            r#"spec.containers[0].name: Duplicate value: "x""#,
            r#"spec.containers[0].name: Not found: "x""#,
            "spec.containers[0].name: Too long: may not be more than 63 bytes",
            "list[a/b]: Too many: 21: must have at most 20 items",
        ]
    );
    assert_eq!(
        errors.iter().next().map(|error| error.kind.cause()),
        Some("FieldValueRequired")
    );
}

#[test]
fn several_stand_between_brackets_and_each_only_once() {
    let mut errors = FieldErrors::default();
    errors.required(&Path::new("a"), "");
    errors.required(&Path::new("a"), "");
    assert_eq!(errors.to_string(), "a: Required value");
    errors.required(&Path::default().child("b"), "");
    assert_eq!(errors.to_string(), "[a: Required value, b: Required value]");
}
