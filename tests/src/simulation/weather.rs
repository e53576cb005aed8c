//! How bad it is in a run: what goes wrong by itself, how slow everything is, how large the cluster is and what its users
//! declare. All from the seed.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::cluster::{CapacityGroup, ClusterSpec, Gpu, MachineProfile, Platform};
use berth_api::container::{
    Autoscaling, ContainerSpec, CpuRange, DisruptionBudget, GpuRequest, GpuShare, HealthCheck,
    LoadBalancerTarget, MemoryRange, ProbeKind, ProbeMethod, Resources, RollbackPolicy, Scale,
};
use berth_api::id::{ContainerName, GroupId, Label, MachineId, Zone};
use berth_api::machine::{
    CpuCapacity, GpuCapacity, MachineCapacity, MachineSpec, MemoryCapacity, StorageCapacity,
};
use berth_api::placement::PlacementRules;
use berth_api::probe::{Probe, Probes};
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::{OrdinalVolume, VolumeTarget};
use berth_node::replica::Step;
use berth_scheduler::entry::Entry;
use berth_scheduler::liveness::Limits;

use super::Fails;
use super::chance::Chance;
use super::node::{Machine, cluster_id};

/// Names that users give.
pub(super) const NAMES: [&str; 5] = ["api", "db", "queue", "reader", "writer"];
pub(super) const ZONES: [&str; 2] = ["z1", "z2"];
/// Labels that a machine may have.
const LABELS: [&str; 2] = ["disk=fast", "spot"];
pub(super) const IMAGES: [&str; 4] = ["app:1", "app:2", "app:3", "app:missing"];
const GPU_KIND: &str = "nvidia-t4";
/// Thousandths of a GPU that users ask for.
const GPU_SHARES: [u16; 6] = [100, 250, 333, 500, 700, 999];
/// The capacity groups of the simulated cluster.
pub(super) const GROUPS: [&str; 2] = ["general", "gpu"];

/// What can be taken out of a run's weather to see whether it matters, beside its actions.
pub(super) const STEPS_FAIL: u32 = 1_000_001;
pub(super) const STEPS_ARE_SLOW: u32 = 1_000_002;
pub(super) const PROCESSES_CRASH: u32 = 1_000_003;
pub(super) const MESSAGES_ARE_LATE: u32 = 1_000_004;
pub(super) const STORE_STALLS: u32 = 1_000_005;
pub(super) const PARTS: [u32; 5] = [
    STEPS_FAIL,
    STEPS_ARE_SLOW,
    PROCESSES_CRASH,
    MESSAGES_ARE_LATE,
    STORE_STALLS,
];

/// How bad it is, and until when.
#[derive(Debug)]
pub(super) struct Weather {
    pub(super) is_calm: bool,
    pub(super) ends_at: u64,
    pub(super) rest_since: Option<u64>,
    pub(super) is_over: bool,
    delay_max_ms: u64,
    batch_max_ms: u64,
    store_max_ms: u64,
    stall_percent: u32,
    step_fail_percent: u32,
    slow_percent: u32,
    crash_percent: u32,
    pub(super) pace_max_ms: u64,
    pub(super) missing: BTreeSet<String>,
    /// Processor time that the users of each scaled container ask for, in micros.
    pub(super) loads: BTreeMap<String, u64>,
}

