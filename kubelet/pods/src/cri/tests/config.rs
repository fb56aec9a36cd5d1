//! Whole configurations.

use std::collections::HashMap;

use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::*;

use super::*;

fn text_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn ordinary() -> Pod {
    let mut pod = pod(json!({
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "containers": [{
            "name": "c",
            "image": "registry.example/web:1",
            "command": ["/web", "--name=$(NAME)"],
            "args": ["$$(NAME)", "$(UNKNOWN)"],
            "env": [{"name": "NAME", "value": "first"}],
            "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "TCP", "name": "http"}],
            "volumeMounts": [{"name": "data", "mountPath": "data", "readOnly": true}],
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "lifecycle": {"preStop": {"sleep": {"seconds": 3}}, "stopSignal": "SIGUSR1"},
            "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
        }]
    }));
    pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    pod.metadata.annotations = Some([("note".to_owned(), "x".to_owned())].into());
    pod
}

#[test]
fn an_ordinary_pods_sandbox_is_upstreams() {
    let extra = SandboxExtra {
        cgroup_parent: "/kubepods.slice/p.slice".into(),
        ..SandboxExtra::default()
    };
    let config = sandbox_config(&ordinary(), 2, &facts(), &extra).unwrap();
    let resources = LinuxContainerResources {
        cpu_shares: 256,
        cpu_quota: 100_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 128 << 20,
        unified: text_map(&[("memory.oom.group", "1")]),
        ..LinuxContainerResources::default()
    };
    let expected = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "default".into(),
            attempt: 2,
        }),
        hostname: "web".into(),
        log_directory: "/var/log/pods/default_web_u-1".into(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: [
                "default.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.com",
            ]
            .map(str::to_owned)
            .into(),
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
        }],
        labels: text_map(&[
            ("app", "web"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "u-1"),
        ]),
        annotations: text_map(&[("note", "x")]),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods.slice/p.slice".into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    network: NamespaceMode::Pod.into(),
                    pid: NamespaceMode::Container.into(),
                    ipc: NamespaceMode::Pod.into(),
                    target_id: String::new(),
                    userns_options: Some(UserNamespace {
                        mode: NamespaceMode::Node.into(),
                        ..UserNamespace::default()
                    }),
                }),
                seccomp: Some(SecurityProfile {
                    profile_type: ProfileType::RuntimeDefault.into(),
                    localhost_ref: String::new(),
                }),
                ..LinuxSandboxSecurityContext::default()
            }),
            overhead: Some(LinuxContainerResources::default()),
            resources: Some(resources),
            ..LinuxPodSandboxConfig::default()
        }),
        windows: None,
    };
    assert_eq!(config, expected);
}

#[test]
fn an_ordinary_container_is_upstreams() {
    let from = MountFrom::Path {
        host_path: "/v/data".into(),
        read_only: false,
        selinux_relabel: true,
    };
    let extra = ContainerExtra {
        mounts: [("data".to_owned(), from)].into(),
        termination_log: Some("/var/lib/kubelet/pods/u-1/containers/c/1234".into()),
        cpuset_cpus: "1-2".into(),
        ..extra()
    };
    let config = container_config(&ordinary(), "c", 3, &image(), &facts(), &extra).unwrap();
    assert_eq!(
        config.metadata,
        Some(ContainerMetadata {
            name: "c".into(),
            attempt: 3
        })
    );
    let image = config.image.clone().unwrap();
    assert_eq!(
        (image.image.as_str(), image.user_specified_image.as_str()),
        ("sha256:abc", "registry.example/web:1")
    );
    assert_eq!(config.command, ["/web", "--name=first"]);
    assert_eq!(config.args, ["$(NAME)", "$(UNKNOWN)"]);
    assert_eq!(
        config.envs,
        [KeyValue {
            key: "NAME".into(),
            value: b"first".to_vec()
        }]
    );
    assert_eq!(config.log_path, "c/3.log");
    assert_eq!(config.stop_signal(), Signal::Sigusr1);
    assert_eq!(
        config.labels,
        text_map(&[
            ("io.kubernetes.container.name", "c"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "u-1"),
        ])
    );
    let mount = |container_path: &str, host_path: &str, readonly| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        readonly,
        selinux_relabel: true,
        ..Mount::default()
    };
    let expected = [
        mount("/data", "/v/data", true),
        mount("/etc/hosts", "/var/lib/kubelet/pods/u-1/etc-hosts", false),
        mount(
            "/dev/termination-log",
            "/var/lib/kubelet/pods/u-1/containers/c/1234",
            false,
        ),
    ];
    assert_eq!(config.mounts, expected);
    let linux = config.linux.unwrap();
    let resources = LinuxContainerResources {
        cpu_shares: 256,
        cpu_quota: 100_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 993,
        cpuset_cpus: "1-2".into(),
        hugepage_limits: vec![
            HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            },
            HugepageLimit {
                page_size: "1GB".into(),
                limit: 0,
            },
        ],
        unified: text_map(&[("memory.oom.group", "1"), ("memory.swap.max", "0")]),
        ..LinuxContainerResources::default()
    };
    assert_eq!(linux.resources, Some(resources));
    let context = linux.security_context.unwrap();
    assert_eq!(context.run_as_user, Some(Int64Value { value: 0 }));
    assert_eq!(context.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
    assert_eq!(
        (context.masked_paths.len(), context.readonly_paths.len()),
        (12, 5)
    );
}

