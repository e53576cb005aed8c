//! Why a replica found no machine, as data: counts, the nearest miss, what would help.

use std::collections::BTreeMap;
use std::fmt;

use berth_api::id::{GroupId, MachineId, ReplicaId, Zone};
use berth_api::machine::MachineStatus;
use berth_api::units::{Bytes, Cpu};

use super::fleet::{Fleet, Slot};
use super::{Filter, Request};
use crate::world::Allocated;

/// The outcome of a request that no machine could take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    pub why: Why,
    /// Machines that each filter ruled out first, in the order of the filters; only those above zero.
    pub counts: Vec<(Filter, u32)>,
    /// For each filter on an amount, the machine that came closest.
    pub nearest: Vec<Miss>,
    pub would_help: Vec<Help>,
}

/// The main reason, most specific first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Another replica may still write to the volume.
    VolumeInUse {
        by: ReplicaId,
    },
    /// The cluster has no such group.
    NoGroup {
        group: GroupId,
    },
    /// The group has no machine yet.
    GroupEmpty {
        group: GroupId,
        max_size: u32,
    },
    /// Not even an empty machine of the group would do.
    LargerThanMachine {
        group: GroupId,
        miss: Miss,
    },
    /// No machine of the group takes replicas now.
    NoneRunning {
        group: GroupId,
        machines: u32,
    },
    NoRoom {
        group: GroupId,
        machines: u32,
    },
}

/// How much a machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    pub filter: Filter,
    /// None for the largest that a machine of the group could have.
    pub machine_id: Option<MachineId>,
    pub has: u64,
    pub needs: u64,
}

/// What would end the wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Help {
    AddMachine {
        group: GroupId,
        machines: u32,
        max_size: u32,
    },
    RaiseMaximum {
        group: GroupId,
        max_size: u32,
    },
    AskForLess {
        filter: Filter,
        at_most: u64,
    },
    MachineBack {
        machine_id: MachineId,
        status: MachineStatus,
    },
    MachineInZone {
        group: GroupId,
        zone: Zone,
    },
    StopWriter {
        by: ReplicaId,
    },
    FreePort,
    CreateGroup {
        group: GroupId,
    },
    GpuGroup {
        gpu_type: String,
    },
}

impl Unplaced {
    pub(super) fn volume_in_use(by: ReplicaId) -> Self {
        Self {
            why: Why::VolumeInUse { by: by.clone() },
            counts: vec![],
            nearest: vec![],
            would_help: vec![Help::StopWriter { by }],
        }
    }

    /// Invariant: a filter rules out each machine of the fleet.
    pub(super) fn of(fleet: &Fleet, request: &Request<'_>) -> Self {
        let mut by_filter: BTreeMap<Filter, Vec<&Slot>> = BTreeMap::new();
        for slot in fleet.slots() {
            let filter = slot
                .verdict(request)
                .expect("no machine is left for an unplaced request");
            by_filter.entry(filter).or_default().push(slot);
        }
        let counts = by_filter
            .iter()
            .map(|(filter, slots)| (*filter, count(slots)))
            .collect();
        let need = Allocated::of(request.spec);
        let nearest = by_filter.iter().filter_map(|(filter, slots)| {
            let needs = amount(*filter, &need)?;
            let best = slots.iter().max_by(|one, other| {
                let free = |slot: &Slot| amount(*filter, &slot.free);
                free(one)
                    .cmp(&free(other))
                    .then_with(|| other.machine_id.cmp(&one.machine_id))
            })?;
            Some(Miss {
                filter: *filter,
                machine_id: Some(best.machine_id.clone()),
                has: amount(*filter, &best.free)?,
                needs,
            })
        });
        let nearest: Vec<Miss> = nearest.collect();
        let why = why(fleet, request, &by_filter);
        let would_help = helps(fleet, request, &why, &by_filter);
        Self {
            why,
            counts,
            nearest,
            would_help,
        }
    }
}

