//! The rule by its parts, in a cluster, and against loads beside the rule of Kubernetes.

use berth_api::container::{Autoscaling, ContainerSpec, Scale};
use berth_api::event::EventDetails;
use berth_api::id::ContainerName;
use berth_api::replica::{HttpUsage, Usage};
use berth_api::units::{Bytes, Cpu};
use proptest::prelude::*;

use super::replay::{Berth, Kubernetes, Load, Rule, Score, play};
use super::*;
use crate::entry::Entry;
use crate::fixture::{Town, stateless};

const TARGETS: Targets = Targets {
    min: 1,
    max: 50,
    cpu_permille: 700,
    memory_permille: 800,
    in_flight: Some(4),
    p95_max_us: Some(200_000),
};

fn reading(cpu_permille: u64) -> Reading {
    Reading {
        ready_for_ms: Some(60_000),
        is_silent: false,
        cpu_permille: Some(cpu_permille),
        memory_permille: Some(100),
        in_flight_milli: Some(100),
        p95_us: Some(1_000),
    }
}

fn looked(readings: &[Reading]) -> Look {
    let current = u32::try_from(readings.len()).unwrap();
    look(
        &TARGETS,
        readings,
        current,
        &History::default(),
        &Tunables::default(),
        0,
    )
}

#[test]
fn the_count_meets_the_target() {
    let look = looked(&[reading(900); 4]);
    // 4 * 900 / 700 = 5.14
    assert_eq!(
        (look.count, look.metric, look.of_target_permille),
        (6, Some(Metric::Cpu), 1285)
    );
    assert_eq!(looked(&[reading(300); 4]).count, 2);
    let busy = Reading {
        in_flight_milli: Some(9_000),
        ..reading(300)
    };
    let look = looked(&[busy; 4]);
    assert_eq!((look.count, look.metric), (9, Some(Metric::HttpInFlight)));
}

#[test]
fn near_the_target_nothing_changes() {
    for cpu in [640, 700, 765] {
        assert_eq!(looked(&[reading(cpu); 4]).count, 4, "at {cpu}");
    }
    assert_eq!(
        (
            looked(&[reading(620); 10]).count,
            looked(&[reading(780); 10]).count
        ),
        (9, 12)
    );
}

#[test]
fn replicas_on_their_way_are_not_asked_for_twice() {
    let mut readings = vec![reading(900); 4];
    readings.extend([Reading::default(); 2]);
    assert_eq!(looked(&readings).count, 6);
    // They serve, and are not believed yet: what the others use is what all use.
    let cold = Reading {
        ready_for_ms: Some(2_000),
        ..reading(999)
    };
    let mut readings = vec![reading(600); 4];
    readings.extend([cold; 2]);
    assert_eq!(looked(&readings).count, 6);
    // Nothing is known yet of the processor time of a fresh deployment.
    assert!(!looked(&[cold; 3]).may_shrink);
}

#[test]
fn at_the_cap_the_count_doubles_once() {
    assert_eq!(looked(&[reading(990); 3]).count, 6);
    let mut readings = vec![reading(990); 3];
    readings.extend([Reading::default(); 3]);
    assert_eq!(looked(&readings).count, 6);
}

#[test]
fn slow_answers_ask_for_more_and_never_for_fewer() {
    let slow = |p95_us| Reading {
        p95_us: Some(p95_us),
        ..reading(100)
    };
    let look = looked(&[slow(300_000); 4]);
    assert_eq!((look.count, look.metric), (6, Some(Metric::HttpLatency)));
    assert_eq!(looked(&[slow(900_000); 4]).count, 8, "the double at most");
    let look = looked(&[slow(190_000); 4]);
    assert_eq!((look.count, look.may_shrink), (1, false));
}

/// A history of equal looks, one every period for so long.
fn steady(readings: &[Reading], current: u32, for_ms: u64) -> History {
    let tunables = Tunables::default();
    let mut history = History::default();
    for at_ms in (0..=for_ms).step_by(5_000) {
        let look = look(&TARGETS, readings, current, &history, &tunables, at_ms);
        history.push(look, &tunables);
    }
    history
}

fn advised(history: &History, current: u32) -> u32 {
    history.advise(current, &TARGETS, &Tunables::default()).count
}

