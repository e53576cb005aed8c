//! Bodies of container operations. [`read_container`] and [`ContainerUpdate`] give valid declarations or every fault.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cluster::gpu;
use super::node::ReplicaMetrics;
use super::pattern;
use crate::cluster::{ClusterSpec, Platform};
use crate::container::{
    Autoscaling, ContainerSpec, CpuRange, HealthCheck, LoadBalancerTarget, MemoryRange, ProbeMethod,
    REPLICAS_MAX, Resources, Scale, ServiceAccountTarget, default_target_cpu_percent,
    default_target_memory_percent,
};
use crate::id::{ClusterId, ContainerName, GroupId, MachineId, ReplicaId, Zone};
use crate::replica::WireReplicaStatus;
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu};
use crate::validate::{Cursor, Fault, Faults, INT64_MAX, read};
use crate::volume::{EPHEMERAL_MOUNT_PATH, OrdinalVolume, SharedMount, VolumeTarget};

/// The wire's status of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
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
pub enum ContainerStatusReason {
    Unschedulable,
    CrashLoopBackOff,
    ReplicaFailed,
}

/// Reply to create and update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(default)]
    pub load_balancer_target: Option<LoadBalancerTarget>,
    #[serde(default)]
    pub service_account: Option<ServiceAccountTarget>,
    #[serde(default)]
    pub shared_mounts: Vec<SharedMount>,
    #[serde(default)]
    pub links: Vec<String>,
    #[serde(default)]
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
            load_balancer_target: spec.load_balancer_target.clone(),
            service_account: spec.service_account.clone(),
            shared_mounts: spec.shared_mounts.clone(),
            links: spec.links.clone(),
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
#[serde(rename_all = "camelCase")]
pub struct ReplicaInfo {
    pub replica_id: ReplicaId,
    pub machine_id: MachineId,
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
#[serde(rename_all = "camelCase")]
pub struct GetContainerReply {
    pub cluster_id: ClusterId,
    pub config: ContainerConfig,
    #[serde(flatten)]
    pub flat: ContainerConfig,
    pub replicas_info: Vec<ReplicaInfo>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// One container of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// `GET /clusters/{c}/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListContainersReply {
    pub containers: Vec<ContainerSummary>,
}

/// Reads `POST /clusters/{c}/containers` for this cluster.
///
/// # Errors
/// With every fault of the input: members, contradictions between them, and what does not fit the cluster.
pub fn read_container(value: &Value, cluster: &ClusterSpec) -> Result<ContainerSpec, Faults> {
    read(value, |cursor| {
        cursor.object()?;
        let spec = container(cursor, cluster)?;
        let faults = contradictions(&spec, cluster);
        if faults.is_empty() {
            return Some(spec);
        }
        for fault in faults {
            cursor.take(Faults::one(fault.path, fault.problem));
        }
        None
    })
}

fn container(cursor: &Cursor<'_>, cluster: &ClusterSpec) -> Option<ContainerSpec> {
    let name = cursor
        .member("name")
        .parse("a container name", ContainerName::new);
    let capacity_group = group_of(&cursor.member("capacityGroup"), cluster);
    let image = image(&cursor.member("image"));
    let resources = resources(&cursor.member("resources"));
    let scale = scale(cursor);
    let stateful = cursor.member("stateful").boolean();
    let ports = ports(&cursor.member("ports"), port);
    let volumes = cursor
        .member("volumes")
        .or(Vec::new(), |volumes| volumes.list(volume));
    let env = cursor.member("env").or(BTreeMap::new(), environment);
    let command = command(&cursor.member("command"));
    let first_port = ports.as_ref().and_then(|ports| ports.first().copied());
    let health_check = cursor
        .member("healthCheck")
        .optional(|check| health_check(check, first_port));
    let load_balancer_target = cursor.member("loadBalancerTarget").optional(load_balancer);
    let service_account = cursor.member("serviceAccount").optional(service_account);
    let shared_mounts = cursor
        .member("sharedMounts")
        .or(Vec::new(), |mounts| mounts.list(shared_mount));
    let links = cursor.member("links").or(Vec::new(), |links| links.list(link));
    Some(ContainerSpec {
        name: name?,
        capacity_group: capacity_group?,
        image: image?,
        resources: resources?,
        scale: scale?,
        stateful: stateful?,
        ports: ports?,
        volumes: volumes?,
        env: env?,
        command: command?,
        health_check: health_check?,
        load_balancer_target: load_balancer_target?,
        service_account: service_account?,
        shared_mounts: shared_mounts?,
        links: links?,
    })
}

/// A change of a container; absent members stay as they are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerUpdate {
    pub image: Option<String>,
    pub resources: Option<Resources>,
    /// Setting replicas clears autoscaling and the reverse.
    pub scale: Option<Scale>,
    pub env: Option<BTreeMap<String, String>>,
    pub volumes: Option<Vec<OrdinalVolume>>,
    pub command: Option<Vec<String>>,
    /// `Some(None)` removes it.
    pub service_account: Option<Option<ServiceAccountTarget>>,
    /// Berth's additions: a health check can be changed or removed after creation, and so can mounts and links.
    pub health_check: Option<Option<HealthCheck>>,
    pub shared_mounts: Option<Vec<SharedMount>>,
    pub links: Option<Vec<String>>,
}

