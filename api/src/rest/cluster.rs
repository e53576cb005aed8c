//! Bodies of cluster operations: clusters, capacity groups, tokens, the capacity plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::node::{bytes_amount, cpu_amount};
use super::pattern;
use crate::cluster::{
    CapacityGroup, ClusterSpec, GROUPS_MAX, Gpu, MACHINE_PREFIX_LEN, MachineProfile, PROFILE_MEMORY_MIN,
    Platform,
};
use crate::id::{ClusterId, GroupId, MachineId, ReplicaId, Zone};
use crate::placement::labels;
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu, cpu_number};
use crate::validate::{Cursor, Faults, read};

/// Reply to `POST /clusters`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateClusterReply {
    pub cluster_id: ClusterId,
    pub name: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub container_cidr: ipnet::Ipv4Net,
    pub platform: Platform,
    pub capacity_groups: Vec<CapacityGroup>,
    pub management_token: String,
    pub machine_token: String,
    pub created_at: Timestamp,
}

/// Without the tokens: they never reach a log.
impl std::fmt::Debug for CreateClusterReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateClusterReply")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

/// vCPU of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuAggregate {
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub total: Cpu,
    /// Total without reserves and without what is allocated; never negative.
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub available: Cpu,
}

/// Memory or storage of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BytesAggregate {
    pub total: Bytes,
    pub available: Bytes,
}

/// What the machines of a cluster have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterCapacity {
    pub cpu: CpuAggregate,
    pub memory: BytesAggregate,
    pub ephemeral_storage: BytesAggregate,
}

/// Reply to `GET /clusters/{c}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetClusterReply {
    pub cluster_id: ClusterId,
    pub name: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub container_cidr: ipnet::Ipv4Net,
    pub platform: Platform,
    pub capacity_groups: Vec<CapacityGroup>,
    pub machine_count: u64,
    pub container_count: u64,
    pub capacity: ClusterCapacity,
    pub created_at: Timestamp,
    /// Berth's addition: nothing moves, because too many machines are unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeView>,
    /// Berth's addition: stops that nobody asked for and that wait for their release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_stops: Option<HeldStopsView>,
}

/// A freeze that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct FreezeView {
    pub since: Timestamp,
    pub unhealthy_machines: u32,
    pub total_machines: u32,
}

/// Stops that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeldStopsView {
    pub since: Timestamp,
    /// As it was then.
    pub count: u32,
}

/// Which of a cluster's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    Management,
    Machine,
}

/// Body of `POST /clusters/{c}/tokens/rotate` and `/revoke`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    pub token_type: TokenType,
}

impl TokenRequest {
    /// # Errors
    /// With every fault of the input.
    pub fn read(value: &Value) -> Result<Self, Faults> {
        let words = [
            ("management", TokenType::Management),
            ("machine", TokenType::Machine),
        ];
        read(value, |cursor| {
            cursor.object()?;
            let token_type = cursor.member("tokenType").word(&words)?;
            Some(Self { token_type })
        })
    }
}

/// Reply to rotate: only the rotated token is there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RotateTokenReply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub management_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_token: Option<String>,
}

/// Without the tokens: they never reach a log.
impl std::fmt::Debug for RotateTokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RotateTokenReply").finish_non_exhaustive()
    }
}

/// Why a capacity group should have its desired size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CapacityReason {
    /// Replicas have no place, by packing them; or the group has fewer machines than its minimum.
    NeedCapacity,
    /// The scarcest dimension of the machines is held by more than the upper threshold.
    HighUtilization,
    /// What is held fits on fewer machines and would use them by no more than the lower threshold.
    LowUtilization,
    AtTarget,
    /// More machines are needed than the group may have.
    AtMaxSize,
}

impl CapacityReason {
    /// The wire's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedCapacity => "need_capacity",
            Self::HighUtilization => "high_utilization",
            Self::LowUtilization => "low_utilization",
            Self::AtTarget => "at_target",
            Self::AtMaxSize => "at_max_size",
        }
    }
}

/// What one zone of a group needs; only where replicas are bound to zones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ZoneRequirement {
    pub zone: Zone,
    pub current_machines: u32,
    pub desired_machines: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable_replicas: Option<u32>,
}

