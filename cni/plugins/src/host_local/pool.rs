//! Ranges of addresses, and which address comes next: pure.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::error::PluginError;

/// One range of one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNetwork,
    pub(crate) start: IpAddr,
    pub(crate) end: IpAddr,
    /// Never handed out.
    pub(crate) gateway: IpAddr,
}

/// Ranges of one family; each container gets one address of each set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(pub(crate) Vec<Range>);

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address of that number in the family of `like`.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // Numbers come from addresses of the same family, so this never cuts anything off.
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

impl Range {
    /// Fills in what isn't given and refuses what can't be.
    pub(crate) fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, PluginError> {
        let width = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > width - 2 {
            return Err(PluginError::config(format!(
                "subnet {subnet} is too small; use a prefix of at most {}",
                width - 2
            )));
        }
        if subnet.ip() != subnet.network() {
            return Err(PluginError::config(format!(
                "subnet {subnet} has bits set behind its prefix; write {}/{}",
                subnet.network(),
                subnet.prefix()
            )));
        }
        let first = number(subnet.network());
        let hosts = width - subnet.prefix();
        let size_mask = if hosts >= 128 {
            u128::MAX
        } else {
            (1u128 << hosts) - 1
        };
        // IPv4 keeps the last address for broadcast.
        let last = (first | size_mask) - u128::from(subnet.is_ipv4());
        let like = subnet.ip();
        let range = Range {
            subnet,
            start: start.unwrap_or_else(|| address(first + 1, like)),
            end: end.unwrap_or_else(|| address(last, like)),
            gateway: gateway.unwrap_or_else(|| address(first + 1, like)),
        };
        for (key, ip) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if ip.is_ipv4() != subnet.is_ipv4() || !subnet.contains(ip) {
                return Err(PluginError::config(format!(
                    "{key} {ip} is not in subnet {subnet}"
                )));
            }
        }
        if range.gateway.is_ipv4() != subnet.is_ipv4() {
            return Err(PluginError::config(format!(
                "gateway {} is not of the family of subnet {subnet}",
                range.gateway
            )));
        }
        if number(range.start) > number(range.end) {
            let Range { start, end, .. } = range;
            return Err(PluginError::config(format!(
                "rangeStart {start} is behind rangeEnd {end}"
            )));
        }
        Ok(range)
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    pub(crate) fn overlaps(&self, other: &Range) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && number(self.start) <= number(other.end)
            && number(other.start) <= number(self.end)
    }

    pub(crate) fn with_prefix(&self, ip: IpAddr) -> IpNetwork {
        // The prefix comes from a network of the same family, so it always fits.
        IpNetwork::new(ip, self.subnet.prefix()).unwrap_or_else(|_| IpNetwork::from(ip))
    }

    /// The first free address from `from` to `to`.
    fn first_free(&self, from: u128, to: u128, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let mut candidate = from;
        // Walks along the used addresses: never further than there are.
        for taken in used
            .range(address(from, self.start)..=address(to, self.start))
            .map(|ip| number(*ip))
        {
            candidate = self.skip_gateway(candidate);
            if candidate < taken {
                break;
            }
            if candidate == taken {
                candidate = taken.checked_add(1)?;
            }
        }
        candidate = self.skip_gateway(candidate);
        (candidate <= to).then(|| address(candidate, self.start))
    }

    fn skip_gateway(&self, candidate: u128) -> u128 {
        candidate.saturating_add(u128::from(candidate == number(self.gateway)))
    }
}

