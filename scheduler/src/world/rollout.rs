//! Rollouts: each change of what a container's replicas run has an identity, a cause and an end.
//!
//! The id of a rollout is the revision of the declaration that it goes to, so it comes from the log and is never used twice
//! in a container's life.
//!
//! ```text
//! declared, rolled back, undone or retried ▶ progressing ⇄ paused
//!                                              │  ├──▶ stalled ──▶ (completed, or ended by the next one)
//!                                              │  └──▶ completed
//!                                              └─────▶ ended by the next one: superseded, or rolled back
//! ```

use std::collections::BTreeSet;

use berth_api::container::ContainerSpec;
use berth_api::id::ContainerName;
use berth_api::rest::container::changes;
use berth_api::rest::rollout::RolloutCause;
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::apply::ApplyError;
use super::{Container, World, same_template};
use crate::entry::{Entry, RolloutTurned};

/// How a container turns to a declaration that it had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RolloutTurn {
    RolledBack,
    Undone,
    Retried,
}

impl RolloutTurn {
    fn cause(self) -> RolloutCause {
        match self {
            Self::RolledBack => RolloutCause::RolledBack,
            Self::Undone => RolloutCause::Undone,
            Self::Retried => RolloutCause::Retried,
        }
    }
}

/// The change of a container's replicas to the declaration of one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The revision.
    pub id: u64,
    pub cause: RolloutCause,
    /// Members of the declaration that differ from those before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
    /// When one of its replicas had come up and stayed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Former>,
}

/// A rollout whose replicas fail, with nothing to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalled {
    pub since: Timestamp,
    pub reason: String,
}

/// How the rollout before the present one ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Former {
    pub id: u64,
    pub end: FormerEnd,
    pub at: Timestamp,
    /// Why it was given up, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// See [`Former`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FormerEnd {
    Completed,
    Superseded,
    RolledBack,
}

/// A container keeps this many revisions to go back to.
const COMPLETED_MAX: usize = 2;

impl Rollout {
    pub(super) fn new(id: u64, cause: RolloutCause, started_at: Timestamp) -> Self {
        Self {
            id,
            cause,
            changes: vec![],
            started_at,
            paused_since: None,
            stalled: None,
            proven_at: None,
            completed_at: None,
            former: None,
        }
    }

    /// Neither completed nor followed by another one.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.completed_at.is_none()
    }

    fn end(self, end: FormerEnd, at: Timestamp, reason: Option<String>) -> Former {
        let (end, at) = match self.completed_at {
            Some(completed_at) => (FormerEnd::Completed, completed_at),
            None => (end, at),
        };
        Former {
            id: self.id,
            end,
            at,
            reason,
        }
    }
}

impl Container {
    /// What its user has declared last.
    #[must_use]
    pub fn declared(&self) -> &ContainerSpec {
        self.declared.as_deref().unwrap_or(&self.spec)
    }

    /// The rollout under way.
    #[must_use]
    pub fn open_rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| rollout.is_open())
    }

    /// Whether nothing starts or stops on account of a newer declaration.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.open_rollout()
            .is_some_and(|rollout| rollout.paused_since.is_some())
    }

    /// The last completed revision that is not what the replicas are to run now; none where nothing else ever completed.
    #[must_use]
    pub fn fallback(&self) -> Option<u64> {
        let differs = |revision: &&u64| {
            self.spec_at(**revision)
                .is_some_and(|spec| !same_template(spec, &self.spec))
        };
        self.completed.iter().rev().find(differs).copied()
    }

    /// What a new replica runs: what is rolled out, or, while that is paused, what it ran before, else what completed last.
    #[must_use]
    pub fn revision_for(&self, former: Option<u64>, ordinal: Option<u32>) -> u64 {
        if !self.is_paused() {
            return self.revision;
        }
        let has_volume = |revision: &u64| {
            let volume = |spec: &ContainerSpec| ordinal.and_then(|ordinal| spec.volume(ordinal)).is_some();
            self.spec_at(*revision)
                .is_some_and(|spec| volume(spec) || !volume(&self.spec))
        };
        let last = ordinal.and_then(|ordinal| self.last_revisions.get(&ordinal).copied());
        former
            .or(last)
            .into_iter()
            .chain(self.completed.last().copied())
            .find(has_volume)
            .unwrap_or(self.revision)
    }

    /// Revisions whose declarations are kept though no replica runs them.
    pub(super) fn kept_revisions(&self) -> BTreeSet<u64> {
        let mut kept: BTreeSet<u64> = self.completed.iter().copied().collect();
        if self.open_rollout().is_some() {
            kept.extend(self.last_revisions.values());
        }
        kept
    }

    /// Another scale, other links or budgets: nothing that a running replica sees.
    pub(super) fn redeclare(&mut self, spec: &ContainerSpec) {
        match &mut self.declared {
            Some(declared) => {
                self.spec = with_scale_of(&self.spec, spec);
                **declared = spec.clone();
            }
            None => self.spec = spec.clone(),
        }
    }

    /// `is_anew`: it was deleted, and what it was before counts no more.
    pub(super) fn start_rollout(
        &mut self,
        spec: &ContainerSpec,
        revision: u64,
        is_anew: bool,
        at: Timestamp,
    ) {
        if self.rollout.is_none() {
            // Declared by a program that did not keep rollouts: what ran is all there is to go back to.
            self.completed = vec![self.revision];
        }
        let cause = if is_anew {
            self.completed.clear();
            self.rollout = None;
            RolloutCause::Created
        } else {
            RolloutCause::Changed
        };
        let mut rollout = Rollout::new(revision, cause, at);
        if !is_anew {
            rollout.changes = changes(self.declared(), spec);
        }
        let former = self.rollout.take();
        rollout.former = former.map(|former| former.end(FormerEnd::Superseded, at, None));
        self.declared = None;
        self.take(spec.clone(), rollout);
    }

    fn take(&mut self, spec: ContainerSpec, rollout: Rollout) {
        let before = std::mem::replace(&mut self.spec, spec);
        self.older.insert(self.revision, before);
        self.revision = rollout.id;
        self.rollout = Some(rollout);
    }
}