impl ContainerUpdate {
    /// Reads `PATCH /clusters/{c}/containers/{n}` for this container.
    ///
    /// # Errors
    /// With every fault of the input, members that cannot be changed included.
    pub fn read(value: &Value, current: &ContainerSpec) -> Result<Self, Faults> {
        read(value, |cursor| {
            cursor.object()?;
            let fixed = unchangeable(cursor, current);
            let image = cursor.member("image").optional(image);
            let resources = cursor.member("resources").optional(resources);
            let scale = if cursor.member("replicas").is_absent() && cursor.member("autoscaling").is_absent() {
                Some(None)
            } else {
                scale(cursor).map(Some)
            };
            let env = cursor.member("env").optional(environment);
            let volumes = cursor.member("volumes").optional(|list| list.list(volume));
            let command = command(&cursor.member("command"));
            let service_account = removable(&cursor.member("serviceAccount"), service_account);
            let health_check = removable(&cursor.member("healthCheck"), |check| {
                health_check(check, current.ports.first().copied())
            });
            let shared_mounts = cursor
                .member("sharedMounts")
                .optional(|mounts| mounts.list(shared_mount));
            let links = cursor.member("links").optional(|links| links.list(link));
            fixed?;
            Some(Self {
                image: image?,
                resources: resources?,
                scale: scale?,
                env: env?,
                volumes: volumes?,
                command: command?,
                service_account: service_account?,
                health_check: health_check?,
                shared_mounts: shared_mounts?,
                links: links?,
            })
        })
    }

    /// The declaration after this change.
    ///
    /// # Errors
    /// When the outcome contradicts itself or does not fit the cluster.
    pub fn apply(&self, current: &ContainerSpec, cluster: &ClusterSpec) -> Result<ContainerSpec, Faults> {
        let mut spec = current.clone();
        set(&mut spec.image, &self.image);
        set(&mut spec.resources, &self.resources);
        set(&mut spec.scale, &self.scale);
        set(&mut spec.env, &self.env);
        set(&mut spec.volumes, &self.volumes);
        if self.command.is_some() {
            spec.command.clone_from(&self.command);
        }
        set(&mut spec.service_account, &self.service_account);
        set(&mut spec.health_check, &self.health_check);
        set(&mut spec.shared_mounts, &self.shared_mounts);
        set(&mut spec.links, &self.links);
        Faults::check(contradictions(&spec, cluster))?;
        Ok(spec)
    }
}

/// Names of the members that differ, for the event `ContainerUpdated`.
#[must_use]
pub fn changes(before: &ContainerSpec, after: &ContainerSpec) -> Vec<String> {
    let (before, after) = (create_request(before), create_request(after));
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else {
        return Vec::new();
    };
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .cloned()
        .collect()
}

fn set<T: Clone>(place: &mut T, change: &Option<T>) {
    if let Some(value) = change {
        place.clone_from(value);
    }
}

