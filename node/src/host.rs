//! Everything that touches the machine.

pub mod cgroup;
pub mod containerd;
pub mod ephemeral;
pub mod firewall;
pub mod image;
pub mod net;
pub mod seccomp;
pub mod spec;
pub mod volume;
