//! Tells systemd that the daemon lives, and people which loop does not.
//!
//! Each loop that nothing else would miss has a [`Pulse`] and beats it each time round, every few seconds even when there is nothing
//! to do. An operating-system thread looks at them: it shares neither the runtime nor a lock with the work. As long as all have
//! moved within the limit it feeds systemd's watchdog (`sd_watchdog_enabled(3)`); when one has not, it stops, and the status says
//! which. systemd then ends the daemon and starts it again; containers run on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use berth_api::time::monotonic;
use tokio_util::sync::CancellationToken;

use crate::status::{Part, Verdicts};

/// Loops beat at least this often.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);
/// A loop that has not beaten for this long is stuck, unless systemd allows less.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// However little systemd allows: a loop with nothing to do beats seldom, and may come late.
const STUCK_AFTER_MIN: Duration = Duration::from_secs(15);
/// How often pulses are looked at without systemd.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The heartbeat of one loop. One that is dropped has ended, which no loop does while the daemon runs: it panicked.
#[derive(Debug)]
pub struct Pulse {
    beats: Arc<AtomicU64>,
}

impl Pulse {
    /// One time round.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// All pulses.
#[derive(Debug, Default)]
pub struct Watchdog {
    loops: Mutex<Vec<Watched>>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    beats: Arc<AtomicU64>,
    seen: u64,
    moved_at: Instant,
}

impl Watchdog {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A pulse for a loop that begins now.
    #[must_use]
    pub fn pulse(&self, name: &'static str) -> Pulse {
        let beats = Arc::new(AtomicU64::new(0));
        let watched = Watched {
            name,
            beats: Arc::clone(&beats),
            seen: 0,
            moved_at: monotonic(),
        };
        self.loops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(watched);
        Pulse { beats }
    }

    /// The loops that have not moved for `limit`, and for how long.
    fn stuck(&self, now: Instant, limit: Duration) -> Vec<(&'static str, Duration)> {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stuck = Vec::new();
        for watched in loops.iter_mut() {
            let beats = watched.beats.load(Ordering::Relaxed);
            if beats != watched.seen {
                (watched.seen, watched.moved_at) = (beats, now);
            }
            let still = now.saturating_duration_since(watched.moved_at);
            // Ours is then the only handle on it.
            let has_ended = Arc::strong_count(&watched.beats) == 1;
            if has_ended || still >= limit {
                stuck.push((watched.name, still));
            }
        }
        stuck
    }

    /// Starts the thread. It ends soon after the token is cancelled; nobody waits for it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn watch(
        self: &Arc<Self>,
        verdicts: Arc<Verdicts>,
        cancel: CancellationToken,
    ) -> std::io::Result<()> {
        let allowed = sd_notify::watchdog_enabled();
        let limit = allowed.map_or(STUCK_AFTER, |allowed| allowed.clamp(STUCK_AFTER_MIN, STUCK_AFTER));
        // systemd advises half of what it allows; a quarter leaves room for a crowded machine.
        let every = allowed.map_or(LOOK_EVERY, |allowed| (allowed / 4).min(LOOK_EVERY));
        let watchdog = Arc::clone(self);
        let look = move || {
            while !cancel.is_cancelled() {
                let stuck = watchdog.stuck(monotonic(), limit);
                let fault = in_words(&stuck);
                if fault.is_none() && allowed.is_some() {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                }
                verdicts.set(Part::Loops, fault.map_or(Ok(()), Err));
                thread::sleep(every);
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(look)?;
        Ok(())
    }
}

fn in_words(stuck: &[(&'static str, Duration)]) -> Option<String> {
    let parts: Vec<String> = stuck
        .iter()
        .map(|(name, still)| format!("{name} has not moved for {} s", still.as_secs()))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Without a supervisor that listens, nothing happens.
pub(crate) fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(error = %error, "cannot tell the supervisor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_named_until_it_moves_or_ends() {
        let watchdog = Watchdog::new();
        let (moving, still) = (watchdog.pulse("moving"), watchdog.pulse("still"));
        let limit = Duration::from_secs(60);
        let start = monotonic();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..59 {
            moving.beat();
            assert!(watchdog.stuck(at(second), limit).is_empty(), "{second}");
        }
        moving.beat();
        let stuck = watchdog.stuck(at(70), limit);
        assert_eq!(stuck.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["still"]);
        assert!(in_words(&stuck).unwrap().starts_with("still has not moved for "));
        still.beat();
        moving.beat();
        assert!(watchdog.stuck(at(71), limit).is_empty());
        moving.beat();
        drop(still);
        let stuck = watchdog.stuck(at(72), limit);
        assert_eq!(stuck[0].0, "still", "a loop that has ended moves no more");
    }
}
