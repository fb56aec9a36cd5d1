//! Throw-away nodes for tests, and the proof that they leave nothing.
//!
//! A [`Node`] is a mount, network, UTS, IPC and PID namespace of its own, a folder on disk and a subtree of every cgroup
//! hierarchy; in it run the real executables, a registry with the test images, and whatever the test starts. Inside it
//! the usual paths are free (`/run`, `/etc`, `/var/lib/orlop`), so nothing needs to be told where it is.
//!
//! How it holds together: [`boot`] runs `unshare`, which keeps the namespaces open and whose child is the PID
//! namespace's init. That init does nothing but read a pipe whose other end is in this process. When this process ends,
//! even by SIGKILL, the read ends, init ends, and the kernel kills everything in the namespace; the mounts, links and
//! sockets go with the last process. What the kernel doesn't take back, the folder and the cgroups, the node removes
//! when it is dropped. A command is started in the node by a thread that enters its namespaces first (see [`enter`]):
//! the child inherits them, and is still this process's own child, so that it can be waited for and killed by its pid.
//!
//! A runner that is killed can't do that; then the node's [`janitor`] does.
//!
//! Two proofs, both in [`audit`]: inside a node, what there is after a test is compared with what there was before it
//! ([`Node::snapshot`]); on the machine, [`Node::finish`] fails when a cgroup of the node still has children, or its
//! namespaces, a mount, a link or a file of it are still there. [`Lan`] joins nodes by a bridge in one more namespace.

pub mod audit;
mod boot;
mod cgroup;
mod crictl;
mod daemon;
mod driver;
pub mod enter;
mod footprint;
mod janitor;
mod lan;
mod node;
mod registry;
pub mod run;
pub mod tools;

pub use audit::Snapshot;
pub use crictl::{ContainerSpec, Crictl, PodSpec};
pub use daemon::Daemon;
pub use driver::Driver;
pub use footprint::Footprint;
pub use lan::{Lan, Link};
pub use node::{Node, NodeBuilder, usual_network};
pub use run::{Finished, wait_until};