/// Members that a change may repeat but not alter: a container with another value is another container.
fn unchangeable(cursor: &Cursor<'_>, current: &ContainerSpec) -> Option<()> {
    let now = create_request(current);
    let mut unchanged = Some(());
    for name in ["name", "capacityGroup", "stateful", "ports", "loadBalancerTarget"] {
        let member = cursor.member(name);
        let Some(wanted) = member.raw() else { continue };
        if now.get(name) != Some(wanted) {
            member.fault("cannot be changed; delete the container and create it anew");
            unchanged = None;
        }
    }
    unchanged
}

/// Absent: no change. `null`: removal.
fn removable<T>(
    cursor: &Cursor<'_>,
    reader: impl FnOnce(&Cursor<'_>) -> Option<T>,
) -> Option<Option<Option<T>>> {
    match (cursor.is_written(), cursor.is_absent()) {
        (false, _) => Some(None),
        (true, true) => Some(Some(None)),
        (true, false) => reader(cursor).map(|value| Some(Some(value))),
    }
}

fn group_of(cursor: &Cursor<'_>, cluster: &ClusterSpec) -> Option<GroupId> {
    let id = cursor.parse("a capacity group id", GroupId::new)?;
    if cluster.group(&id).is_some() {
        return Some(id);
    }
    let known: Vec<&str> = cluster
        .capacity_groups
        .iter()
        .map(|group| group.group_id.as_str())
        .collect();
    let mend = if known.is_empty() {
        "give the cluster capacity groups first".to_owned()
    } else {
        format!("write one of {}", known.join(", "))
    };
    cursor.refuse(format!("the cluster has no capacity group {id}; {mend}"))
}

pub(crate) fn image(cursor: &Cursor<'_>) -> Option<String> {
    cursor.matching(
        "the reference of an image without white space, for example registry.example/app:1",
        |text| {
            !text.is_empty()
                && text.len() <= 1024
                && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        },
    )
}

pub(crate) fn resources(cursor: &Cursor<'_>) -> Option<Resources> {
    cursor.object()?;
    let cpu = cpu_range(&cursor.member("cpu"));
    let memory = memory_range(&cursor.member("memory"));
    let ephemeral_storage = cursor.member("ephemeralStorage").optional(size);
    let gpu = cursor.member("gpu").optional(gpu);
    Some(Resources {
        cpu: cpu?,
        memory: memory?,
        ephemeral_storage: ephemeral_storage?,
        gpu: gpu?,
    })
}

fn cpu_range(cursor: &Cursor<'_>) -> Option<CpuRange> {
    cursor.object()?;
    let vcpu = |name: &str| {
        let member = cursor.member(name);
        match member.parse("vCPU as a text such as \"0.5\"", Cpu::parse) {
            Some(Cpu::ZERO) => member.refuse("0 is no cpu; write more than 0"),
            vcpu => vcpu,
        }
    };
    let (min, desired) = (vcpu("min"), vcpu("desired"));
    let range = CpuRange {
        min: min?,
        desired: desired?,
    };
    ordered(cursor, range.min <= range.desired, range.min, range.desired)?;
    Some(range)
}

fn memory_range(cursor: &Cursor<'_>) -> Option<MemoryRange> {
    cursor.object()?;
    let (min, desired) = (size(&cursor.member("min")), size(&cursor.member("desired")));
    let range = MemoryRange {
        min: min?,
        desired: desired?,
    };
    ordered(cursor, range.min <= range.desired, range.min, range.desired)?;
    Some(range)
}

fn ordered(
    cursor: &Cursor<'_>,
    holds: bool,
    min: impl std::fmt::Display,
    desired: impl std::fmt::Display,
) -> Option<()> {
    if holds {
        return Some(());
    }
    cursor.member("min").refuse(format!(
        "{min} is above desired {desired}; write at most {desired}"
    ))
}

/// Bytes with a unit, above zero.
pub(crate) fn size(cursor: &Cursor<'_>) -> Option<Bytes> {
    let bytes = cursor.parse("a size with a unit such as \"4Gi\"", Bytes::parse)?;
    if (1..=INT64_MAX).contains(&bytes.get()) {
        Some(bytes)
    } else if bytes == Bytes::ZERO {
        cursor.refuse("0 is no size; write more than 0")
    } else {
        cursor.refuse(format!("{bytes} is larger than the API can carry"))
    }
}

/// `replicas` or `autoscaling`; one replica when neither is there.
pub(crate) fn scale(cursor: &Cursor<'_>) -> Option<Scale> {
    let replicas = cursor.member("replicas");
    let autoscaling = cursor.member("autoscaling");
    if !replicas.is_absent() && !autoscaling.is_absent() {
        autoscaling.fault("cannot stand beside replicas; keep one of the two");
        replicas.count(1..=REPLICAS_MAX)?;
        self::autoscaling(&autoscaling)?;
        return None;
    }
    if !autoscaling.is_absent() {
        return self::autoscaling(&autoscaling).map(Scale::Autoscaling);
    }
    replicas
        .or(1, |replicas| replicas.count(1..=REPLICAS_MAX))
        .map(Scale::Replicas)
}

fn autoscaling(cursor: &Cursor<'_>) -> Option<Autoscaling> {
    cursor.object()?;
    let bound = |name: &str| cursor.member(name).count(1..=REPLICAS_MAX);
    let (min, desired, max) = (bound("min"), bound("desired"), bound("max"));
    let percent = |name: &str, default: f64| {
        cursor.member(name).or(default, |member| {
            member.number("a percentage from 1 to 100", |percent| {
                (1.0..=100.0).contains(&percent)
            })
        })
    };
    let target_cpu_percent = percent("targetCpuPercent", default_target_cpu_percent());
    let target_memory_percent = percent("targetMemoryPercent", default_target_memory_percent());
    let in_flight = cursor
        .member("targetHttpInFlightPerReplica")
        .optional(|member| member.count(1..=u32::MAX));
    let latency = cursor.member("maxHttpP95LatencyMs").optional(|member| {
        member.number("a number of milliseconds above 0", |ms| {
            ms > 0.0 && ms.is_finite()
        })
    });
    let autoscaling = Autoscaling {
        min: min?,
        desired: desired?,
        max: max?,
        target_cpu_percent: target_cpu_percent?,
        target_memory_percent: target_memory_percent?,
        target_http_in_flight_per_replica: in_flight?,
        max_http_p95_latency_ms: latency?,
    };
    if autoscaling.min <= autoscaling.desired && autoscaling.desired <= autoscaling.max {
        return Some(autoscaling);
    }
    cursor.refuse(format!(
        "min {}, desired {}, max {} are out of order; write min <= desired <= max",
        autoscaling.min, autoscaling.desired, autoscaling.max
    ))
}

pub(crate) fn port(cursor: &Cursor<'_>) -> Option<u16> {
    let port = cursor.integer(1..=65535)?;
    u16::try_from(port).ok()
}

/// At least one port, each once.
pub(crate) fn ports(cursor: &Cursor<'_>, reader: impl FnMut(&Cursor<'_>) -> Option<u16>) -> Option<Vec<u16>> {
    let ports = cursor.list(reader)?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = ports.iter().find(|port| !seen.insert(**port)) {
        return cursor.refuse(format!("{twice} is there twice; write each port once"));
    }
    if ports.is_empty() {
        return cursor.refuse("is empty; write at least one port");
    }
    Some(ports)
}

