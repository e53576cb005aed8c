//! A change of a container: what it names changes, the rest stays, and the outcome is checked as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::container::create_request;
use super::contradiction::contradictions;
use super::declaration::{
    command, disruption_budget, drain_seconds, environment, image, link, resources, rollback, scale,
    service_account, shared_mount, volume,
};
use super::probes::{health_check, probes};
use crate::cluster::ClusterSpec;
use crate::container::{
    ContainerSpec, DisruptionBudget, HealthCheck, Resources, RollbackPolicy, Scale, ServiceAccountTarget,
};
use crate::placement::{PlacementRules, placement};
use crate::probe::Probes;
use crate::validate::{Cursor, Faults, read};
use crate::volume::{OrdinalVolume, SharedMount};

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
    pub probes: Option<Option<Probes>>,
    pub shared_mounts: Option<Vec<SharedMount>>,
    pub links: Option<Vec<String>>,
    pub disruption_budget: Option<Option<DisruptionBudget>>,
    pub placement: Option<Option<PlacementRules>>,
    pub rollback: Option<Option<RollbackPolicy>>,
    pub drain_seconds: Option<Option<u32>>,
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
            let probes = removable(&cursor.member("probes"), |member| {
                probes(member, current.ports.first().copied())
            });
            let shared_mounts = cursor
                .member("sharedMounts")
                .optional(|mounts| mounts.list(shared_mount));
            let links = cursor.member("links").optional(|links| links.list(link));
            let budget = removable(&cursor.member("disruptionBudget"), disruption_budget);
            let placement = removable(&cursor.member("placement"), placement);
            let rollback = removable(&cursor.member("rollback"), rollback);
            let drain_seconds = removable(&cursor.member("drainSeconds"), drain_seconds);
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
                probes: probes?,
                shared_mounts: shared_mounts?,
                links: links?,
                disruption_budget: budget?,
                placement: placement?,
                rollback: rollback?,
                drain_seconds: drain_seconds?,
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
        set(&mut spec.probes, &self.probes);
        set(&mut spec.shared_mounts, &self.shared_mounts);
        set(&mut spec.links, &self.links);
        set(&mut spec.disruption_budget, &self.disruption_budget);
        set(&mut spec.placement, &self.placement);
        set(&mut spec.rollback, &self.rollback);
        set(&mut spec.drain_seconds, &self.drain_seconds);
        Faults::check(contradictions(&spec, cluster.platform))?;
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