#[test]
fn fewer_only_after_the_whole_window() {
    let idle = [reading(100); 8];
    assert_eq!(advised(&steady(&idle, 8, 175_000), 8), 8);
    assert_eq!(advised(&steady(&idle, 8, 180_000), 8), 2);
    assert_eq!(
        advised(&History::default(), 8),
        8,
        "after a start nothing is known"
    );
}

#[test]
fn missing_metrics_never_scale_down() {
    for gap in [
        Reading {
            cpu_permille: None,
            ..reading(100)
        },
        Reading {
            ready_for_ms: None,
            is_silent: true,
            ..Reading::default()
        },
    ] {
        let mut readings = [reading(100); 8];
        readings[3] = gap;
        assert_eq!(advised(&steady(&readings, 8, 600_000), 8), 8, "{gap:?}");
    }
    assert_eq!(advised(&steady(&[Reading::default(); 8], 8, 600_000), 8), 8);
}

#[test]
fn more_only_when_the_load_stays() {
    let tunables = Tunables::default();
    let mut history = steady(&[reading(700); 4], 4, 60_000);
    let look_at =
        |history: &History, cpu, at_ms| look(&TARGETS, &[reading(cpu); 4], 4, history, &tunables, at_ms);
    let peak = look_at(&history, 1_000, 65_000);
    assert_eq!(peak.count, 8);
    history.push(peak, &tunables);
    assert_eq!(advised(&history, 4), 4, "one look is not enough");
    for at_ms in [70_000, 75_000] {
        let next = look_at(&history, 1_000, at_ms);
        history.push(next, &tunables);
    }
    assert_eq!(advised(&history, 4), 8);
}

#[test]
fn a_steady_rise_is_foretold() {
    let tunables = Tunables::default();
    let mut history = History::default();
    let mut last = None;
    for step in 0..16_u64 {
        let readings = [reading(300 + step * 20); 10];
        let look = look(&TARGETS, &readings, 10, &history, &tunables, step * 5_000);
        history.push(look, &tunables);
        last = Some(look);
    }
    // 600 of 700 now; 45 s later 780 of 700 by ten: 11.1.
    assert_eq!(last.unwrap().count, 12);
}

proptest! {
    /// Whatever replicas say, the count stays within its bounds and the advice is stable once it was taken.
    #[test]
    fn advice_keeps_the_bounds_and_is_final(
        looks in proptest::collection::vec(
            proptest::collection::vec(
                (proptest::option::of(0u64..100_000), any::<bool>(), proptest::option::of(any::<u64>()),
                 proptest::option::of(0u64..2_000), proptest::option::of(any::<u64>()), proptest::option::of(any::<u64>())),
                0..12),
            1..60),
        current in 0u32..100,
        (min, span) in (1u32..10, 0u32..40),
    ) {
        let targets = Targets { min, max: min + span, ..TARGETS };
        let tunables = Tunables { down_window_ms: 60_000, ..Tunables::default() };
        let mut history = History::default();
        let mut current = current;
        for (number, readings) in looks.iter().enumerate() {
            let readings: Vec<Reading> = readings.iter().map(|it| Reading {
                ready_for_ms: it.0, is_silent: it.1, cpu_permille: it.2, memory_permille: it.3,
                in_flight_milli: it.4, p95_us: it.5,
            }).collect();
            let at_ms = u64::try_from(number).unwrap() * 5_000;
            let look = look(&targets, &readings, current, &history, &tunables, at_ms);
            history.push(look, &tunables);
            let advice = history.advise(current, &targets, &tunables);
            prop_assert!((targets.min..=targets.max).contains(&advice.count), "{advice:?}");
            current = advice.count;
            prop_assert_eq!(history.advise(current, &targets, &tunables).count, current);
        }
    }
}

/// The sum of several seeds of one shape.
fn replayed(shape: usize, targets: &Targets, rule: &dyn Fn() -> Box<dyn Rule>) -> Score {
    let mut sum = Score::default();
    for seed in 0..3 {
        let score = play(&Load::shapes(seed)[shape], targets, rule().as_mut(), seed + 100);
        sum.replica_seconds += score.replica_seconds;
        sum.oracle_seconds += score.oracle_seconds;
        sum.lost += score.lost;
        sum.settle_seconds += score.settle_seconds;
        sum.overshoot_permille = sum.overshoot_permille.max(score.overshoot_permille);
        sum.flaps += score.flaps;
    }
    sum
}