fn volume(cursor: &Cursor<'_>) -> Option<OrdinalVolume> {
    cursor.object()?;
    let ordinal = cursor.member("ordinal").count(0..=REPLICAS_MAX - 1);
    let target = volume_target(&cursor.member("volume"));
    let mount_path = cursor.member("mountPath").optional(mount_path);
    Some(OrdinalVolume {
        ordinal: ordinal?,
        volume: target?,
        mount_path: mount_path?,
    })
}

/// Where a replica sees a mount.
pub(crate) fn mount_path(cursor: &Cursor<'_>) -> Option<String> {
    let taken = ["/", "/proc", "/sys", "/dev"];
    cursor.matching(
        "an absolute path without white space, outside /proc, /sys and /dev",
        |path| {
            pattern::is_absolute_path(path)
                && !path.ends_with('/')
                && !taken
                    .iter()
                    .any(|taken| path == *taken || *taken != "/" && path.starts_with(&format!("{taken}/")))
        },
    )
}

fn host_path(cursor: &Cursor<'_>) -> Option<String> {
    cursor.matching(
        "an absolute path without white space and without '..'",
        pattern::is_absolute_path,
    )
}

fn volume_target(cursor: &Cursor<'_>) -> Option<VolumeTarget> {
    cursor.object()?;
    let zone = || cursor.member("zone").parse("a zone", Zone::new);
    let words = [("aws", 0), ("gcp", 1), ("azure", 2), ("hostpath", 3)];
    match cursor.member("type").word(&words)? {
        0 => {
            let volume_id = cursor
                .member("volumeId")
                .matching("a volume id such as vol-0abc12", pattern::is_aws_volume);
            let zone = zone();
            Some(VolumeTarget::Aws {
                volume_id: volume_id?,
                zone: zone?,
            })
        }
        1 => {
            let disk_name = cursor.member("diskName").matching(
                "the short name of a disk, 1 to 63 characters",
                pattern::is_gcp_name,
            );
            let zone = zone();
            Some(VolumeTarget::Gcp {
                disk_name: disk_name?,
                zone: zone?,
            })
        }
        2 => {
            let disk_id = cursor.member("diskId").matching(
                "the full resource id of a disk, /subscriptions/../providers/Microsoft.Compute/disks/..",
                |id| pattern::is_azure_resource(id, "Microsoft.Compute/disks"),
            );
            let zone = zone();
            Some(VolumeTarget::Azure {
                disk_id: disk_id?,
                zone: zone?,
            })
        }
        _ => Some(VolumeTarget::Hostpath {
            path: host_path(&cursor.member("path"))?,
        }),
    }
}