#[test]
fn annotations_are_found_again_after_a_restart() {
    let extra = ContainerExtra {
        annotations: [
            ("plugin".to_owned(), "p".to_owned()),
            (labels::RESTART_COUNT.to_owned(), "99".to_owned()),
        ]
        .into(),
        mounts: [(
            "data".to_owned(),
            MountFrom::Path {
                host_path: "/v".into(),
                read_only: false,
                selinux_relabel: false,
            },
        )]
        .into(),
        ..extra()
    };
    let mut pod = ordinary();
    pod.metadata.deletion_grace_period_seconds = Some(7);
    let config = container_config(&pod, "c", 3, &image(), &facts(), &extra).unwrap();
    assert_eq!(config.annotations["plugin"], "p");
    assert_eq!(
        config.annotations["io.kubernetes.container.ports"],
        r#"[{"containerPort":80,"hostPort":8080,"name":"http","protocol":"TCP"}]"#
    );
    assert_eq!(
        config.annotations["io.kubernetes.container.preStopHandler"],
        r#"{"sleep":{"seconds":3}}"#
    );
    let found = labels::found(&config.annotations.into_iter().collect());
    assert_eq!(found.hash, Some(crate::hash::container_hash(&first(&pod))));
    assert_eq!(found.restart_count, 3);
    assert_eq!(found.termination_message_path, "/dev/termination-log");
    assert_eq!(found.termination_message_policy, "File");
    assert_eq!(found.pre_stop.unwrap().sleep.unwrap().seconds, 3);
    assert_eq!(
        (found.termination_grace_period, found.deletion_grace_period),
        (Some(30), Some(7))
    );
    assert_eq!(labels::found(&Default::default()), labels::Found::default());
}

#[test]
fn only_name_and_image_decide_about_a_containers_hash_which_is_upstreams() {
    let hash = |name: &str, image: &str, args: Value| {
        let container = json!({"name": name, "image": image, "args": args});
        crate::hash::container_hash(&serde_json::from_value(container).unwrap())
    };
    assert_eq!(hash("foo", "bar", json!([])), 0x11a6_d6d6);
    assert_eq!(hash("foo", "bar", json!(["more"])), 0x11a6_d6d6);
    assert_eq!(hash("test_container", "foo/image:v1", json!([])), 0x8e45_cbd0);
    assert_ne!(hash("foo", "<&>", json!([])), hash("foo", "", json!([])));
}

#[test]
fn the_nodes_namespaces_and_shared_processes_are_asked_for() {
    let options = |spec: Value| {
        let mut whole = json!({"containers": [{"name": "c", "image": "i"}]});
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let config = sandbox_config(&pod(whole), 0, &facts(), &SandboxExtra::default()).unwrap();
        let options = config
            .linux
            .unwrap()
            .security_context
            .unwrap()
            .namespace_options
            .unwrap();
        (options.network(), options.pid(), options.ipc())
    };
    use NamespaceMode::{Container as Own, Node, Pod as Shared};
    assert_eq!(options(json!({})), (Shared, Own, Shared));
    assert_eq!(
        options(json!({"hostNetwork": true, "hostPID": true, "hostIPC": true})),
        (Node, Node, Node)
    );
    assert_eq!(
        options(json!({"shareProcessNamespace": true})),
        (Shared, Shared, Shared)
    );
}

#[test]
fn ports_of_sidecars_count_and_those_named_twice_count_once() {
    let pod = pod(json!({
        "containers": [{"name": "c", "ports": [
            {"containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1", "hostPort": 53},
            {"containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1", "hostPort": 53},
            {"containerPort": 53}
        ]}],
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9, "protocol": "SCTP"}]},
            {"name": "i", "ports": [{"containerPort": 10}]}
        ]
    }));
    let config = sandbox_config(&pod, 0, &facts(), &SandboxExtra::default()).unwrap();
    let seen: Vec<_> = config
        .port_mappings
        .iter()
        .map(|p| (p.protocol(), p.container_port, p.host_port))
        .collect();
    assert_eq!(
        seen,
        [
            (Protocol::Udp, 53, 53),
            (Protocol::Tcp, 53, 0),
            (Protocol::Sctp, 9, 0)
        ]
    );
    assert_eq!(config.port_mappings[0].host_ip, "127.0.0.1");
}

