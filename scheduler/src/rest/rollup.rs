//! Sums over clusters for the aggregates. Pure: of published states to replies.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::container::Scale;
use berth_api::id::ContainerName;
use berth_api::replica::CRASH_LOOP_MIN;
use berth_api::rest::aggregate::{
    AggregateMachinesReply, AttentionCluster, AttentionIssue, AttentionReply, ClusterMachines,
    ContainerDeployment, ContainerDeploymentsReply, GroupSummary, IssueKind, MachineStatusCounts,
    MachinesTotals, OverviewContainer, OverviewReply, OverviewTotals,
};
use berth_api::rest::container::ContainerStatus;
use berth_api::rest::node::{HttpMetrics, ReplicaMetrics};
use serde::{Deserialize, Serialize};

use super::{plans, view};
use crate::decide::Report;
use crate::entry::MachineHealthState;
use crate::status::{failure_message, unplaced_message};
use crate::world::{Container, Observed, Replica, World};

/// One cluster as its actor published it.
pub(super) struct Seen {
    pub(super) world: Arc<World>,
    pub(super) observed: Arc<Observed>,
    pub(super) report: Arc<Report>,
}

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits into 64 bits")
}

/// Mean of what was reported; none when nothing was.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn plus(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count.saturating_add(other.count),
        }
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

/// What the replicas of a container report together.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Load {
    cpu: Mean,
    memory: Mean,
    latency_p95: Mean,
    in_flight: Mean,
    failed: u64,
    answered: u64,
}

#[expect(clippy::cast_precision_loss, reason = "a mean needs no more than 53 bits")]
impl Load {
    fn add(&mut self, metrics: &ReplicaMetrics) {
        self.cpu.add(metrics.cpu_usage_percent);
        self.memory.add(metrics.memory_usage_percent);
        if let Some(http) = &metrics.http {
            self.latency_p95.add(http.latency_p95_ms);
            self.in_flight.add(http.in_flight_requests as f64);
            self.failed = self.failed.saturating_add(http.status_5xx);
            self.answered = self.answered.saturating_add(answers(http));
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.plus(other.cpu),
            memory: self.memory.plus(other.memory),
            latency_p95: self.latency_p95.plus(other.latency_p95),
            in_flight: self.in_flight.plus(other.in_flight),
            failed: self.failed.saturating_add(other.failed),
            answered: self.answered.saturating_add(other.answered),
        }
    }

    fn error_rate(self) -> Option<f64> {
        (self.answered > 0).then(|| self.failed as f64 / self.answered as f64)
    }
}

/// `totalRequests` counts since the start of the replica; a client that leaves it at zero still sends the classes.
fn answers(http: &HttpMetrics) -> u64 {
    let classes = http
        .status_2xx
        .saturating_add(http.status_4xx)
        .saturating_add(http.status_5xx);
    classes.max(http.total_requests)
}

/// How many replicas of a container run in one cluster, and how many of those are healthy.
struct Instance {
    running: u64,
    healthy: u64,
}

impl Instance {
    /// Counts, and adds what the replicas report to `load`.
    fn of(seen: &Seen, container: &Container, load: &mut Load) -> Self {
        let (world, observed) = (seen.world.as_ref(), seen.observed.as_ref());
        let mut instance = Self {
            running: 0,
            healthy: 0,
        };
        for replica in live(world, &container.spec.name) {
            let info = view::replica_info(world, observed, replica);
            let is_running = view::is_running(world, observed, replica);
            instance.running += u64::from(is_running);
            instance.healthy += u64::from(is_running && info.healthy);
            if let Some(metrics) = &info.metrics {
                load.add(metrics);
            }
        }
        instance
    }
}

fn live<'a>(world: &'a World, name: &ContainerName) -> impl Iterator<Item = &'a Replica> + use<'a> {
    world.replicas_of(name).filter(|replica| replica.is_live())
}

/// The overview of some clusters, which can be put together with that of others: means are kept as what they are made of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Overview {
    totals: OverviewTotals,
    rows: BTreeMap<ContainerName, Row>,
}

