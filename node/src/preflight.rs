//! `berthd preflight`: what this program would do to what runs, were it the daemon now. Run by an upgrade before it switches.
//!
//! Input: the configuration, a copy of the ledger, the labels of live containers. Output: the steps that the first turn would take,
//! apart from what runs and of what runs. Nothing on the machine is changed: the copy is another file, and containerd is only asked.
//! Failure: whatever cannot be read is a reason not to upgrade.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::id::ReplicaId;

use crate::clock::{Now, boot_id};
use crate::config::Config;
use crate::host::containerd::{Runtime, RuntimeConfig, RuntimeError};
use crate::host::linux::observed_container;
use crate::host::{Observed, ObservedTask};
use crate::ledger::{self, LedgerError};
use crate::plan::{Identity, NodeCore};
use crate::replica::{DRAIN, Step};

const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why it cannot be said what would be done.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("reading the boot id")]
    BootId(#[source] std::io::Error),
    #[error("copying the ledger to {to}")]
    Copy { to: PathBuf, source: LedgerError },
    #[error("reading a copy of the ledger; as the daemon it would move the ledger aside and rebuild it")]
    Ledger(#[source] LedgerError),
    #[error("asking containerd what runs")]
    Runtime(#[source] RuntimeError),
    #[error("containerd did not say within {LIST_TIMEOUT:?} what runs")]
    Silent,
}

/// What would be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Replicas with a process.
    pub running: usize,
    /// Steps of those: there must be none.
    pub of_running: Vec<String>,
    /// Steps of others, which are under way or would begin anyway.
    pub of_others: Vec<String>,
}

/// Says what would be done. The ledger's copy stays at `copy`: it is the backup of an upgrade.
///
/// # Errors
/// When something that a daemon starts from cannot be read.
pub async fn run(config: &Config, copy: &Path) -> Result<Report, PreflightError> {
    let boot_id = boot_id().map_err(PreflightError::BootId)?;
    let source = config.ledger_file();
    ledger::copy(&source, copy).map_err(|source| PreflightError::Copy {
        to: copy.to_owned(),
        source,
    })?;
    let restored = ledger::inspect(copy, &boot_id).map_err(PreflightError::Ledger)?;
    let runtime = Runtime::connect(RuntimeConfig::new(
        &*config.containerd_socket,
        config.containerd_namespace.clone(),
    ))
    .map_err(PreflightError::Runtime)?;
    let listed = tokio::time::timeout(LIST_TIMEOUT, runtime.list()).await;
    runtime.shutdown().await;
    let listed = listed
        .map_err(|_| PreflightError::Silent)?
        .map_err(PreflightError::Runtime)?;
    let containers = listed.iter().filter_map(observed_container).map(|(seen, _)| seen);
    let observed = Observed {
        containers: containers.collect(),
    };
    let identity = Identity {
        cluster_id: config.cluster_id.clone(),
        machine_id: config.machine_id.clone(),
    };
    let now = Now::read();
    Ok(judge(NodeCore::new(identity, restored, now), observed, now))
}

/// The first turn of a daemon that finds this, and the one that follows when a stop which it begins has drained.
pub(crate) fn judge(mut core: NodeCore, observed: Observed, now: Now) -> Report {
    let running: BTreeSet<ReplicaId> = observed
        .containers
        .iter()
        .filter(|container| matches!(container.task, ObservedTask::Running { .. }))
        .map(|container| container.replica_id.clone())
        .collect();
    let token = core.begin_observation();
    core.observed(token, observed, now);
    let mut report = Report {
        running: running.len(),
        ..Report::default()
    };
    let drained = Now {
        boot: now.boot.plus(DRAIN),
        wall: now.wall.plus(DRAIN),
    };
    let steps = [now, drained].map(|now| {
        // As if nobody was connected: a stop that waits for connections is a stop.
        let counts = core.draining(now).into_iter().map(|id| (id, 0)).collect();
        core.connected(&counts, now);
        core.advance(now).steps
    });
    for (id, step) in steps.into_iter().flatten() {
        let words = format!("{} {id}", step.name());
        // A cap is set again to what it is: the process does not notice.
        if running.contains(&id) && !matches!(step, Step::Resize { .. }) {
            report.of_running.push(words);
        } else {
            report.of_others.push(words);
        }
    }
    report
}
