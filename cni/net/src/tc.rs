//! Traffic shaping: a token bucket on what an interface sends, and sending what it receives through another interface,
//! where a bucket can be put on that too.

use netlink_packet_route::tc::TcHeader;

use crate::{
    NetlinkError, Rtnl,
    attr::{Attrs, Reader},
    channel::{ACK, CREATE, DUMP, EXCL, REPLACE},
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const ROOT_HANDLE: u32 = 0x0001_0000;

/// A limit on a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits that may come at once.
    pub burst: u64,
}

/// How long a packet may wait in the bucket, in microseconds.
const LATENCY_US: u64 = 25_000;

/// Scheduler clock ticks per microsecond, as `/proc/net/psched` tells: two hexadecimal numbers whose quotient it is.
fn ticks_per_us() -> f64 {
    let text = std::fs::read_to_string("/proc/net/psched").unwrap_or_default();
    let mut words = text
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word, 16).ok());
    match (words.next(), words.next()) {
        (Some(t2us), Some(us2t)) if us2t != 0 => t2us as f64 / us2t as f64,
        _ => 15.625,
    }
}

/// `struct tcmsg`
fn header(index: u32, parent: u32, handle: u32, info: u32) -> Vec<u8> {
    let head = TcHeader {
        index: i32::try_from(index).unwrap_or(0),
        parent: parent.into(),
        handle: handle.into(),
        info,
        ..TcHeader::default()
    };
    let mut bytes = vec![0; netlink_packet_core::Emitable::buffer_len(&head)];
    netlink_packet_core::Emitable::emit(&head, &mut bytes);
    bytes
}

/// `struct tc_tbf_qopt` and what goes with it.
fn tbf_options(options: &mut Attrs, limit: Limit, ticks: f64) {
    let rate = (limit.rate / 8).max(1);
    let burst = u32::try_from(limit.burst / 8).unwrap_or(u32::MAX).max(1);
    // How long the whole burst takes at that rate, in ticks.
    let buffer = (f64::from(burst) * 1e6 / rate as f64 * ticks).min(f64::from(u32::MAX)) as u32;
    let queue =
        (u128::from(rate) * u128::from(LATENCY_US) / 1_000_000 + u128::from(burst)).min(u128::from(u32::MAX));
    let mut parms = Vec::with_capacity(36);
    for rate in [u32::try_from(rate).unwrap_or(u32::MAX), 0] {
        // cell_log, linklayer (Ethernet: rates without a table), overhead, cell_align, mpu, rate
        parms.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        parms.extend_from_slice(&rate.to_ne_bytes());
    }
    for number in [u32::try_from(queue).unwrap_or(u32::MAX), buffer, 0] {
        parms.extend_from_slice(&number.to_ne_bytes());
    }
    options.put(TCA_TBF_PARMS, &parms).put_u32(TCA_TBF_BURST, burst);
    if rate > u64::from(u32::MAX) {
        options.put(TCA_TBF_RATE64, &rate.to_ne_bytes());
    }
}

impl Rtnl {
    /// Limits what an interface sends; an older limit is replaced.
    pub fn limit_sending(&mut self, index: u32, limit: Limit) -> Result<(), NetlinkError> {
        let mut body = Attrs::after(&header(index, ROOT, ROOT_HANDLE, 0));
        body.put_str(TCA_KIND, "tbf");
        let ticks = ticks_per_us();
        body.nest(TCA_OPTIONS, |options| tbf_options(options, limit, ticks));
        self.channel
            .request(RTM_NEWQDISC, ACK | CREATE | REPLACE, body.bytes())
            .map(drop)
            .map_err(|error| error.about(|| format!("limit the rate of interface {index}")))
    }

    /// Sends all that interface `from` receives through interface `to` first.
    pub fn redirect_received(&mut self, from: u32, to: u32) -> Result<(), NetlinkError> {
        let what = || format!("redirect what interface {from} receives to interface {to}");
        let mut body = Attrs::after(&header(from, INGRESS, INGRESS_HANDLE, 0));
        body.put_str(TCA_KIND, "ingress");
        match self
            .channel
            .request(RTM_NEWQDISC, ACK | CREATE | EXCL, body.bytes())
        {
            Err(error) if !error.is_present() => return Err(error.about(what)),
            _ => {}
        }
        // Priority 1, every protocol.
        const ETH_P_ALL: u32 = 0x0003;
        let info = 1 << 16 | u32::from(u16::try_from(ETH_P_ALL).unwrap_or(3).to_be());
        let mut body = Attrs::after(&header(from, INGRESS_HANDLE, 1, info));
        body.put_str(TCA_KIND, "u32")
            .nest(TCA_OPTIONS, |options| redirect_options(options, to));
        match self
            .channel
            .request(RTM_NEWTFILTER, ACK | CREATE | EXCL, body.bytes())
        {
            Err(error) if !error.is_present() => Err(error.about(what)),
            _ => Ok(()),
        }
    }

