//! Proves that whole clusters keep their rules under faults: each seed is one run of `berth_tests::simulation`.
//!
//! `SIM_SEEDS=a..b` runs other seeds than the default ones. A seed that once failed is kept in [`REGRESSIONS`].

use std::ops::Range;

use berth_tests::simulation::{Failure, Mutation, Options, Rule, Summary, run};

/// Seeds of the default run.
const SEEDS: Range<u64> = 0..200;
/// Seeds that found a fault, each with what it found.
const REGRESSIONS: &[(u64, &str)] = &[];
/// A mutation must be found within this many seeds.
const MUTATION_SEEDS: u64 = 40;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SIM_SEEDS") else {
        return SEEDS;
    };
    let (from, to) = text.split_once("..").expect("SIM_SEEDS is written a..b");
    let number = |text: &str| text.trim().parse().expect("SIM_SEEDS holds two numbers");
    number(from)..number(to)
}

/// Runs so many seeds side by side.
const THREADS: usize = 2;

/// Every `THREADS`th seed, from the one at `first` on; stops after a few failures.
fn run_every(seeds: Range<u64>, first: usize) -> (Summary, Vec<Failure>) {
    let mut total = Summary::default();
    let mut failures = vec![];
    for seed in seeds.skip(first).step_by(THREADS) {
        match run(seed, Options::default()) {
            Ok(summary) => total.add(&summary),
            Err(failure) => failures.push(*failure),
        }
        if failures.len() >= 5 {
            break;
        }
    }
    (total, failures)
}

#[test]
fn clusters_keep_their_rules_whatever_the_seed() {
    let mut total = Summary::default();
    let mut failures = vec![];
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|first| scope.spawn(move || run_every(seeds(), first)))
            .collect();
        for run in runs {
            let (summary, failed) = run.join().expect("a run that panics fails the test");
            total.add(&summary);
            failures.extend(failed);
        }
    });
    failures.sort_by_key(|failure| failure.seed);
    println!("{total:?}");
    for failure in &failures {
        println!("{failure}\n");
    }
    let seeds: Vec<(u64, Rule)> = failures
        .iter()
        .map(|failure| (failure.seed, failure.rule))
        .collect();
    assert!(failures.is_empty(), "seeds that broke a rule: {seeds:?}");
    assert!(total.starts > 0 || total.events == 0, "the runs started nothing");
}

#[test]
fn seeds_that_found_a_fault_stay_green() {
    for (seed, what) in REGRESSIONS {
        if let Err(failure) = run(*seed, Options::default()) {
            panic!("{what}, again:\n{failure}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_for_ever() {
    for seed in 0..3 {
        let once = run(seed, Options::default()).map_err(|failure| failure.rule);
        let again = run(seed, Options::default()).map_err(|failure| failure.rule);
        assert_eq!(once, again);
    }
}

/// Runs seeds with a system that is broken on purpose until a checker notices, and says which.
fn caught(mutation: Mutation) -> Rule {
    let options = Options {
        mutation: Some(mutation),
        ..Options::default()
    };
    (0..MUTATION_SEEDS)
        .find_map(|seed| run(seed, options).err())
        .unwrap_or_else(|| panic!("{mutation:?} was not noticed within {MUTATION_SEEDS} seeds"))
        .rule
}

#[test]
fn a_replica_sent_to_two_machines_is_noticed() {
    let rule = caught(Mutation::PlaceTwice);
    assert!(
        matches!(rule, Rule::SingleWriter | Rule::Capacity | Rule::Order),
        "{rule:?}"
    );
}

#[test]
fn a_node_that_stops_by_silence_is_noticed() {
    assert_eq!(caught(Mutation::StopWhenSilent), Rule::Silence);
}

#[test]
fn an_overcommitted_machine_is_noticed() {
    assert_eq!(caught(Mutation::Overcommit), Rule::Capacity);
}

#[test]
fn a_replica_forgotten_before_it_is_gone_is_noticed() {
    let rule = caught(Mutation::ForgetEarly);
    assert!(matches!(rule, Rule::Gone | Rule::Decision), "{rule:?}");
}

#[test]
fn a_repeated_old_set_is_noticed() {
    assert_eq!(caught(Mutation::FallBack), Rule::Order);
}

#[test]
fn a_node_that_hears_nothing_is_noticed() {
    assert_eq!(caught(Mutation::Deaf), Rule::Convergence);
}
