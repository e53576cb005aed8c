//! The daemon's clock: time since boot for waits and deadlines, wall time for people.
//!
//! Time since boot goes on over a restart of the daemon, counts a suspended machine, and never jumps; together with
//! the kernel's boot id a recorded deadline stays true. The pure core takes [`Now`] as an argument.

use std::time::Duration;

use berth_api::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine booted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// The time from `earlier` to `self`; zero when that is in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    pub boot: BootTime,
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let millis = u64::try_from(time.tv_nsec / 1_000_000).unwrap_or_default();
        Self {
            boot: BootTime(seconds * 1000 + millis),
            wall: Timestamp::now(),
        }
    }

    /// The wall time of an instant on the boot clock, for people.
    #[must_use]
    pub fn wall_at(&self, at: BootTime) -> Timestamp {
        if at >= self.boot {
            self.wall.plus(at.since(self.boot))
        } else {
            let ago = u64::try_from(self.boot.since(at).as_millis()).unwrap_or(u64::MAX);
            Timestamp::from_millis(self.wall.millis().saturating_sub(ago))
        }
    }
}

/// The kernel's id of the present boot.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