#[test]
fn an_ephemeral_container_sees_its_targets_processes() {
    let pod = pod(json!({
        "containers": [{"name": "web"}],
        "ephemeralContainers": [{"name": "c", "image": "i", "targetContainerName": "web", "stdin": true, "tty": true}]
    }));
    let error = config(&pod).unwrap_err();
    assert_eq!(error.to_string(), "unable to find target container web");
    let extra = ContainerExtra {
        target_id: Some("id-1".into()),
        ..extra()
    };
    let config = container_config(&pod, "c", 0, &image(), &facts(), &extra).unwrap();
    assert!(config.stdin && config.tty && !config.stdin_once);
    let options = config
        .linux
        .unwrap()
        .security_context
        .unwrap()
        .namespace_options
        .unwrap();
    assert_eq!(
        (options.pid(), options.target_id.as_str()),
        (NamespaceMode::Target, "id-1")
    );
}

#[test]
fn mounts_have_the_modes_that_are_asked_for() {
    let mount = |fields: Value, facts: &NodeFacts| {
        let mut whole = json!({"name": "v", "mountPath": "/m"});
        whole
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let pod = one(json!({"volumeMounts": [whole]}));
        let from = MountFrom::Path {
            host_path: "/v".into(),
            read_only: false,
            selinux_relabel: false,
        };
        let extra = ContainerExtra {
            mounts: [("/m".to_owned(), from)].into(),
            ..ContainerExtra::default()
        };
        container_config(&pod, "c", 0, &image(), facts, &extra).map(|config| config.mounts[0].clone())
    };
    let none = NodeFacts {
        runtime: RuntimeFacts::default(),
        ..facts()
    };
    let plain = mount(json!({}), &facts()).unwrap();
    assert_eq!(plain.propagation(), MountPropagation::PropagationPrivate);
    let shared = mount(json!({"mountPropagation": "Bidirectional"}), &facts()).unwrap();
    assert_eq!(shared.propagation(), MountPropagation::PropagationBidirectional);
    let slave = mount(json!({"mountPropagation": "HostToContainer"}), &facts()).unwrap();
    assert_eq!(slave.propagation(), MountPropagation::PropagationHostToContainer);
    let error = mount(json!({"mountPropagation": "Some"}), &facts()).unwrap_err();
    assert_eq!(error.to_string(), "invalid MountPropagation mode: \"Some\"");
    let enabled = json!({"readOnly": true, "recursiveReadOnly": "Enabled"});
    assert!(mount(enabled.clone(), &facts()).unwrap().recursive_read_only);
    assert_eq!(
        mount(enabled, &none).unwrap_err().to_string(),
        "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not \
         supported by the runtime"
    );
    let possible = json!({"readOnly": true, "recursiveReadOnly": "IfPossible"});
    assert!(!mount(possible, &none).unwrap().recursive_read_only);
    assert!(
        mount(json!({"recursiveReadOnly": "Enabled"}), &facts())
            .unwrap_err()
            .to_string()
            .contains("not read-only")
    );
    let options = json!({"bindMountOptions": ["noexec"]});
    assert_eq!(
        mount(options.clone(), &facts()).unwrap().mount_options,
        ["noexec"]
    );
    assert!(mount(options, &none).is_err());
}

#[test]
fn volumes_that_are_missing_images_and_own_hosts_files() {
    let pod = one(json!({"volumeMounts": [
        {"name": "img", "mountPath": "/image"}, {"name": "hosts", "mountPath": "/etc/hosts"}
    ]}));
    let error = config(&pod).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot find volume \"img\" to mount into container \"c\""
    );
    let spec = ImageSpec {
        image: "sha256:v".into(),
        ..ImageSpec::default()
    };
    let image_mount = MountFrom::Image {
        image: spec.clone(),
        sub_path: "sub".into(),
    };
    let path = MountFrom::Path {
        host_path: "/h".into(),
        read_only: true,
        selinux_relabel: false,
    };
    let extra = ContainerExtra {
        mounts: [
            ("/image".to_owned(), image_mount),
            ("/etc/hosts".to_owned(), path),
        ]
        .into(),
        ..extra()
    };
    let config = container_config(&pod, "c", 0, &image(), &facts(), &extra).unwrap();
    assert_eq!(config.mounts.len(), 2);
    assert_eq!(config.mounts[0].image, Some(spec));
    assert_eq!(config.mounts[0].image_sub_path, "sub");
    assert!(config.mounts[1].readonly);
}

#[test]
fn containers_that_the_pod_lacks_and_signals_that_are_none() {
    let error = container_config(&one(json!({})), "x", 0, &image(), &facts(), &extra()).unwrap_err();
    assert_eq!(error, ConfigError::NoSuchContainer("x".into()));
    let signal = |name: &str| config(&one(json!({"lifecycle": {"stopSignal": name}})));
    assert_eq!(
        signal("SIGRTMIN+15").unwrap().stop_signal(),
        Signal::Sigrtminplus15
    );
    assert_eq!(
        signal("SIGRTMAX-1").unwrap().stop_signal(),
        Signal::Sigrtmaxminus1
    );
    assert!(signal("SIGNONE").is_err());
}
