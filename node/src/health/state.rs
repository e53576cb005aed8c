//! What the outcomes of a probe make of a replica, and when it is probed next. Pure.
//!
//! ```text
//! Starting ──successes──▶ Passing ──failures──▶ Failing
//!     │                      ▲────successes────────│
//!     └──failures (of a startup probe)─────────────▶
//! ```

use std::time::Duration;

use berth_api::container::{HealthCheck, ProbeKind};
use berth_api::probe::Probe;

use super::ProbeRole;

/// Between two probes of a replica that is starting or recovering.
pub const INTERVAL_EAGER: Duration = Duration::from_millis(500);
/// The same of a probe by program: to start one costs more than to open a connection.
pub const INTERVAL_EAGER_PROGRAM: Duration = Duration::from_secs(1);
/// Between two health checks otherwise.
pub const INTERVAL_STEADY: Duration = Duration::from_secs(5);
/// Successes in a row that make a failing health check pass again.
pub const RECOVERY_SUCCESSES: u32 = 2;

/// Where a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbePhase {
    /// Never passed in this run.
    Starting,
    Passing,
    /// Failed as often in a row as its threshold says: after it passed, or, of a startup probe, without.
    Failing,
}

/// How a probe moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    role: ProbeRole,
    /// Before the first probe.
    pub initial_delay: Duration,
    period: Duration,
    failure_threshold: u32,
    first_successes: u32,
    recovery_successes: u32,
}

impl Rules {
    /// Of the wire's health check.
    #[must_use]
    pub fn check(check: &HealthCheck) -> Self {
        Self {
            role: ProbeRole::Check,
            initial_delay: Duration::ZERO,
            period: INTERVAL_STEADY,
            failure_threshold: check.failure_threshold.max(1),
            first_successes: 1,
            recovery_successes: RECOVERY_SUCCESSES,
        }
    }

    /// Of one of the three probes.
    #[must_use]
    pub fn probe(role: ProbeRole, probe: &Probe) -> Self {
        Self {
            role,
            initial_delay: probe.initial_delay(),
            period: probe.period(),
            failure_threshold: probe.failure_threshold.max(1),
            first_successes: probe.success_threshold.max(1),
            recovery_successes: probe.success_threshold.max(1),
        }
    }
}

/// The health of one run of a replica, as one probe sees it, moved by the outcomes of that probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeState {
    rules: Rules,
    phase: ProbePhase,
    failures: u32,
    successes: u32,
    last_error: Option<String>,
}

impl ProbeState {
    /// `was_ready`: it passed in this run before. What runs is taken for alive until it is found to be not.
    #[must_use]
    pub fn new(rules: Rules, was_ready: bool) -> Self {
        let phase = if was_ready || rules.role == ProbeRole::Liveness {
            ProbePhase::Passing
        } else {
            ProbePhase::Starting
        };
        Self {
            rules,
            phase,
            failures: 0,
            successes: 0,
            last_error: None,
        }
    }

    #[must_use]
    pub fn phase(&self) -> ProbePhase {
        self.phase
    }

    /// In a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Takes the outcome of a probe; the error of a failed one.
    #[must_use]
    pub fn next(self, outcome: Result<(), String>) -> Self {
        let mut next = self;
        match outcome {
            Ok(()) => {
                next.successes = next.successes.saturating_add(1);
                next.failures = 0;
                next.last_error = None;
            }
            Err(error) => {
                next.failures = next.failures.saturating_add(1);
                next.successes = 0;
                next.last_error = Some(error);
            }
        }
        let Rules {
            role,
            failure_threshold,
            first_successes,
            recovery_successes,
            ..
        } = next.rules;
        let has_failed = next.failures >= failure_threshold;
        next.phase = match next.phase {
            ProbePhase::Starting if next.successes >= first_successes => ProbePhase::Passing,
            ProbePhase::Starting if has_failed && role == ProbeRole::Startup => ProbePhase::Failing,
            ProbePhase::Failing if next.successes >= recovery_successes => ProbePhase::Passing,
            ProbePhase::Passing if has_failed => ProbePhase::Failing,
            same @ (ProbePhase::Starting | ProbePhase::Passing | ProbePhase::Failing) => same,
        };
        next
    }

