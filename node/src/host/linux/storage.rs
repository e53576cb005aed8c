//! Volumes and ephemeral storage of replicas: what is claimed and made is recorded, so that it is released even by a
//! daemon that knows nothing else of the replica.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::assignment::Assignment;
use berth_api::id::{ClusterId, ReplicaId};
use berth_api::time::Timestamp;
use berth_api::volume::{EPHEMERAL_MOUNT_PATH, VolumeTarget};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{Fault, HostError, blocking, container_id, infrastructure, now};
use crate::config::Config;
use crate::host::ephemeral::{Admission, Ephemeral, EphemeralConfig};
use crate::host::spec::{Access, BindMount};
use crate::host::volume::{HostpathVolumes, VolumeError, VolumeOwner};

/// A claim on a volume, kept in `state_dir` until it is released.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claimed {
    replica_id: ReplicaId,
    path: String,
    owner: VolumeOwner,
    since: Timestamp,
}

#[derive(Debug)]
pub(super) struct Storage {
    cluster_id: ClusterId,
    volumes: HostpathVolumes,
    records: PathBuf,
    ephemeral_config: EphemeralConfig,
    /// Opened by the first replica that wants any: its trial costs a mount.
    ephemeral: OnceCell<Ephemeral>,
    sources: Arc<Mutex<BTreeMap<ReplicaId, Sources>>>,
}

/// Directories of the machine that a replica sees.
#[derive(Debug, Clone, Default)]
struct Sources {
    volume: Option<PathBuf>,
    shared: Vec<PathBuf>,
    ephemeral: Option<PathBuf>,
}