impl RangeSet {
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// The next free address behind `last`, in a circle through all ranges, so that an address rests as long as
    /// possible before it is used again.
    pub(crate) fn next_free(
        &self,
        used: &BTreeSet<IpAddr>,
        last: Option<IpAddr>,
    ) -> Option<(IpAddr, &Range)> {
        let position = last.and_then(|last| {
            self.0
                .iter()
                .position(|range| range.contains(last))
                .map(|at| (at, last))
        });
        let (at, behind) = match position {
            Some((at, last)) => (at, number(last).checked_add(1)),
            None => (0, self.0.first().map(|range| number(range.start))),
        };
        let first = self.0.get(at)?;
        if let Some(behind) = behind.filter(|behind| *behind <= number(first.end))
            && let Some(ip) = first.first_free(behind, number(first.end), used)
        {
            return Some((ip, first));
        }
        let others = self.0[at + 1..].iter().chain(&self.0[..=at]);
        others
            .filter_map(|range| {
                range
                    .first_free(number(range.start), number(range.end), used)
                    .map(|ip| (ip, range))
            })
            .next()
    }

    /// For messages.
    pub(crate) fn describe(&self) -> String {
        self.0
            .iter()
            .map(|range| format!("{}-{}", range.start, range.end))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap(), None, None, None).unwrap()
    }

    #[test]
    fn defaults_and_refusals() {
        let v4 = range("10.1.2.0/24");
        assert_eq!(
            (v4.start.to_string(), v4.end.to_string()),
            ("10.1.2.1".into(), "10.1.2.254".into())
        );
        assert_eq!(v4.gateway.to_string(), "10.1.2.1");
        let v6 = range("fd00::/64");
        assert_eq!(v6.end.to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(
            range("::/0").end,
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
                .parse::<IpAddr>()
                .unwrap()
        );
        let refuse = |subnet: &str, start: Option<&str>, end: Option<&str>| {
            let ip = |text: Option<&str>| text.map(|t| t.parse().unwrap());
            Range::new(subnet.parse().unwrap(), ip(start), ip(end), None)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse("10.0.0.0/31", None, None).contains("too small"));
        assert!(refuse("10.0.0.1/24", None, None).contains("write 10.0.0.0/24"));
        assert!(
            refuse("10.0.0.0/24", Some("10.0.1.1"), None).contains("rangeStart 10.0.1.1 is not in subnet")
        );
        assert!(refuse("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8")).contains("behind rangeEnd"));
        assert!(refuse("10.0.0.0/24", Some("::1"), None).contains("is not in subnet"));
    }

    /// Upstream's way: every address behind the last, in a circle, without gateways.
    fn model(set: &RangeSet, used: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
        let all: Vec<(IpAddr, IpAddr)> = set
            .0
            .iter()
            .flat_map(|r| (number(r.start)..=number(r.end)).map(|n| (address(n, r.start), r.gateway)))
            .collect();
        let from = last
            .and_then(|last| all.iter().position(|(ip, _)| *ip == last))
            .map_or(0, |at| at + 1);
        let circle = all[from..].iter().chain(&all[..from]);
        circle
            .filter(|(ip, gateway)| ip != gateway && !used.contains(ip))
            .map(|(ip, _)| *ip)
            .next()
    }

    proptest! {
        #[test]
        fn the_next_address_is_upstreams(
            ipv4 in any::<bool>(),
            starts in proptest::collection::vec((0u8..30, 0u8..12, 0u8..40), 1..3),
            used in proptest::collection::btree_set(0u8..120, 0..60),
            last in proptest::option::of(0u8..120),
        ) {
            let ip = |n: u8| -> IpAddr {
                if ipv4 { IpAddr::from([10, 0, 0, n]) } else { address(u128::from(n) + (0xfd << 120), "::".parse().unwrap()) }
            };
            let ranges = starts.iter().enumerate().map(|(i, (start, length, gateway))| {
                let start = start + 50 * u8::try_from(i).unwrap() + 1;
                let subnet = if ipv4 { "10.0.0.0/24" } else { "fd00::/64" }.parse().unwrap();
                Range::new(subnet, Some(ip(start)), Some(ip(start + length)), Some(ip(*gateway))).unwrap()
            }).collect();
            let set = RangeSet(ranges);
            let used: BTreeSet<IpAddr> = used.into_iter().map(ip).collect();
            let last = last.map(ip);
            prop_assert_eq!(set.next_free(&used, last).map(|(ip, _)| ip), model(&set, &used, last));
        }
    }
}
