//! Rollouts as the API tells them. Berth's own: optional members beside what the public client knows.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum RolloutPhase {
    Progressing,
    /// Starts and stops nothing until it is resumed.
    Paused,
    /// Cannot go on by itself.
    Stalled,
    Completed,
    /// Given up after too many failed starts.
    RolledBack,
    /// Followed by another one before it was done.
    Superseded,
}

impl std::fmt::Display for RolloutPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Progressing => "progressing",
            Self::Paused => "paused",
            Self::Stalled => "stalled",
            Self::Completed => "completed",
            Self::RolledBack => "rolled back",
            Self::Superseded => "superseded",
        })
    }
}

/// Why a rollout was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum RolloutCause {
    Created,
    Changed,
    RolledBack,
    Undone,
    Retried,
}

impl std::fmt::Display for RolloutCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "the container was created",
            Self::Changed => "the container was changed",
            Self::RolledBack => "the rollout before it was rolled back",
            Self::Undone => "the rollout before it was undone",
            Self::Retried => "what was rolled back is tried again",
        })
    }
}

/// The rollout of a container's present declaration, or of the one that it was rolled back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RolloutView {
    /// Rises with each rollout of the container.
    pub id: u64,
    pub phase: RolloutPhase,
    /// Why it is stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub cause: RolloutCause,
    /// Members of the declaration that differ from those before it.
    #[serde(default)]
    pub changes: Vec<String>,
    /// What its replicas run; after a rollback another one than the declared image.
    pub image: String,
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Replicas that are wanted.
    pub total: u32,
    /// Replicas that were given to a machine with its declaration.
    pub updated: u32,
    /// Of those, the ready ones.
    pub ready: u32,
    /// Replicas with another declaration that are not gone.
    pub old: u32,
    /// Of its replicas, as far as they are known.
    #[serde(default)]
    pub failed_starts: u32,
    /// Whether there is something to go back to.
    #[serde(default)]
    pub can_undo: bool,
    /// The rollout before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<FormerRollout>,
}

/// A rollout that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct FormerRollout {
    pub id: u64,
    pub phase: RolloutPhase,
    pub ended_at: Timestamp,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
