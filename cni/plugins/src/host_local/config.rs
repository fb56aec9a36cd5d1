//! host-local's configuration: the `ipam` section.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use cni_types::Route;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

use crate::{
    call::Call,
    error::PluginError,
    host_local::pool::{Range, RangeSet},
};

const DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outer {
    ipam: Section,
    #[serde(default)]
    runtime_config: RangesOfRuntime,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RangesOfRuntime {
    #[serde(default)]
    ip_ranges: Vec<Vec<RangeText>>,
}

#[derive(Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<CniArgs>,
}

#[derive(Deserialize)]
struct CniArgs {
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Section {
    #[serde(default)]
    ranges: Vec<Vec<RangeText>>,
    /// The old way to write a single range.
    #[serde(default, deserialize_with = "network_if_any")]
    subnet: Option<IpNetwork>,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    resolv_conf: String,
    #[serde(default)]
    data_dir: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RangeText {
    #[serde(deserialize_with = "network")]
    subnet: IpNetwork,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

fn network<'de, D: Deserializer<'de>>(d: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(d)?;
    let network = text.contains('/').then(|| text.parse().ok()).flatten();
    network.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a subnet, such as 10.1.0.0/16")))
}

fn network_if_any<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpNetwork>, D::Error> {
    network(d).map(Some)
}

/// What is asked of host-local.
#[derive(Debug)]
pub(crate) struct Config {
    network: String,
    data_dir: PathBuf,
    pub(crate) ranges: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses that the runtime asks for.
    pub(crate) requested: Vec<IpAddr>,
}

impl Config {
    pub(crate) fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let outer: Outer = call.config()?;
        let section = outer.ipam;
        let single = section.subnet.map(|subnet| {
            vec![RangeText {
                subnet,
                range_start: section.range_start,
                range_end: section.range_end,
                gateway: section.gateway,
            }]
        });
        let texts = outer
            .runtime_config
            .ip_ranges
            .into_iter()
            .chain(single)
            .chain(section.ranges);
        let ranges = texts.map(range_set).collect::<Result<Vec<_>, _>>()?;
        if ranges.is_empty() {
            return Err(PluginError::config(
                "ipam.ranges is missing; give at least one subnet",
            ));
        }
        refuse_overlaps(&ranges)?;
        let in_args = outer
            .args
            .and_then(|args| args.cni)
            .map(|cni| cni.ips)
            .unwrap_or_default();
        let texts = call
            .runtime
            .ips
            .iter()
            .cloned()
            .chain(call.arg("IP").map(str::to_owned))
            .chain(in_args);
        let mut requested = Vec::new();
        for text in texts {
            let ip = text
                .split('/')
                .next()
                .unwrap_or_default()
                .trim()
                .parse::<IpAddr>();
            let ip = ip.map_err(|_| {
                PluginError::config(format!("requested address {text:?} is not an IP address"))
            })?;
            if !requested.contains(&ip) {
                requested.push(ip);
            }
        }
        Ok(Config {
            network: call.network.clone(),
            data_dir: if section.data_dir.is_empty() {
                DATA_DIR.into()
            } else {
                section.data_dir.into()
            },
            ranges,
            routes: section.routes,
            resolv_conf: Some(section.resolv_conf)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            requested,
        })
    }

    /// Where this network's addresses are kept.
    pub(crate) fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.network)
    }

    /// The same for DEL: a configuration that ADD refuses must not keep a container from being removed.
    pub(crate) fn dir_of(call: &Call<'_>) -> PathBuf {
        let stated = call.invocation.config["ipam"]["dataDir"].as_str();
        Path::new(stated.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR)).join(&call.network)
    }
}

fn range_set(texts: Vec<RangeText>) -> Result<RangeSet, PluginError> {
    let ranges = texts
        .into_iter()
        .map(|text| Range::new(text.subnet, text.range_start, text.range_end, text.gateway))
        .collect::<Result<Vec<_>, _>>()?;
    match ranges.first() {
        None => Err(PluginError::config(
            "ipam.ranges has an empty list of ranges; remove it",
        )),
        Some(first)
            if ranges
                .iter()
                .any(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4()) =>
        {
            Err(PluginError::config(
                "ipam.ranges mixes IPv4 and IPv6 in one list; use a list for each",
            ))
        }
        Some(_) => Ok(RangeSet(ranges)),
    }
}

fn refuse_overlaps(sets: &[RangeSet]) -> Result<(), PluginError> {
    let all: Vec<&Range> = sets.iter().flat_map(|set| &set.0).collect();
    for (index, range) in all.iter().enumerate() {
        if let Some(other) = all[index + 1..].iter().find(|other| range.overlaps(other)) {
            return Err(PluginError::config(format!(
                "ipam.ranges {}-{} and {}-{} overlap",
                range.start, range.end, other.start, other.end
            )));
        }
    }
    Ok(())
}