    /// How long to wait for the next probe after one that took `elapsed`.
    #[must_use]
    pub fn pause(&self, kind: ProbeKind, elapsed: Duration) -> Duration {
        let eager = match kind {
            ProbeKind::Http | ProbeKind::Tcp => INTERVAL_EAGER,
            ProbeKind::Exec => INTERVAL_EAGER_PROGRAM,
        };
        let period = self.rules.period;
        match (self.rules.role, self.phase) {
            (ProbeRole::Check, ProbePhase::Starting) => eager,
            (ProbeRole::Check, ProbePhase::Failing) if self.successes > 0 => eager,
            (ProbeRole::Check, ProbePhase::Passing | ProbePhase::Failing) => period,
            // Its failures do nothing yet, and people wait for it.
            (ProbeRole::Readiness, ProbePhase::Starting) => eager.min(period),
            (ProbeRole::Startup | ProbeRole::Readiness | ProbeRole::Liveness, _) => {
                period.saturating_sub(elapsed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_api::container::ProbeMethod;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn check(failure_threshold: u32) -> Rules {
        Rules::check(&HealthCheck {
            kind: ProbeKind::Http,
            command: vec![],
            path: "/".into(),
            port: 80,
            method: ProbeMethod::Get,
            timeout_seconds: 1,
            failure_threshold,
        })
    }

    fn probe(role: ProbeRole, success_threshold: u32) -> Rules {
        let probe = Probe {
            kind: ProbeKind::Http,
            command: vec![],
            path: "/".into(),
            port: 80,
            method: ProbeMethod::Get,
            initial_delay_seconds: 7,
            period_seconds: 60,
            timeout_seconds: 1,
            success_threshold,
            failure_threshold: 3,
        };
        Rules::probe(role, &probe)
    }

    fn moved(state: ProbeState, outcomes: &str) -> ProbeState {
        outcomes.chars().fold(state, |state, outcome| {
            state.next(match outcome {
                '+' => Ok(()),
                _ => Err("down".into()),
            })
        })
    }

    #[test]
    fn a_health_check_moves_with_hysteresis() {
        for (outcomes, phase, failures, pause) in [
            ("", ProbePhase::Starting, 0, INTERVAL_EAGER),
            ("-----", ProbePhase::Starting, 5, INTERVAL_EAGER),
            ("--+", ProbePhase::Passing, 0, INTERVAL_STEADY),
            ("+--", ProbePhase::Passing, 2, INTERVAL_STEADY),
            ("+--+--", ProbePhase::Passing, 2, INTERVAL_STEADY),
            ("+---", ProbePhase::Failing, 3, INTERVAL_STEADY),
            ("+---+", ProbePhase::Failing, 0, INTERVAL_EAGER),
            ("+---+-", ProbePhase::Failing, 1, INTERVAL_STEADY),
            ("+---++", ProbePhase::Passing, 0, INTERVAL_STEADY),
        ] {
            let state = moved(ProbeState::new(check(3), false), outcomes);
            assert_eq!(
                (state.phase, state.failures, state.pause(ProbeKind::Http, LONG)),
                (phase, failures, pause),
                "{outcomes}"
            );
        }
    }

    #[test]
    fn the_three_probes_move_by_their_thresholds() {
        use ProbePhase::{Failing, Passing, Starting};
        for (role, successes, was_ready, outcomes, phase) in [
            (ProbeRole::Startup, 1, false, "--", Starting),
            (ProbeRole::Startup, 1, false, "--+", Passing),
            (ProbeRole::Startup, 1, false, "---", Failing),
            (ProbeRole::Readiness, 1, false, "------", Starting),
            (ProbeRole::Readiness, 1, false, "---+", Passing),
            (ProbeRole::Readiness, 2, false, "+", Starting),
            (ProbeRole::Readiness, 2, false, "+-+", Starting),
            (ProbeRole::Readiness, 2, false, "++", Passing),
            (ProbeRole::Readiness, 2, false, "++--", Passing),
            (ProbeRole::Readiness, 2, false, "++--+--", Passing),
            (ProbeRole::Readiness, 2, false, "++---", Failing),
            (ProbeRole::Readiness, 2, false, "++---+", Failing),
            (ProbeRole::Readiness, 2, false, "++---++", Passing),
            // What an earlier daemon found ready has to fail first.
            (ProbeRole::Readiness, 2, true, "", Passing),
            (ProbeRole::Readiness, 2, true, "--", Passing),
            (ProbeRole::Readiness, 2, true, "---", Failing),
            (ProbeRole::Liveness, 1, false, "", Passing),
            (ProbeRole::Liveness, 1, false, "--+--", Passing),
            (ProbeRole::Liveness, 1, false, "---", Failing),
        ] {
            let state = moved(ProbeState::new(probe(role, successes), was_ready), outcomes);
            assert_eq!(state.phase, phase, "{role} {outcomes} {was_ready}");
        }
    }

    #[test]
    fn a_period_is_from_beginning_to_beginning_and_a_first_readiness_is_asked_for_eagerly() {
        let short = Duration::from_secs(2);
        let state = |role| ProbeState::new(probe(role, 1), false);
        for (state, kind, elapsed, pause) in [
            (state(ProbeRole::Startup), ProbeKind::Http, short, LONG - short),
            (
                state(ProbeRole::Liveness),
                ProbeKind::Exec,
                LONG * 2,
                Duration::ZERO,
            ),
            (state(ProbeRole::Readiness), ProbeKind::Tcp, short, INTERVAL_EAGER),
            (
                state(ProbeRole::Readiness),
                ProbeKind::Exec,
                short,
                INTERVAL_EAGER_PROGRAM,
            ),
            (
                moved(state(ProbeRole::Readiness), "+"),
                ProbeKind::Tcp,
                short,
                LONG - short,
            ),
            (
                moved(state(ProbeRole::Readiness), "+---"),
                ProbeKind::Tcp,
                short,
                LONG - short,
            ),
        ] {
            assert_eq!(state.pause(kind, elapsed), pause, "{state:?}");
        }
    }

    #[test]
    fn a_threshold_of_one_fails_at_once_and_the_error_goes_with_a_success() {
        let failing = moved(ProbeState::new(check(1), false), "+-");
        assert_eq!(failing.phase, ProbePhase::Failing);
        assert_eq!(failing.last_error(), Some("down"));
        assert_eq!(failing.next(Ok(())).last_error, None);
    }
}
