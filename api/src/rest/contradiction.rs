//! What members of a declaration say against each other, each valid by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Platform;
use crate::container::{ContainerSpec, LoadBalancerTarget, Scale, ServiceAccountTarget};
use crate::placement::placement_faults;
use crate::validate::Fault;
use crate::volume::EPHEMERAL_MOUNT_PATH;

/// What a declaration says against itself or against its platform, member by member valid as it may be.
#[must_use]
pub fn contradictions(spec: &ContainerSpec, platform: Platform) -> Vec<Fault> {
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
    if spec.health_check.is_some() && spec.probes.is_some() {
        fault(
            "probes",
            "cannot stand beside healthCheck; keep one of the two: what decides who is found by name is probes.readiness, \
             what restarts is probes.liveness"
                .into(),
        );
    }
    faults.extend(spec.placement.iter().flat_map(placement_faults));
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
