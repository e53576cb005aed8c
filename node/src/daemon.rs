//! The daemon put together: what `berthd` starts, in which order, and how it ends.
//!
//! Order: ledger, identity (enrolling as long as it takes when there is none), the machine, the loop; then DNS and the
//! link. Without the scheduler everything but a first enrolment goes on from what is stored. SIGTERM ends the tasks
//! within seconds; containers, namespaces, rules and ports stay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::link as wire;
use berth_api::machine::AssignedNetwork;
use berth_api::time::Timestamp;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Now, boot_id};
use crate::config::Config;
use crate::credentials::{Credentials, Store};
use crate::dns::{DirectoryState, Dns, DnsConfig};
use crate::events::EventQueue;
use crate::health::{Inside, Prober};
use crate::host::Host;
use crate::host::linux::LinuxHost;
use crate::ledger::{Ledger, Loaded};
use crate::link::{self, DIRECTORY_BLOB, Link, MESH_BLOB};
use crate::listeners::Listeners;
use crate::logs::LogService;
use crate::mesh::MeshState;
use crate::plan::{Identity, NodeCore};
use crate::reconcile::{self, INBOX_MAX, Parts};
use crate::status::{self, Part, Snapshot, Verdicts};
use crate::tunnel::Reach;
use crate::watchdog::{BEAT_EVERY, Pulse, Watchdog, notify};

/// The machine is tried again this often while the kernel refuses its network.
const OPEN_AGAIN: Duration = Duration::from_secs(2);
/// A disk that hangs changes nothing that could be waited for.
const STORAGE_LOOK_EVERY: Duration = Duration::from_secs(1);
const DNS_CHECK_EVERY: Duration = Duration::from_secs(5);
/// Tasks have this long to end; what is left then ends with the process.
const END_WITHIN: Duration = Duration::from_secs(3);

/// Runs the daemon until cancelled.
///
/// # Errors
/// When the state directories cannot be made or the ledger cannot be opened at all.
pub async fn run(config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let config = Arc::new(config);
    for dir in [&config.state_dir, &config.run_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let boot_id = boot_id().context("reading the boot id")?;
    let verdicts = Verdicts::new();
    let (ledger, loaded, ledger_thread) =
        Ledger::open(&config.ledger_file(), &boot_id).context("opening the ledger")?;
    report_ledger(&loaded);
    let (snapshots, _) = watch::channel(Arc::new(first_snapshot(&config, &boot_id, &loaded)));
    let mut tasks = JoinSet::new();
    let watchdog = Watchdog::new();
    watchdog
        .watch(Arc::clone(&verdicts), cancel.clone())
        .context("starting the watchdog")?;
    {
        let (path, view) = (config.status_socket(), snapshots.subscribe());
        let (verdicts, cancel, pulse) = (Arc::clone(&verdicts), cancel.clone(), watchdog.pulse("status"));
        tasks.spawn(async move {
            // Nobody looks in without it, and nothing else is worse for it.
            while let Err(error) = status::serve(&path, &view, &verdicts, &pulse, &cancel).await {
                tracing::error!(path = %path.display(), error = %error, "cannot serve the status");
                pulse.beat();
                tokio::time::sleep(BEAT_EVERY).await;
            }
        });
    }
    tasks.spawn(storage_verdict(
        ledger.clone(),
        Arc::clone(&verdicts),
        cancel.clone(),
    ));
    notify(&[sd_notify::NotifyState::Ready]);
    let served = serve(
        &config, &boot_id, loaded, &ledger, &verdicts, &watchdog, snapshots, &cancel, &mut tasks,
    )
    .await;
    cancel.cancel();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
        tasks.abort_all();
    }
    ledger.close();
    drop(
        tokio::time::timeout(
            END_WITHIN,
            tokio::task::spawn_blocking(move || ledger_thread.join()),
        )
        .await,
    );
    served
}

#[expect(clippy::too_many_arguments, reason = "the one place where everything meets")]
async fn serve(
    config: &Arc<Config>,
    boot_id: &str,
    loaded: Loaded,
    ledger: &Ledger,
    verdicts: &Arc<Verdicts>,
    watchdog: &Watchdog,
    snapshots: watch::Sender<Arc<Snapshot>>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let store = Store::new(&config.state_dir);
    let Some(credentials) = identity(config, &store, boot_id, verdicts, cancel).await else {
        return Ok(());
    };
    let network = credentials.enrolment.assigned_network;
    let Some(host) = open_machine(config, network, verdicts, cancel).await else {
        return Ok(());
    };
    let host = Arc::new(host);
    let events = EventQueue::new(config.machine_id.clone());
    let (inbox_sender, inbox) = mpsc::channel(INBOX_MAX);
    let (answer_sender, answers) = mpsc::channel(16);
    let (mesh, directory) = restored_names(&loaded);
    let peers = mesh.peers(&config.machine_id);
    tasks.spawn(dns(
        config.clone(),
        network,
        directory.view(),
        verdicts.clone(),
        watchdog.pulse("dns"),
        cancel.clone(),
    ));
    let link = Link {
        config: config.clone(),
        boot_id: boot_id.to_owned(),
        state_rebuilt: loaded.rebuilt.is_some(),
        store,
        ledger: ledger.clone(),
        inbox: inbox_sender.clone(),
        answers,
        events: events.clone(),
        snapshots: snapshots.subscribe(),
        verdicts: verdicts.clone(),
        directory,
        mesh,
        logs: LogService {
            store: config.log_store.clone(),
        },
        reach: Arc::clone(&host) as Arc<dyn Reach>,
        route: link::Route::default(),
    };
    tasks.spawn(run_link(link, credentials, cancel.clone()));
    let identity = Identity {
        cluster_id: config.cluster_id.clone(),
        machine_id: config.machine_id.clone(),
    };
    let (reports, probes) = mpsc::channel(INBOX_MAX);
    let parts = Parts {
        host: Arc::clone(&host),
        core: NodeCore::new(identity, loaded.restored, Now::read()),
        ledger: ledger.clone(),
        inbox,
        inbox_sender,
        probes,
        prober: Prober::new(reports, Arc::clone(&host) as Arc<dyn Inside>),
        answers: answer_sender,
        events,
        snapshots,
        verdicts: verdicts.clone(),
        pulse: watchdog.pulse("reconcile"),
        peers,
    };
    run_loop(parts, cancel.clone()).await;
    host.shutdown().await;
    Ok(())
}

