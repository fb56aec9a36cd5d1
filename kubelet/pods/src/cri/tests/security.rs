//! Security contexts.

use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{LinuxContainerSecurityContext, NamespaceMode, SupplementalGroupsPolicy};

use super::*;
use crate::cri::security::{check_sysctls, effective, sysctls};

fn context(pod: &Pod) -> Result<LinuxContainerSecurityContext, ConfigError> {
    config(pod).map(|config| config.linux.unwrap().security_context.unwrap())
}

fn both(of_pod: Value, of_container: Value) -> Pod {
    pod(json!({
        "securityContext": of_pod,
        "containers": [{"name": "c", "image": "i", "securityContext": of_container}]
    }))
}

#[test]
fn a_container_inherits_what_it_does_not_say() {
    let pod = both(
        json!({"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true, "seLinuxOptions": {"level": "s0"}}),
        json!({"runAsUser": 5, "privileged": true}),
    );
    let merged = effective(&pod, &first(&pod));
    assert_eq!(
        (merged.run_as_user, merged.run_as_group, merged.run_as_non_root),
        (Some(5), Some(2), Some(true))
    );
    let context = context(&pod).unwrap();
    assert_eq!(context.run_as_user.unwrap().value, 5);
    assert_eq!(context.run_as_group.unwrap().value, 2);
    assert_eq!(context.selinux_options.unwrap().level, "s0");
    assert!(context.privileged);
}

#[test]
fn non_root_is_verified_in_upstreams_words() {
    let try_as = |of_pod: Value, user: ImageUser| {
        let image = ResolvedImage { user, ..image() };
        container_config(&both(of_pod, json!({})), "c", 0, &image, &facts(), &extra())
            .map_err(|e| e.to_string())
    };
    let non_root = json!({"runAsNonRoot": true});
    let who = "(pod: \"web_default(u-1)\", container: c)";
    assert_eq!(
        try_as(non_root.clone(), ImageUser::Id(0)).unwrap_err(),
        format!("container has runAsNonRoot and image will run as root {who}")
    );
    assert_eq!(
        try_as(non_root.clone(), ImageUser::Name("app".into())).unwrap_err(),
        format!(
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root {who}"
        )
    );
    assert_eq!(
        try_as(json!({"runAsNonRoot": true, "runAsUser": 0}), ImageUser::Id(5)).unwrap_err(),
        format!("container's runAsUser breaks non-root policy {who}")
    );
    assert!(try_as(non_root, ImageUser::Id(5)).is_ok());
    assert!(
        try_as(
            json!({"runAsNonRoot": true, "runAsUser": 7}),
            ImageUser::Name("app".into())
        )
        .is_ok()
    );
    assert!(try_as(json!({"runAsNonRoot": false}), ImageUser::Id(0)).is_ok());
}

#[test]
fn the_images_user_stands_where_nobody_says_another() {
    let image = |user| ResolvedImage { user, ..image() };
    let of = |pod: &Pod, user| {
        let config = container_config(pod, "c", 0, &image(user), &facts(), &extra()).unwrap();
        let context = config.linux.unwrap().security_context.unwrap();
        (context.run_as_user.map(|id| id.value), context.run_as_username)
    };
    let plain = one(json!({}));
    assert_eq!(of(&plain, ImageUser::Id(9)), (Some(9), String::new()));
    assert_eq!(of(&plain, ImageUser::Name("app".into())), (None, "app".into()));
    let own = both(json!({"runAsUser": 4}), json!({}));
    assert_eq!(of(&own, ImageUser::Name("app".into())), (Some(4), String::new()));
}

#[test]
fn groups_are_those_of_files_of_the_pod_and_of_volumes() {
    let pod = both(
        json!({"fsGroup": 10, "supplementalGroups": [20, 30], "supplementalGroupsPolicy": "Strict"}),
        json!({}),
    );
    let extra = ContainerExtra {
        groups: vec![40],
        ..extra()
    };
    let config = container_config(&pod, "c", 0, &image(), &facts(), &extra).unwrap();
    let context = config.linux.unwrap().security_context.unwrap();
    assert_eq!(context.supplemental_groups, [10, 20, 30, 40]);
    assert_eq!(
        context.supplemental_groups_policy(),
        SupplementalGroupsPolicy::Strict
    );
    let without = NodeFacts {
        runtime: RuntimeFacts::default(),
        ..facts()
    };
    assert!(sandbox_config(&pod, 0, &without, &SandboxExtra::default()).is_err());
}

#[test]
fn capabilities_paths_and_privileges() {
    let full = both(
        json!({}),
        json!({
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false
        }),
    );
    let full = context(&full).unwrap();
    let capabilities = full.capabilities.unwrap();
    assert_eq!(
        (capabilities.add_capabilities, capabilities.drop_capabilities),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    assert!(full.readonly_rootfs && full.no_new_privs);
    assert!(full.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert_eq!(
        full.readonly_paths,
        [
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger"
        ]
    );
    let unmasked = context(&both(json!({}), json!({"procMount": "Unmasked"}))).unwrap();
    assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty() && !unmasked.no_new_privs);
    let privileged = both(json!({}), json!({"privileged": true}));
    let sandbox = sandbox_config(&privileged, 0, &facts(), &SandboxExtra::default()).unwrap();
    assert!(sandbox.linux.unwrap().security_context.unwrap().privileged);
}

#[test]
fn seccomp_from_the_container_the_pod_or_the_default() {
    let of = |of_pod: Value, of_container: Value, facts: &NodeFacts| {
        let pod = both(of_pod, of_container);
        let config = container_config(&pod, "c", 0, &image(), facts, &extra())?;
        let seccomp = config.linux.unwrap().security_context.unwrap().seccomp.unwrap();
        Ok::<_, ConfigError>((seccomp.profile_type(), seccomp.localhost_ref))
    };
    let default = NodeFacts {
        seccomp_default: true,
        ..facts()
    };
    let none = String::new;
    assert_eq!(
        of(json!({}), json!({}), &facts()).unwrap(),
        (ProfileType::Unconfined, none())
    );
    assert_eq!(
        of(json!({}), json!({}), &default).unwrap(),
        (ProfileType::RuntimeDefault, none())
    );
    let runtime = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    let file = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p/a.json"}});
    assert_eq!(
        of(runtime.clone(), json!({}), &facts()).unwrap(),
        (ProfileType::RuntimeDefault, none())
    );
    assert_eq!(
        of(runtime, file, &facts()).unwrap(),
        (ProfileType::Localhost, "/var/lib/kubelet/seccomp/p/a.json".into())
    );
    let missing = of(
        json!({}),
        json!({"seccompProfile": {"type": "Localhost"}}),
        &facts(),
    )
    .unwrap_err();
    assert_eq!(
        missing.to_string(),
        "localhostProfile must be set if seccompProfile type is Localhost."
    );
}

#[test]
fn apparmor_from_fields_and_old_annotations() {
    let of = |pod: &Pod| {
        let context = context(pod).unwrap();
        #[expect(deprecated, reason = "older runtimes read it")]
        (
            context
                .apparmor
                .map(|profile| (profile.profile_type(), profile.localhost_ref)),
            context.apparmor_profile,
        )
    };
    assert_eq!(of(&one(json!({}))), (None, String::new()));
    let field = |kind: &str| json!({"appArmorProfile": {"type": kind, "localhostProfile": "p"}});
    let localhost = Some((ProfileType::Localhost, "p".to_owned()));
    assert_eq!(
        of(&both(field("Unconfined"), field("Localhost"))),
        (localhost, "localhost/p".into())
    );
    let mut annotated = both(field("Unconfined"), json!({}));
    assert_eq!(of(&annotated).1, "unconfined");
    let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
    annotated.metadata.annotations = Some([(key, "localhost/q".to_owned())].into());
    assert_eq!(of(&annotated).1, "localhost/q");
    annotated
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .values_mut()
        .for_each(|v| *v = "runtime/default".into());
    assert_eq!(
        of(&annotated).0,
        Some((ProfileType::RuntimeDefault, String::new()))
    );
}

#[test]
fn sysctls_are_dotted_and_only_allowed_ones_pass() {
    let with = |name: &str, spec: Value| {
        let mut whole = json!({
            "containers": [{"name": "c"}], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}
        });
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        pod(whole)
    };
    let keys = |name| sysctls(&with(name, json!({}))).into_keys().next().unwrap();
    assert_eq!(keys("net/ipv4/conf/eth0.100/mtu"), "net.ipv4.conf.eth0/100.mtu");
    assert_eq!(keys("net.ipv4.conf.eth0/100.mtu"), "net.ipv4.conf.eth0/100.mtu");
    let check = |name: &str, spec: Value, facts: &NodeFacts| {
        check_sysctls(&with(name, spec), facts).map_err(|error| error.to_string())
    };
    assert_eq!(check("net.ipv4.tcp_syncookies", json!({}), &facts()), Ok(()));
    assert_eq!(
        check("net.core.somaxconn", json!({}), &facts()).unwrap_err(),
        "forbidden sysctl: \"net.core.somaxconn\" not allowlisted"
    );
    let allowing = NodeFacts {
        allowed_unsafe_sysctls: vec!["net.core.*".into(), "kernel.sem".into()],
        ..facts()
    };
    assert_eq!(check("net.core.somaxconn", json!({}), &allowing), Ok(()));
    assert_eq!(
        check("net.core.somaxconn", json!({"hostNetwork": true}), &allowing).unwrap_err(),
        "forbidden sysctl: \"net.core.somaxconn\" not allowed with host net enabled"
    );
    assert!(
        check("kernel.sem", json!({"hostIPC": true}), &allowing)
            .unwrap_err()
            .contains("host ipc")
    );
    let config = sandbox_config(
        &with("kernel/shm_rmid_forced", json!({})),
        0,
        &facts(),
        &SandboxExtra::default(),
    );
    assert_eq!(
        config.unwrap().linux.unwrap().sysctls["kernel.shm_rmid_forced"],
        "1"
    );
}

#[test]
fn user_namespaces_map_the_pod_and_its_mounts() {
    let pod = pod(json!({"hostUsers": false, "containers": [{"name": "c", "image": "i"}]}));
    let range = crate::cri::userns::IdRange {
        first: 131_072,
        length: crate::cri::userns::RANGE,
    };
    let extra = ContainerExtra {
        user_namespace: Some(range),
        ..extra()
    };
    let config = container_config(&pod, "c", 0, &image(), &facts(), &extra).unwrap();
    let context = config.linux.unwrap().security_context.unwrap();
    let userns = context.namespace_options.unwrap().userns_options.unwrap();
    assert_eq!(userns.mode(), NamespaceMode::Pod);
    assert_eq!(
        (
            userns.uids[0].host_id,
            userns.uids[0].container_id,
            userns.uids[0].length
        ),
        (131_072, 0, 65536)
    );
    assert_eq!(config.mounts[0].uid_mappings, userns.uids);
    assert_eq!(config.mounts[0].gid_mappings, userns.gids);
    let without = NodeFacts {
        runtime: RuntimeFacts::default(),
        ..facts()
    };
    let extra = SandboxExtra {
        user_namespace: Some(range),
        runtime_handler: "old".into(),
        ..Default::default()
    };
    let error = sandbox_config(&pod, 0, &without, &extra).unwrap_err();
    assert_eq!(
        error.to_string(),
        "RuntimeClass handler \"old\" does not support user namespaces"
    );
}
