//! For tests of the pure modules: declarations, machines, and a [`Town`] of nodes that do what their sets say.
//!
//! A town applies only what [`check_all`] lets pass, and asserts after each decision that deciding again changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::cluster::{CapacityGroup, ClusterSpec, Gpu, MachineProfile, Platform};
use berth_api::container::{ContainerSpec, CpuRange, GpuRequest, GpuShare, MemoryRange, Resources, Scale};
use berth_api::id::{ClusterId, ContainerName, GroupId, MachineId, ReplicaId, Zone};
use berth_api::machine::{
    CpuCapacity, GpuCapacity, MachineCapacity, MachineHealth, MachineSpec, MemoryCapacity, StorageCapacity,
};
use berth_api::replica::{Cause, Phase, ReplicaStatus, Usage};
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::{OrdinalVolume, VolumeTarget};

use crate::announce::announce;
use crate::autoscale;
use crate::check::tests::assert_agreement;
use crate::check::{check_all, check_reported};
use crate::decide::{Report, Scope, decide, decide_and_apply};
use crate::entry::{Entry, TokenKind};
use crate::liveness::Limits;
use crate::rollout;
use crate::world::{Now, Observed, ObservedMachine, World};

pub(crate) fn group(id: &str, gpus: u32) -> CapacityGroup {
    CapacityGroup {
        group_id: GroupId::new(id).unwrap(),
        profile: MachineProfile {
            cpu: Cpu::from_micros(4_000_000),
            memory_bytes: Bytes::gib(8),
            ephemeral_storage_bytes: Bytes::gib(100),
            gpu: (gpus > 0).then(|| Gpu {
                kind: "nvidia-t4".into(),
                count: gpus,
            }),
        },
        min_size: 0,
        max_size: 5,
        labels: Default::default(),
    }
}

pub(crate) fn cluster() -> ClusterSpec {
    ClusterSpec {
        cluster_id: ClusterId::new("acme/prod").unwrap(),
        name: "prod".into(),
        container_cidr: "10.244.0.0/16".parse().unwrap(),
        platform: Platform::Local,
        capacity_groups: vec![group("general", 0), group("gpu", 2)],
        workspace_id: None,
        project_id: None,
        deployment_group_id: None,
    }
}

/// A machine of 4 vCPU, 8 GiB and 100 GiB; two GPUs when its group is `gpu`.
pub(crate) fn machine(id: &str, group: &str) -> MachineSpec {
    MachineSpec {
        machine_id: MachineId::new(id).unwrap(),
        capacity_group: GroupId::new(group).unwrap(),
        zone: Zone::new(if id.ends_with('b') { "b" } else { "a" }).unwrap(),
        vpc_ip: "10.0.0.1".parse().unwrap(),
        wireguard_public_key: "key".into(),
        wireguard_endpoint: "10.0.0.1:51820".into(),
        capacity: MachineCapacity {
            cpu: CpuCapacity {
                total: Cpu::from_micros(4_000_000),
                system_reserve: Cpu::ZERO,
            },
            memory: MemoryCapacity {
                total: Bytes::gib(8),
                system_reserve: Bytes::ZERO,
            },
            ephemeral_storage: StorageCapacity {
                total: Bytes::gib(100),
            },
            gpu: (group == "gpu").then(|| GpuCapacity {
                total: 2,
                kind: "nvidia-t4".into(),
            }),
        },
        boot_id: None,
        labels: Default::default(),
    }
}

/// Replicas of 1 vCPU and 1 GiB.
pub(crate) fn stateless(name: &str, count: u32) -> ContainerSpec {
    let cpu = Cpu::from_micros(1_000_000);
    ContainerSpec {
        name: ContainerName::new(name).unwrap(),
        capacity_group: GroupId::new("general").unwrap(),
        image: "app:1".into(),
        resources: Resources {
            cpu: CpuRange {
                min: cpu,
                desired: cpu,
            },
            memory: MemoryRange {
                min: Bytes::gib(1),
                desired: Bytes::gib(1),
            },
            ephemeral_storage: None,
            gpu: None,
        },
        scale: Scale::Replicas(count),
        stateful: false,
        ports: vec![8080],
        volumes: vec![],
        env: BTreeMap::new(),
        command: None,
        health_check: None,
        probes: None,
        load_balancer_target: None,
        service_account: None,
        shared_mounts: vec![],
        links: vec![],
        disruption_budget: None,
        placement: None,
        rollback: None,
        drain_seconds: None,
    }
}

