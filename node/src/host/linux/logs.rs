//! Runs of replicas at the log keeper. The keeper's client is synchronous: one connection, used on the blocking pool.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_collector::logs::{HeldEnds, KeeperClient, OpenRequest, RunKey, Stream};

use super::{HostError, blocking, infrastructure};

/// A keeper that restarts is back within 100 ms.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Open {
    run: u32,
    fifos: (PathBuf, PathBuf),
    /// The second holder: see the keeper's documentation.
    _ends: Option<HeldEnds>,
}

#[derive(Debug)]
pub(super) struct Logs {
    socket: PathBuf,
    client: Arc<Mutex<Option<KeeperClient>>>,
    open: Arc<Mutex<BTreeMap<ReplicaId, Open>>>,
    /// Runs that were found running and are not held yet.
    found: Mutex<BTreeMap<ReplicaId, u32>>,
}

impl Logs {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            client: Arc::default(),
            open: Arc::default(),
            found: Mutex::default(),
        }
    }

    /// Does one request, on a connection that is made when there is none.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut KeeperClient) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let (client, socket) = (Arc::clone(&self.client), self.socket.clone());
        blocking(move || {
            let mut client = lock(&client);
            if client.is_none() {
                *client =
                    Some(KeeperClient::connect(socket, DEADLINE).map_err(|error| infrastructure(&error))?);
            }
            let client = client.as_mut().expect("it was made above");
            request(client)
        })
        .await
    }

    pub(super) async fn open(&self, id: &ReplicaId, run: u32) -> Result<(), HostError> {
        let key = RunKey::new(id.as_str(), run);
        let open = Arc::clone(&self.open);
        let id = id.clone();
        self.ask(move |client| {
            let old = lock(&open).get(&id).map(|open| open.run);
            if let Some(old) = old.filter(|old| *old != run) {
                // What an older run still had in its FIFOs is stored; its end is not worth a failed start.
                if let Err(error) = client.close(RunKey::new(id.as_str(), old)) {
                    tracing::debug!(replica_id = %id, error = %error, "cannot close the log of an older run");
                }
            }
            let opened = client
                .open(OpenRequest::new(key))
                .map_err(|error| infrastructure(&error))?;
            let ends = match opened.hold() {
                Ok(ends) => Some(ends),
                Err(error) => {
                    tracing::warn!(replica_id = %id, error = %error, "cannot hold the log's FIFOs");
                    None
                }
            };
            let path = |stream| opened.fifos.get(&stream).cloned().unwrap_or_default();
            let fifos = (path(Stream::Stdout), path(Stream::Stderr));
            lock(&open).insert(
                id,
                Open {
                    run,
                    fifos,
                    _ends: ends,
                },
            );
            Ok(())
        })
        .await
    }

    pub(super) fn fifos(&self, id: &ReplicaId, run: u32) -> Option<(PathBuf, PathBuf)> {
        lock(&self.open)
            .get(id)
            .filter(|open| open.run == run)
            .map(|open| open.fifos.clone())
    }

    pub(super) fn note_running(&self, id: &ReplicaId, run: u32) {
        if lock(&self.open).get(id).is_none_or(|open| open.run != run) {
            lock(&self.found).insert(id.clone(), run);
        }
    }

    /// Opens the runs again that an earlier daemon opened, and so holds them.
    pub(super) async fn hold_running(&self) -> Result<(), HostError> {
        let found = std::mem::take(&mut *lock(&self.found));
        for (id, run) in found {
            if lock(&self.open).get(&id).is_some_and(|open| open.run >= run) {
                continue;
            }
            if let Err(error) = self.open(&id, run).await {
                lock(&self.found).insert(id, run);
                return Err(error);
            }
        }
        self.ask(|client| {
            client
                .version()
                .map(|_| ())
                .map_err(|error| infrastructure(&error))
        })
        .await
    }

    /// Ends the run of a replica. A keeper that is away keeps what it has; the run ends with its writers.
    pub(super) async fn close_quietly(&self, id: &ReplicaId) {
        let Some(open) = lock(&self.open).remove(id) else {
            return;
        };
        let key = RunKey::new(id.as_str(), open.run);
        let closed = self
            .ask(move |client| client.close(key).map_err(|error| infrastructure(&error)))
            .await;
        if let Err(error) = closed {
            tracing::warn!(replica_id = %id, error = %error, "cannot close a log");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
