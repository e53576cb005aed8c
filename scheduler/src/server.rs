//! A running scheduler: its store, its clusters, and the two servers before them. Usable in one process with others:
//! tests start it on port 0.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_api::assignment::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::cluster::LoadError;
use crate::config::{Config, StoreChoice};
use crate::identity::{Identity, IdentityError};
use crate::link::{self, LinkConfig};
use crate::rest::{self, Api, Audit};
use crate::scheduler::Scheduler;
use crate::shard::{self, Shard, ShardConfig};
use crate::store::{COMPACT_PERIOD, Etcd, Member, Sqlite, Store, StoreError};
use crate::tokens::{TokenError, Tokens};

/// A connection that has not ended by then is cut when the scheduler stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the scheduler does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("make the data directory {path}")]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    #[error("read {path}, which the table etcd of the configuration names")]
    EtcdFile { path: PathBuf, source: std::io::Error },
    #[error("there are no random bytes to be had")]
    Random,
    #[error("cannot load the clusters")]
    Load(#[from] LoadError),
    #[error("cannot open the keys")]
    Identity(#[from] IdentityError),
    #[error("cannot open the secret of tokens")]
    Tokens(#[from] TokenError),
    #[error("open the audit log {path}")]
    Audit { path: PathBuf, source: std::io::Error },
    #[error("listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// A scheduler that serves. Dropping it cuts everything; [`Running::shutdown`] ends it in order.
#[derive(Debug)]
pub struct Running {
    /// Where the REST API is served.
    pub rest_addr: SocketAddr,
    /// Where the node link is served.
    pub link_addr: SocketAddr,
    scheduler: Arc<Scheduler>,
    servers: JoinSet<()>,
    stop: CancellationToken,
}

impl Scheduler {
    /// Starts a scheduler on the store of its configuration.
    ///
    /// # Errors
    /// When anything it needs cannot be had; then nothing is served and nothing was overwritten.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&config.data_dir)
            .map_err(|source| StartError::DataDir {
                path: config.data_dir.clone(),
                source,
            })?;
        match &config.store {
            StoreChoice::Sqlite => {
                let path = config.data_dir.join("store.db");
                let store = tokio::task::spawn_blocking(move || Sqlite::open(&path))
                    .await
                    .map_err(|_| StoreError::Closed)??;
                Self::start_on(Arc::new(store), config).await
            }
            StoreChoice::Etcd(choice) => {
                let options = choice
                    .options()
                    .map_err(|(path, source)| StartError::EtcdFile { path, source })?;
                let store = Etcd::open(&options).await?;
                store.check_whole().await?;
                store.check_keys(&key_marks(&config.data_dir)?).await?;
                Self::start_with(Clusters::Shared(Arc::new(store)), config).await
            }
        }
    }

    /// Starts a scheduler on a given store; only keys are kept in the data directory.
    ///
    /// # Errors
    /// As [`Scheduler::start`].
    pub async fn start_on(store: Arc<dyn Store>, config: Config) -> Result<Running, StartError> {
        Self::start_with(Clusters::Alone(store), config).await
    }

    async fn start_with(clusters: Clusters, config: Config) -> Result<Running, StartError> {
        let identity = Arc::new(Identity::open_trusting(
            &config.data_dir,
            &config.platform_issuers,
        )?);
        let tokens = Arc::new(Tokens::open(&config.data_dir)?);
        let path = config.rest.audit_file.as_deref();
        let audit = Audit::open(path).map_err(|source| StartError::Audit {
            path: path.map(Into::into).unwrap_or_default(),
            source,
        })?;
        let certificate = identity.server_certificate(&config.link_names)?;
        let alone = match &clusters {
            Clusters::Alone(store) => {
                Some(Scheduler::load(store.clone(), config.limits, identity.clone()).await?)
            }
            Clusters::Shared(_) => None,
        };
        let (rest_listener, rest_addr) = listen(config.listen).await?;
        let (link, link_addr) = listen(config.link_listen).await?;
        let scheduler = match (alone, clusters) {
            (Some(scheduler), _) => scheduler,
            (None, Clusters::Shared(etcd)) => {
                let shard = shard_config(&config, rest_addr, link_addr)?;
                Scheduler::shared(Arc::new(Shard::new(etcd, shard)), config.limits, identity)
            }
            (None, Clusters::Alone(_)) => unreachable!("one that is alone was loaded above"),
        };
        let stop = CancellationToken::new();
        let mut servers = JoinSet::new();
        let api = Api::new(scheduler.clone(), tokens, stop.clone(), &config.rest, audit);
        servers.spawn(async move {
            if let Err(error) = rest::serve(rest_listener, api).await {
                error!(
                    error = &error as &dyn std::error::Error,
                    "the REST API has failed"
                );
            }
        });
        if let Some(shard) = scheduler.shard().cloned() {
            let (etcd, housekeeping) = (shard.etcd.clone(), stop.clone());
            servers.spawn(async move { etcd.housekeep(COMPACT_PERIOD, housekeeping).await });
            servers.spawn(shard::run(scheduler.clone(), shard, stop.clone()));
        }
        let link_config = LinkConfig {
            heartbeat: config.heartbeat,
        };
        let served = link::serve(link, scheduler.clone(), certificate, link_config, stop.clone());
        servers.spawn(async move {
            if let Err(error) = served.await {
                error!(
                    error = &error as &dyn std::error::Error,
                    "the node link has failed"
                );
            }
        });
        info!(rest = %rest_addr, link = %link_addr, clusters = scheduler.clusters().len(), "the scheduler serves");
        Ok(Running {
            rest_addr,
            link_addr,
            scheduler,
            servers,
            stop,
        })
    }
}

impl Running {
    #[must_use]
    pub fn scheduler(&self) -> &Arc<Scheduler> {
        &self.scheduler
    }

    /// Returns when a server has ended by itself, which is a fault.
    pub async fn failed(&mut self) {
        self.servers.join_next().await;
    }

    /// Ends sessions and requests, then the actors; the store is closed when its last user is gone.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let ended = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await.is_err() {
            self.servers.shutdown().await;
        }
        self.scheduler.shutdown().await;
    }
}

/// Whose clusters these are.
enum Clusters {
    Alone(Arc<dyn Store>),
    Shared(Arc<Etcd>),
}

fn shard_config(
    config: &Config,
    rest_addr: SocketAddr,
    link_addr: SocketAddr,
) -> Result<ShardConfig, StartError> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|_| StartError::Random)?;
    let rest_url = config.advertise.clone();
    let link_url = config.link_advertise.clone();
    let link_host = config.link_names.first().map_or("localhost", String::as_str);
    Ok(ShardConfig {
        me: Member {
            nonce: format!("{:016x}", u64::from_be_bytes(nonce)),
            rest_url: rest_url.unwrap_or_else(|| format!("http://{rest_addr}")),
            link_url: link_url.unwrap_or_else(|| format!("https://{link_host}:{}", link_addr.port())),
        },
        lease: config.lease,
    })
}

/// What shows that two data directories hold the same keys, without showing the keys.
fn key_marks(data_dir: &Path) -> Result<String, StartError> {
    // Made when they are not there.
    Identity::open(data_dir)?;
    Tokens::open(data_dir)?;
    let mut marks = Vec::new();
    for name in ["ca.key", "token-secret"] {
        let path = data_dir.join(name);
        let content = std::fs::read(&path).map_err(|source| StartError::DataDir { path, source })?;
        marks.push(format!("{name} {}", Digest::of(&content)));
    }
    Ok(marks.join("\n"))
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await
        .map_err(|source| StartError::Listen { address, source })
}