fn why(fleet: &Fleet, request: &Request<'_>, by_filter: &BTreeMap<Filter, Vec<&Slot>>) -> Why {
    let group = request.spec.capacity_group.clone();
    let Some(known) = fleet.groups.get(&group) else {
        return Why::NoGroup { group };
    };
    let members: Vec<&Slot> = fleet.slots().iter().filter(|slot| slot.group == group).collect();
    let need = Allocated::of(request.spec);
    let filters = [Filter::Cpu, Filter::Memory, Filter::Ephemeral, Filter::GpuCount];
    for filter in filters {
        let sizes = members.iter().map(|slot| &slot.usable);
        // A group without machines is judged by its profile, else by what its machines really offer.
        let largest = sizes.filter_map(|usable| amount(filter, usable)).max();
        let has = largest.or_else(|| amount(filter, &known.profile)).unwrap_or(0);
        let needs = amount(filter, &need).unwrap_or(0);
        if needs > has {
            let miss = Miss {
                filter,
                machine_id: None,
                has,
                needs,
            };
            return Why::LargerThanMachine { group, miss };
        }
    }
    if members.is_empty() {
        return Why::GroupEmpty {
            group,
            max_size: known.max_size,
        };
    }
    let machines = count(&members);
    let not_running = by_filter.get(&Filter::Status).map_or(0, |slots| count(slots));
    if not_running == machines {
        Why::NoneRunning { group, machines }
    } else {
        Why::NoRoom { group, machines }
    }
}

fn helps(
    fleet: &Fleet,
    request: &Request<'_>,
    why: &Why,
    by_filter: &BTreeMap<Filter, Vec<&Slot>>,
) -> Vec<Help> {
    let group = &request.spec.capacity_group;
    let machines = count(
        &fleet
            .slots()
            .iter()
            .filter(|slot| slot.group == *group)
            .collect::<Vec<_>>(),
    );
    let mut helps = vec![];
    match why {
        Why::NoGroup { group } => helps.push(Help::CreateGroup { group: group.clone() }),
        Why::LargerThanMachine { miss, .. } => helps.push(Help::AskForLess {
            filter: miss.filter,
            at_most: miss.has,
        }),
        Why::VolumeInUse { by } => helps.push(Help::StopWriter { by: by.clone() }),
        Why::GroupEmpty { .. } | Why::NoneRunning { .. } | Why::NoRoom { .. } => {
            for slot in by_filter.get(&Filter::Status).into_iter().flatten() {
                helps.push(Help::MachineBack {
                    machine_id: slot.machine_id.clone(),
                    status: slot.status,
                });
            }
            let gpu = request.spec.resources.gpu.as_ref();
            let offered = fleet.groups.get(group).and_then(|group| group.gpu_type.as_ref());
            if let Some(gpu) = gpu.filter(|gpu| offered != Some(&gpu.kind)) {
                helps.push(Help::GpuGroup {
                    gpu_type: gpu.kind.clone(),
                });
                return helps;
            }
            if by_filter.contains_key(&Filter::HostPort) {
                helps.push(Help::FreePort);
            }
            let zone = request
                .ordinal
                .and_then(|ordinal| request.spec.volume(ordinal)?.volume.zone());
            if let Some(zone) = zone {
                helps.push(Help::MachineInZone {
                    group: group.clone(),
                    zone: zone.clone(),
                });
            }
            let max_size = fleet.groups.get(group).map_or(0, |group| group.max_size);
            helps.push(if machines < max_size {
                Help::AddMachine {
                    group: group.clone(),
                    machines,
                    max_size,
                }
            } else {
                Help::RaiseMaximum {
                    group: group.clone(),
                    max_size,
                }
            });
        }
    }
    helps
}

fn count(slots: &[&Slot]) -> u32 {
    u32::try_from(slots.len()).expect("a cluster has fewer than 2^32 machines")
}

