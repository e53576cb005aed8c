//! Bodies of container operations. [`read_container`] and [`ContainerUpdate`] give valid declarations or every fault.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::node::ReplicaMetrics;
use super::rollout::RolloutView;
use crate::container::{
    Autoscaling, ContainerSpec, DisruptionBudget, HealthCheck, LoadBalancerTarget, Resources, RollbackPolicy,
    Scale, ServiceAccountTarget,
};
use crate::id::{ClusterId, ContainerName, GroupId, MachineId, ReplicaId};
use crate::placement::PlacementRules;
use crate::probe::Probes;
use crate::replica::WireReplicaStatus;
use crate::time::Timestamp;
use crate::volume::{OrdinalVolume, SharedMount};

pub use super::contradiction::contradictions;
pub use super::declaration::read_container;
pub use super::update::{ContainerUpdate, changes};

/// The wire's status of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ContainerStatus {
    #[default]
    Pending,
    Running,
    Stopped,
    Failing,
}

impl std::fmt::Display for ContainerStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failing => "failing",
        })
    }
}

/// Why a container is failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ContainerStatusReason {
    Unschedulable,
    CrashLoopBackOff,
    ReplicaFailed,
}

/// Reply to create and update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateContainerReply {
    pub name: ContainerName,
    pub cluster_id: ClusterId,
    pub status: ContainerStatus,
    pub created_at: Timestamp,
}

/// How a container is doing, beside its declaration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerState {
    pub status: ContainerStatus,
    pub reason: Option<ContainerStatusReason>,
    pub message: Option<String>,
    pub recent_crashes: Option<u32>,
    pub last_crash_time: Option<Timestamp>,
    pub backoff_until: Option<Timestamp>,
}

/// A declaration as the wire says it, and how the container is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ContainerConfig {
    pub name: ContainerName,
    pub capacity_group: GroupId,
    pub image: String,
    pub resources: Resources,
    #[serde(default)]
    pub replicas: Option<u32>,
    #[serde(default)]
    pub autoscaling: Option<Autoscaling>,
    pub stateful: bool,
    pub ports: Vec<u16>,
    #[serde(default)]
    pub volumes: Vec<OrdinalVolume>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub command: Option<Vec<String>>,
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    #[serde(default)]
    pub load_balancer_target: Option<LoadBalancerTarget>,
    #[serde(default)]
    pub service_account: Option<ServiceAccountTarget>,
    #[serde(default)]
    pub shared_mounts: Vec<SharedMount>,
    #[serde(default)]
    pub links: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption_budget: Option<DisruptionBudget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRules>,
    pub rollback: Option<RollbackPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub status: ContainerStatus,
    /// Explicit null when absent: older clients require the member.
    #[serde(default)]
    pub status_reason: Option<ContainerStatusReason>,
    #[serde(default)]
    pub status_message: Option<String>,
    #[serde(default)]
    pub recent_crashes: Option<u32>,
    #[serde(default)]
    pub last_crash_time: Option<Timestamp>,
    #[serde(default)]
    pub backoff_until: Option<Timestamp>,
}

impl ContainerConfig {
    #[must_use]
    pub fn new(spec: &ContainerSpec, state: ContainerState) -> Self {
        let (replicas, autoscaling) = match &spec.scale {
            Scale::Replicas(count) => (Some(*count), None),
            Scale::Autoscaling(autoscaling) => (None, Some(autoscaling.clone())),
        };
        Self {
            name: spec.name.clone(),
            capacity_group: spec.capacity_group.clone(),
            image: spec.image.clone(),
            resources: spec.resources.clone(),
            replicas,
            autoscaling,
            stateful: spec.stateful,
            ports: spec.ports.clone(),
            volumes: spec.volumes.clone(),
            env: spec.env.clone(),
            command: spec.command.clone(),
            health_check: spec.health_check.clone(),
            probes: spec.probes.clone(),
            load_balancer_target: spec.load_balancer_target.clone(),
            service_account: spec.service_account.clone(),
            shared_mounts: spec.shared_mounts.clone(),
            links: spec.links.clone(),
            disruption_budget: spec.disruption_budget,
            placement: spec.placement.clone(),
            rollback: spec.rollback,
            drain_seconds: spec.drain_seconds,
            status: state.status,
            status_reason: state.reason,
            status_message: state.message,
            recent_crashes: state.recent_crashes,
            last_crash_time: state.last_crash_time,
            backoff_until: state.backoff_until,
        }
    }
}

