//! Why a container's configuration can't become a specification.

use std::path::PathBuf;

use oci_spec::OciSpecError;

/// Why a configuration is refused. All are the caller's to mend (gRPC `InvalidArgument`), except
/// [`SpecError::Inconsistent`] and [`SpecError::Build`].
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Nothing to run.
    #[error(
        "no command specified: neither the container's `command` and `args` nor the image's entrypoint and cmd name one"
    )]
    NoCommand,
    /// An exec of nothing.
    #[error("no command specified: `cmd` of the exec is empty")]
    NoExecCommand,
    /// A text with a NUL byte can't reach execve.
    #[error("{place} `{text}` has a NUL byte in it")]
    Nul {
        /// Which field.
        place: &'static str,
        /// Its text.
        text: String,
    },
    /// A variable without a name, or with `=` in it.
    #[error("environment variable `{name}`: the name must not be empty or contain `=`")]
    EnvName {
        /// The name.
        name: String,
    },
    /// OCI specifications are JSON.
    #[error(
        "environment variable `{name}`: the value is not valid UTF-8, which an OCI specification can't express"
    )]
    EnvValue {
        /// The variable's name.
        name: String,
    },
    /// Relative working directory.
    #[error("working directory `{path}` is not absolute")]
    WorkingDir {
        /// The path.
        path: String,
    },
    /// No such capability.
    #[error("unknown capability `{name}` in `{field}`")]
    Capability {
        /// The name as given.
        name: String,
        /// Which list.
        field: &'static str,
    },
    /// Privileged containers need a privileged sandbox.
    #[error(
        "the container is privileged but its sandbox is not: set `privileged` in the sandbox's security context too"
    )]
    PrivilegedInPlainSandbox,
    /// A seccomp profile that can't be read.
    #[error("seccomp profile `{profile}` is not an OCI seccomp profile")]
    Seccomp {
        /// Which profile.
        profile: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A profile by a name that isn't one.
    #[error(
        "unknown seccomp profile `{profile}`: expected `runtime/default`, `unconfined` or `localhost/<absolute path>`"
    )]
    SeccompName {
        /// The name.
        profile: String,
    },
    /// A localhost profile without a path.
    #[error("{kind} profile of type Localhost needs a `localhost_ref`")]
    NoLocalhostRef {
        /// `seccomp` or `apparmor`.
        kind: &'static str,
    },
    /// AppArmor is asked for where there is none.
    #[error("AppArmor profile `{profile}` is asked for, but AppArmor is not enabled on this host")]
    NoAppArmor {
        /// The profile.
        profile: String,
    },
    /// An AppArmor profile by a name that isn't one.
    #[error(
        "unknown AppArmor profile `{profile}`: expected `runtime/default`, `unconfined` or `localhost/<name>`"
    )]
    AppArmorName {
        /// The name.
        profile: String,
    },
    /// An enum field with a number that this CRI version doesn't have.
    #[error("{field} has the unknown value {value}")]
    UnknownEnum {
        /// Which field.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// A namespace mode that makes no sense for that namespace.
    #[error("namespace mode {mode} is not possible for the {namespace} namespace of a container")]
    NamespaceMode {
        /// The mode.
        mode: &'static str,
        /// Which namespace.
        namespace: &'static str,
    },
    /// The container wants to join a PID namespace that isn't there.
    #[error("the container asks for PID namespace mode {mode}, but {why}")]
    NoPidNamespace {
        /// The mode.
        mode: &'static str,
        /// What is missing.
        why: &'static str,
    },
    /// A mount without destination, or with a relative one.
    #[error("mount destination `{path}` is not an absolute path")]
    MountDestination {
        /// The destination as given.
        path: String,
    },
    /// Two mounts at one place.
    #[error("more than one mount at `{path}`")]
    DuplicateMount {
        /// The destination.
        path: PathBuf,
    },
    /// Nothing to mount.
    #[error("mount at `{path}`: {why}")]
    Mount {
        /// The destination.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A CDI device.
    #[error(
        "CDI device `{name}`: CDI devices are not supported by this runtime; mount the device with `devices`"
    )]
    CdiDevice {
        /// The device's name.
        name: String,
    },
    /// A Windows container.
    #[error("`windows` is set, but this is a Linux runtime")]
    Windows,
    /// Permissions other than `r`, `w`, `m`.
    #[error("device `{path}`: permissions `{permissions}` are not made of `r`, `w` and `m`")]
    DevicePermissions {
        /// The device's path.
        path: String,
        /// The permissions as given.
        permissions: String,
    },
    /// A device's place in the container.
    #[error("device destination `{path}` is not an absolute path without `..`")]
    DeviceDestination {
        /// The path as given.
        path: String,
    },
    /// A limit that makes no sense.
    #[error("{field} = {value}: {why}")]
    Resource {
        /// Which field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A stop signal that isn't one.
    #[error("unknown stop signal `{signal}` in the {place}")]
    StopSignal {
        /// The signal's name or number.
        signal: String,
        /// Image or container.
        place: &'static str,
    },
    /// SELinux relabelling.
    #[error(
        "mount at `{path}`: SELinux relabelling is not supported by this runtime; label the files beforehand"
    )]
    SelinuxRelabel {
        /// The destination.
        path: String,
    },
    /// The daemon handed in parts that don't belong together: its own mistake.
    #[error("inconsistent input: {0}")]
    Inconsistent(&'static str),
    /// A builder of oci-spec refused.
    #[error("failed to build the OCI specification")]
    Build(#[from] OciSpecError),
}
