//! AppArmor: the default profile, one that somebody loaded, one that nobody did.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_harness::{ContainerSpec, Crictl, Node, PodSpec, tools};

use crate::Test;
use crate::bed::in_node;

pub(crate) const TESTS: &[Test] = &[
    (
        "the_default_profile_is_loaded_and_confines",
        the_default_profile_is_loaded_and_confines,
    ),
    (
        "a_named_profile_confines_and_a_missing_one_is_refused",
        a_named_profile_confines_and_a_missing_one_is_refused,
    ),
    (
        "critest_s_specs_of_apparmor_pass",
        critest_s_specs_of_apparmor_pass,
    ),
];

const DEFAULT: &str = "orlop-default (enforce)";
const PARSER: &str = "/usr/sbin/apparmor_parser";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// Stays until it's told to end; without a child that a signal would have to reach.
fn idle(name: &str) -> ContainerSpec {
    ContainerSpec::sh(
        name,
        "cat /proc/self/attr/current; trap 'exit 0' TERM; mkfifo /tmp/never; read -r _ <>/tmp/never",
    )
}

fn privileged(pod: PodSpec) -> PodSpec {
    pod.with("/linux/security_context/privileged", json!(true))
}

/// The numbers of `SecurityProfile.ProfileType`.
fn profile(kind: u32, name: &str) -> Value {
    json!({ "profile_type": kind, "localhost_ref": name })
}

const RUNTIME_DEFAULT: u32 = 0;
const UNCONFINED: u32 = 1;
const LOCALHOST: u32 = 2;

fn label(crictl: &Crictl<'_>, container: &str) -> Result<String> {
    crictl.ok(&["exec", container, "cat", "/proc/self/attr/current"])
}

/// Starts a container in a pod and says under which profile both its init and an exec run.
fn confined_by(
    crictl: &Crictl<'_>,
    pod: (&str, &PodSpec),
    container: &ContainerSpec,
) -> Result<(String, String)> {
    let id = crictl.create(pod.0, pod.1, container)?;
    crictl.ok(&["start", &id])?;
    let exec = label(crictl, &id)?;
    crate::bed::until_logged(crictl, &id, exec.trim_end_matches('\0'))?;
    Ok((id, exec))
}

fn the_default_profile_is_loaded_and_confines() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = privileged(PodSpec::new("confined"));
        // Rights that AppArmor must take away again: without it, mounting and writing would work.
        let armed = |name: &str| {
            idle(name)
                .with(
                    "/linux/security_context/capabilities/add_capabilities",
                    json!(["SYS_ADMIN"]),
                )
                .with("/linux/security_context/masked_paths", json!(["/proc/scsi"]))
                .with("/linux/security_context/readonly_paths", json!(["/proc/bus"]))
        };
        let (sandbox, first) = crictl.start_pod(&pod, &armed("unset"))?;
        ensure!(label(&crictl, &first)? == DEFAULT, "{}", label(&crictl, &first)?);
        for (path, text) in [
            ("/proc/sysrq-trigger", "h"),
            ("/proc/sys/vm/swappiness", "60"),
            ("/proc/sys/kernel/sysrq", "1"),
            ("/proc/sys/kernel/core_pattern", "core"),
            ("/proc/irq/default_smp_affinity", "1"),
        ] {
            let write = format!("echo {text} >{path}");
            let refused = crictl.run(&["exec", &first, "sh", "-c", &write])?;
            refused.refused("Permission denied")?;
        }
        crictl
            .run(&["exec", &first, "mount", "-t", "tmpfs", "none", "/mnt"])?
            .refused("denied")?;
        // What containers rely on.
        for fine in [
            "echo 1 >/tmp/file && rm /tmp/file",
            "echo 0 >/proc/self/oom_score_adj",
            "sleep 100 & kill -9 $!",
            "cat /sys/kernel/mm/transparent_hugepage/enabled >/dev/null",
            "head -c 1 /proc/sys/vm/swappiness",
        ] {
            crictl.ok(&["exec", &first, "sh", "-c", fine])?;
        }
        let unconfined = armed("free").with("/linux/security_context/apparmor", profile(UNCONFINED, ""));
        let (_, label) = confined_by(&crictl, (&sandbox, &pod), &unconfined)?;
        ensure!(label == "unconfined", "{label}");
        let default = idle("asked").with("/linux/security_context/apparmor", profile(RUNTIME_DEFAULT, ""));
        let (_, label) = confined_by(&crictl, (&sandbox, &pod), &default)?;
        ensure!(label == DEFAULT, "{label}");
        let old = idle("old").with(
            "/linux/security_context/apparmor_profile",
            json!("runtime/default"),
        );
        let (id, label) = confined_by(&crictl, (&sandbox, &pod), &old)?;
        ensure!(label == DEFAULT, "{label}");
        // The daemon's shims may end what the profile confines.
        crictl.ok(&["stop", "--timeout", "60", &id])?;
        let status = crictl.inspect(&id)?;
        ensure!(status["status"]["exitCode"] == 0, "{}", status["status"]);
        let all = idle("all").with("/linux/security_context/privileged", json!(true));
        let (_, label) = confined_by(&crictl, (&sandbox, &pod), &all)?;
        ensure!(label == "unconfined", "{label}");
        crictl.remove_pod(&sandbox)?;

        // Somebody takes it away: the next container has it again.
        node.run(
            "sh",
            &[
                "-c",
                "echo 'profile orlop-default {}' | /usr/sbin/apparmor_parser -R",
            ],
        )?
        .ok()?;
        ensure!(!node.read(PROFILES)?.contains("orlop-default"));
        let (sandbox, again) = crictl.start_pod(&pod, &idle("again"))?;
        ensure!(crictl.ok(&["exec", &again, "cat", "/proc/self/attr/current"])? == DEFAULT);
        crictl.remove_pod(&sandbox)
    });
}

