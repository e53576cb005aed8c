//! The real machine: containerd, the kernel's network, mounts and the log keeper behind the verbs of [`Host`].
//!
//! Input: assignments. Output: what became of them. Owner: `main`; the executor calls it from many steps at once, one
//! per replica. Failure: every error is shown to people with its whole chain; nothing here retries.
//!
//! A replica's containerd id is its own id (or a hash of it); its labels name it and say what it was made from, so that
//! a daemon with an empty database finds everything again.

mod bundle;
mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::assignment::Assignment;
use berth_api::id::{ClusterId, MachineId, ReplicaId};
use berth_api::machine::AssignedNetwork;
use berth_api::units::Bytes;
use berth_api::volume::{EPHEMERAL_MOUNT_PATH, VolumeTarget};
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::broadcast::{self, error::RecvError};

use super::containerd::{
    ContainerPlan, Runtime, RuntimeConfig, RuntimeContainer, RuntimeError, RuntimeErrorClass, RuntimeEvent,
    SignalTarget, TaskStatus,
};
use super::ephemeral::{Ephemeral, EphemeralConfig};
use super::firewall::{Firewall, FirewallState};
use super::image::{self, ImageError, Images, ImagesConfig, PulledImage};
use super::net::{Network, NetworkConfig};
use super::spec::{self, Access, BindMount, SpecInput};
use super::volume::{HostpathVolumes, VolumeError, VolumeOwner};
use super::{
    Change, Exit, Fault, Host, HostError, ImagePresence, NetworkWish, Observed, ObservedContainer,
    ObservedTask, ProgressSink, PullProgress, Signal, UsageSample,
};
use crate::config::Config;
use bundle::{Bundle, HeldVolume, container_id};
use output::Outputs;

const LABEL_REPLICA: &str = "berth.dev/replica-id";
const LABEL_CLUSTER: &str = "berth.dev/cluster-id";
const LABEL_MACHINE: &str = "berth.dev/machine-id";
const LABEL_CONTAINER: &str = "berth.dev/container";
const LABEL_ORDINAL: &str = "berth.dev/ordinal";
const LABEL_REVISION: &str = "berth.dev/revision";
const LABEL_RUN: &str = "berth.dev/run";
const LABEL_IP: &str = "berth.dev/ip";
const LABEL_STOP_SIGNAL: &str = "berth.dev/stop-signal";
const LABEL_SCHEMA: &str = "berth.dev/schema";
const SCHEMA: &str = "1";

/// Processes and threads of one replica.
const PIDS_MAX: u32 = 4096;
/// Directories on hung storage must not be waited for.
const VOLUME_DEADLINE: Duration = Duration::from_secs(30);
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

/// What is known of a container beside what containerd says at the moment.
#[derive(Debug, Clone)]
struct Known {
    replica_id: ReplicaId,
    stop_signal: u32,
}

/// The machine that the daemon runs on.
#[derive(Debug)]
pub struct LinuxHost {
    cluster_id: ClusterId,
    machine_id: MachineId,
    cgroup_parent: String,
    bundles: PathBuf,
    gateway: Ipv4Addr,
    nofile_max: u64,
    runtime: Runtime,
    events: tokio::sync::Mutex<broadcast::Receiver<RuntimeEvent>>,
    images: Images,
    /// Images that a step has ensured, by the text of the assignment.
    ensured: Mutex<BTreeMap<String, PulledImage>>,
    network: Network,
    firewall: tokio::sync::Mutex<Firewall>,
    /// What the firewall must hold.
    rules: Mutex<FirewallState>,
    /// None: this machine takes no hostpath volumes.
    volumes: Option<HostpathVolumes>,
    ephemeral: Ephemeral,
    outputs: Outputs,
    /// By containerd's id.
    known: Mutex<BTreeMap<String, Known>>,
}

