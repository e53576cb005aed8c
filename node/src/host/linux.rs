//! The real machine: containerd, namespaces, nftables, loop file systems, the log keeper.
//!
//! Input: verbs of [`Host`]. Output: their effect. Owner: `main`; shared by all steps. What can hang with a disk or a
//! socket runs on the blocking pool or in a child. What is remembered here is only what can be found again: attachments
//! by the network's records, volumes by records in `state_dir`, images by containerd.

mod disk;
mod firewall;
mod logs;
mod reach;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::assignment::Assignment;
use berth_api::container::{CpuRange, MemoryRange};
use berth_api::id::ReplicaId;
use berth_api::machine::AssignedNetwork;
use berth_api::time::Timestamp;
use berth_api::units::Bytes;
use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex as AsyncMutex, broadcast};

use super::containerd::{
    Beside, ContainerPlan, Exit as RuntimeExit, Runtime, RuntimeConfig, RuntimeContainer, RuntimeError,
    RuntimeErrorClass, RuntimeEvent, SignalTarget, TaskStatus,
};
use super::image::{CollectConfig, Fault as ImageFault, Images, ImagesConfig, PulledImage};
use super::namespace::Door;
use super::net::{Attachment, Network, NetworkConfig, Peer as Route};
use super::sockets;
use super::spec::{NOFILE_MAX, PIDS_MAX, SpecInput, oci_spec, resources};
use super::{
    Change, Exit, Fault, Host, HostError, ImagePresence, Needed, NetworkWish, Observed, ObservedContainer,
    ObservedTask, ProgressSink, PullProgress, Signal, UsageSample,
};
use crate::config::Config;
use crate::dns;
use crate::health::{Inside, ProbeRole};
use firewall::FirewallDriver;
use logs::Logs;
use storage::Storage;

/// Labels on every container; they rebuild the ledger's row.
const LABEL_REPLICA: &str = "berth.dev/replica-id";
const LABEL_REVISION: &str = "berth.dev/revision";
const LABEL_RUN: &str = "berth.dev/run";
const LABEL_STOP_SIGNAL: &str = "berth.dev/stop-signal";
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// containerd's limit for an id.
const CONTAINER_ID_MAX: usize = 76;
/// Characters of the name of a probe's program that are told.
const PROGRAM_SHOWN: usize = 100;
/// A table of a hundred thousand sockets is read in a fraction of it.
const COUNT_DEADLINE: Duration = Duration::from_secs(2);

/// This machine.
#[derive(Debug)]
pub struct LinuxHost {
    config: Arc<Config>,
    assigned: AssignedNetwork,
    runtime: Runtime,
    images: Images,
    network: Network,
    firewall: FirewallDriver,
    storage: Storage,
    logs: Logs,
    events: AsyncMutex<broadcast::Receiver<RuntimeEvent>>,
    memory: Mutex<Memory>,
}

/// What verbs tell each other.
#[derive(Debug, Default)]
struct Memory {
    pulled: BTreeMap<String, PulledImage>,
    attachments: BTreeMap<ReplicaId, Attachment>,
    /// Made when they are first used.
    doors: BTreeMap<ReplicaId, Arc<Door>>,
    /// Replica of each container id, and the signal that asks it to stop.
    containers: BTreeMap<String, (ReplicaId, u32)>,
    /// Container ids of which it is known that nobody's programs are left in them.
    asked: BTreeSet<String>,
    wish: Option<NetworkWish>,
}

