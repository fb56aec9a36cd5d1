//! orlop-kubelet from outside: the real executables, manifests in a folder, answers on its read-only port, each test in a
//! node of its own.

#[path = "kubelet/bad_input.rs"]
mod bad_input;
#[path = "kubelet/bed.rs"]
mod bed;
#[path = "kubelet/kills.rs"]
mod kills;
#[path = "kubelet/life.rs"]
mod life;
#[path = "kubelet/many.rs"]
mod many;
#[path = "kubelet/objects.rs"]
mod objects;