/// One replica that would go from one machine to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    pub replica_id: ReplicaId,
    pub from: MachineId,
    pub to: MachineId,
}

/// A machine that its group can do without, and where its replicas would go, in this order and one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineToDrain {
    pub machine_id: MachineId,
    #[serde(default)]
    pub moves: Vec<PlannedMove>,
}

/// What one group should grow or shrink to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct GroupPlan {
    pub group_id: GroupId,
    pub profile: MachineProfile,
    /// Status `running` only.
    pub current_machines: u32,
    /// Machines that work or are about to: those that drain or are silent are none of them.
    pub desired_machines: u32,
    pub reason: CapacityReason,
    /// Those too large for any machine of the group included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable_replicas: Option<u32>,
    /// What replicas hold of the running machines, less reserves, in the scarcest of vCPU, memory, ephemeral storage and
    /// GPUs: 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_requirements: Option<Vec<ZoneRequirement>>,
    #[serde(flatten)]
    pub details: GroupPlanDetails,
}

/// Berth's own members of a [`GroupPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct GroupPlanDetails {
    /// Registered, not heard yet, and counted as there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub initializing_machines: u32,
    /// Machines that replicas without a place need beyond those that work or are about to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub needed_machines: u32,
    /// No packing of those replicas needs fewer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub needed_machines_at_least: u32,
    /// Drain these before one of them is ended; everything on them has another place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines_to_drain: Vec<MachineToDrain>,
    /// Draining and empty: they may be ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drained_machines: Vec<MachineId>,
    /// Silent, or registered and never heard: they count for nothing and still exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent_machines: Vec<MachineId>,
    /// What else is to be known, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Reply to `GET /clusters/{c}/capacity-plan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CapacityPlanReply {
    pub groups: Vec<GroupPlan>,
}

/// Reads `POST /clusters`.
///
/// # Errors
/// With every fault of the input.
pub fn read_cluster(value: &Value) -> Result<ClusterSpec, Faults> {
    read(value, |cursor| {
        cursor.object()?;
        let cluster_id = cursor.member("clusterId").parse("a cluster id", ClusterId::new);
        let name = cursor.member("name").text_sized(1..=255);
        let cidr = cursor.member("containerCidr");
        let container_cidr = read_cidr(&cidr);
        let platform = cursor.member("platform").word(&[
            ("aws", Platform::Aws),
            ("gcp", Platform::Gcp),
            ("azure", Platform::Azure),
            ("local", Platform::Local),
        ]);
        let capacity_groups = groups(&cursor.member("capacityGroups"));
        let owner = |name: &str| {
            cursor
                .member(name)
                .optional(Cursor::text)
                .map(|id| id.map(str::to_owned))
        };
        let workspace_id = owner("workspaceId");
        let project_id = owner("projectId");
        let deployment_group_id = owner("deploymentGroupId");
        let spec = ClusterSpec {
            cluster_id: cluster_id?,
            name: name?.to_owned(),
            container_cidr: container_cidr?,
            platform: platform?,
            capacity_groups: capacity_groups?,
            workspace_id: workspace_id?,
            project_id: project_id?,
            deployment_group_id: deployment_group_id?,
        };
        match room_for(&spec, &spec.capacity_groups) {
            Ok(()) => Some(spec),
            Err(problem) => cidr.refuse(problem),
        }
    })
}

/// Reads `PATCH /clusters/{c}`: the whole list of groups.
///
/// # Errors
/// With every fault of the input, or when the cluster's CIDR cannot hold the new groups.
pub fn read_groups(value: &Value, cluster: &ClusterSpec) -> Result<Vec<CapacityGroup>, Faults> {
    read(value, |cursor| {
        cursor.object()?;
        let member = cursor.member("capacityGroups");
        let groups = groups(&member)?;
        match room_for(cluster, &groups) {
            Ok(()) => Some(groups),
            Err(problem) => member.refuse(problem),
        }
    })
}