impl LinuxHost {
    /// Opens the machine: connects lazily to containerd, makes the gateway interface and the firewall table.
    ///
    /// # Errors
    /// When the kernel refuses the network, or the configuration cannot be used.
    pub async fn open(config: Arc<Config>, assigned: AssignedNetwork) -> Result<Self, HostError> {
        let runtime = Runtime::connect(RuntimeConfig::new(
            &*config.containerd_socket,
            config.containerd_namespace.clone(),
        ))
        .map_err(|error| of_runtime(&error))?;
        let events = AsyncMutex::new(runtime.subscribe());
        let images_config = ImagesConfig {
            registries: config.registries.clone(),
            collect: CollectConfig {
                budget: config.image_budget,
                keep: config.image_keep,
                ..CollectConfig::default()
            },
            ..ImagesConfig::default()
        };
        let images = Images::new(&runtime, images_config).map_err(|error| infrastructure(&error))?;
        let network = Network::open(NetworkConfig {
            machine_id: config.machine_id.clone(),
            cidr: assigned.cidr,
            gateway: assigned.gateway,
            netns_dir: config.run_dir.join("netns"),
            uplink: None,
            mtu: None,
        })
        .await
        .map_err(|error| infrastructure(&error))?;
        let attachments = network.list().await.map_err(|error| infrastructure(&error))?;
        let firewall = FirewallDriver::open(assigned.cidr, assigned.gateway).await;
        for attachment in &attachments {
            firewall.put_replica(attachment.interface.clone(), attachment.ip);
        }
        firewall.sync().await?;
        let attachments = attachments
            .into_iter()
            .map(|found| (found.replica_id.clone(), found))
            .collect();
        let host = Self {
            storage: Storage::new(&config),
            logs: Logs::new(config.keeper_socket.clone()),
            assigned,
            runtime,
            images,
            network,
            firewall,
            events,
            memory: Mutex::new(Memory {
                attachments,
                ..Memory::default()
            }),
            config,
        };
        host.forget_fifos();
        Ok(host)
    }