pub(crate) fn stateful(name: &str, count: u32) -> ContainerSpec {
    let volume = |ordinal| OrdinalVolume {
        ordinal,
        volume: VolumeTarget::Hostpath {
            path: format!("/srv/{name}/{ordinal}"),
        },
        mount_path: None,
    };
    ContainerSpec {
        stateful: true,
        volumes: (0..count).map(volume).collect(),
        ..stateless(name, count)
    }
}

pub(crate) fn whole_gpus(count: u32) -> GpuRequest {
    GpuRequest {
        kind: "nvidia-t4".into(),
        count,
        share: None,
    }
}

pub(crate) fn gpu_share(milli: u16) -> GpuRequest {
    GpuRequest {
        share: Some(GpuShare::from_milli(milli).unwrap()),
        ..whole_gpus(1)
    }
}

/// Replicas for machines of group `gpu`, sixteen of which have room on one but for their GPUs.
pub(crate) fn on_gpus(name: &str, count: u32, gpu: GpuRequest) -> ContainerSpec {
    let mut spec = stateless(name, count);
    let (cpu, memory) = (Cpu::from_micros(250_000), Bytes::mib(256));
    spec.capacity_group = GroupId::new("gpu").unwrap();
    spec.resources.cpu = CpuRange {
        min: cpu,
        desired: cpu,
    };
    spec.resources.memory = MemoryRange {
        min: memory,
        desired: memory,
    };
    spec.resources.gpu = Some(gpu);
    spec
}

/// One machine's daemon, as far as the scheduler can tell.
#[derive(Debug, Default)]
struct Node {
    is_alive: bool,
    accepted: Option<(u64, u64)>,
    running: BTreeMap<ReplicaId, ReplicaStatus>,
}

#[derive(Debug)]
pub(crate) struct Town {
    pub log: Vec<Entry>,
    pub world: World,
    pub observed: Observed,
    pub limits: Limits,
    pub now: Now,
    pub report: Report,
    nodes: BTreeMap<MachineId, Node>,
    /// Containers whose replicas never get ready.
    pub broken_images: BTreeSet<String>,
    /// Replicas that run and fail their health check.
    pub sick: BTreeSet<String>,
    /// Images that crash at each start, a dozen times at most.
    pub crashing_images: BTreeSet<String>,
    /// Volumes of what has ended are not released.
    pub is_release_slow: bool,
    /// What every replica uses that is ready.
    pub usage: Option<Usage>,
}

impl Town {
    pub(crate) fn new() -> Self {
        let created = Entry::ClusterCreated {
            spec: cluster(),
            tokens: BTreeMap::from([(TokenKind::Machine, crate::entry::TokenDigest::of("hj_x"))]),
            at: Timestamp::from_millis(1_000),
        };
        Self {
            world: World::create(&created).unwrap(),
            log: vec![created],
            observed: Observed::new(1_000),
            limits: Limits {
                // Ready once is up: a town rests when a tick changes nothing.
                rollout: rollout::Rules {
                    min_ready_ms: 0,
                    ..rollout::Rules::default()
                },
                ..Limits::default()
            },
            now: Now {
                wall: Timestamp::from_millis(1_000),
                monotonic_ms: 1_000,
            },
            report: Report::default(),
            nodes: BTreeMap::new(),
            broken_images: BTreeSet::new(),
            sick: BTreeSet::new(),
            crashing_images: BTreeSet::new(),
            is_release_slow: false,
            usage: None,
        }
    }

    /// A town of general machines m1, m2, ..., all heard.
    pub(crate) fn of(machines: u32) -> Self {
        let mut town = Self::new();
        for index in 1..=machines {
            town.join(&format!("m{index}"), "general");
        }
        town.settle();
        town
    }

    pub(crate) fn join(&mut self, id: &str, group: &str) {
        self.join_as(machine(id, group));
    }