/// A declaration with the scale, links and budgets of another. Volumes of ordinals that it does not know come with the scale.
fn with_scale_of(template: &ContainerSpec, other: &ContainerSpec) -> ContainerSpec {
    let mut spec = ContainerSpec {
        scale: other.scale.clone(),
        links: other.links.clone(),
        disruption_budget: other.disruption_budget,
        rollback: other.rollback,
        ..template.clone()
    };
    let unknown = other
        .volumes
        .iter()
        .filter(|volume| template.volume(volume.ordinal).is_none());
    spec.volumes.extend(unknown.cloned());
    spec
}

impl World {
    /// Applies an entry about a rollout.
    pub(super) fn apply_rollout(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        match entry {
            Entry::RolloutPaused { container, at } => self.pause_rollout(container, Some(*at)),
            Entry::RolloutResumed { container, .. } => self.pause_rollout(container, None),
            Entry::RolloutProven {
                container,
                revision,
                at,
            } => {
                self.open_rollout(container, *revision)?.proven_at = Some(*at);
                Ok(())
            }
            Entry::RolloutStalled {
                container,
                revision,
                reason,
                at,
            } => {
                let (since, reason) = (*at, reason.clone());
                self.open_rollout(container, *revision)?.stalled = Some(Stalled { since, reason });
                Ok(())
            }
            Entry::RolloutCompleted {
                container,
                revision,
                at,
            } => self.complete_rollout(container, *revision, *at),
            Entry::RolloutTurned(turned) => self.turn_rollout(turned),
            _ => unreachable!("{entry:?} is not about a rollout"),
        }
    }

    fn open_rollout(&mut self, name: &ContainerName, revision: u64) -> Result<&mut Rollout, ApplyError> {
        let container = self.container_mut(name)?;
        let rollout = container.rollout.as_mut();
        rollout
            .filter(|rollout| rollout.is_open() && rollout.id == revision)
            .ok_or_else(|| ApplyError::NoRollout {
                container: name.clone(),
                revision,
            })
    }

    fn pause_rollout(&mut self, name: &ContainerName, since: Option<Timestamp>) -> Result<(), ApplyError> {
        let revision = self.container_mut(name)?.revision;
        self.open_rollout(name, revision)?.paused_since = since;
        Ok(())
    }

    fn complete_rollout(
        &mut self,
        name: &ContainerName,
        revision: u64,
        at: Timestamp,
    ) -> Result<(), ApplyError> {
        let rollout = self.open_rollout(name, revision)?;
        (rollout.completed_at, rollout.stalled, rollout.paused_since) = (Some(at), None, None);
        let container = self.container_mut(name)?;
        let others = container.completed.iter().copied().filter(|known| {
            let spec = container.spec_at(*known);
            spec.is_some_and(|spec| !same_template(spec, &container.spec))
        });
        let mut completed: Vec<u64> = others.chain([revision]).collect();
        completed.drain(..completed.len().saturating_sub(COMPLETED_MAX));
        container.completed = completed;
        self.forget_unused(name);
        Ok(())
    }

    fn turn_rollout(&mut self, turned: &RolloutTurned) -> Result<(), ApplyError> {
        let container = self.container_mut(&turned.container)?;
        if turned.revision != container.revision + 1 {
            return Err(ApplyError::RevisionJump {
                container: turned.container.clone(),
                from: container.revision,
                to: turned.revision,
            });
        }
        let template = match turned.turn {
            RolloutTurn::Retried => container.declared.as_deref(),
            RolloutTurn::RolledBack | RolloutTurn::Undone => container.spec_at(turned.to),
        };
        let Some(template) = template else {
            return Err(ApplyError::NoRevision {
                container: turned.container.clone(),
                revision: turned.to,
            });
        };
        let spec = with_scale_of(template, container.declared());
        let mut rollout = Rollout::new(turned.revision, turned.turn.cause(), turned.at);
        rollout.changes = changes(&container.spec, &spec);
        let end = match turned.turn {
            RolloutTurn::RolledBack => FormerEnd::RolledBack,
            RolloutTurn::Undone | RolloutTurn::Retried => FormerEnd::Superseded,
        };
        let former = container.rollout.take();
        rollout.former = former.map(|former| former.end(end, turned.at, turned.reason.clone()));
        if turned.turn == RolloutTurn::RolledBack {
            let declared = container.declared().clone();
            container.declared = Some(Box::new(declared));
        } else {
            container.declared = None;
            container.updated_at = turned.at;
        }
        container.take(spec, rollout);
        self.forget_unused(&turned.container);
        Ok(())
    }
}
