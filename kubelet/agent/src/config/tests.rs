use proptest::prelude::*;
use serde_json::json;

use super::*;

fn text(file: &str, body: &str) -> SourceText {
    SourceText {
        file: file.to_owned(),
        text: format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{body}"),
    }
}

fn resolved(texts: &[SourceText], arguments: &[&str]) -> Result<Resolved, ConfigError> {
    let flags = Flags::parse(arguments.iter().map(ToString::to_string)).unwrap();
    resolve(texts, &flags, true)
}

fn complaints(result: Result<Resolved, ConfigError>) -> String {
    result.expect_err("it was taken").to_string()
}

#[test]
fn nothing_at_all_gives_upstreams_defaults() {
    let config = resolved(&[], &[]).unwrap().config;
    assert_eq!(config.port, 10250);
    assert_eq!(config.sync_frequency, GoDuration::from_secs(60));
    assert_eq!(config.node_status_report_frequency, GoDuration::from_secs(300));
    assert_eq!(config.serialize_image_pulls, Some(true));
    assert_eq!(
        config.eviction_hard.as_ref().unwrap()["memory.available"],
        "100Mi"
    );
    assert_eq!(config.enforce_node_allocatable, ["pods"]);
    assert_eq!(
        config.crash_loop_back_off.max_container_restart_period,
        Some(GoDuration::from_secs(300))
    );
    assert!(!config.authentication.anonymous.enabled && config.authentication.webhook.enabled);
}

#[test]
fn zero_means_the_default_where_it_does_upstream() {
    let file = text(
        "a",
        "port: 0\nmaxPods: 0\nsyncFrequency: 0s\ncgroupDriver: \"\"\nhealthzPort: 0\nregistryPullQPS: 0\n",
    );
    let config = resolved(&[file], &[]).unwrap().config;
    assert_eq!((config.port, config.max_pods), (10250, 110));
    assert_eq!(config.sync_frequency, GoDuration::from_secs(60));
    assert_eq!(config.cgroup_driver, "cgroupfs");
    assert_eq!((config.healthz_port, config.registry_pull_qps), (0, 0));
}

#[test]
fn defaults_follow_other_fields() {
    let file = text(
        "a",
        "nodeStatusUpdateFrequency: 30s\nmaxParallelImagePulls: 4\nevictionHard: {pid.available: 5%}\n",
    );
    let config = resolved(&[file], &[]).unwrap().config;
    assert_eq!(config.node_status_report_frequency, GoDuration::from_secs(30));
    assert_eq!(config.serialize_image_pulls, Some(false));
    assert_eq!(config.eviction_hard.unwrap().len(), 1);
    let file = text(
        "a",
        "evictionHard: {memory.available: 1Gi}\nmergeDefaultEvictionSettings: true\n",
    );
    let hard = resolved(&[file], &[]).unwrap().config.eviction_hard.unwrap();
    assert_eq!((hard.len(), hard["memory.available"].as_str()), (5, "1Gi"));
}

#[test]
fn drop_ins_merge_maps_and_replace_lists_and_flags_count_most() {
    let base = text(
        "base.yaml",
        "maxPods: 5\nclusterDNS: [10.0.0.1, 10.0.0.2]\nkubeReserved: {cpu: 100m, memory: 1Gi}\nauthentication: {anonymous: {enabled: true}}\n",
    );
    let drop_in = text(
        "10.conf",
        "clusterDNS: [10.0.0.9]\nkubeReserved: {memory: 2Gi}\nmaxPods: 6\n",
    );
    let config = resolved(&[base, drop_in], &["--max-pods=7", "--cluster-domain", "here"])
        .unwrap()
        .config;
    assert_eq!(config.max_pods, 7);
    assert_eq!(config.cluster_dns, ["10.0.0.9"]);
    assert_eq!(config.kube_reserved["cpu"], "100m");
    assert_eq!(config.kube_reserved["memory"], "2Gi");
    assert_eq!(config.cluster_domain, "here");
    assert!(config.authentication.anonymous.enabled);
}