impl LinuxHost {
    /// Opens everything on this machine. `container_cidr` of the whole cluster is reached without masquerade.
    ///
    /// # Errors
    /// When the network cannot be made or a directory is not writable. containerd need not be there yet.
    pub async fn open(config: &Config, network: &AssignedNetwork) -> Result<Self, HostError> {
        let runtime = Runtime::connect(RuntimeConfig::new(
            config.containerd_socket.clone(),
            config.containerd_namespace.clone(),
        ))
        .map_err(|error| HostError::infrastructure_chain(&error))?;
        let images = Images::new(
            &runtime,
            ImagesConfig {
                insecure_registries: config.insecure_registries.clone(),
                ..ImagesConfig::default()
            },
        )
        .map_err(|error| HostError::infrastructure_chain(&error))?;
        let opened = Network::open(NetworkConfig {
            machine_id: config.machine_id.clone(),
            cidr: network.cidr,
            gateway: network.gateway,
            netns_dir: config.run_dir.join("netns"),
            uplink: None,
            mtu: None,
        })
        .await
        .map_err(|error| HostError::infrastructure_chain(&error))?;
        let ephemeral = Ephemeral::open(EphemeralConfig {
            dir: config.state_dir.join("ephemeral"),
            admission: config.ephemeral_admission,
        })
        .await
        .map_err(|error| HostError::infrastructure_chain(&error))?;
        let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Ok(Self {
            cluster_id: config.cluster_id.clone(),
            machine_id: config.machine_id.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            bundles: config.run_dir.join("replicas"),
            gateway: network.gateway,
            nofile_max: nofile.maximum.unwrap_or(u64::MAX),
            events: tokio::sync::Mutex::new(runtime.subscribe()),
            runtime,
            images,
            ensured: Mutex::default(),
            firewall: tokio::sync::Mutex::new(Firewall::new()),
            rules: Mutex::new(FirewallState {
                cidr: network.cidr,
                gateway: network.gateway,
                mesh: vec![],
                replicas: BTreeMap::new(),
                host_ports: BTreeMap::new(),
            }),
            network: opened,
            volumes: config
                .hostpath_root
                .clone()
                .map(|root| HostpathVolumes::new(config.machine_id.clone(), Some(root))),
            ephemeral,
            outputs: Outputs::new(config.keeper_socket.clone()),
            known: Mutex::default(),
        })
    }

    /// The connection to containerd, for its verdict in the status.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Full compare of the network with what was set; repairs what somebody else changed and says what it was.
    ///
    /// # Errors
    /// When the kernel refuses a repair.
    pub async fn check_network(&self) -> Result<Vec<String>, HostError> {
        let drift = self
            .network
            .check()
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        let mut repaired: Vec<String> = drift.into_iter().map(|drift| drift.what).collect();
        let checked = self.firewall.lock().await.check().await;
        match checked.map_err(|error| HostError::infrastructure_chain(&error))? {
            super::firewall::Checked::Repaired => repaired.push("the firewall's table".into()),
            super::firewall::Checked::AsExpected => {}
        }
        Ok(repaired)
    }

    /// Ends what runs in the background. Replicas are not touched.
    pub async fn shutdown(&self) {
        self.images.shutdown().await;
        self.runtime.shutdown().await;
    }

