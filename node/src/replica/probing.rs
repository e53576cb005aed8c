//! What is probed of a replica, and what the outcomes make of it: whether it is found by name, and whether it must be restarted.
//!
//! A container declares the wire's health check, or probes, or nothing. A health check decides readiness and, after a long patience,
//! restarts. Of the probes, startup holds the other two back and restarts, readiness never restarts, liveness only restarts.

use berth_api::assignment::Assignment;
use berth_api::probe::Probes;

use super::{HEALTH_RESTART_FACTOR, Replica, STARTUP_ALLOWANCE};
use crate::clock::Now;
use crate::health::{ProbePhase, ProbeReport, ProbeRole, ProbeTarget, Question, Rules};

/// What the prober says of the present run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    pub startup: Verdict,
    /// Of the readiness probe, or of the health check.
    pub readiness: Verdict,
    pub liveness: Verdict,
}

/// What one probe has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    pub consecutive_failures: u32,
    pub last_error: Option<String>,
    /// It failed as often in a row as its threshold says, and has not recovered since.
    pub failing: bool,
}

impl Verdict {
    pub(super) fn error(&self) -> &str {
        self.last_error.as_deref().unwrap_or("no answer")
    }
}

/// Where a running replica stands by what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is asked, or all that is asked passes.
    Well,
    /// This has not passed yet in this run.
    Unproven(ProbeRole),
    /// This failed too often in a row.
    Failing(ProbeRole),
}

impl Replica {
    pub(super) fn standing(&self) -> Standing {
        let Some(assignment) = self.assignment() else {
            return Standing::Well;
        };
        let readiness = |role| match (self.health.readiness.failing, self.memory.passed) {
            (true, _) => Standing::Failing(role),
            (false, false) => Standing::Unproven(role),
            (false, true) => Standing::Well,
        };
        match &assignment.probes {
            Some(probes) if self.is_gated(probes) => Standing::Unproven(ProbeRole::Startup),
            Some(_) if self.health.liveness.failing => Standing::Failing(ProbeRole::Liveness),
            Some(probes) if probes.readiness.is_some() => readiness(ProbeRole::Readiness),
            Some(_) => Standing::Well,
            None if assignment.health_check.is_some() => readiness(ProbeRole::Check),
            None => Standing::Well,
        }
    }

    /// Ready to be found by name.
    #[must_use]
    pub fn ready(&self) -> bool {
        let Some(assignment) = self.assignment() else {
            return false;
        };
        let passes = match &assignment.probes {
            Some(probes) => !self.is_gated(probes) && (probes.readiness.is_none() || self.memory.passed),
            None => {
                assignment.health_check.is_none() || (self.memory.passed && !self.health.readiness.failing)
            }
        };
        self.running_pid().is_some() && self.memory.stopping.is_none() && passes
    }

    fn is_gated(&self, probes: &Probes) -> bool {
        probes.startup.is_some() && !self.memory.started
    }

