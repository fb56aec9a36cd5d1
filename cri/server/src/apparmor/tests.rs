use std::os::unix::fs::PermissionsExt as _;

use super::*;

const LISTED: &str = "/usr/sbin/ntpd (enforce)\nwith (odd) name (complain)\nmine (kill)\nbare\n";

#[test]
fn a_profile_is_used_loaded_left_out_or_refused() {
    for name in ["/usr/sbin/ntpd", "with (odd) name", "mine", "bare"] {
        assert_eq!(plan(name, LISTED, false), Plan::Use, "{name}");
    }
    for name in ["ntpd", "min", "with (odd)", ""] {
        assert_eq!(plan(name, LISTED, true), Plan::Refuse, "{name}");
    }
    assert_eq!(plan(DEFAULT, LISTED, true), Plan::Load);
    assert_eq!(plan(DEFAULT, LISTED, false), Plan::Without);
    assert_eq!(plan(DEFAULT, "orlop-default (enforce)\n", false), Plan::Use);
}

/// A machine whose parser appends to the list what the script says.
fn machine(dir: &Path, script: &str) -> AppArmor {
    let (list, parser) = (dir.join("profiles"), dir.join("parser"));
    fs::write(&list, LISTED).unwrap();
    let script = format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.display());
    fs::write(&parser, script).unwrap();
    fs::set_permissions(&parser, fs::Permissions::from_mode(0o755)).unwrap();
    AppArmor::new(list, Some(parser))
}

#[test]
fn the_default_is_loaded_once_and_again_when_it_was_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let script = "cat >text; echo \"$@\" >>calls; echo 'orlop-default (enforce)' >>profiles";
    let machine = machine(dir.path(), script);
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(machine.provide(DEFAULT).unwrap()));
        }
    });
    assert_eq!(calls(), "-K -r\n");
    let text = fs::read_to_string(dir.path().join("text")).unwrap();
    assert_eq!(text, default_profile(&own_label()));
    fs::write(dir.path().join("profiles"), "").unwrap();
    assert!(machine.provide(DEFAULT).unwrap());
    assert_eq!(calls(), "-K -r\n-K -r\n");
}

#[test]
fn a_parser_that_refuses_and_a_profile_that_nobody_loaded_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(dir.path(), "echo 'syntax error in line 3' >&2; exit 1");
    let error = machine.provide(DEFAULT).unwrap_err().to_string();
    assert!(
        error.ends_with("did not load the profile `orlop-default`: syntax error in line 3 (exit status: 1)"),
        "{error}"
    );
    assert_eq!(
        machine.provide("yours").unwrap_err().to_string(),
        "AppArmor profile `yours` is not loaded on this node: load it with `apparmor_parser`"
    );
    assert!(machine.provide("mine").unwrap() && machine.provide("unconfined").unwrap());
}

#[test]
fn without_a_parser_the_default_confines_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("profiles");
    let machine = AppArmor::new(list.clone(), None);
    assert!(matches!(
        machine.provide(DEFAULT),
        Err(AppArmorError::List { .. })
    ));
    fs::write(&list, LISTED).unwrap();
    assert!(machine.provide("unconfined").unwrap() && !machine.provide(DEFAULT).unwrap());
    assert!(matches!(
        machine.provide("yours"),
        Err(AppArmorError::NotLoaded { .. })
    ));
}