    pub(crate) fn join_as(&mut self, spec: MachineSpec) {
        let id = spec.machine_id.clone();
        let entry = self.world.registration(spec, self.now.wall);
        if let Some(entry) = entry {
            self.act(entry);
            self.node(id.as_str()).is_alive = true;
        }
    }

    fn node(&mut self, id: &str) -> &mut Node {
        self.nodes.entry(MachineId::new(id).unwrap()).or_default()
    }

    /// What an operator does: an entry and what announces it.
    pub(crate) fn act(&mut self, entry: Entry) {
        let mut entries = vec![entry];
        entries.extend(announce(&self.world, &self.observed, &entries[0]));
        self.append(entries);
    }

    pub(crate) fn put(&mut self, spec: ContainerSpec) {
        let entry = self.world.put(spec, self.now.wall);
        self.act(entry);
    }

    fn append(&mut self, entries: Vec<Entry>) {
        assert_eq!(check_all(&self.world, &entries), vec![], "{entries:#?}");
        for entry in &entries {
            self.world.apply(entry);
        }
        self.log.extend(entries);
    }

    pub(crate) fn kill(&mut self, id: &str) {
        self.node(id).is_alive = false;
    }

    pub(crate) fn revive(&mut self, id: &str) {
        self.node(id).is_alive = true;
    }

    /// The operator's word that a machine is off.
    pub(crate) fn power_off(&mut self, id: &str) {
        let machine_id = MachineId::new(id).unwrap();
        self.nodes.remove(&machine_id);
        self.observed.machines.remove(&machine_id);
        self.act(Entry::MachineRemoved {
            machine_id,
            how: crate::entry::Removal::PoweredOff,
            at: self.now.wall,
        });
    }

    /// The scheduler starts again: soft state is lost.
    pub(crate) fn restart(&mut self) {
        self.observed = Observed::new(self.now.monotonic_ms);
        for node in self.nodes.values_mut() {
            node.accepted = None;
        }
    }

