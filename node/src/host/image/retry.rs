//! What went wrong inside a pull, and how long to wait before the next attempt.

use std::time::Duration;

use super::{ImageError, ImagesConfig};

const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A registry may ask for more patience than this; the replica's own back-off goes on from there.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A fault inside a pull, before the reference is put beside it.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    Unknown(String),
    Denied(String),
    Unusable(String),
    Registry(String),
    /// What is needed to log in cannot be had on this machine.
    Login(String),
    Store(String),
    NoSpace {
        needed_bytes: u64,
        free_bytes: u64,
    },
    /// May be gone at the next attempt, which is due after `after` if the registry says so.
    Passing {
        message: String,
        after: Option<Duration>,
    },
}

impl Trouble {
    pub(super) fn passing(message: impl Into<String>) -> Self {
        Self::Passing {
            message: message.into(),
            after: None,
        }
    }

    /// Another attempt may do.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Passing { .. })
    }

    pub(super) fn of(self, reference: &str) -> ImageError {
        let reference = reference.to_owned();
        match self {
            Self::Unknown(message) => ImageError::Unknown { reference, message },
            Self::Denied(message) => ImageError::Denied { reference, message },
            Self::Unusable(message) => ImageError::Unusable { reference, message },
            Self::Registry(message) | Self::Passing { message, .. } => {
                ImageError::Registry { reference, message }
            }
            Self::Login(message) => ImageError::Login { reference, message },
            Self::Store(message) => ImageError::Store { reference, message },
            Self::NoSpace {
                needed_bytes,
                free_bytes,
            } => ImageError::NoSpace {
                reference,
                needed_bytes,
                free_bytes,
            },
        }
    }
}

impl From<crate::host::containerd::RuntimeError> for Trouble {
    fn from(error: crate::host::containerd::RuntimeError) -> Self {
        Self::Store(error.to_string())
    }
}

/// The pauses between attempts at one thing.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    attempts: u32,
    base: Duration,
}

impl Backoff {
    pub(super) fn new(config: &ImagesConfig) -> Self {
        Self {
            failures: 0,
            attempts: config.attempts.max(1),
            base: config.backoff,
        }
    }

    /// Something got done: the next failure is a first one again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Gives `trouble` back when it does not pass, or has been met too often.
    pub(super) async fn pause(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let Trouble::Passing { message, after } = trouble else {
            return Err(trouble);
        };
        self.failures += 1;
        if self.failures >= self.attempts {
            return Err(Trouble::Registry(format!(
                "{message} (after {} attempts)",
                self.failures
            )));
        }
        let jitter = getrandom::u32().unwrap_or(0);
        let pause = pause(self.base, self.failures, after, jitter);
        tracing::debug!(
            error = message,
            attempt = self.failures,
            pause_ms = pause.as_millis(),
            "pull pauses"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The pause after failure number `failures`: doubling, never less than the registry asked for, up to a half more by
/// chance so that machines do not come back together.
fn pause(base: Duration, failures: u32, after: Option<Duration>, jitter: u32) -> Duration {
    let doubled = base
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(PAUSE_MAX);
    let asked = after.unwrap_or_default().min(RETRY_AFTER_MAX);
    let pause = doubled.max(asked);
    pause + pause.mul_f64(f64::from(jitter) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_honour_the_registry() {
        let base = Duration::from_millis(500);
        assert_eq!(pause(base, 1, None, 0), Duration::from_millis(500));
        assert_eq!(pause(base, 3, None, 0), Duration::from_secs(2));
        assert_eq!(pause(base, 40, None, 0), PAUSE_MAX);
        assert_eq!(
            pause(base, 1, Some(Duration::from_secs(7)), 0),
            Duration::from_secs(7)
        );
        assert_eq!(
            pause(base, 1, Some(Duration::from_secs(7000)), 0),
            RETRY_AFTER_MAX
        );
        assert_eq!(pause(base, 1, None, u32::MAX), Duration::from_millis(750));
    }

    #[tokio::test]
    async fn only_what_passes_is_tried_again() {
        let config = ImagesConfig {
            attempts: 2,
            backoff: Duration::ZERO,
            ..ImagesConfig::default()
        };
        let mut backoff = Backoff::new(&config);
        assert!(backoff.pause(Trouble::Unknown("x".into())).await.is_err());
        assert!(backoff.pause(Trouble::passing("x")).await.is_ok());
        assert!(matches!(
            backoff.pause(Trouble::passing("x")).await,
            Err(Trouble::Registry(_))
        ));
    }
}
