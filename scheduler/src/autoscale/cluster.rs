//! A cluster in the terms of scaling: readings from what nodes said, entries from what is advised.

use std::collections::BTreeMap;

use berth_api::container::{Autoscaling, ContainerSpec, Scale};
use berth_api::id::ContainerName;
use berth_api::replica::Usage;
use berth_api::time::Timestamp;

use super::{History, Reading, Targets, Tunables, WHOLE, look, scaled};
use crate::entry::{ContainerScaled, Entry};
use crate::world::{Container, Now, Observed, Readiness, Replica, World};

/// Looks at every scaled container whose time has come. Soft state only: what is decided of it is [`entries`].
pub fn observe(world: &World, observed: &mut Observed, tunables: &Tunables, now: Now) {
    let mut scaling = std::mem::take(&mut observed.scaling);
    scaling.retain(|name, _| world.container(name).is_some_and(|it| autoscaling(it).is_some()));
    for (name, container) in world.containers() {
        let Some(autoscaling) = autoscaling(container) else {
            continue;
        };
        let history = scaling.entry(name.clone()).or_default();
        if history.is_due(tunables, now.monotonic_ms) {
            let live = world.replicas_of(name).filter(|replica| replica.is_live());
            let readings: Vec<Reading> = live
                .map(|replica| reading(world, observed, container, replica, now.wall))
                .collect();
            let targets = targets(autoscaling);
            let look = look(
                &targets,
                &readings,
                container.count,
                history,
                tunables,
                now.monotonic_ms,
            );
            history.push(look, tunables);
        }
    }
    observed.scaling = scaling;
}

/// Counts that are to change, ordered by container. The same history gives none a second time.
#[must_use]
pub fn entries(
    world: &World,
    scaling: &BTreeMap<ContainerName, History>,
    tunables: &Tunables,
    at: Timestamp,
) -> Vec<Entry> {
    let change = |(name, history): (&ContainerName, &History)| {
        let container = world.container(name)?;
        let targets = targets(autoscaling(container)?);
        let advice = history.advise(container.count, &targets, tunables);
        (advice.count != container.count).then(|| {
            Entry::ContainerScaled(ContainerScaled {
                container: name.clone(),
                count: advice.count,
                metric: advice.metric,
                of_target_permille: advice.of_target_permille,
                at,
            })
        })
    };
    scaling.iter().filter_map(change).collect()
}

/// The bounds and targets of a container that is scaled now.
fn autoscaling(container: &Container) -> Option<&Autoscaling> {
    match &container.spec.scale {
        Scale::Autoscaling(autoscaling) if container.wanted() > 0 => Some(autoscaling),
        Scale::Autoscaling(_) | Scale::Replicas(_) => None,
    }
}

fn targets(autoscaling: &Autoscaling) -> Targets {
    Targets {
        min: autoscaling.min,
        max: autoscaling.max,
        cpu_permille: thousandths(autoscaling.target_cpu_percent / 100.0),
        memory_permille: thousandths(autoscaling.target_memory_percent / 100.0),
        in_flight: autoscaling.target_http_in_flight_per_replica.map(u64::from),
        p95_max_us: autoscaling.max_http_p95_latency_ms.map(thousandths),
    }
}

/// Rounded; what is declared was checked to be a sane number.
fn thousandths(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits before the cast"
    )]
    let thousandths = (value * 1000.0).round().clamp(0.0, 1e15) as u64;
    thousandths
}

fn reading(
    world: &World,
    observed: &Observed,
    container: &Container,
    replica: &Replica,
    now: Timestamp,
) -> Reading {
    let status = observed.status(replica);
    match (observed.readiness(world, replica), status) {
        (Readiness::Ready, Some(status)) => {
            let since = status
                .started_at
                .map_or(replica.placed_at, |at| at.max(replica.placed_at));
            let ready_for_ms = Some(now.millis().saturating_sub(since.millis()));
            used(replica, &container.spec, status.usage, ready_for_ms)
        }
        // Its machine says that it does not serve yet.
        (Readiness::Unready, Some(_)) if is_heard(world, replica) => Reading::default(),
        _ => Reading {
            is_silent: true,
            ..Reading::default()
        },
    }
}

fn is_heard(world: &World, replica: &Replica) -> bool {
    let machine = world.machine(&replica.machine_id);
    machine.is_some_and(|machine| machine.health == crate::entry::MachineHealthState::Running)
}

fn used(replica: &Replica, spec: &ContainerSpec, usage: Option<Usage>, ready_for_ms: Option<u64>) -> Reading {
    let of = |used: u64, whole: u64| scaled(used, WHOLE, whole);
    let allotted = replica.granted.unwrap_or_else(|| spec.resources.desired());
    let http = usage.and_then(|usage| usage.http);
    Reading {
        ready_for_ms,
        is_silent: false,
        cpu_permille: usage.map(|usage| of(usage.cpu.micros(), allotted.cpu.micros())),
        memory_permille: usage.map(|usage| of(usage.memory.get(), allotted.memory.get())),
        in_flight_milli: http.map(|http| http.in_flight_milli),
        p95_us: http.and_then(|http| http.latency_p95_us),
    }
}

/// What scaling last saw of a container, for people.
#[must_use]
pub fn describe(history: &History, container: &Container) -> Option<String> {
    let look = history.last()?;
    let Some(metric) = look.metric else {
        return Some("no metrics of its replicas have come yet, so the count is held".into());
    };
    let percent = look.of_target_permille / 10;
    let held = match look.count.cmp(&container.count) {
        std::cmp::Ordering::Less if !look.may_shrink => ", and fewer wait for the metrics of all replicas",
        std::cmp::Ordering::Less => ", once the load has been low for long enough",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => ", once the load has stayed",
    };
    Some(format!(
        "{metric} is at {percent} % of its target, which asks for {} replicas{held}",
        look.count
    ))
}
