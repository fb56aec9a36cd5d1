//! What pods and the node use: CRI's statistics as upstream's summary, and as metrics. Pure.

pub mod cadvisor;
mod convert;
pub mod node;
pub mod resource;
pub mod sources;
pub mod summary;

#[cfg(test)]
mod tests;

pub use convert::summarize;