impl Overview {
    pub(super) fn plus(mut self, other: Self) -> Self {
        let (one, more) = (&mut self.totals, other.totals);
        one.deployments += more.deployments;
        one.container_instances += more.container_instances;
        one.rescheduling_frozen_count += more.rescheduling_frozen_count;
        one.machines_by_status = one.machines_by_status.plus(more.machines_by_status);
        one.machines += more.machines;
        for (name, row) in other.rows {
            let known = self.rows.remove(&name).unwrap_or_default();
            self.rows.insert(name, known.plus(row));
        }
        self
    }

    /// Rows ordered by container name.
    pub(super) fn reply(self) -> OverviewReply {
        OverviewReply {
            containers: self.rows.into_iter().map(|(name, row)| row.reply(name)).collect(),
            totals: self.totals,
        }
    }
}

pub(super) fn overview(clusters: &[Seen]) -> Overview {
    let mut totals = OverviewTotals::default();
    let mut rows: BTreeMap<ContainerName, Row> = BTreeMap::new();
    for seen in clusters {
        totals.deployments += 1;
        totals.rescheduling_frozen_count += u64::from(seen.report.freeze.is_some());
        totals.machines_by_status = totals.machines_by_status.plus(by_status(&seen.world, |_| true));
        for container in view::declared(&seen.world) {
            totals.container_instances += 1;
            rows.entry(container.spec.name.clone())
                .or_default()
                .add(seen, container);
        }
    }
    totals.machines = totals.machines_by_status.total();
    Overview { totals, rows }
}

/// What is said of all instances, as long as it is the same of each.
#[derive(Debug, Default, Serialize, Deserialize)]
enum Common<T> {
    #[default]
    None,
    One(T),
    Differs,
}

impl<T: PartialEq> Common<T> {
    fn add(&mut self, value: T) {
        *self = match std::mem::replace(self, Self::Differs) {
            Self::None => Self::One(value),
            Self::One(known) if known == value => Self::One(known),
            Self::One(_) | Self::Differs => Self::Differs,
        };
    }

    fn plus(mut self, other: Self) -> Self {
        match other {
            Self::None => self,
            Self::One(value) => {
                self.add(value);
                self
            }
            Self::Differs => Self::Differs,
        }
    }

    fn get(self) -> Option<T> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Differs => None,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Row {
    instances: u64,
    by_status: BTreeMap<ContainerStatus, u64>,
    project: Common<Option<String>>,
    image: Common<String>,
    stateful: Common<bool>,
    autoscaling: Common<bool>,
    load: Load,
    wanted: u64,
    healthy: u64,
    attention: u64,
}

impl Row {
    fn plus(mut self, other: Self) -> Self {
        for (status, instances) in other.by_status {
            *self.by_status.entry(status).or_default() += instances;
        }
        Self {
            instances: self.instances + other.instances,
            by_status: self.by_status,
            project: self.project.plus(other.project),
            image: self.image.plus(other.image),
            stateful: self.stateful.plus(other.stateful),
            autoscaling: self.autoscaling.plus(other.autoscaling),
            load: self.load.plus(other.load),
            wanted: self.wanted + other.wanted,
            healthy: self.healthy + other.healthy,
            attention: self.attention + other.attention,
        }
    }

    fn add(&mut self, seen: &Seen, container: &Container) {
        let (world, spec) = (&seen.world, &container.spec);
        self.instances += 1;
        let status = view::state(world, &seen.observed, &spec.name).status;
        *self.by_status.entry(status).or_default() += 1;
        self.project.add(world.spec().project_id.clone());
        self.image.add(spec.image.clone());
        self.stateful.add(spec.stateful);
        self.autoscaling.add(matches!(spec.scale, Scale::Autoscaling(_)));
        self.healthy += Instance::of(seen, container, &mut self.load).healthy;
        self.wanted += u64::from(container.wanted());
        self.attention += count(container_issues(seen, container).len());
    }