pub(crate) fn environment(cursor: &Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let read: Vec<Option<(String, String)>> = cursor
        .entries()?
        .iter()
        .map(|(name, value)| {
            if name.is_empty() || name.contains(['=', '\0']) {
                return value.refuse("is no name of a variable; write one without '=' and NUL");
            }
            let text = value.matching("a text without NUL", |text| !text.contains('\0'))?;
            Some(((*name).to_owned(), text))
        })
        .collect();
    read.into_iter().collect()
}

/// An empty command is none: the image's own.
pub(crate) fn command(cursor: &Cursor<'_>) -> Option<Option<Vec<String>>> {
    let words = cursor.optional(|command| {
        command.list(|word| word.matching("a text without NUL", |text| !text.contains('\0')))
    })?;
    Some(words.filter(|words| !words.is_empty()))
}

/// `first_port` is the default port.
pub(crate) fn health_check(cursor: &Cursor<'_>, first_port: Option<u16>) -> Option<HealthCheck> {
    cursor.object()?;
    let path = cursor.member("path").or("/health".to_owned(), |path| {
        path.matching("a path that starts with '/' and has no white space", |path| {
            path.starts_with('/') && !path.chars().any(|c| c.is_whitespace() || c.is_control())
        })
    });
    let port_member = cursor.member("port");
    let port = if port_member.is_absent() {
        // Without ports the list of ports has its own fault; 0 never leaves this reader then.
        Some(first_port.unwrap_or_default())
    } else {
        port(&port_member)
    };
    let method = cursor.member("method").or(ProbeMethod::Get, |method| {
        method.word(&[
            ("GET", ProbeMethod::Get),
            ("POST", ProbeMethod::Post),
            ("HEAD", ProbeMethod::Head),
        ])
    });
    let timeout_seconds = cursor
        .member("timeoutSeconds")
        .or(1, |timeout| timeout.count(1..=5));
    let failure_threshold = cursor
        .member("failureThreshold")
        .or(3, |threshold| threshold.count(1..=10));
    Some(HealthCheck {
        path: path?,
        port: port?,
        method: method?,
        timeout_seconds: timeout_seconds?,
        failure_threshold: failure_threshold?,
    })
}

