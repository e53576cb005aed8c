//! Reading of a container's declaration, member by member. Shared by requests and by stacks.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::contradiction::contradictions;
use super::pattern;
use super::probes::{health_check, probes};
use crate::cluster::ClusterSpec;
use crate::container::{
    Autoscaling, ContainerSpec, CpuRange, DRAIN_SECONDS_MAX, DisruptionBudget, FAILED_STARTS_MAX, GpuRequest,
    GpuShare, LoadBalancerTarget, MemoryRange, REPLICAS_MAX, Resources, RollbackPolicy, Scale,
    ServiceAccountTarget, default_target_cpu_percent, default_target_memory_percent,
};
use crate::id::{ContainerName, GroupId, Zone};
use crate::machine::MACHINE_GPUS_MAX;
use crate::placement::placement;
use crate::units::{Bytes, Cpu};
use crate::validate::{Cursor, Faults, INT64_MAX, read};
use crate::volume::{OrdinalVolume, SharedMount, VolumeTarget};

/// Reads `POST /clusters/{c}/containers` for this cluster.
///
/// # Errors
/// With every fault of the input: members, contradictions between them, and what does not fit the cluster.
pub fn read_container(value: &Value, cluster: &ClusterSpec) -> Result<ContainerSpec, Faults> {
    read(value, |cursor| {
        cursor.object()?;
        let spec = container(cursor, cluster)?;
        let faults = contradictions(&spec, cluster.platform);
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
    let probes = cursor
        .member("probes")
        .optional(|member| probes(member, first_port));
    let load_balancer_target = cursor.member("loadBalancerTarget").optional(load_balancer);
    let service_account = cursor.member("serviceAccount").optional(service_account);
    let shared_mounts = cursor
        .member("sharedMounts")
        .or(Vec::new(), |mounts| mounts.list(shared_mount));
    let links = cursor.member("links").or(Vec::new(), |links| links.list(link));
    let budget = cursor.member("disruptionBudget").optional(disruption_budget);
    let placement = cursor.member("placement").optional(placement);
    let rollback = cursor.member("rollback").optional(rollback);
    let drain_seconds = cursor.member("drainSeconds").optional(drain_seconds);
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
        probes: probes?,
        load_balancer_target: load_balancer_target?,
        service_account: service_account?,
        shared_mounts: shared_mounts?,
        links: links?,
        disruption_budget: budget?,
        placement: placement?,
        rollback: rollback?,
        drain_seconds: drain_seconds?,
    })
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
    let gpu = cursor.member("gpu").optional(gpu_request);
    Some(Resources {
        cpu: cpu?,
        memory: memory?,
        ephemeral_storage: ephemeral_storage?,
        gpu: gpu?,
    })
}

/// `{type, count 1-8}`, or `{type, count 1, share}`.
pub(crate) fn gpu_request(cursor: &Cursor<'_>) -> Option<GpuRequest> {
    cursor.object()?;
    let kind = cursor
        .member("type")
        .matching(pattern::GPU_WANTED, pattern::is_gpu);
    let count = cursor.member("count").count(1..=MACHINE_GPUS_MAX);
    let share = cursor.member("share").optional(gpu_share);
    if let (Some(count @ 2..), Some(Some(share))) = (count, share) {
        let problem = format!("{count} beside a share of {share}; a share is of one device, write 1");
        return cursor.member("count").refuse(problem);
    }
    Some(GpuRequest {
        kind: kind?,
        count: count?,
        share: share?,
    })
}

fn gpu_share(cursor: &Cursor<'_>) -> Option<GpuShare> {
    let wanted = "a number from 0.001 to 0.999 with at most three decimals";
    cursor.number(wanted, |share| (0.001..=0.999).contains(&share))?;
    let share = GpuShare::from_number(cursor.raw()?.as_number()?);
    share.or_else(|| cursor.refuse(format!("more than three decimals; write {wanted}")))
}

pub(crate) fn cpu_range(cursor: &Cursor<'_>) -> Option<CpuRange> {
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

pub(crate) fn memory_range(cursor: &Cursor<'_>) -> Option<MemoryRange> {
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

pub(crate) fn volume(cursor: &Cursor<'_>) -> Option<OrdinalVolume> {
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
            let len = name.len() + 1 + text.len();
            if len > TEXT_LEN_MAX {
                return value.refuse(too_long(len, "with its name and '='"));
            }
            Some(((*name).to_owned(), text))
        })
        .collect();
    read.into_iter().collect()
}

/// The longest text that a Linux kernel hands to a program: 32 pages with the NUL at the end.
const TEXT_LEN_MAX: usize = (32 << 12) - 1;

fn too_long(len: usize, how: &str) -> String {
    format!(
        "has {len} bytes {how}; a program takes at most {TEXT_LEN_MAX}: put the rest into a file of the image"
    )
}

/// An empty command is none: the image's own.
pub(crate) fn command(cursor: &Cursor<'_>) -> Option<Option<Vec<String>>> {
    let words = cursor.optional(|command| {
        command.list(|word| {
            let text = word.matching("a text without NUL", |text| !text.contains('\0'))?;
            if text.len() > TEXT_LEN_MAX {
                return word.refuse(too_long(text.len(), "as one word of a command"));
            }
            Some(text)
        })
    })?;
    Some(words.filter(|words| !words.is_empty()))
}

pub(crate) fn load_balancer(cursor: &Cursor<'_>) -> Option<LoadBalancerTarget> {
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

pub(crate) fn service_account(cursor: &Cursor<'_>) -> Option<ServiceAccountTarget> {
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

pub(crate) fn shared_mount(cursor: &Cursor<'_>) -> Option<SharedMount> {
    cursor.object()?;
    let source = host_path(&cursor.member("source"));
    let mount_path = mount_path(&cursor.member("mountPath"));
    Some(SharedMount {
        source: source?,
        mount_path: mount_path?,
    })
}

pub(crate) fn disruption_budget(cursor: &Cursor<'_>) -> Option<DisruptionBudget> {
    cursor.object()?;
    let max_unavailable = cursor.member("maxUnavailable").count(0..=REPLICAS_MAX)?;
    Some(DisruptionBudget { max_unavailable })
}

pub(crate) fn rollback(cursor: &Cursor<'_>) -> Option<RollbackPolicy> {
    cursor.object()?;
    let after_failed_starts = cursor.member("afterFailedStarts").count(0..=FAILED_STARTS_MAX)?;
    Some(RollbackPolicy { after_failed_starts })
}

pub(crate) fn drain_seconds(cursor: &Cursor<'_>) -> Option<u32> {
    cursor.count(0..=DRAIN_SECONDS_MAX)
}

pub(crate) fn link(cursor: &Cursor<'_>) -> Option<String> {
    cursor.text_sized(1..=63).map(str::to_owned)
}