#[test]
fn unknown_keys_and_wrong_types_are_told_with_file_and_line() {
    let found = complaints(resolved(
        &[text("/etc/kubelet.yaml", "maxPods: 5\nmaxPodz: 5\n")],
        &[],
    ));
    assert!(
        found.contains("/etc/kubelet.yaml:4") && found.contains("maxPodz"),
        "{found}"
    );
    let found = complaints(resolved(
        &[
            text("a.conf", "port: many\n"),
            text("b.conf", "syncFrequency: 5\n"),
        ],
        &[],
    ));
    assert!(
        found.contains("a.conf:3") && found.contains("b.conf:3"),
        "{found}"
    );
    let nested = complaints(resolved(
        &[text("n", "authentication:\n  x509:\n    caFile: x\n")],
        &[],
    ));
    assert!(nested.contains("n:5"), "{nested}");
    let other = SourceText {
        file: "pod.yaml".to_owned(),
        text: "apiVersion: v1\nkind: Pod\n".to_owned(),
    };
    assert!(complaints(resolved(&[other], &[])).contains("no kind \"Pod\" is registered for version \"v1\""));
}

#[test]
fn what_upstream_refuses_is_refused_in_its_words() {
    for (body, words) in [
        (
            "port: 70000",
            "invalid configuration: port (--port) 70000 must be between 1 and 65535, inclusive",
        ),
        (
            "imageGCLowThresholdPercent: 90",
            "imageGCLowThresholdPercent (--image-gc-low-threshold) 90 must be less than imageGCHighThresholdPercent \
             (--image-gc-high-threshold) 85",
        ),
        (
            "cpuCFSQuotaPeriod: 5ms",
            "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) 5ms requires feature gate CustomCPUCFSQuotaPeriod",
        ),
        (
            "topologyManagerPolicy: some",
            "topologyManagerPolicy (--topology-manager-policy) \"some\" must be one of: [\"none\" \"best-effort\" \
             \"restricted\" \"single-numa-node\"]",
        ),
        (
            "shutdownGracePeriodCriticalPods: 5s",
            "shutdownGracePeriodCriticalPods 5s must be <= shutdownGracePeriod 0s",
        ),
        (
            "shutdownGracePeriod: 5ms",
            "shutdownGracePeriod 5ms must be either zero or otherwise >= 1 sec",
        ),
        (
            "enforceNodeAllocatable: [none, pods]",
            "may not contain additional enforcements when \"none\" is specified",
        ),
        (
            "enforceNodeAllocatable: [kube-reserved]",
            "kubeReservedCgroup (--kube-reserved-cgroup) must be specified when",
        ),
        (
            "reservedSystemCPUs: 0-x",
            "unable to parse reservedSystemCPUs (--reserved-cpus) 0-x, error: strconv.Atoi",
        ),
        ("podLogsDir: logs", "pod logs path \"logs\" must be absolute path"),
        ("podLogsDir: /a//b", "pod logs path \"/a//b\" must be normalized"),
        (
            "containerLogMaxFiles: 1",
            "containerLogMaxFiles must be greater than 1",
        ),
        (
            "memorySwap: {swapBehavior: Much}",
            "memorySwap.swapBehavior \"Much\" must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
        ),
        (
            "serializeImagePulls: true\nmaxParallelImagePulls: 3",
            "maxParallelImagePulls cannot be larger than 1",
        ),
        (
            "crashLoopBackOff: {maxContainerRestartPeriod: 10m}",
            "(got: 600 seconds) must be set between 1s and 300s",
        ),
        (
            "reservedMemory: [{numaNode: 0, limits: {cpu: 1}}]",
            "the limit type \"cpu\" for NUMA node 0 is not supported",
        ),
        (
            "registerWithTaints: [{key: a, effect: Never}]",
            "invalid taint: {a  Never <nil>}",
        ),
        (
            "runOnce: true",
            "Runonce mode has been deprecated and should not be set",
        ),
        (
            "qosReserved: {memory: 50%}",
            "qosReserved (--qos-reserved) is not supported",
        ),
    ] {
        let found = complaints(resolved(&[text("k", &format!("{body}\n"))], &[]));
        assert!(found.contains(words), "{body}: {found}");
    }
}

