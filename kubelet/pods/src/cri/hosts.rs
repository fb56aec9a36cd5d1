//! A pod's names: what its kernel calls it, and its `/etc/hosts`.

use std::fmt::Write;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::errors::ConfigError;
use super::facts::NodeFacts;
use super::sandbox::{is_host_network, spec};

/// Where the file is in a container.
pub const ETC_HOSTS: &str = "/etc/hosts";

const MAX_LABEL: usize = 63;
const MAX_NODENAME: usize = 64;
const MAX_SUBDOMAIN: usize = 253;

/// A pod's name and the domain that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHostname {
    /// Without the domain.
    pub name: String,
    /// Empty without a `subdomain`.
    pub domain: String,
}

impl PodHostname {
    /// What the kernel is told: the name, or with `setHostnameAsFQDN` the whole of it.
    pub fn nodename(&self, fqdn: bool) -> Result<String, ConfigError> {
        if !fqdn || self.domain.is_empty() {
            return Ok(self.name.clone());
        }
        let whole = format!("{}.{}", self.name, self.domain);
        match whole.len() {
            length if length > MAX_NODENAME => Err(ConfigError::FqdnTooLong { fqdn: whole, length }),
            _ => Ok(whole),
        }
    }
}

/// A pod's name: `hostnameOverride`, else `hostname`, else its own, cut to what a name may have.
pub fn pod_hostname(pod: &Pod, facts: &NodeFacts) -> Result<PodHostname, ConfigError> {
    let spec = spec(pod);
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(wanted) = spec.hostname_override.as_deref() {
        check("HostnameOverride", wanted, "subdomain", is_subdomain(wanted))?;
        return Ok(PodHostname {
            name: cut(own, wanted, MAX_NODENAME)?,
            domain: String::new(),
        });
    }
    let wanted = spec.hostname.as_deref().filter(|name| !name.is_empty());
    if let Some(wanted) = wanted {
        check("Hostname", wanted, "label", is_label(wanted))?;
    }
    let name = cut(own, wanted.unwrap_or(own), MAX_LABEL)?;
    let domain = match spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
        Some(subdomain) => {
            check("Subdomain", subdomain, "label", is_label(subdomain))?;
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("{subdomain}.{namespace}.svc.{}", facts.dns.cluster_domain)
        }
        None => String::new(),
    };
    Ok(PodHostname { name, domain })
}

fn check(field: &'static str, value: &str, kind: &'static str, valid: bool) -> Result<(), ConfigError> {
    let rule = match kind {
        "label" => {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"
        }
        _ => {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        }
    };
    match valid {
        true => Ok(()),
        false => Err(ConfigError::Hostname {
            field,
            value: value.to_owned(),
            kind,
            reason: rule.to_owned(),
        }),
    }
}

fn is_label(name: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= MAX_LABEL
        && name.bytes().all(inside)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| !label.is_empty() && is_label(&label[..label.len().min(MAX_LABEL)]);
    name.len() <= MAX_SUBDOMAIN && name.is_ascii() && name.split('.').all(label)
}

fn cut(pod: &str, name: &str, most: usize) -> Result<String, ConfigError> {
    if name.len() <= most {
        return Ok(name.to_owned());
    }
    let end = (0..=most)
        .rev()
        .find(|&at| name.is_char_boundary(at))
        .unwrap_or(0);
    let kept = name[..end].trim_end_matches(['-', '.']);
    match kept.is_empty() {
        true => Err(ConfigError::HostnameInvalid {
            pod: pod.to_owned(),
            hostname: name.to_owned(),
        }),
        false => Ok(kept.to_owned()),
    }
}

/// The text of a pod's `/etc/hosts`. `node_file` is the node's own, which pods on the host's network get; `pod_ips` are
/// the pod's addresses.
pub fn pod_hosts_file(
    pod: &Pod,
    facts: &NodeFacts,
    pod_ips: &[IpAddr],
    node_file: &str,
) -> Result<String, ConfigError> {
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if is_host_network(pod) {
        let mut text = format!("# Kubernetes-managed hosts file (host network).\n{node_file}");
        add_aliases(&mut text, aliases);
        return Ok(text);
    }
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let PodHostname { name, domain } = pod_hostname(pod, facts)?;
    for ip in pod_ips {
        let line = match domain.is_empty() {
            true => writeln!(text, "{ip}\t{name}"),
            false => writeln!(text, "{ip}\t{name}.{domain}\t{name}"),
        };
        line.expect("writing to a String can't fail");
    }
    add_aliases(&mut text, aliases);
    Ok(text)
}

fn add_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&alias.ip);
        for name in alias.hostnames.iter().flatten() {
            text.push('\t');
            text.push_str(name);
        }
        text.push('\n');
    }
}
