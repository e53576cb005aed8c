//! Everything that touches the machine, as verbs.
//!
//! [`Host`] is the only door: the pure core decides ([`crate::plan`]), [`crate::execute`] calls a verb, nothing else
//! changes the machine. Every verb is idempotent: repeated after a crash at any point it finishes or finds its work
//! done. [`linux::LinuxHost`] is the real one, [`fake::FakeHost`] the one of simulations.

pub mod cgroup;
pub mod child;
pub mod containerd;
pub mod ephemeral;
pub mod fake;
pub mod firewall;
pub mod image;
pub mod linux;
pub mod namespace;
pub mod net;
pub mod seccomp;
pub mod sockets;
pub mod spec;
pub mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use berth_api::assignment::Assignment;
use berth_api::id::{MachineId, ReplicaId};
use berth_api::replica::Cause;
use berth_api::time::Timestamp;
use berth_api::units::Bytes;
use ipnet::IpNet;

/// Who must act on a failure, and so how it is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The declaration is wrong: no such image, no such program. Repeating helps only once somebody mended it.
    User,
    /// The machine or what it depends on failed: disk, network, runtime, registry out of reach.
    Infrastructure,
    /// The machine is busy; the same call will work soon. Not counted as a failure.
    Busy,
}

/// Why a verb failed. The message holds the whole chain; it is shown to people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    pub fault: Fault,
    pub message: String,
}

impl HostError {
    pub fn user(message: impl Into<String>) -> Self {
        Self {
            fault: Fault::User,
            message: message.into(),
        }
    }

    pub fn infrastructure(message: impl Into<String>) -> Self {
        Self {
            fault: Fault::Infrastructure,
            message: message.into(),
        }
    }

    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            fault: Fault::Busy,
            message: message.into(),
        }
    }

    /// An error with its whole chain in the message.
    pub fn chain(fault: Fault, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            message.push_str(": ");
            message.push_str(&error.to_string());
            source = error.source();
        }
        Self { fault, message }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The runtime's exit status: the program's code, or 128 plus the signal.
    pub status: u32,
    /// The kernel killed it for memory, as its cgroup counts it.
    pub out_of_memory: bool,
    pub at: Timestamp,
}

impl Exit {
    /// Signals are 1 to 64; the runtime reports them as 128 plus the number.
    const SIGNALS: std::ops::RangeInclusive<u32> = 129..=192;

    #[must_use]
    pub fn cause(&self) -> Cause {
        if self.out_of_memory {
            return Cause::OutOfMemory;
        }
        let status = i32::try_from(self.status).unwrap_or(i32::MAX);
        if Self::SIGNALS.contains(&self.status) {
            Cause::Signal { signal: status - 128 }
        } else {
            Cause::Exit { code: status }
        }
    }
}

/// The process of a container, as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedTask {
    /// The container has no task: it was never made, or the machine rebooted.
    None,
    /// Made, not started.
    Created,
    Running {
        pid: u32,
    },
    Exited(Exit),
    /// The runtime does not answer for this one.
    Unknown {
        reason: String,
    },
}

/// One container of the runtime that carries our labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    pub replica_id: ReplicaId,
    /// `Assignment::digest` of what it was made from.
    pub revision: String,
    pub run: u32,
    pub task: ObservedTask,
    pub created_at: Option<Timestamp>,
}

/// What the machine really has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub containers: Vec<ObservedContainer>,
}

/// Something changed in the runtime by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Exited {
        replica_id: ReplicaId,
        pid: u32,
        exit: Exit,
    },
    /// Events may have been lost: look at everything again.
    Resync,
}

/// Bytes of an image on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    pub done: Bytes,
    /// Zero until the manifest is known.
    pub total: Bytes,
}

/// Where a pull reports how far it is; called often, must be cheap.
#[derive(Clone)]
pub struct ProgressSink(Arc<dyn Fn(PullProgress) + Send + Sync>);

impl ProgressSink {
    pub fn new(sink: impl Fn(PullProgress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    #[must_use]
    pub fn ignore() -> Self {
        Self::new(|_| {})
    }

    pub fn report(&self, progress: PullProgress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressSink")
    }
}

/// An image that is on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePresence {
    /// It was there.
    Present,
    /// It was pulled now.
    Pulled,
}

/// Signals the daemon sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Term,
    Kill,
}

/// Another machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Peer {
    pub machine_id: MachineId,
    /// Subnet of its replicas.
    pub cidr: IpNet,
    /// Its address on the underlay.
    pub underlay_ip: IpAddr,
}

/// A port of the machine that is forwarded to a ready replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub port: u16,
    pub replica_id: ReplicaId,
    pub target_ip: IpAddr,
    pub target_port: u16,
}

/// What the machine's own network must look like beside the namespaces of its replicas. Always whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkWish {
    pub peers: Vec<Peer>,
    /// None while it is not known who is ready: what is forwarded stays.
    pub host_ports: Option<Vec<HostPort>>,
}

/// What a disk is short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    Bytes,
    /// Places for files; a file system may have none left while it has room.
    Inodes,
}

/// The disk that replicas without storage of their own write to is nearly used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPressure {
    pub path: String,
    pub scarce: Scarce,
    pub free: u64,
    pub total: u64,
    /// How much of it each replica holds, most first.
    pub holders: Vec<(ReplicaId, u64)>,
}

