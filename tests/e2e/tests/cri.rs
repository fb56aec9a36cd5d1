//! orlop-cri from outside: the real executables, the real crictl, real peers, each test in a node of its own.

#[path = "cri/bad_input.rs"]
mod bad_input;
#[path = "cri/bed.rs"]
mod bed;
#[path = "cri/churn.rs"]
mod churn;
#[path = "cri/client.rs"]
mod client;
#[path = "cri/codes.rs"]
mod codes;
#[path = "cri/crictl_images.rs"]
mod crictl_images;
#[path = "cri/crictl_network.rs"]
mod crictl_network;
#[path = "cri/crictl_pod.rs"]
mod crictl_pod;
#[path = "cri/crictl_stream.rs"]
mod crictl_stream;
#[path = "cri/damage.rs"]
mod damage;
#[path = "cri/disasters.rs"]
mod disasters;
#[path = "cri/kill_points.rs"]
mod kill_points;
#[path = "cri/leaving.rs"]
mod leaving;
#[path = "cri/nri.rs"]
mod nri;
#[path = "cri/peers.rs"]
mod peers;
#[path = "cri/random_kill.rs"]
mod random_kill;
#[path = "cri/restart.rs"]
mod restart;
#[path = "cri/rpcs.rs"]
mod rpcs;
