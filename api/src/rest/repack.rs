//! Body of `GET /clusters/{c}/repack-plan`, Berth's own: which replicas to move so that machines become empty. A plan that is
//! shown; nothing moves by it.

use serde::{Deserialize, Serialize};

use crate::id::{ContainerName, MachineId, ReplicaId};

/// How a replica moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveHow {
    /// A new one starts at the target before the old one ends.
    StartThenStop,
    /// Stateful: it ends at the source, its disk is attached at the target, it starts there.
    StopThenStart,
}

/// One move of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RepackMove {
    /// Counts from 1. Moves of a step may be under way together; the next step waits for all of them.
    pub step: u32,
    pub replica_id: ReplicaId,
    pub container: ContainerName,
    pub from: MachineId,
    pub to: MachineId,
    pub how: MoveHow,
    pub reason: String,
}

/// An occupied machine that the plan does not free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KeptMachine {
    pub machine_id: MachineId,
    pub reason: String,
}

/// Reply to `GET /clusters/{c}/repack-plan`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RepackPlanReply {
    /// The budget it was made under.
    pub moves_per_hour: u32,
    pub stateful_may_move: bool,
    /// In the order in which they can be made; none where they would save no machine.
    pub moves: Vec<RepackMove>,
    /// Empty afterwards.
    pub freed_machines: Vec<MachineId>,
    pub kept_machines: Vec<KeptMachine>,
    /// Machines that hold replicas now, and the least that could after any moves.
    pub occupied_machines: u32,
    pub occupied_machines_at_least: u32,
    #[serde(default)]
    pub notes: Vec<String>,
}
