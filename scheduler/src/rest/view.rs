//! Replies made of the world and of what nodes said. Pure.

use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::machine::{GPU_MILLI, GpuDevice};
use berth_api::replica::WireReplicaStatus;
use berth_api::replica::{ReplicaStatus, Wait};
use berth_api::rest::cluster::{
    BytesAggregate, ClusterCapacity, CpuAggregate, FreezeView, GetClusterReply, HeldStopsView,
};
use berth_api::rest::container::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerSummary, GetContainerReply, ReplicaInfo,
};
use berth_api::rest::node::{
    BytesSummary, ClusterState, CpuSummary, HeartbeatReply, MachineInfo, MachineSummary, ReplicaAssignment,
    ReplicaMetrics,
};
use berth_api::rest::operator::{ClusterSummary, ReplicaView};
use berth_api::rest::rollout::RolloutPhase;
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};

use crate::decide::Report;
use crate::entry::MachineHealthState;
use crate::reconcile::Squeeze;
use crate::rollout;
use crate::status::{container_state, replica_status, why_unplaced};
use crate::world::{Container, Machine, Observed, Readiness, Replica, World};

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits into 64 bits")
}

/// Containers that are not being deleted.
pub(super) fn declared(world: &World) -> impl Iterator<Item = &Container> {
    world
        .containers()
        .values()
        .filter(|container| container.deleted_since.is_none())
}

pub(super) fn cluster(world: &World, report: &Report) -> GetClusterReply {
    let spec = world.spec();
    GetClusterReply {
        cluster_id: spec.cluster_id.clone(),
        name: spec.name.clone(),
        container_cidr: spec.container_cidr,
        platform: spec.platform,
        capacity_groups: spec.capacity_groups.clone(),
        machine_count: count(world.machines().len()),
        container_count: count(declared(world).count()),
        capacity: capacity(world),
        created_at: world.created_at(),
        freeze: report.freeze.map(|freeze| FreezeView {
            since: world.frozen_since().unwrap_or_else(|| world.created_at()),
            unhealthy_machines: freeze.unhealthy,
            total_machines: freeze.total,
        }),
        held_stops: world.held_stops().map(|held| HeldStopsView {
            since: held.since,
            count: held.count,
        }),
    }
}

fn capacity(world: &World) -> ClusterCapacity {
    let cpu = |amount: &dyn Fn(&Machine) -> Cpu| {
        let micros = world.machines().values().map(|machine| amount(machine).micros());
        Cpu::from_micros(micros.fold(0, u64::saturating_add))
    };
    let bytes = |amount: &dyn Fn(&Machine) -> Bytes| {
        let bytes = world.machines().values().map(|machine| amount(machine).get());
        Bytes::new(bytes.fold(0, u64::saturating_add))
    };
    ClusterCapacity {
        cpu: CpuAggregate {
            total: cpu(&|machine| machine.spec.capacity.cpu.total),
            available: cpu(&|machine| machine.free().cpu),
        },
        memory: BytesAggregate {
            total: bytes(&|machine| machine.spec.capacity.memory.total),
            available: bytes(&|machine| machine.free().memory),
        },
        ephemeral_storage: BytesAggregate {
            total: bytes(&|machine| machine.spec.capacity.ephemeral_storage.total),
            available: bytes(&|machine| machine.free().ephemeral),
        },
    }
}

pub(super) fn cluster_summary(world: &World) -> ClusterSummary {
    let spec = world.spec();
    ClusterSummary {
        cluster_id: spec.cluster_id.clone(),
        name: spec.name.clone(),
        platform: spec.platform,
        machine_count: count(world.machines().len()),
        container_count: count(declared(world).count()),
        created_at: world.created_at(),
    }
}

pub(super) fn machines(world: &World, observed: &Observed) -> Vec<MachineSummary> {
    world
        .machines()
        .values()
        .map(|machine| self::machine(world, machine, observed))
        .collect()
}

fn machine(world: &World, machine: &Machine, observed: &Observed) -> MachineSummary {
    let (spec, capacity) = (&machine.spec, &machine.spec.capacity);
    let said = observed.machines.get(&spec.machine_id);
    MachineSummary {
        machine_id: spec.machine_id.clone(),
        capacity_group: spec.capacity_group.clone(),
        zone: spec.zone.clone(),
        status: machine.status(),
        cpu: CpuSummary {
            total: capacity.cpu.total,
            system_reserve: capacity.cpu.system_reserve,
            allocated: machine.allocated.cpu,
        },
        memory: BytesSummary {
            total: capacity.memory.total,
            system_reserve: capacity.memory.system_reserve,
            allocated: machine.allocated.memory,
        },
        gpu: capacity.gpu.clone(),
        replica_count: count(machine.replicas.len()),
        // The wire requires a time: a machine that was never heard since the start was heard when its state began.
        last_heartbeat: said
            .and_then(|said| said.heartbeat_at)
            .unwrap_or(machine.health_since),
        gpu_devices: held_devices(world, machine),
        ephemeral_storage: Some(BytesSummary {
            total: capacity.ephemeral_storage.total,
            system_reserve: Bytes::ZERO,
            allocated: machine.allocated.ephemeral,
        }),
        vpc_ip: Some(spec.vpc_ip),
        container_cidr: Some(machine.network.cidr),
        labels: world.labels(machine).into_iter().cloned().collect(),
        health: said.map(|said| said.health.clone()).unwrap_or_default(),
    }
}