/// The body of `POST /clusters/{c}/containers` that declares this container.
///
/// # Panics
/// Never: the members of a declaration have text keys.
#[must_use]
pub fn create_request(spec: &ContainerSpec) -> Value {
    let config = ContainerConfig::new(spec, ContainerState::default());
    let mut value = serde_json::to_value(config).expect("a declaration has text keys");
    if let Some(members) = value.as_object_mut() {
        for name in [
            "status",
            "statusReason",
            "statusMessage",
            "recentCrashes",
            "lastCrashTime",
            "backoffUntil",
        ] {
            members.shift_remove(name);
        }
        members.retain(|_, member| !member.is_null());
    }
    value
}

/// One replica in the reply to `GET /clusters/{c}/containers/{n}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReplicaInfo {
    pub replica_id: ReplicaId,
    pub machine_id: MachineId,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
    pub status: WireReplicaStatus,
    /// True when no check is configured.
    pub healthy: bool,
    /// Failed health checks in a row.
    pub consecutive_failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<ReplicaMetrics>,
}

/// Reply to `GET /clusters/{c}/containers/{n}`: `config` nested as 1.1.0 has it, and flat as 1.0.15 has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct GetContainerReply {
    pub cluster_id: ClusterId,
    pub config: ContainerConfig,
    #[serde(flatten)]
    pub flat: ContainerConfig,
    pub replicas_info: Vec<ReplicaInfo>,
    /// Berth's addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// One container of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ContainerSummary {
    pub name: ContainerName,
    pub image: String,
    pub status: ContainerStatus,
    pub status_reason: Option<ContainerStatusReason>,
    pub status_message: Option<String>,
    /// Running ones.
    pub current_replicas: u64,
    /// Berth's addition: how many there should be.
    #[serde(default)]
    pub desired_replicas: u64,
    /// Berth's addition: how many are ready to be found by name.
    #[serde(default)]
    pub ready_replicas: u64,
    /// Berth's addition: the rollout that is under way, or that was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
}

