//! Runs many seeds of the simulation side by side: `simulate FROM..TO [--keep N,N,...] [--threads N]`.
//!
//! Prints what the runs did, and for each seed that broke a rule the smallest run that still breaks it. Exits with 1 when
//! there was one.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use berth_tests::simulation::{Failure, Options, Summary, run, shrink};

const USAGE: &str = "simulate FROM..TO [--keep N,N,...] [--threads N]";
const FAILURES_MAX: usize = 5;

struct Arguments {
    from: u64,
    to: u64,
    options: Options,
    threads: usize,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let range = words.next().context(USAGE)?;
    let (from, to) = range.split_once("..").context(USAGE)?;
    let mut arguments = Arguments {
        from: from.parse().context(USAGE)?,
        to: to.parse().context(USAGE)?,
        options: Options::default(),
        threads: std::thread::available_parallelism()?.get(),
    };
    while let Some(flag) = words.next() {
        let value = words.next().context(USAGE)?;
        match flag.as_str() {
            "--keep" => {
                let kept: Result<Vec<u32>, _> = value.split(',').map(str::parse).collect();
                arguments.options.kept = Some(kept.context(USAGE)?);
            }
            "--threads" => arguments.threads = value.parse().context(USAGE)?,
            _ => bail!("{flag:?} is not a flag\n{USAGE}"),
        }
    }
    Ok(arguments)
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments {
        from,
        to,
        options,
        threads,
    } = arguments()?;
    let next = AtomicU64::new(from);
    let begun = berth_api::time::monotonic();
    let work = || {
        let (mut total, mut failures) = (Summary::default(), Vec::<Box<Failure>>::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to || failures.len() >= FAILURES_MAX {
                return (total, failures);
            }
            let done = seed + 1 - from;
            if done.is_multiple_of(10_000) {
                println!("{done} seeds after {} s", begun.elapsed().as_secs());
            }
            match run(seed, &options) {
                Ok(summary) => total.add(&summary),
                Err(failure) => {
                    let failure = shrink(failure, &options);
                    println!("{failure}\n");
                    failures.push(failure);
                }
            }
        }
    };
    let (mut total, mut failures) = (Summary::default(), vec![]);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (summary, failed) = worker.join().expect("a run that panics is a failure of its seed");
            total.add(&summary);
            failures.extend(failed);
        }
    });
    failures.sort_by_key(|failure| failure.seed);
    println!(
        "{} seeds in {} s on {threads} threads: {total:?}",
        to - from,
        begun.elapsed().as_secs()
    );
    for failure in &failures {
        println!("seed {} broke {:?}: {}", failure.seed, failure.rule, failure.text);
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