    /// Failures in a row of what fails most.
    pub(super) fn consecutive_failures(&self) -> u32 {
        let Health {
            startup,
            readiness,
            liveness,
        } = &self.health;
        [startup, readiness, liveness]
            .map(|verdict| verdict.consecutive_failures)
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// What must be probed now.
    #[must_use]
    pub fn probes(&self) -> Vec<ProbeTarget> {
        let asked = || {
            let assignment = self.assignment()?;
            self.running_pid()?;
            let run = self.belief.container.as_ref()?.run;
            let std::net::IpAddr::V4(ip) = assignment.ip else {
                return None;
            };
            let target = |(role, question, rules)| ProbeTarget {
                replica_id: self.id.clone(),
                run,
                role,
                ip,
                question,
                rules,
                was_ready: role == ProbeRole::Readiness && self.memory.passed,
            };
            Some(self.questions(assignment).into_iter().map(target).collect())
        };
        asked().unwrap_or_default()
    }

    fn questions(&self, assignment: &Assignment) -> Vec<(ProbeRole, Question, Rules)> {
        let check = assignment.health_check.iter();
        let check = check.map(|check| (ProbeRole::Check, Question::from(check), Rules::check(check)));
        let Some(probes) = &assignment.probes else {
            return check.collect();
        };
        let wanted = if self.is_gated(probes) {
            [
                (ProbeRole::Startup, &probes.startup),
                (ProbeRole::Liveness, &None),
            ]
        } else {
            [
                (ProbeRole::Readiness, &probes.readiness),
                (ProbeRole::Liveness, &probes.liveness),
            ]
        };
        wanted
            .into_iter()
            .filter_map(|(role, probe)| Some((role, probe.as_ref()?)))
            .map(|(role, probe)| (role, Question::from(probe), Rules::probe(role, probe)))
            .collect()
    }

    /// Takes what the prober found; says whether other probes are due now.
    pub fn probed(&mut self, report: ProbeReport) -> bool {
        let run = self.belief.container.as_ref().map(|container| container.run);
        if run != Some(report.run) || self.running_pid().is_none() {
            return false;
        }
        let was_started = self.memory.started;
        let failing = report.phase == ProbePhase::Failing;
        let failing = match report.role {
            ProbeRole::Startup => {
                self.memory.started |= report.passing();
                failing
            }
            ProbeRole::Readiness => {
                match report.phase {
                    ProbePhase::Starting => {}
                    ProbePhase::Passing => self.memory.passed = true,
                    // A restarted daemon is not to call it ready again.
                    ProbePhase::Failing => self.memory.passed = false,
                }
                failing
            }
            ProbeRole::Liveness => failing,
            ProbeRole::Check => self.check_fails(&report),
        };
        let verdict = match report.role {
            ProbeRole::Startup => &mut self.health.startup,
            ProbeRole::Check | ProbeRole::Readiness => &mut self.health.readiness,
            ProbeRole::Liveness => &mut self.health.liveness,
        };
        *verdict = Verdict {
            consecutive_failures: report.consecutive_failures,
            last_error: report.last_error,
            failing,
        };
        self.memory.started != was_started
    }

    fn check_fails(&mut self, report: &ProbeReport) -> bool {
        self.memory.passed |= report.passing();
        let threshold = self
            .assignment()
            .and_then(|assignment| assignment.health_check.as_ref())
            .map_or(u32::MAX, |check| check.failure_threshold);
        let failed = report.consecutive_failures >= threshold;
        !report.passing() && (failed || (self.health.readiness.failing && self.memory.passed))
    }

    /// Why it must be restarted, when what is asked of it has failed for too long.
    pub(super) fn unhealthy_too_long(&self, now: Now) -> Option<String> {
        let assignment = self.assignment()?;
        let Some(probes) = &assignment.probes else {
            return self.check_failed_too_long(assignment, now);
        };
        let runs_it = self.belief.container.as_ref()?.revision == super::revision(assignment);
        let (role, verdict) = if self.is_gated(probes) {
            (ProbeRole::Startup, &self.health.startup)
        } else {
            (ProbeRole::Liveness, &self.health.liveness)
        };
        // What runs while its update is prepared was never asked this.
        (verdict.failing && runs_it).then(|| {
            let (failures, error) = (verdict.consecutive_failures, verdict.error());
            format!("{role} failed {failures} times in a row: {error}")
        })
    }

    fn check_failed_too_long(&self, assignment: &Assignment, now: Now) -> Option<String> {
        let check = assignment.health_check.as_ref()?;
        let verdict = &self.health.readiness;
        if verdict.consecutive_failures < check.failure_threshold.saturating_mul(HEALTH_RESTART_FACTOR) {
            return None;
        }
        let started = self.memory.started_boot?;
        if !self.memory.passed && now.boot.since(started) < STARTUP_ALLOWANCE {
            return None;
        }
        Some(verdict.error().to_owned())
    }
}