/// `GET /clusters/{c}/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListContainersReply {
    pub containers: Vec<ContainerSummary>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ClusterSpec;
    use crate::container::{ProbeKind, ProbeMethod};
    use crate::rest::cluster::read_cluster;
    use crate::validate::Fault;
    use serde_json::json;

    fn cluster(platform: &str) -> ClusterSpec {
        read_cluster(&json!({
            "clusterId": "acme/prod", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": platform,
            "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 3,
                "profile": {"cpu": 8, "memoryBytes": 17_179_869_184_u64, "ephemeralStorageBytes": 1}}]
        }))
        .unwrap()
    }

    fn reader() -> Value {
        json!({
            "name": "reader", "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [8080],
            "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "1Gi", "desired": "2Gi"}}
        })
    }

    fn problems(value: &Value, platform: &str) -> Vec<String> {
        match read_container(value, &cluster(platform)) {
            Ok(_) => vec![],
            Err(faults) => faults.list().iter().map(Fault::to_string).collect(),
        }
    }

    #[test]
    fn a_check_by_tcp_or_by_a_program_is_read_and_may_be_sent_back() {
        let mut value = reader();
        for (check, kind, words) in [
            (json!({"kind": "tcp", "port": 5432}), ProbeKind::Tcp, vec![]),
            (
                json!({"kind": "exec", "command": ["pg_isready", "-q"]}),
                ProbeKind::Exec,
                vec!["pg_isready", "-q"],
            ),
        ] {
            value["healthCheck"] = check;
            let spec = read_container(&value, &cluster("local")).unwrap();
            let check = spec.health_check.clone().unwrap();
            assert_eq!(
                (check.kind, check.command),
                (kind, words.iter().map(|word| (*word).to_owned()).collect())
            );
            assert_eq!(
                read_container(&create_request(&spec), &cluster("local")).unwrap(),
                spec
            );
        }
        for (check, problem) in [
            (json!({"kind": "exec"}), "a check of kind exec needs a command"),
            (
                json!({"kind": "exec", "command": []}),
                "a check of kind exec needs a command",
            ),
            (
                json!({"command": ["true"]}),
                "only a check of kind exec runs a command",
            ),
            (json!({"kind": "grpc"}), "write one of http, tcp, exec"),
        ] {
            value["healthCheck"] = check;
            let faults = read_container(&value, &cluster("local")).unwrap_err();
            assert!(faults.list()[0].to_string().contains(problem), "{faults}");
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut value = reader();
        value["healthCheck"] = json!({});
        let spec = read_container(&value, &cluster("local")).unwrap();
        assert_eq!(spec.scale, Scale::Replicas(1));
        let check = spec.health_check.clone().unwrap();
        assert_eq!(
            (check.path.as_str(), check.port, check.method),
            ("/health", 8080, ProbeMethod::Get)
        );
        assert_eq!((check.timeout_seconds, check.failure_threshold), (1, 3));
        assert_eq!(
            read_container(&create_request(&spec), &cluster("local")).unwrap(),
            spec
        );
        value["autoscaling"] = json!({"min": 2, "desired": 3, "max": 20, "targetCpuPercent": 65.5});
        let spec = read_container(&value, &cluster("local")).unwrap();
        let Scale::Autoscaling(scale) = &spec.scale else {
            panic!("{:?}", spec.scale)
        };
        assert!((scale.target_cpu_percent - 65.5).abs() < 1e-9);
        assert!((scale.target_memory_percent - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_disruption_budget_is_read_changed_and_removed() {
        let mut value = reader();
        let bare = read_container(&value, &cluster("local")).unwrap();
        assert_eq!(bare.disruption_budget, None);
        assert_eq!(create_request(&bare).get("disruptionBudget"), None);
        value["disruptionBudget"] = json!({"maxUnavailable": 0});
        let spec = read_container(&value, &cluster("local")).unwrap();
        assert_eq!(
            create_request(&spec)["disruptionBudget"],
            json!({"maxUnavailable": 0})
        );
        let after = |change: Value| {
            let update = ContainerUpdate::read(&change, &spec).unwrap();
            update.apply(&spec, &cluster("local")).unwrap().disruption_budget
        };
        assert_eq!(
            after(json!({"disruptionBudget": {"maxUnavailable": 2}}))
                .unwrap()
                .max_unavailable,
            2
        );
        assert_eq!(after(json!({"disruptionBudget": null})), None);
        assert_eq!(after(json!({})), spec.disruption_budget);
        value["disruptionBudget"] = json!({"maxUnavailable": -1});
        assert!(read_container(&value, &cluster("local")).is_err());
    }

    #[test]
    fn how_long_a_stop_drains_is_read_changed_and_removed() {
        let mut value = reader();
        let bare = read_container(&value, &cluster("local")).unwrap();
        assert_eq!(create_request(&bare).get("drainSeconds"), None);
        for good in [0, 3600] {
            value["drainSeconds"] = json!(good);
            let spec = read_container(&value, &cluster("local")).unwrap();
            assert_eq!(create_request(&spec)["drainSeconds"], json!(good));
            let after = |change: Value| {
                let update = ContainerUpdate::read(&change, &spec).unwrap();
                update.apply(&spec, &cluster("local")).unwrap().drain_seconds
            };
            assert_eq!(after(json!({})), Some(good));
            assert_eq!(after(json!({"drainSeconds": 7})), Some(7));
            assert_eq!(after(json!({"drainSeconds": null})), None);
        }
        for bad in [json!(-1), json!(3601), json!("5"), json!(0.5)] {
            value["drainSeconds"] = bad;
            assert_eq!(problems(&value, "local").len(), 1, "{value}");
        }
    }

    #[test]
    fn bad_members_are_each_told_with_the_way_out() {
        let mut value = reader();
        value["name"] = json!("Reader");
        value["capacityGroup"] = json!("other");
        value["image"] = json!("");
        value["ports"] = json!([0, 8080]);
        value["resources"] = json!({"cpu": {"min": "500m", "desired": 1},
            "memory": {"min": "4Gi", "desired": "2Gi"}, "ephemeralStorage": "10", "gpu": {"type": "x", "count": 0}});
        value["healthCheck"] = json!({"timeoutSeconds": 6, "method": "PUT"});
        value["autoscaling"] = json!({"min": 1, "desired": 1, "max": 1});
        value["replicas"] = json!(2);
        assert_eq!(
            problems(&value, "local"),
            [
                "name: \"Reader\" is not a valid container name: 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
                "capacityGroup: the cluster has no capacity group other; write one of general",
                "image: \"\" is not valid; write the reference of an image without white space, for example registry.example/app:1",
                "resources.cpu.min: \"500m\" is not vCPU; write 0.5",
                "resources.cpu.desired: 1 is a number; write vCPU as a text such as \"0.5\"",
                "resources.memory.min: 4Gi is above desired 2Gi; write at most 2Gi",
                "resources.ephemeralStorage: \"10\" has no unit; write it with Ki, Mi, Gi or Ti, for example \"10Mi\"",
                "resources.gpu.count: 0 is out of range; write a whole number from 1 to 8",
                "autoscaling: cannot stand beside replicas; keep one of the two",
                "ports[0]: 0 is out of range; write a whole number from 1 to 65535",
                "healthCheck.method: \"PUT\" is unknown; write one of GET, POST, HEAD",
                "healthCheck.timeoutSeconds: 6 is out of range; write a whole number from 1 to 5",
            ]
        );
    }

    #[test]
    fn contradictions_are_all_listed() {
        let mut value = reader();
        value["volumes"] = json!([{"ordinal": 0, "volume": {"type": "hostpath", "path": "/v/0"}}]);
        value["serviceAccount"] = json!({"type": "aws", "roleArn": "arn:aws:iam::123456789012:role/r"});
        value["links"] = json!(["reader"]);
        assert_eq!(
            problems(&value, "gcp"),
            [
                "volumes: are only for stateful containers; set stateful to true or leave volumes out",
                "serviceAccount.type: aws does not fit platform gcp",
                "links: reader cannot link to itself",
            ]
        );
        value["stateful"] = json!(true);
        value["serviceAccount"] = json!(null);
        value["links"] = json!(null);
        value["replicas"] = json!(3);
        value["volumes"] = json!([
            {"ordinal": 0, "volume": {"type": "hostpath", "path": "/v/0"}},
            {"ordinal": 0, "volume": {"type": "hostpath", "path": "/v/0"}},
            {"ordinal": 3, "volume": {"type": "aws", "volumeId": "vol-1", "zone": "a"}}]);
        assert_eq!(
            problems(&value, "gcp"),
            [
                "volumes[1].ordinal: 0 is there twice; each ordinal has one volume",
                "volumes[1].volume: /v/0 is already the volume of ordinal 0; each ordinal needs its own",
                "volumes[2].ordinal: 3 has no replica; ordinals go from 0 to 2",
                "volumes[2].volume.type: aws does not fit platform gcp",
            ]
        );
        value["replicas"] = json!(null);
        value["volumes"] = json!([]);
        value["autoscaling"] = json!({"min": 1, "desired": 1, "max": 2});
        assert_eq!(
            problems(&value, "gcp"),
            ["autoscaling: is only for stateless containers; write replicas instead"]
        );
    }

    #[test]
    fn an_update_changes_what_it_names_and_refuses_what_is_fixed() {
        let current = read_container(&reader(), &cluster("local")).unwrap();
        let update = ContainerUpdate::read(
            &json!({"autoscaling": {"min": 2, "desired": 2, "max": 4}, "image": "app:2", "ports": [8080]}),
            &current,
        )
        .unwrap();
        let after = update.apply(&current, &cluster("local")).unwrap();
        assert_eq!(after.image, "app:2");
        assert_eq!(changes(&current, &after), ["autoscaling", "image", "replicas"]);
        let back = ContainerUpdate::read(&json!({"replicas": 2}), &after).unwrap();
        assert_eq!(
            back.apply(&after, &cluster("local")).unwrap().scale,
            Scale::Replicas(2)
        );

        let faults = ContainerUpdate::read(&json!({"ports": [9090], "stateful": true, "image": 1}), &current);
        assert_eq!(faults.unwrap_err().list().len(), 3);
        let update = ContainerUpdate::read(
            &json!({"volumes": [{"ordinal": 0, "volume": {"type": "hostpath", "path": "/v"}}]}),
            &current,
        )
        .unwrap();
        assert!(update.apply(&current, &cluster("local")).is_err());
    }

    #[test]
    fn null_removes_a_health_check_and_absence_keeps_it() {
        let mut value = reader();
        value["healthCheck"] = json!({"path": "/ready"});
        let current = read_container(&value, &cluster("local")).unwrap();
        let keep = ContainerUpdate::read(&json!({}), &current).unwrap();
        assert_eq!(keep.apply(&current, &cluster("local")).unwrap(), current);
        let remove = ContainerUpdate::read(&json!({"healthCheck": null}), &current).unwrap();
        assert_eq!(
            remove.apply(&current, &cluster("local")).unwrap().health_check,
            None
        );
    }

    #[test]
    fn a_get_reply_is_nested_and_flat_and_says_null() {
        let spec = read_container(&reader(), &cluster("local")).unwrap();
        let config = ContainerConfig::new(&spec, ContainerState::default());
        let reply = GetContainerReply {
            cluster_id: ClusterId::new("acme/prod").unwrap(),
            config: config.clone(),
            flat: config,
            replicas_info: vec![],
            rollout: None,
            created_at: Timestamp::from_millis(0),
            updated_at: Timestamp::from_millis(0),
        };
        let value = serde_json::to_value(&reply).unwrap();
        assert_eq!(value["status"], "pending");
        assert_eq!(value["config"]["status"], "pending");
        assert!(value.as_object().unwrap()["statusReason"].is_null());
        assert_eq!(value["resources"]["memory"]["desired"], "2Gi");
        assert_eq!(serde_json::from_value::<GetContainerReply>(value).unwrap(), reply);
    }
}
