//! The kubelet's configuration: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, drop-ins and flags.
//!
//! What counts more comes later: built-in defaults, the file of `--config`, the files of `--config-dir` in the order of
//! their paths (merged as JSON merge patches: maps deeply, lists whole, null takes away), the flags. Each file is decoded
//! strictly on its own, so that an unknown key is told with its file and line; then the trees are merged, decoded, given
//! defaults for what is zero ([`KubeletConfiguration::fill_in`]) and validated ([`validate`]). [`resolve`] does all that
//! from texts, [`load`] reads the files for it. Settings that are valid but that this kubelet can't follow are errors
//! where the node would do something else than was asked for, and warnings where only an effect is missing
//! ([`Resolved::warnings`]).

mod defaults;
mod duration;
mod flags;
mod gates;
mod load;
mod types;
mod validation;

pub use duration::{DurationError, GoDuration};
pub use flags::{FlagError, Flags};
pub use gates::enabled;
pub use load::{ConfigError, Problem, Resolved, SourceText, configz, load, resolve};
pub use types::{
    AnonymousAuthentication, Authentication, Authorization, CrashLoopBackOff, JsonOptions,
    KubeletConfiguration, Logging, LoggingOptions, MemoryReservation, MemorySwap,
    ShutdownGracePeriodByPodPriority, Taint, TextOptions, TlsVersion, Tracing, UserNamespaces,
    VerbosityOfFile, WebhookAuthentication, WebhookAuthorization, X509Authentication,
};
pub use validation::validate;

#[cfg(test)]
mod tests;
