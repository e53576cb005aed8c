//! What the world means for others: assignment sets, the directory of names, the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::assignment::{Assignment, AssignmentSet, Stop, VolumeMount};
use berth_api::container::{ContainerSpec, ORDINAL_VARIABLE, STOP_GRACE};
use berth_api::id::{MachineId, ReplicaId};
use berth_api::link::Peer;

use super::{Now, Observed, Readiness, Replica, World};
use crate::liveness::{self, Limits};

impl World {
    /// Everything that a machine must run and stop; none for a machine that is not registered.
    #[must_use]
    pub fn assignment_set(&self, machine_id: &MachineId) -> Option<AssignmentSet> {
        let machine = self.machines.get(machine_id)?;
        let (live, stopping): (Vec<_>, Vec<_>) = self.replicas_on(machine_id).partition(|r| r.is_live());
        Some(AssignmentSet {
            cluster_id: self.spec.cluster_id.clone(),
            machine_id: machine_id.clone(),
            epoch: self.epoch,
            generation: machine.generation,
            replicas: live.into_iter().map(|replica| replica.assignment(self)).collect(),
            stops: stopping
                .into_iter()
                .filter_map(|replica| {
                    let stopping = replica.stopping?;
                    Some(Stop {
                        replica_id: replica.replica_id.clone(),
                        reason: stopping.cause.wire(),
                        since: stopping.since,
                    })
                })
                .collect(),
        })
    }

    /// Which of the replicas that run on a machine unlisted may be stopped there: those that the world does not want on
    /// this machine. Ask only for what a machine reported together with its present set accepted.
    #[must_use]
    pub fn confirmed_stops(&self, machine_id: &MachineId, unlisted: &BTreeSet<ReplicaId>) -> Vec<ReplicaId> {
        let is_wanted = |id: &ReplicaId| {
            self.replica(id)
                .is_some_and(|replica| replica.is_live() && replica.machine_id == *machine_id)
        };
        unlisted.iter().filter(|id| !is_wanted(id)).cloned().collect()
    }

    /// What DNS answers: every name of every container, with the addresses of its ready replicas. A name without a
    /// ready replica is there and empty.
    ///
    /// While a freeze holds, the last word about replicas of silent machines counts on: they most likely still serve.
    #[must_use]
    pub fn directory(&self, observed: &Observed, limits: &Limits, now: Now) -> BTreeMap<String, Vec<IpAddr>> {
        let is_frozen = liveness::freeze(self, observed, limits, now).is_some();
        let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for container in self.containers.values().filter(|c| c.deleted_since.is_none()) {
            names.entry(container.spec.name.service_name()).or_default();
            if container.spec.stateful {
                for ordinal in 0..container.count {
                    names
                        .entry(container.spec.name.ordinal_name(ordinal))
                        .or_default();
                }
            }
        }
        for replica in self.replicas().values().filter(|replica| replica.is_live()) {
            let is_ready = observed.readiness(self, replica) == Readiness::Ready
                || (is_frozen && observed.status(replica).is_some_and(|status| status.ready));
            if !is_ready {
                continue;
            }
            let service = replica.container.service_name();
            let ordinal = replica
                .ordinal
                .map(|ordinal| replica.container.ordinal_name(ordinal));
            for name in std::iter::once(service).chain(ordinal) {
                if let Some(addresses) = names.get_mut(&name) {
                    addresses.push(replica.ip);
                }
            }
        }
        for addresses in names.values_mut() {
            addresses.sort_unstable();
        }
        names
    }

    /// Every machine of the cluster as its neighbours reach it, ordered by id.
    #[must_use]
    pub fn mesh(&self) -> Vec<Peer> {
        let peer = |machine: &super::Machine| Peer {
            machine_id: machine.spec.machine_id.to_string(),
            cidr: machine.network.cidr.to_string(),
            underlay_ip: machine.spec.vpc_ip.to_string(),
            wireguard_public_key: machine.spec.wireguard_public_key.clone(),
            wireguard_endpoint: machine.spec.wireguard_endpoint.clone(),
        };
        self.machines.values().map(peer).collect()
    }
}

/// What a replica runs under a declaration.
pub(super) fn content(spec: &ContainerSpec, replica: &Replica) -> Assignment {
    let mut env = spec.env.clone();
    if let Some(ordinal) = replica.ordinal {
        env.insert(ORDINAL_VARIABLE.into(), ordinal.to_string());
    }
    let volume = replica.ordinal.and_then(|ordinal| spec.volume(ordinal));
    Assignment {
        replica_id: replica.replica_id.clone(),
        container: spec.name.clone(),
        ordinal: replica.ordinal,
        image: spec.image.clone(),
        command: spec.command.clone(),
        env,
        cpu: spec.resources.cpu,
        memory: spec.resources.memory,
        granted: replica.granted,
        ephemeral_storage: spec.resources.ephemeral_storage,
        gpu: spec.resources.gpu.clone(),
        gpu_devices: replica.devices.clone(),
        ip: replica.ip,
        ports: spec.ports.clone(),
        host_port: replica.host_port,
        volume: volume.map(|volume| VolumeMount {
            volume: volume.volume.clone(),
            mount_path: volume.mount_path().to_owned(),
        }),
        shared_mounts: spec.shared_mounts.clone(),
        health_check: spec.health_check.clone(),
        probes: spec.probes.clone(),
        load_balancer_target: spec.load_balancer_target.clone(),
        service_account: spec.service_account.clone(),
        stop_grace_ms: u64::try_from(STOP_GRACE.as_millis()).expect("ten seconds"),
        drain_ms: spec.drain_seconds.map(|seconds| u64::from(seconds) * 1000),
    }
}