fn a_named_profile_confines_and_a_missing_one_is_refused() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        node.write(
            "/tmp/orlop-test-profile",
            "profile orlop-test flags=(attach_disconnected) { file, signal, deny /tmp/secret rw, }\n",
        )?;
        node.run(PARSER, &["-K", "-r", "/tmp/orlop-test-profile"])?.ok()?;
        let pod = PodSpec::new("named");
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let sandbox = crictl.run_pod(&pod)?;
        for (name, key, value) in [
            (
                "new",
                "/linux/security_context/apparmor",
                profile(LOCALHOST, "orlop-test"),
            ),
            (
                "old",
                "/linux/security_context/apparmor_profile",
                json!("localhost/orlop-test"),
            ),
        ] {
            let container = idle(name).with(key, value);
            let (id, label) = confined_by(&crictl, (&sandbox, &pod), &container)?;
            ensure!(label == "orlop-test (enforce)", "{label}");
            crictl.ok(&["exec", &id, "sh", "-c", "echo fine >/tmp/open"])?;
            crictl
                .run(&["exec", &id, "sh", "-c", "echo no >/tmp/secret"])?
                .refused("Permission denied")?;
        }
        for (name, key, value) in [
            (
                "new2",
                "/linux/security_context/apparmor",
                profile(LOCALHOST, "nobody-s"),
            ),
            (
                "old2",
                "/linux/security_context/apparmor_profile",
                json!("localhost/nobody-s"),
            ),
        ] {
            let container = idle(name).with(key, value);
            crictl
                .try_create(&sandbox, &pod, &container)?
                .refused("AppArmor profile `nobody-s` is not loaded on this node")?;
        }
        let listed = crictl.ok(&["ps", "-a", "-q"])?;
        ensure!(
            listed.lines().count() == 2,
            "refused containers are left: {listed}"
        );
        crictl.remove_pod(&sandbox)?;
        node.run(PARSER, &["-R", "/tmp/orlop-test-profile"])?.ok()?;
        node.run("rm", &["/tmp/orlop-test-profile"])?.ok()?;
        Ok(())
    });
}

/// The suite loads its profiles by sudo, which a guest has no use for.
fn critest_s_specs_of_apparmor_pass() {
    in_node(Node::builder(), |node| {
        node.write("/run/bin/sudo", "#!/bin/sh\nexec \"$@\"\n")?;
        node.run("chmod", &["+x", "/run/bin/sudo"])?.ok()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut critest = Command::new(tools::cri_tools()?.join("critest"));
        critest
            .args(["-runtime-endpoint", "unix:///run/orlop/cri.sock"])
            .args(["-image-endpoint", "unix:///run/orlop/cri.sock"])
            .args(["-ginkgo.no-color", "-ginkgo.seed=1", "-ginkgo.focus=AppArmor"])
            .env("PATH", format!("/run/bin:{path}"))
            .current_dir("/");
        let ended = node.run_within(Duration::from_secs(60), &mut critest)?.ok()?;
        ensure!(ended.stdout.contains("9 Passed | 0 Failed"), "{ended}");
        node.crictl()?.ok(&["rmp", "-fa"])?;
        Ok(())
    });
}