#[test]
fn v1_hosts_are_refused_unless_the_configuration_allows_them() {
    let flags = Flags::default();
    let refused = resolve(&[], &flags, false).unwrap_err().to_string();
    assert!(refused.contains("not run on a host using cgroup v1"), "{refused}");
    resolve(&[text("k", "failCgroupV1: false\n")], &flags, false).unwrap();
}

#[test]
fn what_has_no_effect_is_warned_of_only_if_it_was_asked_for() {
    assert!(resolved(&[], &[]).unwrap().warnings.is_empty());
    let file = text(
        "k",
        "protectKernelDefaults: true\nfeatureGates: {SomethingNew: true, NodeSwap: true}\n",
    );
    let warnings = resolved(&[file], &["--pod-infra-container-image", "pause"])
        .unwrap()
        .warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (body, names) in [
        (
            "tlsCipherSuites: [TLS_AES_128_GCM_SHA256]",
            vec!["tlsCipherSuites"],
        ),
        (
            "registryPullQPS: 1\nregistryBurst: 2",
            vec!["registryBurst", "registryPullQPS"],
        ),
        (
            "eventRecordQPS: 1\neventBurst: 2",
            vec!["eventBurst", "eventRecordQPS"],
        ),
        (
            "authentication: {webhook: {enabled: true}}",
            vec!["authentication.webhook"],
        ),
        ("authentication: {webhook: {enabled: false}}", vec![]),
        ("authentication: {anonymous: {enabled: false}}", vec![]),
        (
            "authorization: {webhook: {cacheAuthorizedTTL: 1m}}",
            vec!["authorization.webhook"],
        ),
        ("tlsMinVersion: VersionTLS11", vec!["tlsMinVersion"]),
        ("tlsMinVersion: VersionTLS13", vec![]),
    ] {
        let warnings = resolved(&[text("k", &format!("{body}\n"))], &[])
            .unwrap()
            .warnings;
        let told: Vec<&str> = warnings
            .iter()
            .filter_map(|one| one.split_whitespace().next())
            .collect();
        assert_eq!(told, names, "{body}: {warnings:?}");
    }
}

#[test]
fn the_oldest_tls_is_what_is_said_and_never_below_1_2() {
    let version = |name: &str| {
        KubeletConfiguration {
            tls_min_version: name.to_owned(),
            ..KubeletConfiguration::default()
        }
        .tls_version()
    };
    for (name, wanted) in [
        ("", Some(TlsVersion::V12)),
        ("VersionTLS10", Some(TlsVersion::V12)),
        ("VersionTLS12", Some(TlsVersion::V12)),
        ("VersionTLS13", Some(TlsVersion::V13)),
        ("VersionTLS14", None),
    ] {
        assert_eq!(version(name), wanted, "{name}");
    }
    let found = complaints(resolved(&[text("k", "tlsMinVersion: TLS1.3\n")], &[]));
    assert!(
        found.contains("tlsMinVersion (--tls-min-version) must be one of"),
        "{found}"
    );
}

