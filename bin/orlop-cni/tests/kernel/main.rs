//! The plugins against a real kernel: each test is a node of its own, a thread in new network and mount namespaces,
//! which vanish with it. They need root and fail without it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bridge;
mod chained;
mod foreign;
mod node;
mod options;
mod portmap;
mod sctp;
mod sharing;
