//! The output of replicas: which run each replica writes to, and the read ends that the daemon holds beside the keeper.
//!
//! The keeper's client is synchronous; it works on the blocking pool, one request at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_collector::logs::{ClientError, HeldEnds, KeeperClient, OpenRequest, OpenedRun, RunKey, Stream};

use crate::host::HostError;

/// The keeper answers in less than a millisecond; it is given the time of its own restart.
const DEADLINE: Duration = Duration::from_secs(5);

/// The pipes of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pipes {
    pub(super) stdout: PathBuf,
    pub(super) stderr: PathBuf,
}

#[derive(Debug)]
struct OpenRun {
    run: u32,
    pipes: Pipes,
    _held: HeldEnds,
}

#[derive(Debug)]
struct State {
    socket: PathBuf,
    client: Option<KeeperClient>,
    open: BTreeMap<ReplicaId, OpenRun>,
}

/// The open runs of this machine. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Outputs(Arc<Mutex<State>>);

impl Outputs {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(State {
            socket,
            client: None,
            open: BTreeMap::new(),
        })))
    }

    /// Opens a run, or finds it open, and holds its read ends. An older run of the same replica is closed.
    pub(super) async fn open(&self, replica_id: &ReplicaId, run: u32) -> Result<Pipes, HostError> {
        let replica_id = replica_id.clone();
        self.blocking(move |state| state.open(&replica_id, run)).await
    }

    /// Ends the open run of a replica, if there is one.
    pub(super) async fn close(&self, replica_id: &ReplicaId) -> Result<(), HostError> {
        let replica_id = replica_id.clone();
        self.blocking(move |state| state.close(&replica_id)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, HostError> {
        let state = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(result) => result.map_err(|error| HostError::infrastructure_chain(&error)),
            Err(_) => Err(HostError::infrastructure(
                "talking to the log keeper was broken off",
            )),
        }
    }
}

impl State {
    fn client(&mut self) -> Result<&mut KeeperClient, ClientError> {
        if self.client.is_none() {
            self.client = Some(KeeperClient::connect(self.socket.clone(), DEADLINE)?);
        }
        Ok(self.client.as_mut().expect("made just above"))
    }

    fn open(&mut self, replica_id: &ReplicaId, run: u32) -> Result<Pipes, ClientError> {
        if let Some(open) = self.open.get(replica_id) {
            if open.run == run {
                return Ok(open.pipes.clone());
            }
            self.close(replica_id)?;
        }
        let opened = self
            .client()?
            .open(OpenRequest::new(RunKey::new(replica_id.as_str(), run)))?;
        let held = opened.hold()?;
        let pipes = pipes(&opened);
        let open = OpenRun {
            run,
            pipes: pipes.clone(),
            _held: held,
        };
        self.open.insert(replica_id.clone(), open);
        Ok(pipes)
    }

    fn close(&mut self, replica_id: &ReplicaId) -> Result<(), ClientError> {
        let Some(run) = self.open.get(replica_id).map(|open| open.run) else {
            return Ok(());
        };
        self.client()?.close(RunKey::new(replica_id.as_str(), run))?;
        self.open.remove(replica_id);
        Ok(())
    }
}

fn pipes(opened: &OpenedRun) -> Pipes {
    let path = |stream| opened.fifos.get(&stream).cloned().unwrap_or_default();
    Pipes {
        stdout: path(Stream::Stdout),
        stderr: path(Stream::Stderr),
    }
}