impl Weather {
    /// `has` says which parts of the weather are not taken out.
    pub(super) fn new(chance: &mut Chance, has: impl Fn(u32) -> bool) -> Self {
        let ends_at = match chance.range(0..=9) {
            0..=5 => chance.range(10_000..=30_000),
            6..=8 => chance.range(30_000..=80_000),
            _ => chance.range(80_000..=200_000),
        };
        let mut weather = Self {
            is_calm: false,
            ends_at,
            rest_since: None,
            is_over: false,
            delay_max_ms: chance.range(5..=400),
            batch_max_ms: *chance.pick(&[10, 30, 100, 300]).expect("there are some"),
            store_max_ms: chance.range(1..=60),
            stall_percent: chance.small(0..=3),
            step_fail_percent: chance.small(0..=12),
            slow_percent: chance.small(0..=8),
            crash_percent: chance.small(0..=6),
            pace_max_ms: chance.range(300..=3000),
            missing: BTreeSet::from(["app:missing".to_owned()]),
            loads: BTreeMap::new(),
        };
        for (part, percent) in [
            (STEPS_FAIL, &mut weather.step_fail_percent),
            (STEPS_ARE_SLOW, &mut weather.slow_percent),
            (PROCESSES_CRASH, &mut weather.crash_percent),
            (STORE_STALLS, &mut weather.stall_percent),
        ] {
            if !has(part) {
                *percent = 0;
            }
        }
        if !has(MESSAGES_ARE_LATE) {
            (weather.delay_max_ms, weather.store_max_ms) = (5, 1);
        }
        weather
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn is_missing(&self, image: &str) -> bool {
        self.missing.contains(image)
    }

    pub(super) fn delay_max_ms(&self) -> u64 {
        if self.is_calm { 20 } else { self.delay_max_ms }
    }

    /// What comes within this time may share a decision.
    pub(super) fn batch_max_ms(&self) -> u64 {
        if self.is_calm { 1000 } else { self.batch_max_ms }
    }

    pub(super) fn store_max_ms(&self) -> u64 {
        if self.is_calm { 5 } else { self.store_max_ms }
    }

    pub(super) fn stall_percent(&self) -> u32 {
        if self.is_calm { 0 } else { self.stall_percent }
    }

    pub(super) fn crash_percent(&self) -> u32 {
        if self.is_calm { 0 } else { self.crash_percent }
    }

    pub(super) fn stubborn_percent(&self) -> u32 {
        if self.is_calm { 0 } else { 5 }
    }

    /// Exits that the daemon is not told of.
    pub(super) fn lost_percent(&self) -> u32 {
        if self.is_calm { 0 } else { 3 }
    }

    /// Reports without metrics.
    pub(super) fn unmeasured_percent(&self) -> u32 {
        if self.is_calm { 0 } else { 10 }
    }

    pub(super) fn step_fails(&self, chance: &mut Chance) -> Option<Fails> {
        if self.is_calm || !chance.percent(self.step_fail_percent) {
            return None;
        }
        Some(if chance.percent(50) {
            Fails::Before
        } else {
            Fails::After
        })
    }

    /// Milliseconds until a step takes effect, and from there until its daemon hears of it.
    pub(super) fn durations(&self, chance: &mut Chance, step: &Step) -> (u64, u64) {
        let usual_max = match step {
            Step::Prepare { .. } | Step::Pull { .. } => 2000,
            Step::Create { .. } | Step::Start { .. } | Step::Resize { .. } | Step::Delete | Step::Release => {
                100
            }
            Step::Signal { .. } => 20,
        };
        let slow = if !self.is_calm && chance.percent(self.slow_percent) {
            chance.range(1000..=20_000)
        } else {
            0
        };
        (chance.range(1..=usual_max) + slow, chance.range(1..=50))
    }
}

/// The limits of the schedulers: those of scaling are short, so that a run sees both ways.
pub(super) fn limits(chance: &mut Chance) -> Limits {
    let mut limits = Limits::default();
    limits.autoscale.period_ms = chance.range(2..=5) * 1000;
    limits.autoscale.warm_up_ms = chance.range(2..=10) * 1000;
    limits.autoscale.lead_ms = chance.range(0..=10) * 1000;
    limits.autoscale.trend_window_ms = 30_000;
    limits.autoscale.up_window_ms = chance.range(0..=10) * 1000;
    limits.autoscale.down_window_ms = chance.range(15..=40) * 1000;
    limits
}

/// The cluster, as it begins.
pub(super) fn created() -> Entry {
    let group = |id: &str| CapacityGroup {
        group_id: GroupId::new(id).expect("a valid id"),
        profile: MachineProfile {
            cpu: Cpu::from_micros(8_000_000),
            memory_bytes: Bytes::gib(16),
            ephemeral_storage_bytes: Bytes::gib(100),
            gpu: (id == GROUPS[1]).then(|| Gpu {
                kind: GPU_KIND.into(),
                count: 2,
            }),
        },
        min_size: 1,
        max_size: 10,
        labels: BTreeSet::new(),
    };
    Entry::ClusterCreated {
        spec: ClusterSpec {
            cluster_id: cluster_id(),
            name: "sim".into(),
            container_cidr: "100.64.0.0/16".parse().expect("a valid network"),
            platform: Platform::Local,
            capacity_groups: GROUPS.into_iter().map(group).collect(),
            workspace_id: None,
            project_id: None,
            deployment_group_id: None,
        },
        tokens: BTreeMap::new(),
        at: berth_api::time::Timestamp::default(),
    }
}

/// The machines of a run.
pub(super) fn machines(chance: &mut Chance, seed: u64) -> Vec<Machine> {
    let count = match chance.range(0..=19) {
        0..=13 => chance.range(2..=4),
        14..=18 => chance.range(4..=7),
        _ => chance.range(8..=12),
    };
    (0..count)
        .map(|index| {
            let is_gpu = index > 0 && chance.percent(25);
            let host = u8::try_from(index + 1).expect("few machines");
            let spec = MachineSpec {
                machine_id: MachineId::new(format!("m{index}")).expect("a valid id"),
                capacity_group: GroupId::new(GROUPS[usize::from(is_gpu)]).expect("a valid id"),
                zone: Zone::new(ZONES[chance.index(2)]).expect("a valid id"),
                vpc_ip: std::net::Ipv4Addr::new(10, 0, 0, host).into(),
                wireguard_public_key: String::new(),
                wireguard_endpoint: String::new(),
                capacity: MachineCapacity {
                    cpu: CpuCapacity {
                        total: Cpu::from_micros(chance.range(2..=8) * 1_000_000),
                        system_reserve: Cpu::from_micros(chance.range(0..=2) * 250_000),
                    },
                    memory: MemoryCapacity {
                        total: Bytes::gib(chance.range(4..=16)),
                        system_reserve: Bytes::mib(512),
                    },
                    ephemeral_storage: StorageCapacity {
                        total: Bytes::gib(chance.range(20..=60)),
                    },
                    gpu: is_gpu.then(|| GpuCapacity {
                        total: 2,
                        kind: GPU_KIND.into(),
                    }),
                },
                boot_id: None,
                labels: LABELS
                    .into_iter()
                    .filter(|_| chance.percent(40))
                    .map(|label| Label::new(label).expect("a valid label"))
                    .collect(),
            };
            Machine::new(spec, Chance::of(seed, 1000 + index))
        })
        .collect()
}

/// The volume of an ordinal.
fn volume(name: &str, ordinal: u32, is_zonal: bool) -> OrdinalVolume {
    let disk = format!("disk-{name}-{ordinal}");
    OrdinalVolume {
        ordinal,
        volume: if is_zonal {
            VolumeTarget::Aws {
                volume_id: disk,
                zone: Zone::new(ZONES[usize::from(ordinal % 2 == 1)]).expect("a valid id"),
            }
        } else {
            VolumeTarget::Hostpath {
                path: format!("/volumes/{disk}"),
            }
        },
        mount_path: None,
    }
}

/// A declaration that a user might write.
pub(super) fn declare(chance: &mut Chance, name: &str, stateful: bool) -> ContainerSpec {
    let is_gpu = chance.percent(12);
    let cpu = chance.range(1..=6) * 250_000;
    let memory = chance.range(1..=8) * 256;
    let has_volumes = stateful && chance.percent(80);
    let is_zonal = chance.percent(30);
    let mut spec = ContainerSpec {
        name: ContainerName::new(name).expect("a valid name"),
        capacity_group: GroupId::new(GROUPS[usize::from(is_gpu)]).expect("a valid id"),
        image: IMAGES[chance.index(IMAGES.len() - 1)].into(),
        resources: Resources {
            cpu: CpuRange {
                min: Cpu::from_micros(cpu / 2),
                desired: Cpu::from_micros(cpu),
            },
            memory: MemoryRange {
                min: Bytes::mib(memory / 2),
                desired: Bytes::mib(memory),
            },
            ephemeral_storage: chance.percent(40).then(|| Bytes::gib(chance.range(1..=20))),
            gpu: is_gpu.then(|| GpuRequest {
                kind: GPU_KIND.into(),
                count: 1,
                share: None,
            }),
        },
        scale: if !stateful && chance.percent(35) {
            scaled(chance)
        } else {
            Scale::Replicas(chance.small(1..=4))
        },
        stateful,
        ports: vec![8080],
        volumes: if has_volumes {
            (0..6).map(|ordinal| volume(name, ordinal, is_zonal)).collect()
        } else {
            vec![]
        },
        env: BTreeMap::new(),
        command: None,
        health_check: health_check(chance),
        probes: None,
        load_balancer_target: (!stateful && chance.percent(20)).then(|| LoadBalancerTarget::Gcp {
            neg_name: "neg".into(),
        }),
        service_account: None,
        shared_mounts: vec![],
        links: vec![],
        disruption_budget: chance.percent(30).then(|| DisruptionBudget {
            max_unavailable: chance.small(0..=3),
        }),
        placement: if chance.percent(25) {
            placement(chance)
        } else {
            None
        },
        rollback: chance.percent(60).then(|| RollbackPolicy {
            after_failed_starts: chance.small(0..=4),
        }),
        drain_seconds: None,
    };
    // Drawn for a GPU only: seeds without one keep their histories.
    if let Some(gpu) = &mut spec.resources.gpu {
        want_gpus(chance, gpu);
    }
    if let Some(check) = spec.health_check.take_if(|check| check.failure_threshold == 3) {
        spec.probes = Some(probes(&check));
    }
    spec
}

fn health_check(chance: &mut Chance) -> Option<HealthCheck> {
    chance.percent(50).then(|| HealthCheck {
        kind: ProbeKind::Http,
        command: vec![],
        path: "/health".into(),
        port: 8080,
        method: ProbeMethod::Get,
        timeout_seconds: 1,
        failure_threshold: chance.small(1..=3),
    })
}

/// All three, that ask as a health check does.
fn probes(check: &HealthCheck) -> Probes {
    let probe = |period_seconds, success_threshold| {
        Some(Probe {
            kind: check.kind,
            command: vec![],
            path: check.path.clone(),
            port: check.port,
            method: check.method,
            initial_delay_seconds: 0,
            period_seconds,
            timeout_seconds: 1,
            success_threshold,
            failure_threshold: 3,
        })
    };
    Probes {
        startup: probe(1, 1),
        readiness: probe(5, 2),
        liveness: probe(10, 1),
    }
}

/// Mostly a share of a GPU, else one or two.
pub(super) fn want_gpus(chance: &mut Chance, gpu: &mut GpuRequest) {
    (gpu.count, gpu.share) = (1, None);
    if chance.percent(60) {
        gpu.share = GpuShare::from_milli(GPU_SHARES[chance.index(GPU_SHARES.len())]);
    } else if chance.percent(30) {
        gpu.count = 2;
    }
}

/// Labels that machines have or lack, and machines of one's own.
pub(super) fn placement(chance: &mut Chance) -> Option<PlacementRules> {
    let label = |chance: &mut Chance| Label::new(LABELS[chance.index(LABELS.len())]).expect("a valid label");
    let mut rules = PlacementRules::default();
    match chance.range(0..=4) {
        0 => return None,
        1 => _ = rules.requires.insert(label(chance)),
        2 => _ = rules.forbids.insert(label(chance)),
        3 => rules.prefers.push(label(chance)),
        _ => rules.exclusive = true,
    }
    Some(rules)
}

/// Bounds of automatic scaling.
pub(super) fn scaled(chance: &mut Chance) -> Scale {
    let min = chance.small(1..=2);
    let max = min + chance.small(0..=4);
    Scale::Autoscaling(Autoscaling {
        min,
        desired: min,
        max,
        target_cpu_percent: f64::from(chance.small(4..=9)) * 10.0,
        target_memory_percent: 80.0,
        target_http_in_flight_per_replica: None,
        max_http_p95_latency_ms: None,
    })
}
