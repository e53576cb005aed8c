//! Proves that whole clusters keep their rules under faults: each seed is one run of `berth_tests::simulation`.
//!
//! `make sim SEEDS=a..b` runs other seeds than these. A seed that once failed is kept in [`REGRESSIONS`], with the actions
//! that it needs.

use std::ops::Range;

use berth_tests::simulation::{Failure, Mutation, Options, Rule, Summary, run, shrink};

/// Seeds of the default run.
const SEEDS: Range<u64> = 0..200;
/// Seeds that found a fault, each with the actions that are needed for it and what it found.
const REGRESSIONS: &[(u64, &[u32], &str)] = &[
    (
        921,
        &[
            1_000_002, 1, 2, 3, 4, 9, 28, 34, 35, 48, 50, 51, 52, 53, 56, 57, 72, 75, 77, 78, 81,
        ],
        "a plan to shrink a group moved the last replica of a former declaration, and could not place it as what was forgotten by then",
    ),
    (
        42_431,
        &[
            1_000_001, 1_000_002, 1_000_004, 1_000_005, 0, 1, 3, 7, 8, 9, 13, 14, 23, 24, 25, 28, 29, 30, 31,
            35, 38, 39, 41, 44, 45, 46, 48,
        ],
        "a container had nothing to wait for while its machine was heard again and not yet taken for running",
    ),
    (
        59_863,
        &[2, 7, 8, 15, 18],
        "a percentage in an event was read from the log with another last digit than it was written with",
    ),
];
/// A mutation must be found within this many seeds.
const MUTATION_SEEDS: u64 = 60;

/// Runs so many seeds side by side.
const THREADS: usize = 2;

/// Every `THREADS`th seed, from the one at `first` on; stops after a few failures.
fn run_every(seeds: Range<u64>, first: usize) -> (Summary, Vec<Failure>) {
    let mut total = Summary::default();
    let mut failures = vec![];
    for seed in seeds.skip(first).step_by(THREADS) {
        match run(seed, &Options::default()) {
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
            .map(|first| scope.spawn(move || run_every(SEEDS, first)))
            .collect();
        for run in runs {
            let (summary, failed) = run.join().expect("a run that panics fails the test");
            total.add(&summary);
            failures.extend(failed);
        }
    });
    failures.sort_by_key(|failure| failure.seed);
    println!("{total:?}");
    for failure in failures.iter().take(2) {
        println!("{}\n", shrink(Box::new(failure.clone()), &Options::default()));
    }
    let seeds: Vec<(u64, Rule)> = failures
        .iter()
        .map(|failure| (failure.seed, failure.rule))
        .collect();
    assert!(failures.is_empty(), "seeds that broke a rule: {seeds:?}");
    assert!(
        total.starts > 0 && total.faults > 0 && total.takeovers > 0 && total.fenced > 0,
        "the runs did nothing of the kind: {total:?}"
    );
}

#[test]
fn seeds_that_found_a_fault_stay_green() {
    for (seed, kept, what) in REGRESSIONS {
        let options = Options {
            kept: Some(kept.to_vec()),
            ..Options::default()
        };
        if let Err(failure) = run(*seed, &options) {
            panic!("{what}, again:\n{failure}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_for_ever() {
    for seed in 0..3 {
        let once = run(seed, &Options::default()).map_err(|failure| failure.rule);
        let again = run(seed, &Options::default()).map_err(|failure| failure.rule);
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
        .find_map(|seed| run(seed, &options).err())
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

#[test]
fn a_store_that_takes_what_a_former_owner_appends_is_noticed() {
    let rule = caught(Mutation::NoFence);
    assert!(
        matches!(rule, Rule::Fence | Rule::Doubled | Rule::Replay),
        "{rule:?}"
    );
}

#[test]
fn a_write_that_is_answered_before_it_is_durable_is_noticed() {
    assert_eq!(caught(Mutation::AnswerEarly), Rule::Durability);
}

#[test]
fn a_stop_without_a_reason_is_noticed() {
    assert_eq!(caught(Mutation::RestartForNothing), Rule::Restart);
}

#[test]
fn another_word_for_the_same_replica_is_noticed() {
    assert_eq!(caught(Mutation::Reword), Rule::Restart);
}

#[test]
fn a_share_of_another_gpu_than_was_given_is_noticed() {
    assert_eq!(caught(Mutation::WrongDevice), Rule::Capacity);
}

#[test]
fn replicas_that_use_the_gpu_of_others_are_noticed() {
    assert_eq!(caught(Mutation::FirstDevice), Rule::Capacity);
}

#[test]
fn a_failing_seed_is_made_small() {
    let options = Options {
        mutation: Some(Mutation::FallBack),
        ..Options::default()
    };
    let failure = (0..MUTATION_SEEDS)
        .find_map(|seed| run(seed, &options).err())
        .expect("it is noticed");
    let before = failure.acted.len();
    let least = shrink(failure, &options);
    assert_eq!(least.rule, Rule::Order);
    assert!(
        least.acted.len() < before,
        "{} of {before} actions are left",
        least.acted.len()
    );
    let again = Options {
        kept: Some(least.acted.clone()),
        ..options
    };
    let rule = run(least.seed, &again).map_err(|failure| failure.rule);
    assert_eq!(rule, Err(Rule::Order), "the small run fails by itself");
}
