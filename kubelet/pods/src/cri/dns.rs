//! A pod's `resolv.conf`: policy, the node's own file, `dnsConfig`, and the limits of resolvers.

use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodDNSConfig};
use cri_api::v1::DnsConfig;

use super::facts::NodeFacts;
use crate::cri::sandbox::{is_host_network, spec};

/// Name servers that a resolver asks at most.
const MAX_SERVERS: usize = 3;
/// Search domains at most, and their characters together.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// What a `resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The last `search` line.
    pub searches: Vec<String>,
    /// `options` lines, the later one of a name winning.
    pub options: Vec<String>,
}

/// A pod's name resolution, and what must be said about it in events with the reason `DNSConfigForming` or, of the
/// missing cluster DNS, `MissingClusterDNS`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodDns {
    /// What the runtime writes.
    pub config: DnsConfig,
    /// Warnings: reason and message.
    pub warnings: Vec<(&'static str, String)>,
}

impl ResolvConf {
    /// Reads the text of a `resolv.conf`. What isn't understood is left out, as resolvers do.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => conf.servers.extend(fields.next().map(str::to_owned)),
                Some("search") => {
                    let bare = |domain: &str| match domain {
                        "." => domain.to_owned(),
                        _ => domain.trim_end_matches('.').to_owned(),
                    };
                    conf.searches = fields.map(bare).collect();
                }
                Some("options") => {
                    for option in fields {
                        let name = option.split(':').next();
                        conf.options.retain(|known| known.split(':').next() != name);
                        conf.options.push(option.to_owned());
                    }
                }
                _ => {}
            }
        }
        conf
    }
}

enum Policy {
    Cluster,
    Host,
    None,
}

/// How a pod's names are resolved.
pub fn pod_dns(pod: &Pod, facts: &NodeFacts) -> PodDns {
    let host = facts.dns.host.clone().unwrap_or_default();
    let mut config = DnsConfig {
        servers: host.servers,
        searches: host.searches,
        options: host.options,
    };
    let mut warnings = Vec::new();
    let policy = match policy(pod) {
        Policy::Cluster if facts.dns.cluster_servers.is_empty() => {
            warnings.push(("MissingClusterDNS", missing_cluster_dns(pod)));
            Policy::Host
        }
        policy => policy,
    };
    match policy {
        Policy::None => config = DnsConfig::default(),
        Policy::Cluster => {
            config.servers = facts.dns.cluster_servers.iter().map(IpAddr::to_string).collect();
            config.searches = cluster_searches(pod, &facts.dns.cluster_domain, config.searches);
            config.options = vec!["ndots:5".to_owned()];
        }
        Policy::Host if facts.dns.host.is_none() => {
            let own = match facts.host_ips.first() {
                Some(IpAddr::V6(_)) => "::1",
                _ => "127.0.0.1",
            };
            config.servers = vec![own.to_owned()];
            config.searches = vec![".".to_owned()];
        }
        Policy::Host => {}
    }
    if let Some(wanted) = spec(pod).dns_config.as_ref() {
        append(&mut config, wanted);
    }
    cut(&mut config, &mut warnings);
    PodDns { config, warnings }
}

fn policy(pod: &Pod) -> Policy {
    match spec(pod).dns_policy.as_deref() {
        Some("None") => Policy::None,
        Some("Default") => Policy::Host,
        Some("ClusterFirstWithHostNet") => Policy::Cluster,
        Some("ClusterFirst") | None if is_host_network(pod) => Policy::Host,
        _ => Policy::Cluster,
    }
}

fn missing_cluster_dns(pod: &Pod) -> String {
    format!(
        "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
         Falling back to \"Default\" policy.",
        super::labels::describe(pod)
    )
}

fn cluster_searches(pod: &Pod, domain: &str, host: Vec<String>) -> Vec<String> {
    if domain.is_empty() {
        return host;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let cluster = [
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    distinct(cluster.into_iter().chain(host))
}

fn distinct(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.contains(&text) {
            kept.push(text);
        }
    }
    kept
}

fn append(config: &mut DnsConfig, wanted: &PodDNSConfig) {
    let more = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    config.servers = distinct(
        std::mem::take(&mut config.servers)
            .into_iter()
            .chain(more(&wanted.nameservers)),
    );
    config.searches = distinct(
        std::mem::take(&mut config.searches)
            .into_iter()
            .chain(more(&wanted.searches)),
    );
    for option in wanted.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        let text = match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        };
        match config
            .options
            .iter_mut()
            .find(|known| known.split(':').next() == Some(name.as_str()))
        {
            Some(known) => *known = text,
            None => config.options.push(text),
        }
    }
}

fn cut(config: &mut DnsConfig, warnings: &mut Vec<(&'static str, String)>) {
    if config.servers.len() > MAX_SERVERS {
        config.servers.truncate(MAX_SERVERS);
        let line = config.servers.join(" ");
        warnings.push((
            "DNSConfigForming",
            format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"),
        ));
    }
    let mut omitted = config.searches.len() > MAX_SEARCHES;
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
        omitted = true;
    }
    if omitted {
        let line = config.searches.join(" ");
        warnings.push((
            "DNSConfigForming",
            format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"),
        ));
    }
}
