//! A machine that exists in memory only: the host of simulations and of tests of the core.
//!
//! It keeps processes, namespaces and mounts as values, checks what a real machine could not forgive (a second process
//! of one replica, a container over what was not prepared), and fails or "crashes" on command. Deterministic: pids
//! count up, nothing depends on time or threads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::assignment::Assignment;
use berth_api::container::Granted;
use berth_api::id::ReplicaId;
use berth_api::time::Timestamp;
use berth_api::units::Bytes;
use tokio::sync::Notify;

use super::{
    Change, Exit, Host, HostError, ImagePresence, Needed, NetworkWish, Observed, ObservedContainer,
    ObservedTask, ProgressSink, Signal, UsageSample,
};
use crate::execute::{Gate, Silent, perform};
use crate::replica::{Failure, Outcome, Step};

/// A verb of [`Host`], for failure injection and for the record of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Observe,
    EnsureImage,
    PrepareVolumes,
    CreateEphemeral,
    AttachNetwork,
    OpenLog,
    Create,
    Start,
    Signal,
    Resize,
    Delete,
    DetachNetwork,
    RemoveEphemeral,
    ReleaseVolumes,
    CloseLog,
    SetNetwork,
}

impl Verb {
    /// Every verb that can fail.
    pub const ALL: [Self; 16] = [
        Self::Observe,
        Self::EnsureImage,
        Self::PrepareVolumes,
        Self::CreateEphemeral,
        Self::AttachNetwork,
        Self::OpenLog,
        Self::Create,
        Self::Start,
        Self::Signal,
        Self::Resize,
        Self::Delete,
        Self::DetachNetwork,
        Self::RemoveEphemeral,
        Self::ReleaseVolumes,
        Self::CloseLog,
        Self::SetNetwork,
    ];
}

/// When an injected failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing was changed.
    Before,
    /// All was changed and the answer was lost.
    After,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FakeContainer {
    revision: String,
    run: u32,
    caps: Granted,
    task: ObservedTask,
}

#[derive(Debug, Default)]
struct Machine {
    last_pid: u32,
    containers: BTreeMap<ReplicaId, FakeContainer>,
    networks: BTreeMap<ReplicaId, IpAddr>,
    ephemeral: BTreeSet<ReplicaId>,
    volumes: BTreeMap<ReplicaId, String>,
    logs: BTreeMap<ReplicaId, u32>,
    images: BTreeSet<String>,
    /// Replicas that ignore SIGTERM.
    stubborn: BTreeSet<ReplicaId>,
    /// Replicas whose network never comes up.
    hung: BTreeSet<ReplicaId>,
    /// Connections of replicas; none of the others.
    connections: BTreeMap<ReplicaId, u32>,
    /// Replicas whose shim does not answer.
    mute: BTreeSet<ReplicaId>,
    failures: BTreeMap<Verb, VecDeque<(When, HostError)>>,
    unreachable: bool,
    changes: VecDeque<Change>,
    calls: Vec<(Verb, ReplicaId)>,
    now: Timestamp,
    network_wish: NetworkWish,
}

/// The machine. Shared by reference; every method takes effect at once.
#[derive(Debug, Default)]
pub struct FakeHost {
    machine: Mutex<Machine>,
    changed: Notify,
    gate: Gate,
}

