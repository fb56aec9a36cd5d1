//! Names: host names, hosts files, resolvers, logs.

use super::*;
use crate::cri::dns::pod_dns;
use crate::cri::hosts::{pod_hostname, pod_hosts_file};

fn with(spec: Value) -> Pod {
    let mut whole = json!({"containers": [{"name": "c"}]});
    whole
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    pod(whole)
}

fn kernel_name(pod: &Pod) -> Result<String, ConfigError> {
    sandbox_config(pod, 0, &facts(), &SandboxExtra::default()).map(|config| config.hostname)
}

#[test]
fn a_pods_host_name() {
    assert_eq!(kernel_name(&with(json!({}))).unwrap(), "web");
    assert_eq!(
        kernel_name(&with(json!({"hostname": "h", "subdomain": "s"}))).unwrap(),
        "h"
    );
    let fqdn = with(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
    assert_eq!(kernel_name(&fqdn).unwrap(), "h.s.default.svc.cluster.local");
    assert_eq!(
        kernel_name(&with(json!({"hostnameOverride": "a.b.c", "subdomain": "s"}))).unwrap(),
        "a.b.c"
    );
    assert_eq!(
        kernel_name(&with(json!({"hostNetwork": true}))).unwrap(),
        "",
        "the runtime takes the machine's"
    );
    let mut long = with(json!({}));
    long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
    assert_eq!(kernel_name(&long).unwrap(), "a".repeat(62));
}

#[test]
fn host_names_that_are_none_say_why() {
    let error = |spec| kernel_name(&with(spec)).unwrap_err().to_string();
    assert!(error(json!({"hostname": "A"})).starts_with("pod Hostname \"A\" is not a valid DNS label: "));
    assert!(error(json!({"subdomain": "-"})).starts_with("pod Subdomain \"-\" is not a valid DNS label: "));
    assert!(error(json!({"hostnameOverride": "a..b"})).contains("is not a valid DNS subdomain"));
    let fqdn =
        error(json!({"hostname": "h".repeat(40), "subdomain": "s".repeat(30), "setHostnameAsFQDN": true}));
    assert!(
        fqdn.ends_with("is too long (64 characters is the max, 97 characters requested)"),
        "{fqdn}"
    );
}

#[test]
fn hosts_files_are_those_that_users_know() {
    let plain = with(json!({
        "subdomain": "s",
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}, {"ip": "::5", "hostnames": ["c"]}]
    }));
    let text = pod_hosts_file(&plain, &facts(), &ips(&["10.0.0.5", "fd00::5"]), "ignored").unwrap();
    let expected = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
        10.0.0.5\tweb.s.default.svc.cluster.local\tweb\nfd00::5\tweb.s.default.svc.cluster.local\tweb\n\
        \n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n::5\tc\n";
    assert_eq!(text, expected);
    let host = with(json!({"hostNetwork": true}));
    let text = pod_hosts_file(&host, &facts(), &[], "127.0.0.1 machine\n").unwrap();
    assert_eq!(
        text,
        "# Kubernetes-managed hosts file (host network).\n127.0.0.1 machine\n"
    );
    assert_eq!(pod_hostname(&with(json!({})), &facts()).unwrap().domain, "");
}

#[test]
fn resolv_conf_is_read_as_resolvers_do() {
    let conf = ResolvConf::parse(
        "# comment\n; other\nnameserver 1.1.1.1\n nameserver\t2.2.2.2 # x\nsearch a b.\nsearch c. .\n\
         options ndots:2 rotate\noptions ndots:3\nnameserver\n",
    );
    assert_eq!(conf.servers, ["1.1.1.1", "2.2.2.2"]);
    assert_eq!(conf.searches, ["c", "."]);
    assert_eq!(conf.options, ["rotate", "ndots:3"]);
}

#[test]
fn each_dns_policy() {
    let dns = |spec| pod_dns(&with(spec), &facts()).config;
    assert_eq!(dns(json!({"dnsPolicy": "Default"})).servers, ["9.9.9.9"]);
    assert_eq!(
        dns(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})).servers,
        ["9.9.9.9"]
    );
    let both = dns(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}));
    assert_eq!(both.servers, ["10.96.0.10"]);
    let none = dns(json!({"dnsPolicy": "None", "dnsConfig": {
        "nameservers": ["1.1.1.1", "1.1.1.1"], "searches": ["x"],
        "options": [{"name": "ndots", "value": "3"}, {"name": "edns0"}]
    }}));
    assert_eq!(
        (none.servers, none.searches),
        (vec!["1.1.1.1".to_owned()], vec!["x".to_owned()])
    );
    assert_eq!(none.options, ["ndots:3", "edns0"]);
    let merged =
        dns(json!({"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
    assert_eq!(merged.options, ["rotate", "ndots:1"]);
}

#[test]
fn without_cluster_dns_or_a_file_there_is_still_an_answer() {
    let no_cluster = NodeFacts {
        dns: DnsFacts {
            cluster_servers: vec![],
            ..facts().dns
        },
        ..facts()
    };
    let fallen_back = pod_dns(&with(json!({"dnsPolicy": "ClusterFirst"})), &no_cluster);
    assert_eq!(fallen_back.config.servers, ["9.9.9.9"]);
    assert_eq!(fallen_back.warnings[0].0, "MissingClusterDNS");
    assert!(
        fallen_back.warnings[0]
            .1
            .starts_with("pod: \"web_default(u-1)\". kubelet does not have ClusterDNS IP")
    );
    let no_file = NodeFacts {
        dns: DnsFacts {
            host: None,
            ..facts().dns
        },
        ..facts()
    };
    let own = pod_dns(&with(json!({"dnsPolicy": "Default"})), &no_file).config;
    assert_eq!(
        (own.servers, own.searches),
        (vec!["127.0.0.1".to_owned()], vec![".".to_owned()])
    );
}

#[test]
fn resolvers_limits_cut_and_are_told() {
    let servers: Vec<String> = (1..=5).map(|n| format!("1.1.1.{n}")).collect();
    let searches: Vec<String> = (0..40).map(|n| format!("d{n}.example")).collect();
    let dns = pod_dns(
        &with(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": servers, "searches": searches}})),
        &facts(),
    );
    assert_eq!((dns.config.servers.len(), dns.config.searches.len()), (3, 32));
    assert_eq!(
        dns.warnings[0],
        (
            "DNSConfigForming",
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
             1.1.1.1 1.1.1.2 1.1.1.3"
                .to_owned()
        )
    );
    assert!(
        dns.warnings[1]
            .1
            .starts_with("Search Line limits were exceeded, some search paths have been omitted")
    );
    let long: Vec<String> = (0..20).map(|n| format!("{n}{}", "x".repeat(200))).collect();
    let dns = pod_dns(
        &with(json!({"dnsPolicy": "None", "dnsConfig": {"searches": long}})),
        &facts(),
    );
    assert_eq!(dns.config.searches.len(), 10);
}

#[test]
fn logs_lie_where_collectors_look() {
    assert_eq!(
        logs::legacy_link("web", "default", "c", "0123"),
        "web_default_c-0123.log"
    );
    let long = logs::legacy_link(&"p".repeat(250), "default", "c", "0123");
    assert_eq!(long.len(), 255);
    assert!(long.ends_with(".log"));
    assert_eq!(logs::next_attempt([]), 0);
    assert_eq!(
        logs::next_attempt(["0.log", "3.log.20260101-000000.gz", "x.log", "7.txt", "2.log"]),
        4
    );
}
