use super::*;

#[test]
fn variables_are_expanded_as_in_commands() {
    let env = |name: &str| match name {
        "A" => Some("1".to_owned()),
        "B" => Some("$(A)".to_owned()),
        _ => None,
    };
    for (text, expanded) in [
        ("", ""),
        ("plain/path", "plain/path"),
        ("$(A)/$(B)", "1/$(A)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("a$$", "a$"),
    ] {
        assert_eq!(expand(text, &env).unwrap(), expanded, "{text}");
    }
    assert!(matches!(expand("x$(C)", &env), Err(VolumeError::MissingVariable(name)) if name == "C"));
}

#[test]
fn recursive_read_only_follows_upstreams_rules() {
    let mount = |mode: &str, read_only, propagation: Option<&str>| VolumeMount {
        name: "v".to_owned(),
        read_only: Some(read_only),
        recursive_read_only: Some(mode.to_owned()),
        mount_propagation: propagation.map(str::to_owned),
        ..VolumeMount::default()
    };
    let start =
        "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but";
    for (mount, supported, outcome) in [
        (VolumeMount::default(), true, Ok(false)),
        (mount("Disabled", false, Some("Bidirectional")), true, Ok(false)),
        (mount("IfPossible", true, None), true, Ok(true)),
        (mount("IfPossible", true, None), false, Ok(false)),
        (mount("Enabled", true, Some("None")), true, Ok(true)),
        (
            mount("Enabled", true, None),
            false,
            Err("it is not supported by the runtime"),
        ),
        (mount("Enabled", false, None), true, Err("it is not read-only")),
        (
            mount("IfPossible", true, Some("HostToContainer")),
            true,
            Err("it is not compatible with propagation \"HostToContainer\""),
        ),
    ] {
        let found = recursive_read_only(&mount, || supported).map_err(|error| error.to_string());
        assert_eq!(
            found,
            outcome.map_err(|why| format!("{start} {why}")),
            "{mount:?}"
        );
    }
    assert!(recursive_read_only(&mount("Always", true, None), || true).is_err());
}

#[test]
fn propagation_has_upstreams_words() {
    assert_eq!(Propagation::parse(None).unwrap(), Propagation::Private);
    assert_eq!(Propagation::parse(Some("None")).unwrap(), Propagation::Private);
    assert_eq!(
        Propagation::parse(Some("Shared")).unwrap_err().to_string(),
        "invalid MountPropagation mode: \"Shared\""
    );
}