impl FakeHost {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a step at once, without a running executor.
    ///
    /// # Errors
    /// As [`perform`].
    ///
    /// # Panics
    /// When the system refuses a single-threaded executor.
    pub fn perform_now(&self, id: &ReplicaId, step: &Step) -> Result<Outcome, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a timer needs nothing of the system");
        runtime.block_on(perform(self, &self.gate, id, step, Silent))
    }

    /// As [`Host::observe`], at once.
    ///
    /// # Errors
    /// When the runtime is unreachable or a failure was injected.
    pub fn observe_now(&self) -> Result<Observed, HostError> {
        let mut machine = self.machine();
        machine.enter(Verb::Observe, None)?;
        let containers = machine
            .containers
            .iter()
            .map(|(id, container)| ObservedContainer {
                replica_id: id.clone(),
                revision: container.revision.clone(),
                run: container.run,
                task: if machine.mute.contains(id) {
                    ObservedTask::Unknown {
                        reason: "mute".into(),
                    }
                } else {
                    container.task.clone()
                },
                created_at: None,
            });
        Ok(Observed {
            containers: containers.collect(),
        })
    }

    /// The next call of `verb` fails.
    pub fn fail_next(&self, verb: Verb, when: When, error: HostError) {
        self.machine()
            .failures
            .entry(verb)
            .or_default()
            .push_back((when, error));
    }

    /// The runtime answers no more, or again.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.machine().unreachable = unreachable;
    }

    /// The wall clock of exits.
    pub fn set_now(&self, now: Timestamp) {
        self.machine().now = now;
    }

    /// From now on the replica has so many connections.
    pub fn connect(&self, id: &ReplicaId, count: u32) {
        self.machine().connections.insert(id.clone(), count);
    }

    /// Connections of these replicas.
    #[must_use]
    pub fn connections_now(&self, replicas: &[ReplicaId]) -> BTreeMap<ReplicaId, u32> {
        let machine = self.machine();
        let count = |id: &ReplicaId| machine.connections.get(id).copied().unwrap_or_default();
        replicas.iter().map(|id| (id.clone(), count(id))).collect()
    }

    /// The replica ignores SIGTERM from now on.
    pub fn ignore_term(&self, id: &ReplicaId) {
        self.machine().stubborn.insert(id.clone());
    }

    /// Attaching the network of the replica never ends from now on.
    pub fn hang(&self, id: &ReplicaId) {
        self.machine().hung.insert(id.clone());
    }

    /// The shim of the replica answers no more, until the container is deleted.
    pub fn mute(&self, id: &ReplicaId) {
        self.machine().mute.insert(id.clone());
    }

    /// The process of a replica ends by itself. Says whether one ran.
    pub fn exit(&self, id: &ReplicaId, status: u32, out_of_memory: bool) -> bool {
        let exited = self.machine().exit(id, status, out_of_memory);
        self.changed.notify_one();
        exited
    }

    /// Power cut and start: no process, no namespace, no mount; containers and images are still on disk.
    pub fn reboot(&self) {
        let mut machine = self.machine();
        for container in machine.containers.values_mut() {
            container.task = ObservedTask::None;
        }
        machine.networks.clear();
        machine.ephemeral.clear();
        machine.volumes.clear();
        machine.logs.clear();
        machine.changes.clear();
    }

    /// Changes that nobody has taken yet. A daemon that was killed loses them: take and drop.
    pub fn take_changes(&self) -> Vec<Change> {
        self.machine().changes.drain(..).collect()
    }

    /// Replica and pid of every process.
    #[must_use]
    pub fn processes(&self) -> BTreeMap<ReplicaId, u32> {
        let pid = |container: &FakeContainer| match container.task {
            ObservedTask::Running { pid } => Some(pid),
            _ => None,
        };
        let machine = self.machine();
        machine
            .containers
            .iter()
            .filter_map(|(id, container)| Some((id.clone(), pid(container)?)))
            .collect()
    }

    /// Replicas of which anything at all is on the machine.
    #[must_use]
    pub fn leftovers(&self) -> BTreeSet<ReplicaId> {
        let machine = self.machine();
        let containers = machine.containers.keys();
        containers
            .chain(machine.networks.keys())
            .chain(&machine.ephemeral)
            .chain(machine.volumes.keys())
            .chain(machine.logs.keys())
            .cloned()
            .collect()
    }

    /// The revision a replica's container was made from.
    #[must_use]
    pub fn revision(&self, id: &ReplicaId) -> Option<String> {
        self.machine()
            .containers
            .get(id)
            .map(|container| container.revision.clone())
    }

    /// What a replica's process is capped at.
    #[must_use]
    pub fn caps(&self, id: &ReplicaId) -> Option<Granted> {
        self.machine().containers.get(id).map(|container| container.caps)
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<(Verb, ReplicaId)> {
        self.machine().calls.clone()
    }

    #[must_use]
    pub fn network_wish(&self) -> NetworkWish {
        self.machine().network_wish.clone()
    }

    fn act(
        &self,
        verb: Verb,
        id: &ReplicaId,
        change: impl FnOnce(&mut Machine) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let mut machine = self.machine();
        let after = machine.enter(verb, Some(id))?;
        change(&mut machine)?;
        drop(machine);
        self.changed.notify_one();
        after.map_or(Ok(()), Err)
    }
}