    fn rules(&self) -> MutexGuard<'_, FirewallState> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensured(&self) -> MutexGuard<'_, BTreeMap<String, PulledImage>> {
        self.ensured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the firewall to the rules. Whoever waits here while another call writes finds its own change written.
    async fn apply_rules(&self) -> Result<(), HostError> {
        let mut firewall = self.firewall.lock().await;
        let rules = self.rules().clone();
        firewall
            .apply(&rules)
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))
    }

    async fn image(&self, text: &str) -> Result<PulledImage, HostError> {
        if let Some(image) = self.ensured().get(text) {
            return Ok(image.clone());
        }
        let image = self
            .images
            .ensure(text, |_| {})
            .await
            .map_err(|error| image_error(&error))?;
        self.ensured().insert(text.to_owned(), image.clone());
        Ok(image)
    }

    /// A call on the blocking pool with a deadline: directories may lie on storage that hangs.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        match tokio::time::timeout(VOLUME_DEADLINE, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(HostError::infrastructure(format!("{what} was broken off"))),
            Err(_) => Err(HostError::infrastructure(format!(
                "{what} took longer than {} s",
                VOLUME_DEADLINE.as_secs()
            ))),
        }
    }

    fn labels(&self, assignment: &Assignment, run: u32, stop_signal: u32) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (LABEL_REPLICA.to_owned(), assignment.replica_id.to_string()),
            (LABEL_CLUSTER.to_owned(), self.cluster_id.to_string()),
            (LABEL_MACHINE.to_owned(), self.machine_id.to_string()),
            (LABEL_CONTAINER.to_owned(), assignment.container.to_string()),
            (LABEL_REVISION.to_owned(), assignment.digest().to_string()),
            (LABEL_RUN.to_owned(), run.to_string()),
            (LABEL_IP.to_owned(), assignment.ip.to_string()),
            (LABEL_STOP_SIGNAL.to_owned(), stop_signal.to_string()),
            (LABEL_SCHEMA.to_owned(), SCHEMA.to_owned()),
        ]);
        if let Some(ordinal) = assignment.ordinal {
            labels.insert(LABEL_ORDINAL.to_owned(), ordinal.to_string());
        }
        labels
    }

    fn plan(
        &self,
        assignment: &Assignment,
        run: u32,
        image: PulledImage,
        pipes: output::Pipes,
    ) -> Result<ContainerPlan, HostError> {
        let id = container_id(&assignment.replica_id);
        let bundle = Bundle::new(&self.bundles, &assignment.replica_id);
        let cgroup_path = format!("{}/{id}", self.cgroup_parent.trim_end_matches('/'));
        let spec = spec::oci_spec(&SpecInput {
            command: assignment.command.clone(),
            env: assignment.env.clone(),
            image: image.config.clone(),
            user: image.user.clone(),
            hostname: bundle::hostname(&assignment.replica_id),
            network_namespace: self.netns(&assignment.replica_id),
            cgroup_path: cgroup_path.clone(),
            cpu: assignment.cpu,
            memory: assignment.memory,
            pids_max: PIDS_MAX,
            nofile_max: self.nofile_max,
            resolv_conf: bundle.resolv_conf(),
            hosts: bundle.hosts(),
            hostname_file: bundle.hostname(),
            mounts: self.mounts(assignment)?,
        })
        .map_err(|error| HostError::chain(Fault::User, &error))?;
        let stop_signal = image.config.stop_signal_number();
        Ok(ContainerPlan {
            labels: self.labels(assignment, run, stop_signal),
            id,
            image,
            spec,
            stdout: pipes.stdout,
            stderr: pipes.stderr,
            cgroup_path,
        })
    }

    fn netns(&self, replica_id: &ReplicaId) -> PathBuf {
        self.network
            .config()
            .netns_dir
            .join(self.network.interface(replica_id))
    }

    fn mounts(&self, assignment: &Assignment) -> Result<Vec<BindMount>, HostError> {
        let bind = |source: PathBuf, destination: &str| BindMount {
            source,
            destination: destination.into(),
            access: Access::ReadWrite,
        };
        let mut mounts = Vec::new();
        if let Some(mount) = &assignment.volume {
            mounts.push(bind(hostpath(&mount.volume)?.into(), &mount.mount_path));
        }
        if assignment.ephemeral_storage.is_some() {
            mounts.push(bind(
                self.ephemeral.mount_path(&assignment.replica_id),
                EPHEMERAL_MOUNT_PATH,
            ));
        }
        for shared in &assignment.shared_mounts {
            mounts.push(bind(shared.source.clone().into(), &shared.mount_path));
        }
        Ok(mounts)
    }

    /// What the runtime knows of a container that carries our labels; None for others and for unreadable labels.
    fn observed(&self, container: RuntimeContainer) -> Option<ObservedContainer> {
        let label = |name: &str| container.labels.get(name);
        if label(LABEL_CLUSTER).map(String::as_str) != Some(self.cluster_id.as_str()) {
            return None;
        }
        let replica_id = ReplicaId::new(label(LABEL_REPLICA)?.clone()).ok()?;
        let stop_signal = label(LABEL_STOP_SIGNAL)
            .and_then(|text| text.parse().ok())
            .unwrap_or(SIGTERM);
        let observed = ObservedContainer {
            replica_id: replica_id.clone(),
            revision: label(LABEL_REVISION).cloned().unwrap_or_default(),
            run: label(LABEL_RUN).and_then(|text| text.parse().ok()).unwrap_or(1),
            task: container
                .task
                .map_or(ObservedTask::None, |task| match task.status {
                    TaskStatus::Created => ObservedTask::Created,
                    TaskStatus::Running => ObservedTask::Running { pid: task.pid },
                    TaskStatus::Stopped(exit) => ObservedTask::Exited(exit.into()),
                    TaskStatus::Unanswered => ObservedTask::Unknown {
                        reason: "its shim does not answer".into(),
                    },
                }),
            created_at: Some(container.created_at),
        };
        self.known().insert(
            container.id,
            Known {
                replica_id,
                stop_signal,
            },
        );
        Some(observed)
    }
}

