//! Probes: asking containers how they are, and what their answers amount to.
//!
//! [`Prober`] has all probes of the node in one heap of times; one task sleeps until the next is due and starts a
//! short-lived task per probing, so that a thousand idle probes cost a thousand entries. [`act`] probes once: HTTP(S)
//! ([`http`]), TCP, gRPC ([`grpc`]) or a command in the container ([`Exec`]). What outcomes amount to (thresholds, delays,
//! what waits for startup) is decided by [`kubelet_pods::probe`]; changes go to a [`ProbeSink`].

mod act;
mod dial;
mod exec;
mod grpc;
pub mod http;
mod node;
mod outcome;
mod prober;
mod tls;

pub(crate) use act::http_target;
pub use act::{Action, compile, resolve_port};
pub use dial::{DialError, connect};
pub use exec::{Exec, ExecError, ExecOutput};
pub use node::{NodeProbes, Wake};
pub use outcome::Outcome;
pub use prober::{Jitter, Limits, PodProbes, ProbeSink, Probed, ProbedContainer, Prober, Seen};

#[cfg(test)]
pub(crate) mod tests;