fn read_cidr(cursor: &Cursor<'_>) -> Option<ipnet::Ipv4Net> {
    let cidr = cursor.parse("an IPv4 network such as 10.244.0.0/16", |text| {
        text.parse::<ipnet::Ipv4Net>()
            .map_err(|_| format!("{text:?} is not an IPv4 network; write for example 10.244.0.0/16"))
    })?;
    if cidr.addr() != cidr.network() {
        return cursor.refuse(format!(
            "{cidr} has bits set behind its prefix; write {}",
            cidr.trunc()
        ));
    }
    if !(8..=MACHINE_PREFIX_LEN).contains(&cidr.prefix_len()) {
        return cursor.refuse(format!(
            "{cidr} cannot be cut into /{MACHINE_PREFIX_LEN} machine subnets; write a prefix from /8 to /{MACHINE_PREFIX_LEN}"
        ));
    }
    Some(cidr)
}

/// Each machine owns a /24 of the container CIDR, so the CIDR bounds the sum of the groups' sizes.
fn room_for(cluster: &ClusterSpec, groups: &[CapacityGroup]) -> Result<(), String> {
    let wanted: u64 = groups.iter().map(|group| u64::from(group.max_size)).sum();
    let holds = u64::from(cluster.subnet_count());
    if wanted <= holds {
        return Ok(());
    }
    let subnet_bits = u64::BITS - (wanted - 1).leading_zeros();
    let mend = if subnet_bits <= 16 {
        format!(
            "write a network of at least /{} or lower maxSize",
            u32::from(MACHINE_PREFIX_LEN) - subnet_bits
        )
    } else {
        "lower maxSize".to_owned()
    };
    Err(format!(
        "CIDR too small: {} holds {holds} machines (a /{MACHINE_PREFIX_LEN} each), groups may grow to {wanted}; {mend}",
        cluster.container_cidr
    ))
}

fn groups(cursor: &Cursor<'_>) -> Option<Vec<CapacityGroup>> {
    let mut seen = Vec::new();
    let groups = cursor.list(|cursor| {
        let group = group(cursor);
        let id = cursor.member("groupId").raw().and_then(Value::as_str)?;
        if seen.contains(&id) {
            return cursor
                .member("groupId")
                .refuse(format!("{id:?} is there twice; each group needs its own id"));
        }
        seen.push(id);
        group
    })?;
    if groups.len() > GROUPS_MAX {
        return cursor.refuse(format!(
            "has {} groups; a cluster has at most {GROUPS_MAX}",
            groups.len()
        ));
    }
    Some(groups)
}

fn group(cursor: &Cursor<'_>) -> Option<CapacityGroup> {
    cursor.object()?;
    let group_id = cursor
        .member("groupId")
        .parse("a capacity group id", GroupId::new);
    let profile = profile(&cursor.member("profile"));
    let min_size = cursor.member("minSize").count(0..=u32::MAX);
    let max_size = cursor.member("maxSize").count(1..=u32::MAX);
    if let (Some(min), Some(max)) = (min_size, max_size)
        && min > max
    {
        return cursor
            .member("minSize")
            .refuse(format!("{min} is above maxSize {max}; write at most {max}"));
    }
    let labels = cursor.member("labels").or(BTreeSet::new(), labels);
    Some(CapacityGroup {
        group_id: group_id?,
        profile: profile?,
        min_size: min_size?,
        max_size: max_size?,
        labels: labels?,
    })
}

fn profile(cursor: &Cursor<'_>) -> Option<MachineProfile> {
    cursor.object()?;
    let cpu = cursor.member("cpu");
    let vcpu = match cpu_amount(&cpu) {
        Some(Cpu::ZERO) => cpu.refuse("0 is out of range; write a number of vCPU above 0"),
        vcpu => vcpu,
    };
    let memory = cursor.member("memoryBytes");
    let memory_bytes = match bytes_amount(&memory) {
        Some(bytes) if bytes < PROFILE_MEMORY_MIN => memory.refuse(format!(
            "{} is out of range; write a whole number of at least {}",
            bytes.get(),
            PROFILE_MEMORY_MIN.get()
        )),
        bytes => bytes,
    };
    let ephemeral = cursor.member("ephemeralStorageBytes");
    let ephemeral_storage_bytes = match bytes_amount(&ephemeral) {
        Some(Bytes::ZERO) => ephemeral.refuse("0 is out of range; write a number of bytes above 0"),
        bytes => bytes,
    };
    let gpu = cursor.member("gpu").optional(gpu);
    Some(MachineProfile {
        cpu: vcpu?,
        memory_bytes: memory_bytes?,
        ephemeral_storage_bytes: ephemeral_storage_bytes?,
        gpu: gpu?,
    })
}