    /// Ends background tasks; containers, namespaces and rules stay.
    pub async fn shutdown(&self) {
        self.images.shutdown().await;
        self.runtime.shutdown().await;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observed(&self, container: &RuntimeContainer) -> Option<ObservedContainer> {
        let (observed, stop_signal) = observed_container(container)?;
        let entry = (observed.replica_id.clone(), stop_signal);
        self.memory().containers.insert(container.id.clone(), entry);
        Some(observed)
    }

    fn plan(&self, assignment: &Assignment, run: u32) -> Result<ContainerPlan, HostError> {
        let id = &assignment.replica_id;
        let container_id = container_id(id);
        let (image, attachment) = {
            let memory = self.memory();
            let image = memory.pulled.get(&assignment.image).cloned();
            (image, memory.attachments.get(id).cloned())
        };
        let image = image
            .ok_or_else(|| HostError::busy(format!("image {} is to be ensured again", assignment.image)))?;
        let attachment = attachment.ok_or_else(|| HostError::busy("the network is to be attached again"))?;
        let hostname = hostname(id);
        let files = self.write_files(&container_id, &hostname, attachment.ip)?;
        let cgroup_path = format!("{}/{container_id}", self.config.cgroup_parent);
        let input = SpecInput {
            command: assignment.command.clone(),
            env: assignment.env.clone(),
            image: image.config.clone(),
            user: image.user.clone(),
            hostname,
            network_namespace: attachment.netns.clone(),
            cgroup_path: cgroup_path.clone(),
            cpu: capped(assignment).0,
            memory: capped(assignment).1,
            pids_max: PIDS_MAX,
            nofile_max: nofile_max(),
            resolv_conf: files.join("resolv.conf"),
            hosts: files.join("hosts"),
            hostname_file: files.join("hostname"),
            mounts: self.storage.mounts(assignment),
        };
        let spec = oci_spec(&input).map_err(|error| HostError::chain(Fault::User, &error))?;
        let (stdout, stderr) = self.logs.fifos(id, run).unwrap_or_default();
        Ok(ContainerPlan {
            labels: self.labels(assignment, run, image.config.stop_signal_number()),
            id: container_id,
            image,
            spec,
            stdout,
            stderr,
            cgroup_path,
        })
    }

    fn labels(&self, assignment: &Assignment, run: u32, stop_signal: u32) -> BTreeMap<String, String> {
        let ordinal = assignment
            .ordinal
            .map(|ordinal| ("berth.dev/ordinal", ordinal.to_string()));
        let labels = [
            (LABEL_REPLICA, assignment.replica_id.to_string()),
            ("berth.dev/cluster-id", self.config.cluster_id.to_string()),
            ("berth.dev/machine-id", self.config.machine_id.to_string()),
            ("berth.dev/container", assignment.container.to_string()),
            (LABEL_REVISION, assignment.digest().to_string()),
            (LABEL_RUN, run.to_string()),
            ("berth.dev/ip", assignment.ip.to_string()),
            (LABEL_STOP_SIGNAL, stop_signal.to_string()),
            ("berth.dev/schema", "1".to_owned()),
        ];
        labels
            .into_iter()
            .chain(ordinal)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// The files that become `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.
    fn write_files(&self, container_id: &str, hostname: &str, ip: Ipv4Addr) -> Result<PathBuf, HostError> {
        let dir = self.files_dir(container_id);
        let hosts =
            format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{ip} {hostname}\n");
        let write = || {
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("resolv.conf"), dns::resolv_conf(self.assigned.gateway))?;
            std::fs::write(dir.join("hosts"), hosts)?;
            std::fs::write(dir.join("hostname"), format!("{hostname}\n"))
        };
        let failed = |error| HostError::infrastructure(format!("writing {}: {error}", dir.display()));
        write().map_err(failed)?;
        Ok(dir)
    }

    fn files_dir(&self, container_id: &str) -> PathBuf {
        self.config.run_dir.join("replicas").join(container_id)
    }

    async fn attach(&self, id: &ReplicaId, ip: Ipv4Addr) -> Result<(), HostError> {
        let known = self.memory().attachments.get(id).cloned();
        if known.is_some_and(|known| known.ip != ip) {
            self.detach(id).await?;
        }
        let attachment = self
            .network
            .attach(id, ip)
            .await
            .map_err(|error| infrastructure(&error))?;
        self.firewall.put_replica(attachment.interface.clone(), ip);
        self.memory().attachments.insert(id.clone(), attachment);
        self.firewall.sync().await
    }

    async fn detach(&self, id: &ReplicaId) -> Result<(), HostError> {
        self.network
            .detach(id)
            .await
            .map_err(|error| infrastructure(&error))?;
        self.memory().attachments.remove(id);
        self.memory().doors.remove(id);
        self.firewall.remove_replica(&self.network.interface(id));
        self.firewall.sync().await
    }

    /// The way into a replica's namespace that its connections are counted through; none when it has none.
    fn door(&self, id: &ReplicaId) -> Option<Arc<Door>> {
        let mut memory = self.memory();
        let netns = memory.attachments.get(id)?.netns.clone();
        let door = memory.doors.entry(id.clone());
        Some(Arc::clone(door.or_insert_with(|| Arc::new(Door::new(netns)))))
    }

    fn replica_of(&self, container_id: &str) -> Option<ReplicaId> {
        self.memory()
            .containers
            .get(container_id)
            .map(|(id, _)| id.clone())
    }
}

/// What the labels and the task of a container say: of which replica it is, and the signal that asks it to stop. None when it is no
/// replica's.
pub(crate) fn observed_container(container: &RuntimeContainer) -> Option<(ObservedContainer, u32)> {
    let label = |name: &str| container.labels.get(name);
    let replica_id = ReplicaId::new(label(LABEL_REPLICA)?.as_str()).ok()?;
    let stop_signal = label(LABEL_STOP_SIGNAL)
        .and_then(|text| text.parse().ok())
        .unwrap_or(SIGTERM);
    let task = match container.task.as_ref().map(|task| (task.pid, task.status)) {
        None => ObservedTask::None,
        Some((_, TaskStatus::Created)) => ObservedTask::Created,
        Some((pid, TaskStatus::Running)) => ObservedTask::Running { pid },
        Some((_, TaskStatus::Stopped(exit))) => ObservedTask::Exited(of_exit(&exit)),
        Some((_, TaskStatus::Unanswered)) => ObservedTask::Unknown {
            reason: "its shim does not answer".into(),
        },
    };
    let observed = ObservedContainer {
        replica_id,
        revision: label(LABEL_REVISION).cloned().unwrap_or_default(),
        run: label(LABEL_RUN).and_then(|text| text.parse().ok()).unwrap_or(1),
        task,
        created_at: Some(container.created_at),
    };
    Some((observed, stop_signal))
}

impl Host for LinuxHost {
    async fn observe(&self) -> Result<Observed, HostError> {
        let listed = self.runtime.list().await.map_err(|error| of_runtime(&error))?;
        let containers: Vec<ObservedContainer> = listed
            .iter()
            .filter_map(|container| self.observed(container))
            .collect();
        for container in &containers {
            if matches!(container.task, ObservedTask::Running { .. }) {
                self.logs.note_running(&container.replica_id, container.run);
            }
        }
        Ok(Observed { containers })
    }