/// The dimension that a filter is about; none for filters that are not about an amount.
fn amount(filter: Filter, of: &Allocated) -> Option<u64> {
    match filter {
        Filter::Cpu => Some(of.cpu.micros()),
        Filter::Memory => Some(of.memory.get()),
        Filter::Ephemeral => Some(of.ephemeral.get()),
        Filter::GpuCount => Some(of.gpus.into()),
        Filter::Group
        | Filter::Status
        | Filter::GpuType
        | Filter::Zone
        | Filter::HostPort
        | Filter::Address => None,
    }
}

/// An amount with its unit.
fn quantity(filter: Filter, amount: u64) -> String {
    match filter {
        Filter::Cpu => format!("{} vCPU", Cpu::from_micros(amount)),
        Filter::Memory => format!("{} of memory", Bytes::new(amount).rounded()),
        Filter::Ephemeral => format!("{} of ephemeral storage", Bytes::new(amount).rounded()),
        Filter::GpuCount => format!("{amount} GPUs"),
        Filter::Group
        | Filter::Status
        | Filter::GpuType
        | Filter::Zone
        | Filter::HostPort
        | Filter::Address => amount.to_string(),
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.machine_id {
            Some(id) => write!(f, "{id} has {} free", quantity(self.filter, self.has))?,
            None => write!(f, "the largest has {}", quantity(self.filter, self.has))?,
        }
        write!(f, ", {} needed", quantity(self.filter, self.needs))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VolumeInUse { by } => write!(f, "replica {by} may still write to its volume"),
            Self::NoGroup { group } => write!(f, "the cluster has no capacity group {group}"),
            Self::GroupEmpty { group, max_size } => {
                write!(f, "capacity group {group} has no machine (of at most {max_size})")
            }
            Self::LargerThanMachine { group, miss } => {
                write!(
                    f,
                    "it is larger than any machine of capacity group {group}: {miss}"
                )
            }
            Self::NoneRunning { group, machines } => {
                write!(
                    f,
                    "no machine of capacity group {group} takes replicas now (it has {machines})"
                )
            }
            Self::NoRoom { group, machines } => {
                write!(
                    f,
                    "none of the {machines} machines of capacity group {group} can take it"
                )
            }
        }
    }
}

/// The reason and the counts in one sentence.
impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        let counts = self
            .counts
            .iter()
            .map(|(filter, count)| format!("{filter} {count}"));
        let counts: Vec<String> = counts.collect();
        if !counts.is_empty() {
            write!(f, "; ruled out by {}", counts.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddMachine {
                group,
                machines,
                max_size,
            } => write!(
                f,
                "add a machine to group {group} (it has {machines} of at most {max_size})"
            ),
            Self::RaiseMaximum { group, max_size } => {
                write!(
                    f,
                    "raise maxSize of group {group} above {max_size} and add a machine, or free room"
                )
            }
            Self::AskForLess { filter, at_most } => {
                write!(
                    f,
                    "declare at most {}, or use a group of larger machines",
                    quantity(*filter, *at_most)
                )
            }
            Self::MachineBack { machine_id, status } => match status {
                MachineStatus::Draining => write!(f, "cancel the drain of machine {machine_id}"),
                MachineStatus::Initializing => write!(f, "machine {machine_id} reports for the first time"),
                MachineStatus::Unhealthy | MachineStatus::Running => {
                    write!(f, "machine {machine_id} reports again")
                }
            },
            Self::MachineInZone { group, zone } => {
                write!(
                    f,
                    "room on a machine of group {group} in zone {zone}, where the volume is"
                )
            }
            Self::StopWriter { by } => write!(f, "replica {by} stops and is gone from its machine"),
            Self::FreePort => {
                f.write_str("a host port between 8001 and 8999 becomes free on a machine with room")
            }
            Self::CreateGroup { group } => write!(f, "add capacity group {group} to the cluster"),
            Self::GpuGroup { gpu_type } => {
                write!(
                    f,
                    "use a capacity group whose machines have GPUs of type {gpu_type}"
                )
            }
        }
    }
}
