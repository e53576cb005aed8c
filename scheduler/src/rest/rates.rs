//! How often somebody may call: a token bucket for each caller, and one for what each address calls without a valid token.
//!
//! A bucket holds two seconds' worth. Buckets that are full again are forgotten from time to time, so an attacker who comes from
//! many addresses costs memory for two seconds of his requests at most.
//!
//! Written here and not taken from a crate, because the usual one turns on features of crates that everything depends on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::time::monotonic;

use super::request::ApiError;
use super::told::Caller;
use crate::config::RestLimits;

/// What a bucket holds, in time.
const DEPTH: Duration = Duration::from_secs(2);
/// Full buckets are forgotten after so many requests.
const SWEEP_INTERVAL: u64 = 4096;

/// The buckets of one kind of caller, each told by when it is full again (the generic cell rate algorithm).
#[derive(Debug)]
struct Buckets<K> {
    kind: &'static str,
    per_second: u32,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    full_at: BTreeMap<K, Instant>,
    asked: u64,
}

impl<K: Ord + Clone> Buckets<K> {
    fn new(kind: &'static str, per_second: u32) -> Self {
        Self {
            kind,
            per_second: per_second.max(1),
            state: Mutex::new(State {
                full_at: BTreeMap::new(),
                asked: 0,
            }),
        }
    }

    fn take(&self, key: &K) -> Result<(), Limited> {
        self.take_at(key, monotonic())
    }

    fn take_at(&self, key: &K, now: Instant) -> Result<(), Limited> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked += 1;
        if state.asked.is_multiple_of(SWEEP_INTERVAL) {
            state.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = state.full_at.get(key).copied().unwrap_or(now).max(now);
        let after = full_at + Duration::from_secs(1) / self.per_second;
        let depth = after.duration_since(now);
        if depth > DEPTH {
            return Err(Limited {
                kind: self.kind,
                per_second: self.per_second,
                wait: depth.saturating_sub(DEPTH),
            });
        }
        state.full_at.insert(key.clone(), after);
        Ok(())
    }
}

/// Who calls too often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limited {
    pub(super) kind: &'static str,
    per_second: u32,
    wait: Duration,
}

impl From<Limited> for ApiError {
    fn from(limited: Limited) -> Self {
        let message = format!(
            "{} may call {} times a second; try again later",
            limited.kind, limited.per_second
        );
        Self::too_many("too_many_requests", message, limited.wait)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Rates {
    platform: Buckets<String>,
    management: Buckets<String>,
    machine: Buckets<String>,
    strangers: Buckets<IpAddr>,
}

impl Rates {
    pub(super) fn new(limits: &RestLimits) -> Self {
        Self {
            platform: Buckets::new("a platform token", limits.platform_per_second),
            management: Buckets::new("a management token", limits.management_per_second),
            machine: Buckets::new("a machine token", limits.machine_per_second),
            strangers: Buckets::new("an address without a valid token", limits.failures_per_second),
        }
    }

    pub(super) fn take(&self, caller: &Caller) -> Result<(), Limited> {
        match caller {
            Caller::Platform { issuer, subject, .. } => self.platform.take(&format!("{issuer} {subject}")),
            Caller::Management { cluster_id, .. } => self.management.take(&cluster_id.to_string()),
            Caller::Machine { cluster_id, .. } => self.machine.take(&cluster_id.to_string()),
        }
    }

    /// Before a token is looked for in all clusters, and for each that was not found.
    pub(super) fn take_stranger(&self, address: Option<IpAddr>) -> Result<(), Limited> {
        address.map_or(Ok(()), |address| self.strangers.take(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_two_seconds_worth_and_fills_again() {
        let buckets: Buckets<u8> = Buckets::new("somebody", 5);
        let begin = monotonic();
        let taken = (0..100)
            .take_while(|_| buckets.take_at(&1, begin).is_ok())
            .count();
        assert_eq!(taken, 10);
        let limited = buckets.take_at(&1, begin).unwrap_err();
        assert_eq!(limited.wait, Duration::from_millis(200));
        assert!(buckets.take_at(&1, begin + limited.wait).is_ok());
        assert!(buckets.take_at(&1, begin + limited.wait).is_err());
        assert!(buckets.take_at(&2, begin).is_ok(), "each has its own");
        let later = begin + Duration::from_secs(9);
        assert_eq!(
            (0..100)
                .take_while(|_| buckets.take_at(&1, later).is_ok())
                .count(),
            10
        );
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let buckets: Buckets<u64> = Buckets::new("somebody", 1000);
        let begin = monotonic();
        for key in 0..SWEEP_INTERVAL - 1 {
            assert!(buckets.take_at(&key, begin).is_ok());
        }
        assert!(buckets.take_at(&u64::MAX, begin + Duration::from_secs(1)).is_ok());
        assert_eq!(buckets.state.lock().unwrap().full_at.len(), 1);
    }
}
