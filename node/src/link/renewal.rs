//! The certificate's renewal, beside the session that goes on meanwhile.
//!
//! When it is due is said in the scheduler's time, and each session begins with that: a wrong clock of the machine neither
//! delays a renewal nor repeats it for ever. One that fails is tried again, after a pause that grows, while the session goes
//! on under the present certificate; a third of its life is left for that.

use std::time::{Duration, Instant};

use berth_api::time::{Timestamp, monotonic};
use tokio::task::JoinSet;

use super::{Link, LinkError, enrol, jittered, words};
use crate::credentials::Credentials;

const RETRY_FIRST: Duration = Duration::from_secs(5);
/// A certificate is renewed 8 h before it runs out: some fifty tries.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// When to renew, and the try under way.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// None before the scheduler said what time it is, and while a try is under way.
    pub(super) at: Option<Instant>,
    failures: u32,
    /// At most one. Dropped with the session.
    task: JoinSet<Result<Credentials, LinkError>>,
}

impl Renewal {
    /// The scheduler says that it is `now`.
    pub(super) fn plan(&mut self, present: &Credentials, now: Timestamp) {
        if self.task.is_empty() {
            self.at = Some(monotonic() + present.enrolment.renew_at.since(now));
        }
    }

    /// Begins a try when one is due.
    pub(super) fn begin(&mut self, now: Instant, link: &Link, present: &Credentials) {
        if self.at.is_none_or(|at| now < at) {
            return;
        }
        self.at = None;
        let (config, store) = (link.config.clone(), link.store.clone());
        let (boot_id, present) = (link.boot_id.clone(), present.clone());
        self.task
            .spawn(async move { enrol::renew(&config, &store, &boot_id, &present).await });
    }

    /// Waits for the end of a try; the new certificate, if it gave one. Without a try it waits for ever.
    ///
    /// Cancel-safe: a task that ended stays in the set until it is taken.
    pub(super) async fn ended(&mut self) -> Option<Credentials> {
        let reason = match self.task.join_next().await {
            None => return std::future::pending().await,
            Some(Ok(Ok(renewed))) => return Some(renewed),
            Some(Ok(Err(error))) => words(&error),
            Some(Err(error)) => words(&error),
        };
        let pause = jittered((RETRY_FIRST * 2_u32.saturating_pow(self.failures)).min(RETRY_MAX));
        self.failures = (self.failures + 1).min(10);
        tracing::warn!(
            reason,
            again_in_ms = pause.as_millis(),
            "cannot renew the certificate"
        );
        self.at = Some(monotonic() + pause);
        None
    }
}