    async fn changed(&self) -> Change {
        let mut events = self.events.lock().await;
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::Exit { id, pid, exit }) => {
                    return match self.replica_of(&id) {
                        Some(replica_id) => Change::Exited {
                            replica_id,
                            pid,
                            exit: of_exit(&exit),
                        },
                        None => Change::Resync,
                    };
                }
                Ok(RuntimeEvent::Oom { id }) => {
                    tracing::info!(container_id = id, "a process was killed for want of memory");
                }
                Ok(RuntimeEvent::Lost | RuntimeEvent::Reconnected) | Err(RecvError::Lagged(_)) => {
                    return Change::Resync;
                }
                // The runtime is shutting down, and so are we.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn ensure_image(&self, image: &str, progress: ProgressSink) -> Result<ImagePresence, HostError> {
        let mut pulled = false;
        let found = self
            .images
            .ensure(image, |now| {
                pulled |= now.bytes_done > 0;
                progress.report(PullProgress {
                    done: Bytes::new(now.bytes_done),
                    total: Bytes::new(now.bytes_total),
                });
            })
            .await
            .map_err(|error| {
                let fault = match error.fault() {
                    ImageFault::Image => Fault::User,
                    ImageFault::Infrastructure => Fault::Infrastructure,
                };
                HostError::chain(fault, &error)
            })?;
        self.memory().pulled.insert(image.to_owned(), found);
        Ok(if pulled {
            ImagePresence::Pulled
        } else {
            ImagePresence::Present
        })
    }

    async fn prepare_volumes(&self, assignment: &Assignment) -> Result<(), HostError> {
        self.storage.prepare_volumes(assignment).await
    }

    async fn create_ephemeral(&self, assignment: &Assignment) -> Result<(), HostError> {
        self.storage.create_ephemeral(assignment).await
    }

    async fn attach_network(&self, assignment: &Assignment) -> Result<(), HostError> {
        match assignment.ip {
            IpAddr::V4(ip) => self.attach(&assignment.replica_id, ip).await,
            IpAddr::V6(ip) => Err(HostError::infrastructure(format!("{ip} is no IPv4 address"))),
        }
    }

    async fn open_log(&self, replica_id: &ReplicaId, run: u32) -> Result<(), HostError> {
        self.logs.open(replica_id, run).await
    }

    async fn create(&self, assignment: &Assignment, run: u32) -> Result<(), HostError> {
        let plan = self.plan(assignment, run)?;
        let stop_signal = plan.image.config.stop_signal_number();
        let entry = (assignment.replica_id.clone(), stop_signal);
        self.memory().containers.insert(plan.id.clone(), entry);
        match self.runtime.create(&plan).await {
            Ok(_) => Ok(()),
            Err(error @ RuntimeError::ImageGone { .. }) => {
                self.images.forget(&assignment.image);
                self.memory().pulled.remove(&assignment.image);
                Err(HostError::busy(error.to_string()))
            }
            Err(error) => Err(of_runtime(&error)),
        }
    }

    async fn start(&self, replica_id: &ReplicaId, _run: u32) -> Result<u32, HostError> {
        self.runtime
            .start(&container_id(replica_id))
            .await
            .map_err(|error| of_runtime(&error))
    }

    async fn resize(&self, assignment: &Assignment) -> Result<(), HostError> {
        let id = container_id(&assignment.replica_id);
        let (cpu, memory) = capped(assignment);
        let used = self.runtime.usage(&id).map_or(0, |usage| usage.memory_bytes);
        if used > memory.desired.get() {
            return Err(HostError::busy(format!(
                "it uses {} and would be capped at {}",
                Bytes::new(used).rounded(),
                memory.desired.rounded()
            )));
        }
        let limits =
            resources(cpu, memory, PIDS_MAX).map_err(|error| HostError::chain(Fault::User, &error))?;
        match self.runtime.update(&id, &limits).await {
            Ok(()) => Ok(()),
            Err(error) if error.class() == RuntimeErrorClass::NotFound => Ok(()),
            Err(error) => Err(of_runtime(&error)),
        }
    }

    async fn signal(&self, replica_id: &ReplicaId, signal: Signal) -> Result<(), HostError> {
        let id = container_id(replica_id);
        let (number, target) = match signal {
            Signal::Kill => (SIGKILL, SignalTarget::AllProcesses),
            Signal::Term => {
                let wanted = self
                    .memory()
                    .containers
                    .get(&id)
                    .map_or(SIGTERM, |(_, signal)| *signal);
                (wanted, SignalTarget::FirstProcess)
            }
        };
        match self.runtime.signal(&id, number, target).await {
            Ok(()) => Ok(()),
            Err(error) if error.class() == RuntimeErrorClass::NotFound => Ok(()),
            Err(error) => Err(of_runtime(&error)),
        }
    }

