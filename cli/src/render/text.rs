//! Small texts that several pictures share.

use berth_api::container::STOP_GRACE;
use berth_api::machine::MachineStatus;
use berth_api::replica::{Phase, WireReplicaStatus};
use berth_api::rest::node::MachineSummary;
use berth_api::rest::operator::ReplicaView;
use berth_api::rest::rollout::{RolloutCause, RolloutPhase, RolloutView};
use berth_api::time::Timestamp;
pub(crate) use berth_api::time::duration_in_words as duration;
use berth_api::units::Cpu;

use crate::output::Paint;

/// How long ago, or a dash when never.
pub(crate) fn age(now: Timestamp, then: Option<Timestamp>) -> String {
    then.map_or_else(|| "-".into(), |then| duration(now.since(then)))
}

/// At most `width` characters; a cut text says so by its last one.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(2)).collect();
    format!("{kept}..")
}

/// The most telling word for a replica: its phase where the node has reported one, else the wire's.
pub(crate) fn replica_word(replica: &ReplicaView) -> (String, Paint) {
    let word = match (replica.phase, replica.machine_id.is_some()) {
        (Some(Phase::Healthy), _) if !replica.ready => "running".to_owned(),
        (Some(phase), _) => phase.to_string(),
        (None, false) => "unplaced".into(),
        (None, true) => wire_word(replica.status).into(),
    };
    let paint = match replica.status {
        _ if replica.ready => Paint::Good,
        WireReplicaStatus::Failed => Paint::Bad,
        WireReplicaStatus::Running if replica.phase == Some(Phase::Unhealthy) => Paint::Bad,
        WireReplicaStatus::Pending if replica.machine_id.is_none() => Paint::Bad,
        WireReplicaStatus::Pending | WireReplicaStatus::Running => Paint::Warn,
        WireReplicaStatus::Stopping | WireReplicaStatus::Stopped => Paint::Dim,
    };
    (word, paint)
}

fn wire_word(status: WireReplicaStatus) -> &'static str {
    match status {
        WireReplicaStatus::Pending => "pending",
        WireReplicaStatus::Running => "running",
        WireReplicaStatus::Stopping => "stopping",
        WireReplicaStatus::Stopped => "stopped",
        WireReplicaStatus::Failed => "failed",
    }
}

pub(crate) fn rollout_paint(phase: RolloutPhase) -> Paint {
    match phase {
        RolloutPhase::Completed => Paint::Good,
        RolloutPhase::Progressing | RolloutPhase::Paused | RolloutPhase::Superseded => Paint::Warn,
        RolloutPhase::Stalled | RolloutPhase::RolledBack => Paint::Bad,
    }
}

/// What a list says of a rollout under way; nothing of a container's first one while it goes well.
pub(crate) fn rollout_word(rollout: &RolloutView) -> Option<String> {
    let is_first = rollout.cause == RolloutCause::Created && rollout.phase == RolloutPhase::Progressing;
    let is_open = rollout.phase != RolloutPhase::Completed;
    (is_open && !is_first).then(|| {
        format!(
            "rollout {} {}: {} of {} updated, {} ready",
            rollout.id, rollout.phase, rollout.updated, rollout.total, rollout.ready
        )
    })
}

/// GPUs of a machine that replicas hold, shares as parts of one; none where nothing is held.
pub(crate) fn gpus_held(machine: &MachineSummary) -> Option<String> {
    let milli: u64 = machine
        .gpu_devices
        .iter()
        .map(|device| u64::from(device.milli))
        .sum();
    (milli > 0).then(|| Cpu::from_micros(milli * 1000).to_string())
}

pub(crate) fn machine_paint(status: MachineStatus) -> Paint {
    match status {
        MachineStatus::Running => Paint::Good,
        MachineStatus::Initializing | MachineStatus::Draining => Paint::Warn,
        MachineStatus::Unhealthy => Paint::Bad,
    }
}

/// Why a replica is not where it should be, in a few words; none when all is well.
pub(crate) fn trouble(replica: &ReplicaView, now: Timestamp) -> Option<String> {
    if replica.ready && replica.recent_crashes == 0 && replica.wait.is_none() {
        return None;
    }
    let wait = replica.wait.as_ref().map(|wait| {
        let mut text = wait.reason.clone();
        let since = now.since(wait.since);
        if since > STOP_GRACE {
            text.push_str(&format!(", since {}", duration(since)));
        }
        text
    });
    let cause = replica
        .cause
        .as_ref()
        .map(|cause| format!("last end: {cause}"))
        .filter(|_| !replica.ready || replica.recent_crashes > 0);
    let crashes = (replica.recent_crashes > 0).then(|| format!("{} crashes", replica.recent_crashes));
    let parts: Vec<String> = [wait, cause, crashes].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_says_so() {
        assert_eq!(cut("reader-0", 8), "reader-0");
        assert_eq!(cut("reader-01", 8), "reader..");
    }
}