#[test]
fn flags_are_read_as_go_reads_them() {
    let read = |arguments: &[&str]| Flags::parse(arguments.iter().map(ToString::to_string));
    let flags = read(&[
        "--config=/etc/k.yaml",
        "-v",
        "4",
        "--node-labels=a=1,b=",
        "--node-labels",
        "c=3",
        "--anonymous-auth",
        "--feature-gates=A=true,B=false",
        "--eviction-hard=memory.available<100Mi,nodefs.available<10%",
        "--register-schedulable=false",
    ])
    .unwrap();
    assert_eq!(flags.config.as_deref(), Some("/etc/k.yaml"));
    assert_eq!(flags.node_labels.len(), 3);
    assert!(flags.unschedulable);
    assert_eq!(
        flags.overrides,
        json!({
            "logging": {"verbosity": 4},
            "authentication": {"anonymous": {"enabled": true}},
            "featureGates": {"A": true, "B": false},
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "10%"},
        })
    );
    for (arguments, words) in [
        (&["--nonsense"][..], "unknown flag: --nonsense"),
        (&["--config"], "flag needs an argument: --config"),
        (
            &["--port", "x"],
            "invalid argument \"x\" for \"--port\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (&["--sync-frequency=5"], "time: missing unit in duration \"5\""),
        (&["run"], "unknown command \"run\""),
        (
            &["--cloud-provider=aws"],
            "flag --cloud-provider is not supported",
        ),
    ] {
        let error = read(arguments).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn every_flag_of_a_field_names_a_field() {
    let samples = ["x", "5", "true", "1m", "a=1", "a=true"];
    for (flag, path, _) in super::flags::FIELDS {
        let given = samples.iter().find_map(|sample| {
            let flags = Flags::parse([format!("--{flag}={sample}")]).ok()?;
            let decoded: Result<KubeletConfiguration, _> = serde_json::from_value(flags.overrides);
            decoded.ok().filter(|config| {
                // A path that names no field changes nothing.
                let name = path.split('.').next().unwrap();
                serde_json::to_value(config).unwrap().get(name).is_some()
            })
        });
        assert!(given.is_some(), "--{flag} is of no use");
    }
}

#[test]
fn files_are_read_in_order_and_only_drop_ins_count() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, body: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text("", body).text).unwrap();
    };
    write("k.yaml", "maxPods: 1\nport: 1111\n");
    write("d/20.conf", "maxPods: 20\n");
    write("d/10.conf", "maxPods: 10\npodsPerCore: 3\n");
    write("d/15/x.conf", "podsPerCore: 4\n");
    write("d/30.yaml", "maxPods: 30\n");
    let path = |name: &str| Some(dir.path().join(name).display().to_string());
    let flags = Flags {
        config: path("k.yaml"),
        config_dir: path("d"),
        ..Flags::default()
    };
    let config = load(&flags, true).unwrap().config;
    assert_eq!(
        (config.max_pods, config.pods_per_core, config.port),
        (20, 4, 1111)
    );
    let missing = Flags {
        config: path("none.yaml"),
        ..Flags::default()
    };
    assert!(matches!(load(&missing, true), Err(ConfigError::Read { .. })));
}

#[test]
fn configz_has_upstreams_form() {
    let answer = configz(&resolved(&[], &[]).unwrap().config);
    let config = &answer["kubeletconfig"];
    assert_eq!(config["syncFrequency"], "1m0s");
    assert_eq!(config["cpuCFSQuotaPeriod"], "100ms");
    assert_eq!(config["shutdownGracePeriod"], "0s");
    assert_eq!(config["authentication"]["x509"], json!({}));
    assert_eq!(config["memorySwap"], json!({}));
    assert_eq!(config["enableServer"], true);
    for absent in [
        "kind",
        "apiVersion",
        "readOnlyPort",
        "staticPodPath",
        "clusterDNS",
        "runOnce",
        "tracing",
    ] {
        assert!(config.get(absent).is_none(), "{absent}");
    }
    let again: KubeletConfiguration = serde_json::from_value(config.clone()).unwrap();
    assert_eq!(again, resolved(&[], &[]).unwrap().config);
}

#[test]
fn durations_are_go_s() {
    for (text, nanos, again) in [
        ("0", 0, "0s"),
        ("1m30s", 90_000_000_000, "1m30s"),
        ("1.5h", 5_400_000_000_000, "1h30m0s"),
        ("100ms", 100_000_000, "100ms"),
        ("1.5ms", 1_500_000, "1.5ms"),
        ("-2s", -2_000_000_000, "-2s"),
        (".5s", 500_000_000, "500ms"),
        ("2h45m", 9_900_000_000_000, "2h45m0s"),
    ] {
        let duration: GoDuration = text.parse().unwrap();
        assert_eq!(
            (duration.as_nanos(), duration.to_string().as_str()),
            (nanos, again),
            "{text}"
        );
    }
    for bad in ["", "-", "5", "1x", "1.2.3s", ".s", "s", "10000000h", "1m 2s"] {
        assert!(bad.parse::<GoDuration>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn durations_written_are_read_again(nanos in any::<i64>().prop_filter("", |n| *n != i64::MIN)) {
        let duration: GoDuration = format!("{nanos}ns").parse().unwrap();
        prop_assert_eq!(duration.to_string().parse::<GoDuration>().unwrap(), duration);
    }

    #[test]
    fn no_text_brings_the_parser_down(text in ".{0,30}") {
        let _ = text.parse::<GoDuration>();
        let _ = Flags::parse([text]);
    }
}