    async fn delete(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        let id = container_id(replica_id);
        self.runtime
            .delete(&id)
            .await
            .map_err(|error| of_runtime(&error))?;
        self.logs.close_quietly(replica_id).await;
        Ok(())
    }

    async fn detach_network(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.detach(replica_id).await
    }

    async fn remove_ephemeral(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.storage.remove_ephemeral(replica_id).await
    }

    async fn release_volumes(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.storage.release_volumes(replica_id).await
    }

    async fn close_log(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.logs.close_quietly(replica_id).await;
        let id = container_id(replica_id);
        let dir = self.files_dir(&id);
        self.memory().containers.remove(&id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(HostError::infrastructure(
                format!("removing {}: {error}", dir.display()),
            )),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn set_network(&self, wish: &NetworkWish) -> Result<(), HostError> {
        let unchanged = self.memory().wish.as_ref() == Some(wish);
        let (routes, mesh) = routes(&wish.peers);
        self.network
            .set_peers(&routes)
            .await
            .map_err(|error| infrastructure(&error))?;
        let forwarded = |port: &crate::host::HostPort| match port.target_ip {
            IpAddr::V4(ip) => Some((port.port, SocketAddrV4::new(ip, port.target_port))),
            IpAddr::V6(_) => None,
        };
        let ports = wish.host_ports.as_ref();
        let ports = ports.map(|ports| ports.iter().filter_map(forwarded).collect());
        self.firewall.put_machine(mesh, ports);
        self.firewall.sync().await?;
        self.memory().wish = Some(wish.clone());
        if unchanged {
            for drift in self
                .network
                .check()
                .await
                .map_err(|error| infrastructure(&error))?
            {
                tracing::warn!(reason = %drift, "the network had drifted and was mended");
            }
            self.firewall.check().await?;
        }
        Ok(())
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, UsageSample>, HostError> {
        let sample = |id: &ReplicaId| {
            let container = container_id(id);
            let usage = self.runtime.usage(&container)?;
            if usage.oom_kills > 0 {
                // The event that says so may have been lost with containerd.
                self.runtime.end_out_of_memory(&container);
            }
            let memory = Bytes::new(usage.memory_bytes);
            Some((
                id.clone(),
                UsageSample {
                    cpu_total_micros: usage.cpu_nanos / 1000,
                    memory,
                },
            ))
        };
        Ok(replicas.iter().filter_map(sample).collect())
    }

    async fn disk(&self, replicas: &[ReplicaId]) -> Result<Option<super::DiskPressure>, HostError> {
        Ok(self.pressure(replicas).await)
    }

    async fn connections(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, u32>, HostError> {
        let count = async |id: &ReplicaId| {
            let Some(door) = self.door(id) else {
                return Some((id.clone(), 0));
            };
            let counted = tokio::time::timeout(COUNT_DEADLINE, door.run(sockets::connections)).await;
            let error = match counted {
                Ok(Ok(count)) => return Some((id.clone(), count)),
                Ok(Err(error)) => infrastructure(&error).message,
                Err(_) => format!("not counted within {} s", COUNT_DEADLINE.as_secs()),
            };
            tracing::warn!(replica_id = %id, error, "the connections of a replica cannot be counted");
            None
        };
        let counts = futures::future::join_all(replicas.iter().map(count)).await;
        Ok(counts.into_iter().flatten().collect())
    }

    async fn sweep(&self, needed: &Needed) -> Result<(), HostError> {
        // First: what fails below has nothing to do with images.
        self.images.keep(&needed.images);
        let keep = &needed.replicas;
        let attached = self
            .network
            .list()
            .await
            .map_err(|error| infrastructure(&error))?;
        for leftover in attached
            .into_iter()
            .filter(|found| !keep.contains(&found.replica_id))
        {
            tracing::warn!(replica_id = %leftover.replica_id, "removing a leftover namespace");
            self.detach(&leftover.replica_id).await?;
        }
        self.storage.sweep(keep).await?;
        self.end_forgotten_programs().await;
        self.logs.hold_running().await
    }
}

impl Inside for LinuxHost {
    fn run<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        role: ProbeRole,
        command: &'a [String],
        deadline: Duration,
    ) -> BoxFuture<'a, Option<Result<(), String>>> {
        Box::pin(async move {
            let id = container_id(replica_id);
            let beside = match role {
                ProbeRole::Check | ProbeRole::Startup | ProbeRole::Readiness => Beside::Probe,
                ProbeRole::Liveness => Beside::Liveness,
            };
            let ended = self.runtime.exec(&id, beside, command.to_vec(), deadline).await;
            // The words after it may hold a password.
            let program: String = command
                .first()
                .map_or("", String::as_str)
                .chars()
                .take(PROGRAM_SHOWN)
                .collect();
            match ended {
                Ok(Some(0)) => Some(Ok(())),
                Ok(Some(code)) => Some(Err(format!("{program} ended with {code}"))),
                Ok(None) => Some(Err(format!(
                    "{program} did not end within {} s",
                    deadline.as_secs()
                ))),
                Err(error) if error.is_bad_program() => Some(Err(format!("{program} cannot be started"))),
                Err(error) => {
                    tracing::warn!(id, error = %error, "a replica's health could not be asked");
                    None
                }
            }
        })
    }

    fn namespace(&self, replica_id: &ReplicaId) -> Option<PathBuf> {
        let memory = self.memory();
        memory
            .attachments
            .get(replica_id)
            .map(|found| found.netns.clone())
    }
}

/// containerd's id of a replica: its own when that is valid there, else a hash. The label is the truth.
#[must_use]
pub fn container_id(id: &ReplicaId) -> String {
    let text = id.as_str();
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.len() <= CONTAINER_ID_MAX && text.split(['.', '_', '-']).all(part) {
        return text.to_owned();
    }
    let hash = Sha256::digest(text);
    hash.iter()
        .take(20)
        .fold("x".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// A name that the kernel and resolvers accept: at most 63 of letters, digits and dashes.
fn hostname(id: &ReplicaId) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = id.as_str().chars().map(safe).take(63).collect();
    name.trim_matches('-').to_owned()
}

fn nofile_max() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.unwrap_or(NOFILE_MAX).min(NOFILE_MAX)
}

/// The limits of a process: no more than what is granted, and what is protected.
fn capped(assignment: &Assignment) -> (CpuRange, MemoryRange) {
    let caps = assignment.caps();
    let cpu = CpuRange {
        min: assignment.cpu.min,
        desired: caps.cpu,
    };
    let memory = MemoryRange {
        min: assignment.memory.min,
        desired: caps.memory,
    };
    (cpu, memory)
}

fn routes(peers: &[super::Peer]) -> (Vec<Route>, Vec<Ipv4Net>) {
    let route = |peer: &super::Peer| match (peer.cidr, peer.underlay_ip) {
        (IpNet::V4(cidr), IpAddr::V4(underlay_ip)) => Some(Route { cidr, underlay_ip }),
        _ => None,
    };
    let routes: Vec<Route> = peers.iter().filter_map(route).collect();
    let mesh = routes.iter().map(|route| route.cidr).collect();
    (routes, mesh)
}

fn of_exit(exit: &RuntimeExit) -> Exit {
    // The last of its processes may still have ended well.
    Exit {
        status: exit.code,
        out_of_memory: exit.oom_kills > 0 && exit.code != 0,
        at: exit.at,
    }
}

fn of_runtime(error: &RuntimeError) -> HostError {
    let fault = if error.is_bad_program() {
        Fault::User
    } else {
        Fault::Infrastructure
    };
    HostError::chain(fault, error)
}

fn infrastructure(error: &dyn std::error::Error) -> HostError {
    HostError::chain(Fault::Infrastructure, error)
}

/// Runs what may hang with a disk or a socket where nobody else waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(HostError::infrastructure(format!(
            "a blocking call panicked: {error}"
        )))
    })
}

/// Wall time for records.
fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_are_valid_for_containerd_and_differ() {
        let id = |text: &str| container_id(&ReplicaId::new(text).unwrap());
        assert_eq!(id("reader-i-0abc-x1"), "reader-i-0abc-x1");
        for odd in ["a--b", "-a", "a b", "ä", &"x".repeat(80), "a/b"] {
            let made = id(odd);
            assert!(
                made.len() == 41 && made.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{odd}: {made}"
            );
        }
        assert_ne!(id("a--b"), id("a---b"));
    }

    #[test]
    fn host_names_are_labels() {
        let name = hostname(&ReplicaId::new(format!("Reader_{}.x", "y".repeat(80))).unwrap());
        assert!(name.len() <= 63 && name.starts_with("reader-y"));
    }
}
