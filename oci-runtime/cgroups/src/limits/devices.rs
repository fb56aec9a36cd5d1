//! Device rules: v1's `devices.allow` and `devices.deny`.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// What every container may use, as the runtime specification's default devices demand: making nodes (a node without
/// the right to open it is harmless), null, zero, full, random, urandom, tty, ptmx and the pseudo terminals.
const DEFAULTS: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The writes for the rules: whether to allow, and the rule in the kernel's form. The defaults come last, so that a
/// first rule that denies everything leaves a container its own null device.
pub(super) fn rules(rules: &[LinuxDeviceCgroup]) -> Vec<(bool, String)> {
    let mut writes: Vec<(bool, String)> = rules.iter().map(|r| (r.allow(), rule(r))).collect();
    if writes.is_empty() {
        return writes;
    }
    // What was decided before everything was denied, or allowed, no longer counts.
    if let Some(last) = writes.iter().rposition(|(_, rule)| rule == "a") {
        writes.drain(..last);
        if writes[0].0 {
            return writes;
        }
    }
    for default in DEFAULTS {
        if !writes.iter().any(|(allow, rule)| *allow && rule == default) {
            writes.push((true, default.to_owned()));
        }
    }
    writes
}

/// `c 1:3 rwm`; `a` for everything.
fn rule(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => return "a".to_owned(),
        // An unbuffered character device is a character device to the kernel.
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::P => 'p',
    };
    // Unset and negative stand for every number.
    let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
    let access = rule
        .access()
        .as_deref()
        .filter(|a| !a.is_empty())
        .unwrap_or("rwm");
    format!(
        "{kind} {}:{} {access}",
        number(rule.major()),
        number(rule.minor())
    )
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    fn device(
        allow: bool,
        typ: LinuxDeviceType,
        numbers: Option<(i64, i64)>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut device = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .access(access)
            .build()
            .unwrap();
        device.set_major(numbers.map(|n| n.0));
        device.set_minor(numbers.map(|n| n.1));
        device
    }

    #[test]
    fn denying_all_keeps_the_default_devices() {
        let got = rules(&[
            device(true, LinuxDeviceType::C, Some((10, 229)), "rwm"),
            device(false, LinuxDeviceType::A, None, "rwm"),
            device(true, LinuxDeviceType::C, Some((1, 3)), "rwm"),
            device(true, LinuxDeviceType::B, Some((8, -1)), "r"),
        ]);
        assert_eq!(got[0], (false, "a".to_owned()));
        assert_eq!(got[2], (true, "b 8:* r".to_owned()));
        assert_eq!(got.iter().filter(|(_, r)| r == "c 1:3 rwm").count(), 1);
        assert!(got.iter().any(|(_, r)| r == "c 136:* rwm"));
        assert!(!got.iter().any(|(_, r)| r.starts_with("c 10:229")));
    }

    #[test]
    fn a_privileged_container_is_one_write_and_no_rules_are_none() {
        assert_eq!(
            rules(&[device(true, LinuxDeviceType::A, None, "rwm")]),
            [(true, "a".to_owned())]
        );
        assert!(rules(&[]).is_empty());
    }
}