    /// The kind of an interface's root queueing discipline.
    pub fn root_qdisc(&mut self, index: u32) -> Result<Option<String>, NetlinkError> {
        let replies = self
            .channel
            .request(RTM_GETQDISC, DUMP, &header(0, 0, 0, 0))
            .map_err(|error| error.about(|| "list queueing disciplines".into()))?;
        let of_link = |payload: &[u8]| {
            let number = |at: usize| {
                payload
                    .get(at..)
                    .and_then(|b| b.first_chunk())
                    .map(|b| u32::from_ne_bytes(*b))
            };
            let kind = Reader(payload.get(20..)?).string(TCA_KIND)?;
            (number(4) == Some(index) && number(12) == Some(ROOT)).then_some(kind)
        };
        Ok(replies.iter().find_map(|reply| of_link(&reply.payload)))
    }

    /// Takes the limit away; fine when there is none.
    pub fn unlimit_sending(&mut self, index: u32) -> Result<(), NetlinkError> {
        let body = header(index, ROOT, 0, 0);
        match self.channel.request(RTM_DELQDISC, ACK, &body) {
            Err(error) if !error.is_absent() && error.errno() != Some(nix::libc::EINVAL) => {
                Err(error.about(|| format!("take the limit of interface {index} away")))
            }
            _ => Ok(()),
        }
    }
}

/// A filter that matches everything, with the action to redirect ("mirred").
fn redirect_options(options: &mut Attrs, to: u32) {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TERMINAL: u8 = 1;
    // struct tc_u32_sel with one key that compares nothing.
    let mut selector = vec![0; 16 + 16];
    selector[0] = TERMINAL;
    selector[2] = 1;
    options.put(TCA_U32_SEL, &selector);
    options.nest(TCA_U32_ACT, |actions| {
        actions.nest(1, |action| {
            const TCA_ACT_KIND: u16 = 1;
            const TCA_ACT_OPTIONS: u16 = 2;
            const TCA_MIRRED_PARMS: u16 = 2;
            const STOLEN: i32 = 4;
            const EGRESS_REDIRECT: i32 = 1;
            action
                .put_str(TCA_ACT_KIND, "mirred")
                .nest(TCA_ACT_OPTIONS, |parameters| {
                    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
                    let mut mirred = Vec::with_capacity(28);
                    for number in [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT] {
                        mirred.extend_from_slice(&number.to_ne_bytes());
                    }
                    mirred.extend_from_slice(&to.to_ne_bytes());
                    parameters.put(TCA_MIRRED_PARMS, &mirred);
                });
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_encoded_as_the_kernel_has_it() {
        let mut options = Attrs::default();
        tbf_options(
            &mut options,
            Limit {
                rate: 8_000_000,
                burst: 80_000,
            },
            10.0,
        );
        let read = Reader(options.bytes());
        let parms = read.find(TCA_TBF_PARMS).unwrap();
        assert_eq!(parms.len(), 36);
        let number = |at: usize| u32::from_ne_bytes(parms[at..at + 4].try_into().unwrap());
        // A megabyte per second; 25 ms of it and the burst; the burst lasts 10 ms.
        assert_eq!((number(8), number(24), number(28)), (1_000_000, 35_000, 100_000));
        assert_eq!(read.u32(TCA_TBF_BURST), Some(10_000));
        assert!(read.find(TCA_TBF_RATE64).is_none());
        let mut options = Attrs::default();
        tbf_options(
            &mut options,
            Limit {
                rate: 80_000_000_000,
                burst: 80_000,
            },
            10.0,
        );
        assert_eq!(
            Reader(options.bytes()).find(TCA_TBF_RATE64).unwrap(),
            10_000_000_000u64.to_ne_bytes()
        );
    }
}