async fn run_loop<H: Host>(parts: Parts<H>, cancel: CancellationToken) {
    reconcile::run(parts, cancel).await;
}

async fn run_link(link: Link, credentials: Credentials, cancel: CancellationToken) {
    link::run(link, credentials, cancel).await;
}

fn report_ledger(loaded: &Loaded) {
    if let Some(reason) = &loaded.volatile {
        tracing::error!(reason, "the ledger is kept in memory");
    } else if let Some(reason) = &loaded.rebuilt {
        tracing::warn!(reason, "state_rebuilt: the ledger was moved aside and made anew");
    }
}

fn first_snapshot(config: &Config, boot_id: &str, loaded: &Loaded) -> Snapshot {
    Snapshot {
        cluster_id: config.cluster_id.clone(),
        machine_id: config.machine_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.to_owned(),
        epoch: 0,
        generation: 0,
        digest: berth_api::assignment::Digest::default(),
        state_rebuilt: loaded.rebuilt.is_some(),
        observed: false,
        replicas: Vec::new(),
        unlisted: Vec::new(),
        running: Vec::new(),
        taken_at: Timestamp::now(),
    }
}

async fn identity(
    config: &Config,
    store: &Store,
    boot_id: &str,
    verdicts: &Verdicts,
    cancel: &CancellationToken,
) -> Option<Credentials> {
    match store.load() {
        Some(credentials) => Some(credentials),
        None => link::enrol_until_done(config, store, boot_id, verdicts, cancel).await,
    }
}

async fn open_machine(
    config: &Arc<Config>,
    network: AssignedNetwork,
    verdicts: &Verdicts,
    cancel: &CancellationToken,
) -> Option<LinuxHost> {
    loop {
        match cancel
            .run_until_cancelled(LinuxHost::open(Arc::clone(config), network))
            .await?
        {
            Ok(host) => {
                verdicts.set(Part::Network, Ok(()));
                return Some(host);
            }
            Err(error) => {
                tracing::error!(error = %error, "cannot set up the machine's network");
                verdicts.set(Part::Network, Err(error.message));
            }
        }
        cancel.run_until_cancelled(tokio::time::sleep(OPEN_AGAIN)).await?;
    }
}

/// Mesh and directory as they were last: names answer and routes stand before the scheduler is there.
fn restored_names(loaded: &Loaded) -> (MeshState, DirectoryState) {
    let mut mesh = MeshState::default();
    let (mut directory, _) = DirectoryState::new();
    let blob = |name: &str| loaded.blobs.get(name).map(Vec::as_slice);
    if let Some(Ok(message)) = blob(MESH_BLOB).map(wire::Mesh::decode) {
        mesh.apply(&message);
    }
    if let Some(Ok(message)) = blob(DIRECTORY_BLOB).map(wire::Directory::decode) {
        directory.apply(&message);
    }
    (mesh, directory)
}

/// Keeps a name server: started again when its thread ends or its address was not there yet.
async fn dns(
    config: Arc<Config>,
    network: AssignedNetwork,
    view: watch::Receiver<crate::dns::Directory>,
    verdicts: Arc<Verdicts>,
    pulse: Pulse,
    cancel: CancellationToken,
) {
    let listen = (network.gateway, 53).into();
    let listeners = Arc::new(Listeners::inherited());
    let mut server: Option<Dns> = None;
    loop {
        pulse.beat();
        if server.as_ref().is_none_or(|server| !server.is_running()) {
            let wanted = DnsConfig {
                listen,
                listeners: Arc::clone(&listeners),
                upstreams: config.dns_upstream.clone(),
            };
            match Dns::start(wanted, view.clone()).await {
                Ok(started) => {
                    server = Some(started);
                    verdicts.set(Part::Dns, Ok(()));
                }
                Err(error) => verdicts.set(Part::Dns, Err(link::words(&error))),
            }
        }
        if cancel
            .run_until_cancelled(tokio::time::sleep(DNS_CHECK_EVERY))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Says what is wrong with the ledger, also while its thread hangs at the disk and says nothing.
async fn storage_verdict(ledger: Ledger, verdicts: Arc<Verdicts>, cancel: CancellationToken) {
    let mut committed = ledger.committed();
    loop {
        verdicts.set(Part::Storage, ledger.trouble().map_or(Ok(()), Err));
        let changed = tokio::time::timeout(STORAGE_LOOK_EVERY, committed.changed());
        match cancel.run_until_cancelled(changed).await {
            None | Some(Ok(Err(_))) => return,
            Some(Ok(Ok(())) | Err(_)) => {}
        }
    }
}