    fn reply(self, name: ContainerName) -> OverviewContainer {
        let of = |status| self.by_status.get(&status).copied().unwrap_or(0);
        OverviewContainer {
            name,
            total_instances: self.instances,
            running_instances: of(ContainerStatus::Running),
            failing_instances: of(ContainerStatus::Failing),
            pending_instances: of(ContainerStatus::Pending),
            stopped_instances: of(ContainerStatus::Stopped),
            project_id: self.project.get().flatten(),
            avg_cpu_percent: self.load.cpu.get(),
            avg_memory_percent: self.load.memory.get(),
            total_replicas: self.wanted,
            healthy_replicas: self.healthy,
            attention_count: self.attention,
            image: self.image.get(),
            stateful: self.stateful.get(),
            has_autoscaling: self.autoscaling.get(),
            avg_latency_p95_ms: self.load.latency_p95.get(),
            avg_error_rate: self.load.error_rate(),
        }
    }
}

/// Clusters without issues are left out.
pub(super) fn attention(clusters: &[Seen]) -> AttentionReply {
    let clusters = clusters.iter().filter_map(|seen| {
        let containers = view::declared(&seen.world).flat_map(|container| container_issues(seen, container));
        let issues: Vec<AttentionIssue> = containers.chain(machine_issues(seen)).collect();
        (!issues.is_empty()).then(|| AttentionCluster {
            cluster_id: seen.world.spec().cluster_id.clone(),
            issues,
        })
    });
    AttentionReply {
        clusters: clusters.collect(),
    }
}

/// A container may fail in both ways at once. One that is not wanted has no issues.
fn container_issues(seen: &Seen, container: &Container) -> Vec<AttentionIssue> {
    if container.wanted() == 0 {
        return Vec::new();
    }
    let (world, name) = (seen.world.as_ref(), &container.spec.name);
    let issue = |kind, message| AttentionIssue {
        kind,
        container_name: Some(name.clone()),
        machine_id: None,
        message,
    };
    let crashing = live(world, name)
        .filter_map(|replica| Some((replica, seen.observed.status(replica)?)))
        .find(|(_, said)| said.recent_crashes >= CRASH_LOOP_MIN);
    let crashing =
        crashing.map(|(replica, said)| issue(IssueKind::CrashLoop, failure_message(replica, said)));
    let unplaced = (container.unplaced > 0)
        .then(|| issue(IssueKind::SchedulingFailure, unplaced_message(world, container)));
    crashing.into_iter().chain(unplaced).collect()
}

fn machine_issues(seen: &Seen) -> impl Iterator<Item = AttentionIssue> {
    let silent = seen
        .world
        .machines()
        .iter()
        .filter(|(_, machine)| machine.health == MachineHealthState::Unhealthy);
    silent.map(|(id, machine)| AttentionIssue {
        kind: IssueKind::UnhealthyMachine,
        container_name: None,
        machine_id: Some(id.clone()),
        message: format!(
            "machine {id} is silent since {} and has {} replicas",
            machine.health_since,
            machine.replicas.len()
        ),
    })
}

/// One row per cluster that declares the container.
pub(super) fn container(clusters: &[Seen], name: ContainerName) -> ContainerDeploymentsReply {
    let deployments = clusters.iter().filter_map(|seen| {
        let container = seen
            .world
            .container(&name)
            .filter(|container| container.deleted_since.is_none())?;
        let state = view::state(&seen.world, &seen.observed, &name);
        let mut load = Load::default();
        let instance = Instance::of(seen, container, &mut load);
        Some(ContainerDeployment {
            cluster_id: seen.world.spec().cluster_id.clone(),
            status: state.status,
            status_reason: state.reason,
            status_message: state.message,
            image: Some(container.spec.image.clone()),
            current_replicas: instance.running,
            healthy_replicas: instance.healthy,
            avg_cpu_percent: load.cpu.get(),
            avg_memory_percent: load.memory.get(),
            avg_latency_p95_ms: load.latency_p95.get(),
            avg_error_rate: load.error_rate(),
            avg_in_flight_requests: load.in_flight.get(),
            desired_replicas: u64::from(container.wanted()),
        })
    });
    let deployments = deployments.collect();
    ContainerDeploymentsReply {
        container_name: name,
        deployments,
    }
}

pub(super) fn machines(clusters: &[Seen]) -> AggregateMachinesReply {
    let clusters: Vec<ClusterMachines> = clusters.iter().map(cluster_machines).collect();
    let machines_by_status = clusters
        .iter()
        .fold(MachineStatusCounts::default(), |sum, cluster| {
            sum.plus(cluster.machines_by_status)
        });
    AggregateMachinesReply {
        clusters,
        totals: MachinesTotals {
            machines: machines_by_status.total(),
            machines_by_status,
        },
    }
}

fn cluster_machines(seen: &Seen) -> ClusterMachines {
    let world = &seen.world;
    let machines_by_status = by_status(world, |_| true);
    let groups = world.spec().capacity_groups.iter().map(|group| {
        let counts = by_status(world, |machine| machine.spec.capacity_group == group.group_id);
        let outlook = seen
            .report
            .capacity
            .iter()
            .find(|outlook| outlook.group_id == group.group_id);
        let recommendation = outlook.and_then(|outlook| plans::group(world, outlook));
        GroupSummary {
            group_id: group.group_id.clone(),
            machines: counts.total(),
            unhealthy_machines: counts.unhealthy,
            utilization_percent: recommendation.as_ref().and_then(|plan| plan.utilization_percent),
            recommendation,
        }
    });
    ClusterMachines {
        cluster_id: world.spec().cluster_id.clone(),
        total_machines: machines_by_status.total(),
        machines_by_status,
        capacity_groups: groups.collect(),
    }
}

fn by_status(world: &World, is_meant: impl Fn(&crate::world::Machine) -> bool) -> MachineStatusCounts {
    let mut counts = MachineStatusCounts::default();
    for machine in world.machines().values().filter(|machine| is_meant(machine)) {
        counts.count(machine.status());
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Town, stateless};

    fn seen(town: &Town) -> Seen {
        Seen {
            world: Arc::new(town.world.clone()),
            observed: Arc::new(town.observed.clone()),
            report: Arc::new(town.report.clone()),
        }
    }

    #[test]
    fn a_crash_loop_a_want_of_room_and_a_silent_machine_are_three_issues() {
        let mut town = Town::of(2);
        town.put(stateless("reader", 9));
        town.settle();
        let crashing = town
            .observed
            .machines
            .values_mut()
            .flat_map(|machine| machine.replicas.values_mut());
        crashing
            .take(1)
            .for_each(|status| status.recent_crashes = CRASH_LOOP_MIN);
        town.kill("m2");
        town.tick(16_000);
        let town = seen(&town);
        let reply = attention(std::slice::from_ref(&town));
        let kinds: Vec<IssueKind> = reply.clusters[0].issues.iter().map(|issue| issue.kind).collect();
        assert!(kinds.contains(&IssueKind::SchedulingFailure), "{reply:?}");
        assert!(kinds.contains(&IssueKind::UnhealthyMachine), "{reply:?}");
        let row = &overview(&[town]).reply().containers[0];
        assert_eq!((row.failing_instances, row.total_replicas), (1, 9));
        assert_eq!(row.attention_count, count(kinds.len()) - 1);
    }

    #[test]
    fn what_differs_between_clusters_is_null() {
        let mut one = Town::of(1);
        one.put(stateless("reader", 1));
        let mut other = Town::of(1);
        other.put(berth_api::container::ContainerSpec {
            image: "app:2".into(),
            ..stateless("reader", 2)
        });
        let reply = overview(&[seen(&one), seen(&other)]).reply();
        let row = &reply.containers[0];
        assert_eq!((row.total_instances, row.total_replicas), (2, 3));
        assert_eq!((row.image.as_deref(), row.stateful), (None, Some(false)));
        assert_eq!(reply.totals.machines, 2);
    }

    #[test]
    fn means_count_only_what_reports() {
        let mut load = Load::default();
        assert_eq!((load.cpu.get(), load.error_rate()), (None, None));
        let mut metrics: ReplicaMetrics = serde_json::from_value(serde_json::json!({
            "status": "running", "cpuUsage": 0.5, "cpuUsagePercent": 50.0, "memoryUsedBytes": 1,
            "memoryUsagePercent": 10.0, "healthy": true, "lastUpdated": "2026-11-21T10:00:00Z",
            "http": {"inFlightRequests": 4, "totalRequests": 0, "latencyP95Ms": 8.0, "latencyP99Ms": 9.0,
                "status2xx": 3, "status4xx": 0, "status5xx": 1, "topEndpoints": []}
        }))
        .unwrap();
        load.add(&metrics);
        metrics.http = None;
        metrics.cpu_usage_percent = 100.0;
        load.add(&metrics);
        assert_eq!(load.cpu.get(), Some(75.0));
        assert_eq!(load.in_flight.get(), Some(4.0));
        assert_eq!(load.error_rate(), Some(0.25));
    }
}
