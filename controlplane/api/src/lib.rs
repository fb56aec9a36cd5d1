//! The Kubernetes API as every component of ours knows it: types, units, strict decoding, defaults, validation. Pure.
//!
//! Objects are k8s-openapi's, pinned to the newest release; [`k8s_openapi`] is re-exported so that nobody names another
//! version.

pub use k8s_openapi;

pub mod field;
pub mod names;
pub mod pod;
pub mod quantity;
pub mod strict;

pub use field::{FieldError, FieldErrors, Path};
pub use quantity::Quantity;
