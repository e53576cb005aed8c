//! Does one step of one replica: the only caller of the verbs that change the machine.
//!
//! Input: a step. Output: its outcome, or which part failed and whose fault it is. Every verb has a deadline; a verb
//! that hangs costs its own replica until then. The parts of a preparation run at once. Nothing is retried here:
//! the core decides that.

use std::future::Future;
use std::time::Duration;

use berth_api::assignment::Assignment;
use berth_api::id::ReplicaId;
use berth_api::time::monotonic;
use tokio::sync::Semaphore;

use crate::host::{Host, HostError, ProgressSink, PullProgress};
use crate::replica::{Failure, Outcome, Part, Step};

/// Deadline of a pull. The pull itself gives up much earlier on silence; this bounds a trickle.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);
/// Deadline of every other verb: above the runtime's own of 60 s for a delete under disk load.
const VERB_DEADLINE: Duration = Duration::from_secs(90);
/// Verbs at work at once, pulls apart, which have their own bound. Above the cores of a small machine, because most of
/// a verb is waiting for the runtime.
pub const VERBS_MAX: usize = 16;

/// Where the progress of a preparation goes.
pub trait Progress: Clone + Send + Sync + 'static {
    fn report(&self, part: Part, progress: Option<PullProgress>);
}

/// Progress that nobody wants.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _part: Part, _progress: Option<PullProgress>) {}
}

/// Bounds how many verbs are at work.
#[derive(Debug)]
pub struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(VERBS_MAX))
    }
}

impl Gate {
    async fn run<T>(
        &self,
        part: Part,
        what: &'static str,
        verb: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, Failure> {
        let permit = self.0.acquire().await;
        let result = within(VERB_DEADLINE, part, what, verb).await;
        drop(permit);
        result
    }
}

async fn within<T>(
    deadline: Duration,
    part: Part,
    what: &'static str,
    verb: impl Future<Output = Result<T, HostError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, verb).await {
        Ok(result) => result.map_err(|error| Failure { part, error }),
        Err(_) => {
            let error =
                HostError::infrastructure(format!("{what} did not end within {} s", deadline.as_secs()));
            Err(Failure { part, error })
        }
    }
}

/// Does `step`.
///
/// # Errors
/// With the part that failed; of several, the one that a person would mend first.
pub async fn perform<H: Host>(
    host: &H,
    gate: &Gate,
    id: &ReplicaId,
    step: &Step,
    progress: impl Progress,
) -> Result<Outcome, Failure> {
    match step {
        Step::Prepare { assignment, run } => prepare(host, gate, assignment, *run, progress).await,
        Step::Pull { assignment } => pull(host, assignment, progress).await,
        Step::Create { assignment, run } => {
            gate.run(
                Part::Runtime,
                "making the container",
                host.create(assignment, *run),
            )
            .await?;
            Ok(Outcome::Done)
        }
        Step::Start { run } => {
            let pid = gate
                .run(Part::Runtime, "starting the process", host.start(id, *run))
                .await?;
            Ok(Outcome::Started { pid })
        }
        Step::Resize { assignment } => {
            gate.run(Part::Runtime, "changing the limits", host.resize(assignment))
                .await?;
            Ok(Outcome::Done)
        }
        Step::Signal { signal, .. } => {
            gate.run(Part::Runtime, "signalling the process", host.signal(id, *signal))
                .await?;
            Ok(Outcome::Done)
        }
        Step::Delete => {
            gate.run(Part::Runtime, "removing the container", host.delete(id))
                .await?;
            Ok(Outcome::Done)
        }
        Step::Release => release(host, gate, id).await,
    }
}

async fn pull<H: Host>(
    host: &H,
    assignment: &Assignment,
    progress: impl Progress,
) -> Result<Outcome, Failure> {
    let started = monotonic();
    let sink = ProgressSink::new(move |pulled| progress.report(Part::Image, Some(pulled)));
    let verb = host.ensure_image(&assignment.image, sink);
    let presence = within(PULL_DEADLINE, Part::Image, "pulling the image", verb).await?;
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Outcome::Image { presence, elapsed_ms })
}

async fn prepare<H: Host>(
    host: &H,
    gate: &Gate,
    assignment: &Assignment,
    run: u32,
    progress: impl Progress,
) -> Result<Outcome, Failure> {
    let storage = async {
        if assignment.volume.is_some() || !assignment.shared_mounts.is_empty() {
            gate.run(
                Part::Volume,
                "mounting the volume",
                host.prepare_volumes(assignment),
            )
            .await?;
        }
        if assignment.ephemeral_storage.is_some() {
            gate.run(
                Part::Volume,
                "making ephemeral storage",
                host.create_ephemeral(assignment),
            )
            .await?;
        }
        Ok(())
    };
    let network = gate.run(
        Part::Network,
        "making the network",
        host.attach_network(assignment),
    );
    let log = gate.run(
        Part::Log,
        "opening the log",
        host.open_log(&assignment.replica_id, run),
    );
    let image = async {
        let outcome = pull(host, assignment, progress.clone()).await;
        progress.report(Part::Volume, None);
        outcome
    };
    // All of them end: what is made stays and is found made by the next attempt.
    let (image, storage, network, log) = tokio::join!(image, storage, network, log);
    let outcome = image?;
    storage?;
    network?;
    log?;
    Ok(outcome)
}

async fn release<H: Host>(host: &H, gate: &Gate, id: &ReplicaId) -> Result<Outcome, Failure> {
    let network = gate.run(Part::Network, "removing the network", host.detach_network(id));
    let log = gate.run(Part::Log, "closing the log", host.close_log(id));
    let storage = async {
        gate.run(
            Part::Volume,
            "removing ephemeral storage",
            host.remove_ephemeral(id),
        )
        .await?;
        gate.run(Part::Volume, "releasing the volume", host.release_volumes(id))
            .await
    };
    let (network, storage, log) = tokio::join!(network, storage, log);
    network?;
    storage?;
    log?;
    Ok(Outcome::Done)
}