fn load_balancer(cursor: &Cursor<'_>) -> Option<LoadBalancerTarget> {
    cursor.object()?;
    let words = [("aws", 0), ("gcp", 1), ("azure", 2)];
    match cursor.member("type").word(&words)? {
        0 => Some(LoadBalancerTarget::Aws {
            target_group_arn: cursor
                .member("targetGroupArn")
                .matching("the ARN of a target group", pattern::is_target_group)?,
        }),
        1 => Some(LoadBalancerTarget::Gcp {
            neg_name: cursor.member("negName").matching(
                "the name of a network endpoint group, 1 to 63 characters",
                pattern::is_gcp_name,
            )?,
        }),
        _ => {
            let resource_group = cursor.member("resourceGroup").matching(
                "the name of a resource group, 1 to 90 characters",
                pattern::is_resource_group,
            );
            let name = |member: &str| {
                cursor.member(member).matching(
                    "a name of 1 to 80 letters, digits, '_', '.' and '-'",
                    pattern::is_azure_name,
                )
            };
            let load_balancer_name = name("loadBalancerName");
            let backend_pool_name = name("backendPoolName");
            let virtual_network_id = cursor.member("virtualNetworkId").matching(
                "the full resource id of a virtual network, /subscriptions/../providers/Microsoft.Network/virtualNetworks/..",
                |id| pattern::is_azure_resource(id, "Microsoft.Network/virtualNetworks"),
            );
            Some(LoadBalancerTarget::Azure {
                resource_group: resource_group?,
                load_balancer_name: load_balancer_name?,
                backend_pool_name: backend_pool_name?,
                virtual_network_id: virtual_network_id?,
            })
        }
    }
}

fn service_account(cursor: &Cursor<'_>) -> Option<ServiceAccountTarget> {
    cursor.object()?;
    let words = [("aws", 0), ("gcp", 1), ("azure", 2)];
    match cursor.member("type").word(&words)? {
        0 => Some(ServiceAccountTarget::Aws {
            role_arn: cursor
                .member("roleArn")
                .matching("the ARN of a role", pattern::is_role)?,
        }),
        1 => Some(ServiceAccountTarget::Gcp {
            email: cursor
                .member("email")
                .matching("the e-mail address of a service account", pattern::is_email)?,
        }),
        _ => Some(ServiceAccountTarget::Azure {
            client_id: cursor
                .member("clientId")
                .matching("the client id, a UUID", pattern::is_uuid)?,
        }),
    }
}

fn shared_mount(cursor: &Cursor<'_>) -> Option<SharedMount> {
    cursor.object()?;
    let source = host_path(&cursor.member("source"));
    let mount_path = mount_path(&cursor.member("mountPath"));
    Some(SharedMount {
        source: source?,
        mount_path: mount_path?,
    })
}

fn link(cursor: &Cursor<'_>) -> Option<String> {
    cursor.text_sized(1..=63).map(str::to_owned)
}

/// What a declaration says against itself or against its cluster, member by member valid as it may be.
#[must_use]
pub fn contradictions(spec: &ContainerSpec, cluster: &ClusterSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, problem: String| {
        faults.push(Fault {
            path: path.to_owned(),
            problem,
        });
    };
    if spec.stateful && matches!(spec.scale, Scale::Autoscaling(_)) {
        fault(
            "autoscaling",
            "is only for stateless containers; write replicas instead".into(),
        );
    }
    if !spec.stateful && !spec.volumes.is_empty() {
        fault(
            "volumes",
            "are only for stateful containers; set stateful to true or leave volumes out".into(),
        );
    }
    let platform = cluster.platform;
    if let Some(kind) = spec.load_balancer_target.as_ref().map(load_balancer_platform)
        && kind != platform
    {
        fault(
            "loadBalancerTarget.type",
            format!("{kind} does not fit platform {platform}"),
        );
    }
    if let Some(kind) = spec.service_account.as_ref().map(service_account_platform)
        && kind != platform
    {
        fault(
            "serviceAccount.type",
            format!("{kind} does not fit platform {platform}"),
        );
    }
    if platform != Platform::Local && !spec.shared_mounts.is_empty() {
        fault("sharedMounts", "are only for platform local".into());
    }
    if spec.links.iter().any(|link| link == spec.name.as_str()) {
        fault("links", format!("{} cannot link to itself", spec.name));
    }
    faults.extend(volume_faults(spec, platform));
    faults.extend(mount_faults(spec));
    faults
}

