//! SPDY/3.1, as much of it as Kubernetes clients speak.
//!
//! [`frame`] and [`headers`] are pure: bytes to frames and back, with the compressed header blocks. [`session`] runs
//! one connection: it reads frames, keeps the streams apart and hands each new one out; what streams write goes
//! through one bounded queue. [`flow`] counts what may still be sent. [`remote`] and [`forward`] are the two things
//! that clients do with it.
//!
//! Rules come from the SPDY protocol, draft 3.1 (chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1).

pub(crate) mod flow;
pub(crate) mod forward;
pub mod frame;
pub mod headers;
pub(crate) mod remote;
pub(crate) mod session;
