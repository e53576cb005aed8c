//! Makes a failing seed small: actions and parts of the weather are left out, many at once and then one by one, as long as
//! the same rule is broken.

use super::{Failure, Options, Trace, run_once};

/// Runs that may be spent on one seed.
const RUNS_MAX: u32 = 400;

/// The smallest run that was found to break the same rule as `failure`, with its trace.
#[must_use]
pub fn shrink(failure: Box<Failure>, options: &Options) -> Box<Failure> {
    let seed = failure.seed;
    let rule = failure.rule;
    let mut runs = 0;
    let mut fails = |kept: Vec<u32>| {
        runs += 1;
        let options = Options {
            kept: Some(kept),
            trace: Trace::On,
            ..options.clone()
        };
        let spent = runs > RUNS_MAX;
        let failure = if spent {
            None
        } else {
            run_once(seed, &options).err()
        };
        (failure.filter(|failure| failure.rule == rule), spent)
    };
    let mut least = failure;
    let mut size = least.acted.len();
    while size > 0 {
        let mut start = 0;
        while start < least.acted.len() {
            let mut kept = least.acted.clone();
            kept.drain(start..(start + size).min(kept.len()));
            match fails(kept) {
                (Some(failure), _) => least = failure,
                (None, true) => return least,
                (None, false) => start += size,
            }
        }
        size /= 2;
    }
    least
}
