//! Plans for terminals: what is wanted, why, and what would move.

use berth_api::rest::cluster::{CapacityPlanReply, CapacityReason, GroupPlan};
use berth_api::rest::repack::{MoveHow, RepackPlanReply};

use crate::output::{self, Paint, Screen};

/// One row a group, and below it what a row cannot hold: zones, machines to drain with their moves, notes.
pub(crate) fn capacity_plan(screen: &Screen, reply: &CapacityPlanReply) -> String {
    if reply.groups.is_empty() {
        return "the cluster has no capacity groups".to_owned();
    }
    let rows = reply.groups.iter().map(|group| row(screen, group)).collect();
    let heads = ["GROUP", "NOW", "WANTED", "REASON", "UNPLACED", "USED", "AT LEAST"];
    let mut lines = vec![output::table(screen, &heads, rows)];
    for group in &reply.groups {
        let more = below(screen, group);
        if !more.is_empty() {
            lines.push(String::new());
            lines.push(screen.paint(Paint::Bold, &format!("group {}", group.group_id)));
            lines.extend(more.into_iter().map(|line| format!("  {line}")));
        }
    }
    lines.join("\n")
}

fn row(screen: &Screen, group: &GroupPlan) -> Vec<String> {
    let paint = match group.reason {
        CapacityReason::AtTarget => Paint::Good,
        CapacityReason::NeedCapacity | CapacityReason::HighUtilization | CapacityReason::LowUtilization => {
            Paint::Warn
        }
        CapacityReason::AtMaxSize => Paint::Bad,
    };
    let dash = || "-".to_owned();
    let details = &group.details;
    let now = match details.initializing_machines {
        0 => group.current_machines.to_string(),
        coming => format!("{} (+{coming})", group.current_machines),
    };
    let needed = details.needed_machines.max(details.needed_machines_at_least) > 0;
    vec![
        group.group_id.to_string(),
        now,
        group.desired_machines.to_string(),
        screen.paint(paint, group.reason.as_str()),
        group
            .unschedulable_replicas
            .map_or_else(dash, |count| count.to_string()),
        group
            .utilization_percent
            .map_or_else(dash, |percent| format!("{percent:.0} %")),
        if needed {
            format!("+{}", details.needed_machines_at_least)
        } else {
            dash()
        },
    ]
}

fn below(screen: &Screen, group: &GroupPlan) -> Vec<String> {
    let mut lines = vec![];
    for zone in group.zone_requirements.iter().flatten() {
        let unplaced = zone
            .unschedulable_replicas
            .map(|count| format!(", {count} replicas without a place"));
        lines.push(format!(
            "zone {}: {} now, {} wanted{}",
            zone.zone,
            zone.current_machines,
            zone.desired_machines,
            unplaced.unwrap_or_default()
        ));
    }
    let details = &group.details;
    let arrow = screen.symbol("→", "->");
    for drain in &details.machines_to_drain {
        let what = if drain.moves.is_empty() {
            "it is empty"
        } else {
            "its replicas go"
        };
        lines.push(format!("could do without machine {}; {what}", drain.machine_id));
        let moves = drain.moves.iter().enumerate();
        lines.extend(
            moves.map(|(index, one)| format!("  {}. {} {arrow} {}", index + 1, one.replica_id, one.to)),
        );
    }
    if !details.drained_machines.is_empty() {
        let ids: Vec<String> = details.drained_machines.iter().map(ToString::to_string).collect();
        lines.push(format!("drained, may be ended: {}", ids.join(", ")));
    }
    if !details.silent_machines.is_empty() {
        let ids: Vec<String> = details.silent_machines.iter().map(ToString::to_string).collect();
        lines.push(format!("silent, not counted: {}", ids.join(", ")));
    }
    lines.extend(details.notes.iter().cloned());
    lines
}