fn rules() -> [Box<dyn Fn() -> Box<dyn Rule>>; 2] {
    [
        Box::new(|| Box::new(Berth::new(Tunables::default()))),
        Box::new(|| Box::<Kubernetes>::default()),
    ]
}

#[test]
fn loads_are_met_sooner_than_by_the_kubernetes_rule_and_with_less_excess() {
    let cpu_only = Targets {
        max: 100,
        in_flight: None,
        p95_max_us: None,
        ..TARGETS
    };
    let [ours, theirs] = rules();
    let names: Vec<&str> = Load::shapes(0).iter().map(|load| load.name).collect();
    assert_eq!(names, ["step", "spike", "diurnal", "saw-tooth", "noise"]);
    let [step, saw_tooth, noise] = [0, 3, 4].map(|shape| {
        let (ours, theirs) = (
            replayed(shape, &cpu_only, &*ours),
            replayed(shape, &cpu_only, &*theirs),
        );
        assert!(
            ours.overshoot_permille <= theirs.overshoot_permille,
            "{shape}: {ours:?} {theirs:?}"
        );
        (ours, theirs)
    });
    for (ours, theirs) in [&step, &saw_tooth] {
        assert!(
            ours.settle_seconds * 10 < theirs.settle_seconds * 7,
            "{ours:?} {theirs:?}"
        );
        assert!(ours.lost <= theirs.lost, "{ours:?} {theirs:?}");
        assert!(ours.replica_seconds * 100 < ours.oracle_seconds * 120, "{ours:?}");
    }
    assert_eq!(noise.0.flaps, 0, "noise moves nothing to and fro: {noise:?}");
}

fn elastic(scale: Autoscaling) -> ContainerSpec {
    ContainerSpec {
        scale: Scale::Autoscaling(scale),
        ..stateless("web", 1)
    }
}

fn usage(cpu_micros: u64) -> Option<Usage> {
    Some(Usage {
        cpu: Cpu::from_micros(cpu_micros),
        memory: Bytes::mib(100),
        http: Some(HttpUsage {
            in_flight_milli: 500,
            latency_p95_us: None,
        }),
    })
}

fn count(town: &Town) -> u32 {
    let name = ContainerName::new("web").unwrap();
    town.world.container(&name).unwrap().count
}

/// Lets so many seconds pass, five at a time.
fn pass(town: &mut Town, seconds: u64) {
    for _ in 0..seconds / 5 {
        town.tick(5_000);
    }
}

#[test]
fn a_cluster_follows_its_load_and_a_restart_takes_nothing_away() {
    let mut town = Town::of(4);
    town.put(elastic(Autoscaling {
        min: 2,
        desired: 2,
        max: 6,
        target_cpu_percent: 70.0,
        target_memory_percent: 80.0,
        target_http_in_flight_per_replica: Some(4),
        max_http_p95_latency_ms: None,
    }));
    pass(&mut town, 60);
    assert_eq!((count(&town), town.ready("web")), (2, 2), "no metrics, no change");
    town.usage = usage(1_000_000);
    pass(&mut town, 60);
    assert_eq!((count(&town), town.ready("web")), (6, 6), "up to the most");
    let scaled_up = town.log.iter().find_map(|entry| match entry {
        Entry::EventRecorded { event } => match &event.details {
            EventDetails::ScaledUp {
                new_replica_count, ..
            } => Some((*new_replica_count, event.message.clone())),
            _ => None,
        },
        _ => None,
    });
    let expected = "container web goes from 2 to 4 replicas: cpu at 142 % of its target";
    assert_eq!(scaled_up, Some((4, expected.to_owned())));

    town.usage = usage(10_000);
    pass(&mut town, 170);
    assert_eq!(count(&town), 6);
    town.restart();
    pass(&mut town, 170);
    assert_eq!(
        count(&town),
        6,
        "what was seen before the restart is not known any more"
    );
    town.usage = None;
    pass(&mut town, 300);
    assert_eq!(count(&town), 6, "missing metrics");
    town.usage = usage(10_000);
    pass(&mut town, 400);
    assert_eq!((count(&town), town.ready("web")), (2, 2));
    town.assert_replay();
}