    /// Time passes, living nodes work and speak, the scheduler decides.
    pub(crate) fn tick(&mut self, elapsed_ms: u64) {
        self.now.monotonic_ms += elapsed_ms;
        self.now.wall = Timestamp::from_millis(self.now.wall.millis() + elapsed_ms);
        let alive = self.nodes.iter().filter(|(_, node)| node.is_alive);
        let ids: Vec<MachineId> = alive.map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.work(id);
        }
        self.decide();
    }

    /// Ticks until nothing changes.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let before = self.log.len();
            let observed = self.observed.clone();
            self.tick(100);
            let same = |one: &ObservedMachine, other: &ObservedMachine| one.replicas == other.replicas;
            let quiet = self.observed.machines.len() == observed.machines.len()
                && self
                    .observed
                    .machines
                    .iter()
                    .all(|(id, machine)| same(machine, &observed.machines[id]));
            if self.log.len() == before && quiet {
                return;
            }
        }
        panic!("the town does not come to rest: {:#?}", self.report);
    }

    /// From now on the same history as if a scheduler had written it that recorded no devices.
    pub(crate) fn forget_devices(&mut self) {
        for entry in &mut self.log {
            if let Entry::ReplicaPlaced(placed) = entry {
                placed.devices.clear();
            }
        }
        self.world = World::replay(&self.log).unwrap();
    }

    pub(crate) fn decide(&mut self) {
        autoscale::observe(&self.world, &mut self.observed, &self.limits.autoscale, self.now);
        rollout::observe(&self.world, &mut self.observed, self.now);
        let (decision, after) =
            decide_and_apply(&self.world, &self.observed, &self.limits, self.now, Scope::All);
        // Many copies of the decision are checked twice: every fourth will do.
        if self.log.len().is_multiple_of(4) {
            assert_agreement(self, &decision.entries);
        }
        let against = check_reported(
            &self.world,
            &self.observed,
            &self.limits,
            self.now,
            &decision.entries,
        );
        assert_eq!(against, vec![], "{:#?}", decision.entries);
        self.append(decision.entries);
        assert!(
            after.is_none_or(|after| after == self.world),
            "it was applied otherwise"
        );
        let again = decide(&self.world, &self.observed, &self.limits, self.now);
        assert_eq!(
            again.entries,
            vec![],
            "a decision is final until something happens"
        );
        self.report = again.report;
    }

    /// One step of one node: every replica one phase on, everything else gone.
    fn work(&mut self, id: &MachineId) {
        let Some(set) = self.world.assignment_set(id) else {
            return;
        };
        let node = self.nodes.get_mut(id).unwrap();
        if let Some(accepted) = node.accepted {
            assert!((set.epoch, set.generation) >= accepted, "the generation fell");
        }
        let stops: BTreeSet<&ReplicaId> = set.stops.iter().map(|stop| &stop.replica_id).collect();
        let mut running = BTreeMap::new();
        for assignment in &set.replicas {
            let known = node.running.get(&assignment.replica_id);
            let is_crashing = self.crashing_images.contains(&assignment.image);
            let is_broken = is_crashing || self.broken_images.contains(&assignment.image);
            let phase = match known.map(|status| status.phase) {
                None => Phase::Assigned,
                Some(_) if is_broken => Phase::Backoff,
                Some(Phase::Assigned) => Phase::Started,
                Some(_) if self.sick.contains(assignment.replica_id.as_str()) => Phase::Unhealthy,
                Some(_) => Phase::Healthy,
            };
            let status = ReplicaStatus {
                revision: assignment.digest().to_string(),
                cause: (phase == Phase::Backoff).then_some(Cause::Exit { code: 1 }),
                usage: self.usage,
                recent_crashes: match known {
                    Some(known) if is_crashing => (known.recent_crashes + 1).min(12),
                    Some(_) | None => 0,
                },
                ..ReplicaStatus::new(assignment.replica_id.clone(), phase)
            };
            running.insert(assignment.replica_id.clone(), status);
        }
        // What is to stop takes one step to be gone.
        for (id, status) in &node.running {
            let has_ended = matches!(status.phase, Phase::Stopping | Phase::Releasing);
            if stops.contains(id) && (!has_ended || self.is_release_slow) {
                let mut status = status.clone();
                status.phase = if has_ended {
                    Phase::Releasing
                } else {
                    Phase::Stopping
                };
                status.ready = false;
                running.insert(id.clone(), status);
            }
        }
        node.running = running;
        node.accepted = Some((set.epoch, set.generation));
        let observed = ObservedMachine {
            heartbeat_ms: Some(self.now.monotonic_ms),
            heartbeat_at: Some(self.now.wall),
            is_linked: true,
            accepted: node.accepted,
            replicas: node.running.clone(),
            http: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            health: MachineHealth::default(),
        };
        self.observed.machines.insert(id.clone(), observed);
    }

    /// `replica machine` of every live replica of a container.
    pub(crate) fn places(&self, container: &str) -> Vec<(String, String)> {
        let name = ContainerName::new(container).unwrap();
        let live = self.world.replicas_of(&name).filter(|replica| replica.is_live());
        live.map(|replica| (replica.replica_id.to_string(), replica.machine_id.to_string()))
            .collect()
    }

    pub(crate) fn ready(&self, container: &str) -> usize {
        let name = ContainerName::new(container).unwrap();
        let is_ready = |replica: &&crate::world::Replica| {
            self.observed.readiness(&self.world, replica) == crate::world::Readiness::Ready
        };
        self.world.replicas_of(&name).filter(is_ready).count()
    }

    /// The log, replayed, must give the same bytes.
    pub(crate) fn assert_replay(&self) {
        let records: Vec<Vec<u8>> = self.log.iter().map(Entry::to_record).collect();
        let entries: Vec<Entry> = records
            .iter()
            .map(|record| Entry::from_record(record).unwrap())
            .collect();
        let replayed = World::replay(&entries).unwrap();
        let bytes = |world: &World| serde_json::to_string(world).unwrap();
        assert_eq!(bytes(&replayed), bytes(&self.world));
        let snapshot: World = serde_json::from_str(&bytes(&self.world)).unwrap();
        assert_eq!(bytes(&snapshot), bytes(&self.world));
        assert_eq!(snapshot, self.world);
    }
}