impl fmt::Display for DiskPressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, total) = (self.free, self.total);
        let unit = match self.scarce {
            Scarce::Bytes => "bytes",
            Scarce::Inodes => "inodes",
        };
        write!(
            f,
            "{free} of {total} {unit} of the disk of {} are free",
            self.path
        )?;
        for (place, (id, amount)) in self.holders.iter().take(HOLDERS_SHOWN).enumerate() {
            let before = if place == 0 {
                "; of its replicas hold the most"
            } else {
                ","
            };
            write!(f, "{before} {id} ({amount})")?;
        }
        Ok(())
    }
}

/// Holders named in a reason.
const HOLDERS_SHOWN: usize = 3;

/// What the node cannot do without. Always whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    pub replicas: BTreeSet<ReplicaId>,
    /// As their assignments name them.
    pub images: BTreeSet<String>,
}

/// Counters of a replica's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsageSample {
    /// CPU time since the cgroup was made, microseconds.
    pub cpu_total_micros: u64,
    pub memory: Bytes,
}

/// Every side effect of the daemon on its machine.
pub trait Host: Send + Sync + 'static {
    /// Lists our containers and their tasks.
    fn observe(&self) -> impl Future<Output = Result<Observed, HostError>> + Send;

    /// Waits for the next change of the runtime. Cancel-safe.
    fn changed(&self) -> impl Future<Output = Change> + Send;

    /// Makes the image available. One pull per image however many ask.
    fn ensure_image(
        &self,
        image: &str,
        progress: ProgressSink,
    ) -> impl Future<Output = Result<ImagePresence, HostError>> + Send;

    /// Makes and mounts the volume and the shared directories, as far as the assignment has any.
    fn prepare_volumes(&self, assignment: &Assignment) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes and mounts the ephemeral file system, if the assignment wants one.
    fn create_ephemeral(&self, assignment: &Assignment)
    -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes the network namespace with its address.
    fn attach_network(&self, assignment: &Assignment) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes the log keeper ready to take the output of this run.
    fn open_log(
        &self,
        replica_id: &ReplicaId,
        run: u32,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes container and task; nothing runs yet. All of the verbs above have been done.
    fn create(&self, assignment: &Assignment, run: u32)
    -> impl Future<Output = Result<(), HostError>> + Send;

    /// Starts the task and gives the pid of its first process.
    fn start(&self, replica_id: &ReplicaId, run: u32) -> impl Future<Output = Result<u32, HostError>> + Send;

    /// Caps a running task at what its assignment grants. A process that is gone is a success. One that uses more memory
    /// than it is to be capped at is left as it is, and the verb fails as [`Fault::Busy`]: the kernel would kill it.
    fn resize(&self, assignment: &Assignment) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Sends a signal to the first process (`Term`) or to all (`Kill`). A process that is gone is a success.
    fn signal(
        &self,
        replica_id: &ReplicaId,
        signal: Signal,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes task and container, killing whatever of them still runs. Nothing there is a success. After it no
    /// process of the replica exists.
    fn delete(&self, replica_id: &ReplicaId) -> impl Future<Output = Result<(), HostError>> + Send;

    fn detach_network(&self, replica_id: &ReplicaId) -> impl Future<Output = Result<(), HostError>> + Send;

    fn remove_ephemeral(&self, replica_id: &ReplicaId) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Unmounts volumes; their content stays.
    fn release_volumes(&self, replica_id: &ReplicaId) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Ends the taking of output; what was kept stays readable until its quota.
    fn close_log(&self, replica_id: &ReplicaId) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Brings routes, forwarded ports and rules to the wish and repairs what somebody else changed.
    fn set_network(&self, wish: &NetworkWish) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Use of each of these replicas; one that has no cgroup is left out.
    fn usage(
        &self,
        replicas: &[ReplicaId],
    ) -> impl Future<Output = Result<BTreeMap<ReplicaId, UsageSample>, HostError>> + Send;

    /// Whether the disk is nearly used up, and by whom; None when not, or when nobody can say. Has old images removed before it is.
    fn disk(
        &self,
        replicas: &[ReplicaId],
    ) -> impl Future<Output = Result<Option<DiskPressure>, HostError>> + Send;

    /// How many TCP connections from outside each of these replicas has; those that could not be counted are left out.
    fn connections(
        &self,
        replicas: &[ReplicaId],
    ) -> impl Future<Output = Result<BTreeMap<ReplicaId, u32>, HostError>> + Send;

    /// Removes namespaces, mounts and files of other replicas, the leftovers of a lost database, and of the images that nothing
    /// needs those that are old or in the way.
    fn sweep(&self, needed: &Needed) -> impl Future<Output = Result<(), HostError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_causes_are_told_apart() {
        let exit = |status, out_of_memory| {
            Exit {
                status,
                out_of_memory,
                at: Timestamp::default(),
            }
            .cause()
        };
        assert_eq!(exit(137, true), Cause::OutOfMemory);
        assert_eq!(exit(137, false), Cause::Signal { signal: 9 });
        assert_eq!(exit(1, false), Cause::Exit { code: 1 });
        assert_eq!(exit(0, false), Cause::Exit { code: 0 });
        assert_eq!(exit(255, false), Cause::Exit { code: 255 });
    }
}