/// What is held of a machine's GPUs.
fn held_devices(world: &World, machine: &Machine) -> Vec<GpuDevice> {
    let Some(left) = world.left_of_devices(machine) else {
        return vec![];
    };
    let devices = (0u8..)
        .zip(left.devices)
        .take_while(|(index, _)| u32::from(*index) < machine.usable().gpus);
    let held = devices.map(|(index, free)| GpuDevice {
        index,
        milli: GPU_MILLI - free,
    });
    held.filter(|device| device.milli > 0).collect()
}

/// On the wire a message is only for what fails, and for what runs with less than it desires.
pub(super) fn state(world: &World, observed: &Observed, name: &ContainerName) -> ContainerState {
    let state = container_state(world, observed, name).unwrap_or_default();
    let message = state
        .message
        .filter(|_| matches!(state.status, ContainerStatus::Failing | ContainerStatus::Running));
    ContainerState { message, ..state }
}

pub(super) fn containers(world: &World, observed: &Observed) -> Vec<ContainerSummary> {
    declared(world)
        .map(|container| {
            let name = &container.spec.name;
            let state = state(world, observed, name);
            let live = || world.replicas_of(name).filter(|replica| replica.is_live());
            let running = live().filter(|replica| is_running(world, observed, replica));
            let ready = live().filter(|replica| observed.readiness(world, replica) == Readiness::Ready);
            ContainerSummary {
                name: name.clone(),
                image: container.declared().image.clone(),
                status: state.status,
                status_reason: state.reason,
                status_message: state.message,
                current_replicas: count(running.count()),
                desired_replicas: u64::from(container.wanted()),
                ready_replicas: count(ready.count()),
                rollout: rollout::view(world, observed, name).filter(|rollout| {
                    rollout.phase != RolloutPhase::Completed || container.declared.is_some()
                }),
            }
        })
        .collect()
}

/// The last word about a replica of a silent machine is not the present.
pub(super) fn is_running(world: &World, observed: &Observed, replica: &Replica) -> bool {
    let is_heard = world
        .machine(&replica.machine_id)
        .is_some_and(|machine| machine.health != MachineHealthState::Unhealthy);
    is_heard && replica_status(observed, replica) == WireReplicaStatus::Running
}

pub(super) fn container(
    world: &World,
    observed: &Observed,
    name: &ContainerName,
) -> Option<GetContainerReply> {
    let container = world
        .container(name)
        .filter(|container| container.deleted_since.is_none())?;
    let config = ContainerConfig::new(container.declared(), state(world, observed, name));
    Some(GetContainerReply {
        cluster_id: world.spec().cluster_id.clone(),
        flat: config.clone(),
        config,
        replicas_info: world
            .replicas_of(name)
            .map(|replica| replica_info(world, observed, replica))
            .collect(),
        rollout: rollout::view(world, observed, name),
        created_at: container.created_at,
        updated_at: container.updated_at,
    })
}

pub(super) fn replica_info(world: &World, observed: &Observed, replica: &Replica) -> ReplicaInfo {
    let said = observed.status(replica);
    let spec = world.spec_of(replica);
    let has_check = spec.health_check.is_some() || spec.probes.is_some();
    let healthy = !has_check || observed.readiness(world, replica) == Readiness::Ready;
    ReplicaInfo {
        replica_id: replica.replica_id.clone(),
        machine_id: replica.machine_id.clone(),
        ip: replica.ip,
        status: replica_status(observed, replica),
        healthy,
        consecutive_failures: said.map_or(0, |said| said.consecutive_failures),
        metrics: said.and_then(|said| metrics(world, observed, replica, said, healthy)),
    }
}

fn metrics(
    world: &World,
    observed: &Observed,
    replica: &Replica,
    said: &ReplicaStatus,
    healthy: bool,
) -> Option<ReplicaMetrics> {
    let usage = said.usage?;
    let resources = &world.spec_of(replica).resources;
    let last_updated = observed.machines.get(&replica.machine_id)?.heartbeat_at?;
    Some(ReplicaMetrics {
        status: replica_status(observed, replica),
        cpu_usage: usage.cpu.as_f64(),
        cpu_usage_percent: percent(usage.cpu.micros(), resources.cpu.desired.micros()),
        memory_used_bytes: usage.memory.get(),
        memory_usage_percent: percent(usage.memory.get(), resources.memory.desired.get()),
        healthy,
        last_updated,
        http: observed.http(replica).cloned(),
    })
}

/// 0 to 100: the wire allows no more.
#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage needs no more than 53 bits"
)]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 * 100.0 / whole as f64).min(100.0)
}