impl Machine {
    /// Records a call and applies injected failures; an error to be given after the change is returned as a value.
    fn enter(&mut self, verb: Verb, id: Option<&ReplicaId>) -> Result<Option<HostError>, HostError> {
        if let Some(id) = id {
            self.calls.push((verb, id.clone()));
        }
        let runtime = matches!(
            verb,
            Verb::Observe | Verb::Create | Verb::Start | Verb::Signal | Verb::Resize | Verb::Delete
        );
        if self.unreachable && runtime {
            return Err(HostError::infrastructure("the runtime does not answer"));
        }
        match self.failures.get_mut(&verb).and_then(VecDeque::pop_front) {
            Some((When::Before, error)) => Err(error),
            Some((When::After, error)) => Ok(Some(error)),
            None => Ok(None),
        }
    }

    fn exit(&mut self, id: &ReplicaId, status: u32, out_of_memory: bool) -> bool {
        let exit = Exit {
            status,
            out_of_memory,
            at: self.now,
        };
        let Some(container) = self.containers.get_mut(id) else {
            return false;
        };
        let ObservedTask::Running { pid } = container.task else {
            return false;
        };
        container.task = ObservedTask::Exited(exit);
        self.changes.push_back(Change::Exited {
            replica_id: id.clone(),
            pid,
            exit,
        });
        true
    }

    fn create(&mut self, assignment: &Assignment, run: u32) -> Result<(), HostError> {
        let id = &assignment.replica_id;
        if let Some(old) = self.containers.get(id) {
            assert!(
                !matches!(old.task, ObservedTask::Running { .. }),
                "{id}: a container is made over a running process"
            );
            return Err(HostError::infrastructure("the container exists"));
        }
        assert!(
            self.images.contains(&assignment.image),
            "{id}: created before its image was there"
        );
        assert_eq!(
            self.networks.get(id),
            Some(&assignment.ip),
            "{id}: created before its network"
        );
        assert_eq!(self.logs.get(id), Some(&run), "{id}: created before its log");
        assert!(
            assignment.volume.is_none() || self.volumes.contains_key(id),
            "{id}: created before its volume"
        );
        let revision = assignment.digest().to_string();
        self.containers.insert(
            id.clone(),
            FakeContainer {
                revision,
                run,
                caps: assignment.caps(),
                task: ObservedTask::Created,
            },
        );
        Ok(())
    }
}

impl Host for FakeHost {
    async fn observe(&self) -> Result<Observed, HostError> {
        self.observe_now()
    }

    async fn changed(&self) -> Change {
        loop {
            if let Some(change) = self.machine().changes.pop_front() {
                return change;
            }
            self.changed.notified().await;
        }
    }

    async fn ensure_image(&self, image: &str, _progress: ProgressSink) -> Result<ImagePresence, HostError> {
        let mut machine = self.machine();
        let after = machine.enter(Verb::EnsureImage, None)?;
        let new = machine.images.insert(image.to_owned());
        match after {
            Some(error) => Err(error),
            None if new => Ok(ImagePresence::Pulled),
            None => Ok(ImagePresence::Present),
        }
    }

    async fn prepare_volumes(&self, assignment: &Assignment) -> Result<(), HostError> {
        self.act(Verb::PrepareVolumes, &assignment.replica_id, |machine| {
            if let Some(mount) = &assignment.volume {
                machine
                    .volumes
                    .insert(assignment.replica_id.clone(), mount.volume.identity().to_owned());
            }
            Ok(())
        })
    }

    async fn create_ephemeral(&self, assignment: &Assignment) -> Result<(), HostError> {
        self.act(Verb::CreateEphemeral, &assignment.replica_id, |machine| {
            machine.ephemeral.insert(assignment.replica_id.clone());
            Ok(())
        })
    }

    async fn attach_network(&self, assignment: &Assignment) -> Result<(), HostError> {
        let hung = self.machine().hung.contains(&assignment.replica_id);
        if hung {
            std::future::pending::<()>().await;
        }
        self.act(Verb::AttachNetwork, &assignment.replica_id, |machine| {
            let other = machine
                .networks
                .iter()
                .find(|(id, ip)| **ip == assignment.ip && **id != assignment.replica_id);
            assert!(
                other.is_none(),
                "{}: address {} is {other:?}'s",
                assignment.replica_id,
                assignment.ip
            );
            machine
                .networks
                .insert(assignment.replica_id.clone(), assignment.ip);
            Ok(())
        })
    }