impl Host for LinuxHost {
    async fn observe(&self) -> Result<Observed, HostError> {
        let listed = self.runtime.list().await.map_err(|error| runtime_error(&error))?;
        let containers: Vec<_> = listed
            .into_iter()
            .filter_map(|container| self.observed(container))
            .collect();
        for container in &containers {
            // A daemon that came back holds the pipes again. Without a keeper they stay as they are.
            if let Err(error) = self.outputs.open(&container.replica_id, container.run).await {
                tracing::warn!(replica_id = %container.replica_id, %error, "cannot hold the output of a replica");
            }
        }
        Ok(Observed { containers })
    }

    async fn changed(&self) -> Change {
        let mut events = self.events.lock().await;
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::Exit { id, pid, exit }) => {
                    let replica_id = self.known().get(&id).map(|known| known.replica_id.clone());
                    return replica_id.map_or(Change::Resync, |replica_id| Change::Exited {
                        replica_id,
                        pid,
                        exit: exit.into(),
                    });
                }
                Ok(RuntimeEvent::Oom { .. } | RuntimeEvent::Lost) => {}
                Ok(RuntimeEvent::Reconnected) | Err(RecvError::Lagged(_)) => return Change::Resync,
                // The runtime is shut down: nothing changes any more.
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    async fn ensure_image(&self, text: &str, progress: ProgressSink) -> Result<ImagePresence, HostError> {
        let pulled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&pulled);
        let image = self
            .images
            .ensure(text, move |now| {
                seen.store(now.bytes_total > 0, Ordering::Relaxed);
                progress.report(PullProgress {
                    done: Bytes::new(now.bytes_done),
                    total: Bytes::new(now.bytes_total),
                });
            })
            .await
            .map_err(|error| image_error(&error))?;
        self.ensured().insert(text.to_owned(), image);
        Ok(if pulled.load(Ordering::Relaxed) {
            ImagePresence::Pulled
        } else {
            ImagePresence::Present
        })
    }

    async fn prepare_volumes(&self, assignment: &Assignment) -> Result<(), HostError> {
        let mut held = None;
        if let Some(mount) = &assignment.volume {
            held = Some(HeldVolume {
                replica_id: assignment.replica_id.clone(),
                path: hostpath(&mount.volume)?.to_owned(),
                owner: VolumeOwner {
                    cluster_id: self.cluster_id.clone(),
                    container: assignment.container.clone(),
                    ordinal: assignment.ordinal.unwrap_or(0),
                },
            });
        }
        if held.is_none() && assignment.shared_mounts.is_empty() {
            return Ok(());
        }
        let Some(volumes) = self.volumes.clone() else {
            return Err(HostError::user(
                "this machine takes no hostpath volumes: it has no hostpath_root",
            ));
        };
        let bundle = Bundle::new(&self.bundles, &assignment.replica_id);
        let shared = assignment.shared_mounts.clone();
        self.blocking("making the volumes", move || {
            if let Some(held) = held {
                bundle
                    .record_volume(&held)
                    .map_err(|error| file_error("recording the volume", &error))?;
                volumes
                    .claim(&held.path, &held.owner)
                    .map_err(|error| volume_error(&error))?;
            }
            for mount in shared {
                volumes
                    .shared(&mount.source)
                    .map_err(|error| volume_error(&error))?;
            }
            Ok(())
        })
        .await
    }

    async fn create_ephemeral(&self, assignment: &Assignment) -> Result<(), HostError> {
        if let Some(size) = assignment.ephemeral_storage {
            self.ephemeral
                .create(&assignment.replica_id, size)
                .await
                .map_err(|error| HostError::infrastructure_chain(&error))?;
        }
        Ok(())
    }

    async fn attach_network(&self, assignment: &Assignment) -> Result<(), HostError> {
        let ip = ipv4(assignment.ip)?;
        let attachment = self
            .network
            .attach(&assignment.replica_id, ip)
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        Bundle::new(&self.bundles, &assignment.replica_id)
            .write_files(assignment, self.gateway)
            .map_err(|error| file_error("writing the replica's files", &error))?;
        self.rules().replicas.insert(attachment.interface, ip);
        self.apply_rules().await
    }

    async fn open_log(&self, replica_id: &ReplicaId, run: u32) -> Result<(), HostError> {
        self.outputs.open(replica_id, run).await.map(|_| ())
    }

    async fn create(&self, assignment: &Assignment, run: u32) -> Result<(), HostError> {
        let image = self.image(&assignment.image).await?;
        let pipes = self.outputs.open(&assignment.replica_id, run).await?;
        let plan = self.plan(assignment, run, image, pipes)?;
        let stop_signal = plan.image.config.stop_signal_number();
        let replica_id = assignment.replica_id.clone();
        self.known().insert(
            plan.id.clone(),
            Known {
                replica_id,
                stop_signal,
            },
        );
        match self.runtime.create(&plan).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, RuntimeError::ImageGone { .. }) {
                    self.images.forget(&assignment.image);
                    self.ensured().remove(&assignment.image);
                }
                Err(runtime_error(&error))
            }
        }
    }

    async fn start(&self, replica_id: &ReplicaId, _run: u32) -> Result<u32, HostError> {
        self.runtime
            .start(&container_id(replica_id))
            .await
            .map_err(|error| runtime_error(&error))
    }

    async fn signal(&self, replica_id: &ReplicaId, signal: Signal) -> Result<(), HostError> {
        let id = container_id(replica_id);
        let (number, target) = match signal {
            Signal::Term => {
                let stop_signal = self.known().get(&id).map_or(SIGTERM, |known| known.stop_signal);
                (stop_signal, SignalTarget::FirstProcess)
            }
            Signal::Kill => (SIGKILL, SignalTarget::AllProcesses),
        };
        match self.runtime.signal(&id, number, target).await {
            Err(error) if error.class() != RuntimeErrorClass::NotFound => Err(runtime_error(&error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn delete(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        let id = container_id(replica_id);
        self.runtime
            .delete(&id)
            .await
            .map_err(|error| runtime_error(&error))?;
        self.known().remove(&id);
        Ok(())
    }

    async fn detach_network(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.network
            .detach(replica_id)
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        self.rules().replicas.remove(&self.network.interface(replica_id));
        self.apply_rules().await
    }

    async fn remove_ephemeral(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.ephemeral
            .remove(replica_id)
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))
    }

    async fn release_volumes(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        let bundle = Bundle::new(&self.bundles, replica_id);
        let volumes = self.volumes.clone();
        self.blocking("releasing the volumes", move || {
            let held = bundle
                .held_volume()
                .map_err(|error| file_error("reading the volume's record", &error))?;
            if let (Some(held), Some(volumes)) = (held, volumes) {
                volumes
                    .release(&held.path, &held.owner)
                    .map_err(|error| volume_error(&error))?;
            }
            bundle
                .remove()
                .map_err(|error| file_error("removing the replica's files", &error))
        })
        .await
    }

    async fn close_log(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        self.outputs.close(replica_id).await
    }

    async fn set_network(&self, wish: &NetworkWish) -> Result<(), HostError> {
        let mut peers = Vec::new();
        for peer in &wish.peers {
            let IpNet::V4(cidr) = peer.cidr else {
                return Err(HostError::infrastructure(format!("{} is not IPv4", peer.cidr)));
            };
            peers.push(super::net::Peer {
                cidr,
                underlay_ip: ipv4(peer.underlay_ip)?,
            });
        }
        let mesh: Vec<Ipv4Net> = peers.iter().map(|peer| peer.cidr).collect();
        let mut host_ports = BTreeMap::new();
        for forwarded in &wish.host_ports {
            let target = SocketAddrV4::new(ipv4(forwarded.target_ip)?, forwarded.target_port);
            host_ports.insert(forwarded.port, target);
        }
        let mut replicas = BTreeMap::new();
        for (replica_id, assignment) in &wish.attached {
            replicas.insert(self.network.interface(replica_id), ipv4(assignment.ip)?);
        }
        self.network
            .set_peers(&peers)
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        {
            let mut rules = self.rules();
            rules.mesh = mesh;
            rules.host_ports = host_ports;
            rules.replicas.extend(replicas);
        }
        self.apply_rules().await
    }

    async fn usage(&self, replicas: &[ReplicaId]) -> Result<BTreeMap<ReplicaId, UsageSample>, HostError> {
        let sample = |replica_id: &ReplicaId| {
            let usage = self.runtime.usage(&container_id(replica_id))?;
            let sample = UsageSample {
                cpu_total_micros: usage.cpu_nanos / 1000,
                memory: Bytes::new(usage.memory_bytes),
            };
            Some((replica_id.clone(), sample))
        };
        Ok(replicas.iter().filter_map(sample).collect())
    }

    async fn sweep(&self, keep: &BTreeSet<ReplicaId>) -> Result<(), HostError> {
        let attached = self
            .network
            .list()
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        let mounted = self
            .ephemeral
            .list()
            .await
            .map_err(|error| HostError::infrastructure_chain(&error))?;
        let held = Bundle::all_held(&self.bundles)
            .map_err(|error| file_error("reading the volumes' records", &error))?;
        for attachment in attached
            .iter()
            .filter(|attachment| !keep.contains(&attachment.replica_id))
        {
            self.detach_network(&attachment.replica_id).await?;
        }
        for volume in mounted.iter().filter(|volume| !keep.contains(&volume.replica_id)) {
            self.remove_ephemeral(&volume.replica_id).await?;
        }
        for volume in held.iter().filter(|volume| !keep.contains(&volume.replica_id)) {
            self.release_volumes(&volume.replica_id).await?;
        }
        Ok(())
    }
}

impl From<super::containerd::Exit> for Exit {
    fn from(exit: super::containerd::Exit) -> Self {
        Self {
            status: exit.code,
            // A child killed for memory need not end the replica: a clean end is none.
            out_of_memory: exit.oom_kills > 0 && exit.code != 0,
            at: exit.at,
        }
    }
}

fn hostpath(volume: &VolumeTarget) -> Result<&str, HostError> {
    match volume {
        VolumeTarget::Hostpath { path } => Ok(path),
        VolumeTarget::Aws { .. } | VolumeTarget::Gcp { .. } | VolumeTarget::Azure { .. } => {
            Err(HostError::user(format!(
                "volume {} is a disk of {}; this machine mounts hostpath volumes only",
                volume.identity(),
                volume.kind()
            )))
        }
    }
}

fn ipv4(address: IpAddr) -> Result<Ipv4Addr, HostError> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(HostError::infrastructure(format!(
            "{address} is IPv6; the machine's network is IPv4"
        ))),
    }
}

fn file_error(doing: &str, error: &std::io::Error) -> HostError {
    HostError::infrastructure(format!("{doing}: {error}"))
}

fn volume_error(error: &VolumeError) -> HostError {
    let fault = match error {
        VolumeError::NotNormal { .. } | VolumeError::Outside { .. } | VolumeError::NotADirectory { .. } => {
            Fault::User
        }
        VolumeError::Claimed { .. } | VolumeError::UnreadableClaim { .. } | VolumeError::File { .. } => {
            Fault::Infrastructure
        }
    };
    HostError::chain(fault, error)
}

fn image_error(error: &ImageError) -> HostError {
    let fault = match error.fault() {
        image::Fault::Image => Fault::User,
        image::Fault::Infrastructure => Fault::Infrastructure,
    };
    HostError::chain(fault, error)
}

fn runtime_error(error: &RuntimeError) -> HostError {
    let fault = if error.is_bad_program() {
        Fault::User
    } else {
        Fault::Infrastructure
    };
    HostError::chain(fault, error)
}
