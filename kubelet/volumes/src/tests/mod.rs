//! Tests of the whole: pods in, directories and mounts out. Those that mount live in mount namespaces of their own, so
//! they need root.

mod contents;
mod empty_dirs;
mod host_paths;
mod plugins;
mod restarts;
mod sub_paths;
mod support;

pub(crate) use support::*;
