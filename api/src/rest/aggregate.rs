//! Bodies of the four operations over all clusters: `GET /aggregate/...`. Shapes of the public API's version 1.1.0, which kept
//! the schemas when it dropped the routes.

use serde::{Deserialize, Serialize};

use super::cluster::GroupPlan;
use super::container::{ContainerStatus, ContainerStatusReason};
use crate::cluster::ClusterSpec;
use crate::id::{ClusterId, ContainerName, GroupId, MachineId};
use crate::machine::MachineStatus;
use crate::validate::{Fault, Faults};

/// Which clusters count; all of them unless a filter is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AggregateFilter {
    pub project_id: Option<String>,
    pub deployment_group_id: Option<String>,
}

impl AggregateFilter {
    /// Reads the query. Unknown keys are ignored; a filter that is there twice is a fault.
    ///
    /// # Errors
    /// With every fault of the query.
    pub fn from_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Faults> {
        let mut filter = Self::default();
        let mut faults = Vec::new();
        for (key, value) in pairs {
            let place = match key {
                "projectId" => &mut filter.project_id,
                "deploymentGroupId" => &mut filter.deployment_group_id,
                _ => continue,
            };
            if place.replace(value.to_owned()).is_some() {
                faults.push(Fault {
                    path: key.to_owned(),
                    problem: "is there twice; keep one".to_owned(),
                });
            }
        }
        Faults::check(faults)?;
        Ok(filter)
    }

    #[must_use]
    pub fn matches(&self, cluster: &ClusterSpec) -> bool {
        let agrees = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        agrees(&self.project_id, &cluster.project_id)
            && agrees(&self.deployment_group_id, &cluster.deployment_group_id)
    }
}

/// Machines by their status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStatusCounts {
    pub running: u64,
    pub unhealthy: u64,
    pub initializing: u64,
    pub draining: u64,
}

impl MachineStatusCounts {
    pub fn count(&mut self, status: MachineStatus) {
        let place = match status {
            MachineStatus::Initializing => &mut self.initializing,
            MachineStatus::Running => &mut self.running,
            MachineStatus::Unhealthy => &mut self.unhealthy,
            MachineStatus::Draining => &mut self.draining,
        };
        *place += 1;
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            running: self.running + other.running,
            unhealthy: self.unhealthy + other.unhealthy,
            initializing: self.initializing + other.initializing,
            draining: self.draining + other.draining,
        }
    }

    #[must_use]
    pub fn total(self) -> u64 {
        self.running + self.unhealthy + self.initializing + self.draining
    }
}

/// One container name over all clusters that have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct OverviewContainer {
    pub name: ContainerName,
    /// Null unless all clusters that have the container are of one project. The same holds for `image`, `stateful` and
    /// `hasAutoscaling`: they say what is true everywhere.
    pub project_id: Option<String>,
    /// An instance is the container in one cluster.
    pub total_instances: u64,
    pub running_instances: u64,
    pub failing_instances: u64,
    pub pending_instances: u64,
    pub stopped_instances: u64,
    /// Of the allocation, over all replicas that report it.
    pub avg_cpu_percent: Option<f64>,
    pub avg_memory_percent: Option<f64>,
    /// Wanted ones.
    pub total_replicas: u64,
    pub healthy_replicas: u64,
    /// Issues of the container in `GET /aggregate/attention`.
    pub attention_count: u64,
    pub image: Option<String>,
    pub stateful: Option<bool>,
    pub has_autoscaling: Option<bool>,
    /// Milliseconds, the mean over all replicas that serve HTTP.
    pub avg_latency_p95_ms: Option<f64>,
    /// 5xx answers of all answers, 0 to 1.
    pub avg_error_rate: Option<f64>,
}

/// Sums over all clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct OverviewTotals {
    /// Clusters.
    pub deployments: u64,
    pub container_instances: u64,
    pub machines: u64,
    pub machines_by_status: MachineStatusCounts,
    /// Clusters in which nothing moves off silent machines.
    pub rescheduling_frozen_count: u64,
}

/// `GET /aggregate/overview`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OverviewReply {
    pub containers: Vec<OverviewContainer>,
    pub totals: OverviewTotals,
}

/// What needs somebody's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum IssueKind {
    #[serde(rename = "crashloop")]
    CrashLoop,
    SchedulingFailure,
    UnhealthyMachine,
}

/// One thing that needs attention, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AttentionIssue {
    #[serde(rename = "type")]
    pub kind: IssueKind,
    pub container_name: Option<ContainerName>,
    pub machine_id: Option<MachineId>,
    pub message: String,
}

/// The issues of one cluster that has any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AttentionCluster {
    pub cluster_id: ClusterId,
    pub issues: Vec<AttentionIssue>,
}

/// `GET /aggregate/attention`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttentionReply {
    pub clusters: Vec<AttentionCluster>,
}

/// A container in one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ContainerDeployment {
    pub cluster_id: ClusterId,
    pub status: ContainerStatus,
    pub status_reason: Option<ContainerStatusReason>,
    pub status_message: Option<String>,
    pub image: Option<String>,
    /// Running ones.
    pub current_replicas: u64,
    pub healthy_replicas: u64,
    pub avg_cpu_percent: Option<f64>,
    pub avg_memory_percent: Option<f64>,
    pub avg_latency_p95_ms: Option<f64>,
    pub avg_error_rate: Option<f64>,
    pub avg_in_flight_requests: Option<f64>,
    /// Berth's addition: how many there should be.
    #[serde(default)]
    pub desired_replicas: u64,
}

/// `GET /aggregate/containers/{n}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ContainerDeploymentsReply {
    pub container_name: ContainerName,
    pub deployments: Vec<ContainerDeployment>,
}

/// The machines of one capacity group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct GroupSummary {
    pub group_id: GroupId,
    pub machines: u64,
    pub unhealthy_machines: u64,
    pub utilization_percent: Option<f64>,
    /// The group's entry of the capacity plan, as of the last decision.
    pub recommendation: Option<GroupPlan>,
}

/// The machines of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterMachines {
    pub cluster_id: ClusterId,
    pub total_machines: u64,
    pub machines_by_status: MachineStatusCounts,
    pub capacity_groups: Vec<GroupSummary>,
}

/// Sums over all clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachinesTotals {
    pub machines: u64,
    pub machines_by_status: MachineStatusCounts,
}

/// `GET /aggregate/machines`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AggregateMachinesReply {
    pub clusters: Vec<ClusterMachines>,
    pub totals: MachinesTotals,
}