    async fn open_log(&self, replica_id: &ReplicaId, run: u32) -> Result<(), HostError> {
        self.act(Verb::OpenLog, replica_id, |machine| {
            machine.logs.insert(replica_id.clone(), run);
            Ok(())
        })
    }

    async fn create(&self, assignment: &Assignment, run: u32) -> Result<(), HostError> {
        self.act(Verb::Create, &assignment.replica_id, |machine| {
            machine.create(assignment, run)
        })
    }

    async fn start(&self, replica_id: &ReplicaId, run: u32) -> Result<u32, HostError> {
        let mut started = 0;
        self.act(Verb::Start, replica_id, |machine| {
            machine.last_pid += 1;
            started = machine.last_pid;
            let Some(container) = machine.containers.get_mut(replica_id) else {
                return Err(HostError::infrastructure("no such container"));
            };
            assert_eq!(container.run, run, "{replica_id}: starts what was created");
            assert_eq!(
                container.task,
                ObservedTask::Created,
                "{replica_id}: started twice"
            );
            container.task = ObservedTask::Running { pid: started };
            Ok(())
        })?;
        Ok(started)
    }

    async fn resize(&self, assignment: &Assignment) -> Result<(), HostError> {
        let id = &assignment.replica_id;
        self.act(Verb::Resize, id, |machine| {
            if let Some(container) = machine.containers.get_mut(id) {
                container.caps = assignment.caps();
            }
            Ok(())
        })
    }

    async fn signal(&self, replica_id: &ReplicaId, signal: Signal) -> Result<(), HostError> {
        self.act(Verb::Signal, replica_id, |machine| {
            let status = match signal {
                Signal::Kill => 137,
                Signal::Term if machine.stubborn.contains(replica_id) => return Ok(()),
                Signal::Term => 143,
            };
            machine.exit(replica_id, status, false);
            Ok(())
        })
    }

    async fn delete(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.act(Verb::Delete, replica_id, |machine| {
            machine.containers.remove(replica_id);
            machine.mute.remove(replica_id);
            Ok(())
        })
    }

    async fn detach_network(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.act(Verb::DetachNetwork, replica_id, |machine| {
            assert!(
                !machine.containers.contains_key(replica_id),
                "{replica_id}: network gone before its process"
            );
            machine.networks.remove(replica_id);
            Ok(())
        })
    }

    async fn remove_ephemeral(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.act(Verb::RemoveEphemeral, replica_id, |machine| {
            machine.ephemeral.remove(replica_id);
            Ok(())
        })
    }

    async fn release_volumes(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.act(Verb::ReleaseVolumes, replica_id, |machine| {
            machine.volumes.remove(replica_id);
            Ok(())
        })
    }

    async fn close_log(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.act(Verb::CloseLog, replica_id, |machine| {
            machine.logs.remove(replica_id);
            Ok(())
        })
    }

    async fn set_network(&self, wish: &NetworkWish) -> Result<(), HostError> {
        let mut machine = self.machine();
        let after = machine.enter(Verb::SetNetwork, None)?;
        machine.network_wish = wish.clone();
        after.map_or(Ok(()), Err)
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, UsageSample>, HostError> {
        let sample = UsageSample {
            cpu_total_micros: 0,
            memory: Bytes::mib(1),
        };
        Ok(replicas.iter().map(|id| (id.clone(), sample)).collect())
    }

    async fn disk(&self, _: &[ReplicaId]) -> Result<Option<crate::host::DiskPressure>, HostError> {
        Ok(None)
    }

    async fn connections(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, u32>, HostError> {
        Ok(self.connections_now(replicas))
    }

    async fn sweep(&self, needed: &Needed) -> Result<(), HostError> {
        let keep = &needed.replicas;
        let mut machine = self.machine();
        machine.networks.retain(|id, _| keep.contains(id));
        machine.ephemeral.retain(|id| keep.contains(id));
        machine.volumes.retain(|id, _| keep.contains(id));
        machine.logs.retain(|id, _| keep.contains(id));
        Ok(())
    }
}