/// `{type, count 1-8}`.
fn gpu(cursor: &Cursor<'_>) -> Option<Gpu> {
    cursor.object()?;
    let kind = cursor
        .member("type")
        .matching(pattern::GPU_WANTED, pattern::is_gpu);
    let count = cursor.member("count").count(1..=8);
    let share = cursor.member("share");
    if share.raw().is_some_and(|share| !share.is_null()) {
        return share.refuse("machines have whole GPUs; leave it out here and write it in containers");
    }
    Some(Gpu {
        kind: kind?,
        count: count?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster() -> Value {
        json!({
            "clusterId": "acme/prod", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
            "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 3,
                "profile": {"cpu": 8.0, "memoryBytes": 17_179_869_184_u64, "ephemeralStorageBytes": 1_099_511_627_776_u64}}]
        })
    }

    #[test]
    fn a_cluster_is_read_and_written_alike() {
        let spec = read_cluster(&cluster()).unwrap();
        assert_eq!(spec.capacity_groups[0].profile.cpu, Cpu::from_micros(8_000_000));
        assert_eq!(read_cluster(&serde_json::to_value(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_cidr_too_small_for_the_groups_names_both_counts() {
        let mut value = cluster();
        value["containerCidr"] = json!("10.244.0.0/23");
        let faults = read_cluster(&value).unwrap_err();
        assert_eq!(
            faults.to_string(),
            "containerCidr: CIDR too small: 10.244.0.0/23 holds 2 machines (a /24 each), groups may grow to 3; write a network of at least /22 or lower maxSize"
        );
    }

    #[test]
    fn a_profile_that_no_machine_has_is_refused() {
        let mut value = cluster();
        value["capacityGroups"][0]["profile"] = json!({
            "cpu": 4295, "memoryBytes": (1u64 << 52) + 1, "ephemeralStorageBytes": u64::MAX});
        let faults = read_cluster(&value).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "capacityGroups[0].profile.cpu",
                "capacityGroups[0].profile.memoryBytes",
                "capacityGroups[0].profile.ephemeralStorageBytes",
            ]
        );
        value["capacityGroups"][0]["profile"] = json!({
            "cpu": 4_294.967_295, "memoryBytes": 1u64 << 52, "ephemeralStorageBytes": 1u64 << 52});
        assert!(read_cluster(&value).is_ok());
    }

    #[test]
    fn every_fault_of_a_cluster_is_listed() {
        let value = json!({
            "clusterId": "", "name": "", "containerCidr": "10.244.0.1/16", "platform": "oci",
            "capacityGroups": [
                {"groupId": "g", "minSize": 5, "maxSize": 3, "profile": {"cpu": 0, "memoryBytes": 1, "ephemeralStorageBytes": 1}},
                {"groupId": "g", "minSize": 0, "maxSize": 0, "profile": {"cpu": "8", "memoryBytes": 1.5, "ephemeralStorageBytes": 0,
                    "gpu": {"type": "T4", "count": 9}}}]
        });
        let faults = read_cluster(&value).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "clusterId",
                "name",
                "containerCidr",
                "platform",
                "capacityGroups[0].profile.cpu",
                "capacityGroups[0].profile.memoryBytes",
                "capacityGroups[0].minSize",
                "capacityGroups[1].profile.cpu",
                "capacityGroups[1].profile.memoryBytes",
                "capacityGroups[1].profile.ephemeralStorageBytes",
                "capacityGroups[1].profile.gpu.type",
                "capacityGroups[1].profile.gpu.count",
                "capacityGroups[1].maxSize",
                "capacityGroups[1].groupId",
            ]
        );
    }
}