/// The whole desired set of a machine; none when it is not registered.
pub(super) fn heartbeat(
    world: &World,
    observed: &Observed,
    machine_id: &MachineId,
) -> Option<HeartbeatReply> {
    let set = world.assignment_set(machine_id)?;
    let status = |id: &ReplicaId| {
        world
            .replica(id)
            .map(|replica| replica_status(observed, replica))
            .unwrap_or_default()
    };
    Some(HeartbeatReply {
        cluster_state: ClusterState {
            platform: world.spec().platform,
            machines: world
                .machines()
                .values()
                .map(|machine| MachineInfo::new(&machine.spec, &machine.network))
                .collect(),
        },
        assignments: set
            .replicas
            .iter()
            .map(|assignment| ReplicaAssignment::new(machine_id, assignment, status(&assignment.replica_id)))
            .collect(),
        stops: set.stops.iter().map(|stop| stop.replica_id.clone()).collect(),
        epoch: set.epoch,
        generation: set.generation,
    })
}

/// Every replica that is somewhere, and every wanted one that has no place.
pub(super) fn replicas(world: &World, observed: &Observed) -> Vec<ReplicaView> {
    let mut views: Vec<ReplicaView> = world
        .replicas()
        .values()
        .map(|replica| placed(world, observed, replica))
        .collect();
    for container in declared(world).filter(|container| container.unplaced > 0) {
        views.extend(unplaced(world, container));
    }
    views.sort_by(|one, other| (&one.container, &one.replica_id).cmp(&(&other.container, &other.replica_id)));
    views
}

fn placed(world: &World, observed: &Observed, replica: &Replica) -> ReplicaView {
    let spec = world.spec_of(replica);
    let said = observed.status(replica);
    let stopping = replica.stopping.map(|stopping| Wait {
        reason: format!("to be gone: {}", stopping.cause),
        since: stopping.since,
        next_attempt: None,
    });
    let squeezed = Squeeze::of(world, replica).map(|squeeze| Wait {
        reason: format!("room on its machine: it is squeezed, {squeeze}"),
        since: replica.placed_at,
        next_attempt: None,
    });
    let held = replica.held(world);
    ReplicaView {
        replica_id: replica.replica_id.clone(),
        container: replica.container.clone(),
        ordinal: replica.ordinal,
        image: spec.image.clone(),
        machine_id: Some(replica.machine_id.clone()),
        zone: world
            .machine(&replica.machine_id)
            .map(|machine| machine.spec.zone.clone()),
        ip: Some(replica.ip),
        host_port: replica.host_port,
        status: replica_status(observed, replica),
        phase: said.map(|said| said.phase),
        ready: replica.is_live() && observed.readiness(world, replica) == Readiness::Ready,
        run: said.map_or(0, |said| said.run),
        pid: said.and_then(|said| said.pid),
        recent_crashes: said.map_or(0, |said| said.recent_crashes),
        wait: said.and_then(|said| said.wait.clone()).or(stopping).or(squeezed),
        cause: said.and_then(|said| said.cause.clone()),
        started_at: said.and_then(|said| said.started_at),
        revision: said
            .map(|said| said.revision.clone())
            .filter(|revision| !revision.is_empty()),
        outdated: world.is_outdated(replica),
        cpu: held.cpu,
        memory: held.memory,
        gpu_devices: replica.devices.clone(),
        usage: said.and_then(|said| said.usage),
    }
}

/// A stateful replica is known by its ordinal before it has a place; of a stateless one there is only the count.
fn unplaced<'a>(world: &'a World, container: &'a Container) -> impl Iterator<Item = ReplicaView> + 'a {
    let name = &container.spec.name;
    let reason = match why_unplaced(world, name) {
        Some(unplaced) => format!("a place: {unplaced}"),
        None => "a place".to_owned(),
    };
    let since: Timestamp = container.unplaced_since.unwrap_or(container.updated_at);
    let missing = (0..container.count).filter(|ordinal| {
        !container.spec.stateful
            || !world
                .replicas_of(name)
                .any(|replica| replica.ordinal == Some(*ordinal))
    });
    let limit = usize::try_from(container.unplaced).expect("32 bits fit into a usize");
    missing.take(limit).filter_map(move |number| {
        let (replica_id, ordinal) = if container.spec.stateful {
            (ReplicaId::stateful(name, number), Some(number))
        } else {
            (ReplicaId::new(format!("{name}-unplaced-{number}")).ok()?, None)
        };
        Some(ReplicaView {
            replica_id,
            container: name.clone(),
            ordinal,
            image: container.spec.image.clone(),
            machine_id: None,
            zone: None,
            ip: None,
            host_port: None,
            status: WireReplicaStatus::Pending,
            phase: None,
            ready: false,
            run: 0,
            pid: None,
            recent_crashes: 0,
            wait: Some(Wait {
                reason: reason.clone(),
                since,
                next_attempt: None,
            }),
            cause: None,
            started_at: None,
            revision: None,
            outdated: false,
            cpu: container.spec.resources.cpu.desired,
            memory: container.spec.resources.memory.desired,
            gpu_devices: vec![],
            usage: None,
        })
    })
}