fn volume_faults(spec: &ContainerSpec, platform: Platform) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |path: String, problem: String| faults.push(Fault { path, problem });
    if spec.volumes.is_empty() || !spec.stateful {
        return faults;
    }
    let replicas = spec.scale.initial();
    if u32::try_from(spec.volumes.len()) != Ok(replicas) {
        fault(
            "volumes".into(),
            format!(
                "has {} entries for {replicas} replicas; write one volume for each ordinal from 0 to {}",
                spec.volumes.len(),
                replicas - 1
            ),
        );
    }
    let mut ordinals = BTreeSet::new();
    let mut disks = BTreeMap::new();
    for (index, entry) in spec.volumes.iter().enumerate() {
        if !ordinals.insert(entry.ordinal) {
            fault(
                format!("volumes[{index}].ordinal"),
                format!("{} is there twice; each ordinal has one volume", entry.ordinal),
            );
        }
        if entry.ordinal >= replicas {
            fault(
                format!("volumes[{index}].ordinal"),
                format!(
                    "{} has no replica; ordinals go from 0 to {}",
                    entry.ordinal,
                    replicas - 1
                ),
            );
        }
        if let Some(other) = disks.insert((entry.volume.kind(), entry.volume.identity()), entry.ordinal) {
            fault(
                format!("volumes[{index}].volume"),
                format!(
                    "{} is already the volume of ordinal {other}; each ordinal needs its own",
                    entry.volume.identity()
                ),
            );
        }
        let kind = entry.volume.kind();
        if kind != "hostpath" && kind != platform.to_string() {
            fault(
                format!("volumes[{index}].volume.type"),
                format!("{kind} does not fit platform {platform}"),
            );
        }
    }
    faults
}

/// Two mounts at one path would hide each other.
fn mount_faults(spec: &ContainerSpec) -> Vec<Fault> {
    let shared = spec.shared_mounts.iter().enumerate().map(|(index, mount)| {
        (
            format!("sharedMounts[{index}].mountPath"),
            mount.mount_path.as_str(),
        )
    });
    let ephemeral = spec
        .resources
        .ephemeral_storage
        .map(|_| ("resources.ephemeralStorage".to_owned(), EPHEMERAL_MOUNT_PATH));
    let mut faults = Vec::new();
    let mut seen: BTreeSet<&str> = shared.clone().map(|(_, path)| path).collect();
    if seen.len() < spec.shared_mounts.len() {
        faults.push(Fault {
            path: "sharedMounts".into(),
            problem: "two of them have one mountPath; each needs its own".into(),
        });
    }
    if let Some((path, mount)) = ephemeral
        && !seen.insert(mount)
    {
        faults.push(Fault {
            path,
            problem: format!("is mounted at {mount}, where a shared mount is; move that one"),
        });
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        if seen.contains(volume.mount_path()) {
            faults.push(Fault {
                path: format!("volumes[{index}].mountPath"),
                problem: format!(
                    "{} is taken by another mount; write another path",
                    volume.mount_path()
                ),
            });
        }
    }
    faults
}

fn load_balancer_platform(target: &LoadBalancerTarget) -> Platform {
    match target {
        LoadBalancerTarget::Aws { .. } => Platform::Aws,
        LoadBalancerTarget::Gcp { .. } => Platform::Gcp,
        LoadBalancerTarget::Azure { .. } => Platform::Azure,
    }
}

fn service_account_platform(target: &ServiceAccountTarget) -> Platform {
    match target {
        ServiceAccountTarget::Aws { .. } => Platform::Aws,
        ServiceAccountTarget::Gcp { .. } => Platform::Gcp,
        ServiceAccountTarget::Azure { .. } => Platform::Azure,
    }
}