impl Storage {
    pub(super) fn new(config: &Config) -> Self {
        let admission = if config.ephemeral_overcommit {
            Admission::Overcommitted
        } else {
            Admission::Reserved
        };
        Self {
            cluster_id: config.cluster_id.clone(),
            volumes: HostpathVolumes::new(config.machine_id.clone(), config.hostpath_root.clone()),
            records: config.state_dir.join("volumes"),
            ephemeral_config: EphemeralConfig {
                dir: config.state_dir.join("ephemeral"),
                admission,
            },
            ephemeral: OnceCell::new(),
            sources: Arc::default(),
        }
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Sources>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ephemeral(&self) -> Result<&Ephemeral, HostError> {
        let open = || Ephemeral::open(self.ephemeral_config.clone());
        self.ephemeral
            .get_or_try_init(open)
            .await
            .map_err(|error| infrastructure(&error))
    }

    /// The mounts of a replica whose storage was prepared.
    pub(super) fn mounts(&self, assignment: &Assignment) -> Vec<BindMount> {
        let sources = self
            .sources()
            .get(&assignment.replica_id)
            .cloned()
            .unwrap_or_default();
        let mount = |source: PathBuf, destination: &str| BindMount {
            source,
            destination: destination.into(),
            access: Access::ReadWrite,
        };
        let volume = sources.volume.zip(assignment.volume.as_ref());
        let volume = volume.map(|(source, wanted)| mount(source, &wanted.mount_path));
        let shared = sources.shared.into_iter().zip(&assignment.shared_mounts);
        let shared = shared.map(|(source, wanted)| mount(source, &wanted.mount_path));
        let ephemeral = sources
            .ephemeral
            .map(|source| mount(source, EPHEMERAL_MOUNT_PATH));
        volume.into_iter().chain(shared).chain(ephemeral).collect()
    }

    pub(super) async fn prepare_volumes(&self, assignment: &Assignment) -> Result<(), HostError> {
        let wanted = match &assignment.volume {
            None => None,
            Some(mount) => {
                let VolumeTarget::Hostpath { path } = &mount.volume else {
                    let kind = mount.volume.kind();
                    return Err(HostError::user(format!(
                        "volumes of type {kind} are not served by this machine"
                    )));
                };
                let owner = VolumeOwner {
                    cluster_id: self.cluster_id.clone(),
                    container: assignment.container.clone(),
                    ordinal: assignment.ordinal.unwrap_or_default(),
                };
                let id = assignment.replica_id.clone();
                Some(Claimed {
                    replica_id: id,
                    path: path.clone(),
                    owner,
                    since: now(),
                })
            }
        };
        let shared: Vec<String> = assignment
            .shared_mounts
            .iter()
            .map(|mount| mount.source.clone())
            .collect();
        let (volumes, record) = (self.volumes.clone(), self.record(&assignment.replica_id));
        let (volume, shared) = blocking(move || {
            let volume = wanted
                .map(|claimed| claim(&volumes, &claimed, &record))
                .transpose()?;
            let shared = shared
                .iter()
                .map(|path| volumes.shared(path).map_err(|error| of_volume(&error)));
            Ok((volume, shared.collect::<Result<Vec<_>, _>>()?))
        })
        .await?;
        let mut sources = self.sources();
        let entry = sources.entry(assignment.replica_id.clone()).or_default();
        entry.volume = volume;
        entry.shared = shared;
        Ok(())
    }

    pub(super) async fn create_ephemeral(&self, assignment: &Assignment) -> Result<(), HostError> {
        let Some(size) = assignment.ephemeral_storage else {
            return Ok(());
        };
        let store = self.ephemeral().await?;
        let path = store
            .create(&assignment.replica_id, size)
            .await
            .map_err(|error| infrastructure(&error))?;
        self.sources()
            .entry(assignment.replica_id.clone())
            .or_default()
            .ephemeral = Some(path);
        Ok(())
    }

    pub(super) async fn remove_ephemeral(&self, id: &ReplicaId) -> Result<(), HostError> {
        // A store that was never made holds nothing.
        if !self.ephemeral_config.dir.exists() {
            return Ok(());
        }
        self.ephemeral()
            .await?
            .remove(id)
            .await
            .map_err(|error| infrastructure(&error))?;
        if let Some(sources) = self.sources().get_mut(id) {
            sources.ephemeral = None;
        }
        Ok(())
    }

    pub(super) async fn release_volumes(&self, id: &ReplicaId) -> Result<(), HostError> {
        let (volumes, record) = (self.volumes.clone(), self.record(id));
        blocking(move || release(&volumes, &record)).await?;
        self.sources().remove(id);
        Ok(())
    }

    pub(super) async fn sweep(&self, keep: &BTreeSet<ReplicaId>) -> Result<(), HostError> {
        if self.ephemeral_config.dir.exists() {
            let store = self.ephemeral().await?;
            let found = store.list().await.map_err(|error| infrastructure(&error))?;
            for leftover in found
                .into_iter()
                .filter(|found| !keep.contains(&found.replica_id))
            {
                tracing::warn!(replica_id = %leftover.replica_id, "removing leftover ephemeral storage");
                store
                    .remove(&leftover.replica_id)
                    .await
                    .map_err(|error| infrastructure(&error))?;
            }
        }
        let (records, keep, volumes) = (self.records.clone(), keep.clone(), self.volumes.clone());
        blocking(move || {
            let Ok(entries) = std::fs::read_dir(&records) else {
                return Ok(());
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if read(&path).is_some_and(|claimed| !keep.contains(&claimed.replica_id)) {
                    release(&volumes, &path)?;
                }
            }
            Ok(())
        })
        .await
    }

    fn record(&self, id: &ReplicaId) -> PathBuf {
        self.records.join(format!("{}.json", container_id(id)))
    }
}

/// Records the intent, then claims: a crash between the two leaves a record of nothing, which is released without harm.
fn claim(volumes: &HostpathVolumes, claimed: &Claimed, record: &PathBuf) -> Result<PathBuf, HostError> {
    let failed =
        |error: std::io::Error| HostError::infrastructure(format!("writing {}: {error}", record.display()));
    if let Some(dir) = record.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let part = record.with_extension("part");
    let text = serde_json::to_vec(claimed).expect("a record has text keys");
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, record))
        .map_err(failed)?;
    let volume = volumes
        .claim(&claimed.path, &claimed.owner)
        .map_err(|error| of_volume(&error))?;
    if let Some(former) = &volume.taken_over_from {
        tracing::warn!(replica_id = %claimed.replica_id, machine_id = %former, "took over a volume's claim");
    }
    Ok(volume.path)
}

fn release(volumes: &HostpathVolumes, record: &PathBuf) -> Result<(), HostError> {
    let Some(claimed) = read(record) else {
        return Ok(());
    };
    volumes
        .release(&claimed.path, &claimed.owner)
        .map_err(|error| of_volume(&error))?;
    std::fs::remove_file(record)
        .map_err(|error| HostError::infrastructure(format!("removing {}: {error}", record.display())))
}

fn read(record: &PathBuf) -> Option<Claimed> {
    let bytes = std::fs::read(record).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(claimed) => Some(claimed),
        Err(error) => {
            tracing::warn!(path = %record.display(), error = %error, "dropped an unreadable record of a volume");
            drop(std::fs::remove_file(record));
            None
        }
    }
}

fn of_volume(error: &VolumeError) -> HostError {
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