/// What would become empty, every move in order, and what keeps the other machines.
pub(crate) fn repack_plan(screen: &Screen, reply: &RepackPlanReply) -> String {
    let mut lines = vec![];
    let count = reply.freed_machines.len();
    if count == 0 {
        lines.push(format!(
            "no move would empty a machine: {} hold replicas, and at least {} have to",
            reply.occupied_machines, reply.occupied_machines_at_least
        ));
    } else {
        let ids: Vec<String> = reply.freed_machines.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "{} moves would empty {count} of {} machines (at least {} have to hold replicas): {}",
            reply.moves.len(),
            reply.occupied_machines,
            reply.occupied_machines_at_least,
            screen.paint(Paint::Good, &ids.join(", "))
        ));
        lines.push(
            "Nothing moves by this plan. Moves of one step may go together, the next step waits for them."
                .to_owned(),
        );
        lines.push(String::new());
        let rows = reply.moves.iter().map(|one| {
            let how = match one.how {
                MoveHow::StartThenStop => "start, then stop",
                MoveHow::StopThenStart => "stop, then start",
            };
            vec![
                one.step.to_string(),
                one.replica_id.to_string(),
                one.from.to_string(),
                one.to.to_string(),
                how.to_owned(),
                one.reason.clone(),
            ]
        });
        let heads = ["STEP", "REPLICA", "FROM", "TO", "HOW", "WHY"];
        lines.push(output::table(screen, &heads, rows.collect()));
    }
    if !reply.kept_machines.is_empty() {
        lines.push(String::new());
        let rows = reply.kept_machines.iter();
        let rows = rows.map(|kept| vec![kept.machine_id.to_string(), kept.reason.clone()]);
        lines.push(output::table(screen, &["KEPT", "WHY"], rows.collect()));
    }
    lines.extend(reply.notes.iter().cloned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repack_that_saves_nothing_says_so() {
        let text = r#"{"movesPerHour": 20, "statefulMayMove": false, "moves": [], "freedMachines": [],
            "keptMachines": [{"machineId": "m1", "reason": "replica db-0 has no other place"}],
            "occupiedMachines": 1, "occupiedMachinesAtLeast": 1}"#;
        let reply: RepackPlanReply = serde_json::from_str(text).unwrap();
        let golden = "\
no move would empty a machine: 1 hold replicas, and at least 1 have to

KEPT  WHY
m1    replica db-0 has no other place";
        assert_eq!(repack_plan(&Screen::PLAIN, &reply), golden);
    }

    #[test]
    fn a_repack_names_machines_and_moves_in_order() {
        let text = r#"{"movesPerHour": 20, "statefulMayMove": false, "freedMachines": ["m2"], "keptMachines": [],
            "moves": [{"step": 1, "replicaId": "web-m2-a", "container": "web", "from": "m2", "to": "m1",
                "how": "start_then_stop", "reason": "empties m2"}],
            "occupiedMachines": 2, "occupiedMachinesAtLeast": 1}"#;
        let reply: RepackPlanReply = serde_json::from_str(text).unwrap();
        let golden = "\
1 moves would empty 1 of 2 machines (at least 1 have to hold replicas): m2
Nothing moves by this plan. Moves of one step may go together, the next step waits for them.

STEP  REPLICA   FROM  TO  HOW               WHY
1     web-m2-a  m2    m1  start, then stop  empties m2";
        assert_eq!(repack_plan(&Screen::PLAIN, &reply), golden);
    }

    #[test]
    fn a_plan_is_a_table_and_what_a_row_cannot_hold() {
        let profile = r#"{"cpu": 4, "memoryBytes": 8589934592, "ephemeralStorageBytes": 107374182400}"#;
        let text = format!(
            r#"{{"groups": [
            {{"groupId": "general", "profile": {profile}, "currentMachines": 3, "desiredMachines": 2,
              "reason": "low_utilization", "utilizationPercent": 33.4,
              "machinesToDrain": [{{"machineId": "m2", "moves": [{{"replicaId": "web-m2-a", "from": "m2", "to": "m1"}}]}}],
              "drainedMachines": ["m9"]}},
            {{"groupId": "disks", "profile": {profile}, "currentMachines": 1, "desiredMachines": 4, "initializingMachines": 1,
              "reason": "need_capacity", "unschedulableReplicas": 3, "neededMachines": 2, "neededMachinesAtLeast": 2,
              "zoneRequirements": [{{"zone": "b", "currentMachines": 0, "desiredMachines": 2, "unschedulableReplicas": 2}}],
              "notes": ["container huge is larger than any machine of the group"]}}]}}"#
        );
        let reply: CapacityPlanReply = serde_json::from_str(&text).unwrap();
        let golden = "\
GROUP    NOW     WANTED  REASON           UNPLACED  USED  AT LEAST
general  3       2       low_utilization  -         33 %  -
disks    1 (+1)  4       need_capacity    3         -     +2

group general
  could do without machine m2; its replicas go
    1. web-m2-a -> m1
  drained, may be ended: m9

group disks
  zone b: 0 now, 2 wanted, 2 replicas without a place
  container huge is larger than any machine of the group";
        assert_eq!(capacity_plan(&Screen::PLAIN, &reply), golden);
    }
}
