//! For how long this process may act as the owner of clusters: until its lease could have run out, by its own clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_api::time::monotonic;

/// See the module documentation. Clones share one end.
#[derive(Debug, Clone)]
pub(crate) struct Tenure {
    began: Instant,
    /// Milliseconds after `began`.
    until_ms: Arc<AtomicU64>,
}

impl Tenure {
    /// One without an end, for a store with one owner.
    pub(crate) fn forever() -> Self {
        Self {
            began: monotonic(),
            until_ms: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    pub(crate) fn until(instant: Instant) -> Self {
        let tenure = Self::forever();
        tenure.prolong(instant);
        tenure
    }

    /// Whether it lasts. A process that was paused past its lease sees here that it was.
    pub(crate) fn holds(&self) -> bool {
        self.left() > Duration::ZERO
    }

    /// How long it lasts unless it is prolonged.
    pub(crate) fn left(&self) -> Duration {
        let until = Duration::from_millis(self.until_ms.load(Ordering::Acquire));
        until.saturating_sub(self.began.elapsed())
    }

    pub(crate) fn prolong(&self, until: Instant) {
        let until = until.saturating_duration_since(self.began).as_millis();
        self.until_ms
            .store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Ends it now.
    pub(crate) fn end(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_until_its_time_or_its_end() {
        let tenure = Tenure::until(monotonic());
        assert!(!tenure.holds());
        tenure.prolong(monotonic() + Duration::from_secs(3600));
        assert!(tenure.holds() && tenure.left() > Duration::from_secs(3500));
        tenure.clone().end();
        assert!(!tenure.holds());
        assert!(Tenure::forever().holds());
    }
}
