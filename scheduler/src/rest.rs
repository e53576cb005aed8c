//! The REST API: the wire API of `api/src/rest.rs`, and Berth's additions for people.
//!
//! Input: HTTP requests. Output: requests to the clusters' actors, replies made of what the actors publish. Owner:
//! whoever runs [`serve`]. No state of its own: a scheduler that starts again serves the same.
//!
//! The raw path is split first and each segment decoded afterwards, because a cluster id may contain slashes. Every
//! answer is JSON and carries `x-request-id`; an input with faults is answered with all of them and changes nothing.

mod aggregate;
mod around;
mod audit;
mod auth;
mod clusters;
mod containers;
mod forward;
mod gather;
mod logs;
mod machines;
mod nodes;
mod openapi;
mod operator;
mod plans;
mod rates;
mod request;
mod rollup;
mod told;
mod tunnel;
mod view;
mod watch;
mod write;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, patch, post};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::RestLimits;
use crate::scheduler::Scheduler;
use crate::tokens::Tokens;

pub use audit::Audit;
use rates::Rates;

/// What handlers need.
#[derive(Debug, Clone)]
pub struct Api {
    scheduler: Arc<Scheduler>,
    tokens: Arc<Tokens>,
    /// Ends what waits: streams of logs, tunnels, and `?watch`.
    stop: CancellationToken,
    rates: Arc<Rates>,
    audit: Arc<Audit>,
    /// Owner of what connections become after their requests.
    upgraded: TaskTracker,
    /// A permit for each request that waits for a change.
    watchers: Arc<Semaphore>,
}

impl Api {
    #[must_use]
    pub fn new(
        scheduler: Arc<Scheduler>,
        tokens: Arc<Tokens>,
        stop: CancellationToken,
        limits: &RestLimits,
        audit: Audit,
    ) -> Self {
        Self {
            scheduler,
            tokens,
            stop,
            rates: Arc::new(Rates::new(limits)),
            audit: Arc::new(audit),
            upgraded: TaskTracker::new(),
            watchers: Arc::new(Semaphore::new(watch::WAITING_MAX)),
        }
    }

    /// Every route, with its middleware.
    pub fn router(self) -> Router {
        Router::new()
            .merge(cluster_routes())
            .merge(container_routes())
            .merge(event_routes())
            .merge(aggregate_routes())
            .route("/register", post(nodes::register))
            .route("/heartbeat", post(nodes::heartbeat))
            .route("/batch/heartbeat", post(nodes::batch_heartbeat))
            .route("/events", post(nodes::create_event))
            .route("/healthz", get(operator::healthz))
            .route("/readyz", get(operator::readyz))
            .route("/metrics", get(operator::metrics))
            .route("/openapi.json", get(openapi::serve))
            .fallback(request::no_route)
            .method_not_allowed_fallback(request::no_method)
            .layer(axum::middleware::from_fn_with_state(
                self.clone(),
                forward::forward,
            ))
            .layer(axum::middleware::from_fn_with_state(self.clone(), around::around))
            .with_state(self)
    }
}

fn cluster_routes() -> Router<Api> {
    Router::new()
        .route("/clusters", post(clusters::create).get(operator::list_clusters))
        .route(
            "/clusters/{cluster}",
            get(clusters::get)
                .patch(clusters::update)
                .delete(clusters::delete),
        )
        .route("/clusters/{cluster}/machines", get(machines::list))
        .route(
            "/clusters/{cluster}/machines/{machine}/drain",
            post(machines::drain).delete(machines::cancel_drain),
        )
        .route("/clusters/{cluster}/machines/{machine}", delete(machines::remove))
        .route("/clusters/{cluster}/capacity-plan", get(plans::capacity))
        .route("/clusters/{cluster}/repack-plan", get(plans::repack))
        .route("/clusters/{cluster}/tokens/rotate", post(clusters::rotate_token))
        .route("/clusters/{cluster}/tokens/revoke", post(clusters::revoke_tokens))
        .route(
            "/clusters/{cluster}/held-stops/release",
            post(clusters::release_stops),
        )
        .route("/clusters/{cluster}/replicas", get(operator::list_replicas))
        .route(
            "/clusters/{cluster}/explain/{subject}/{id}",
            get(operator::explain),
        )
        .route("/clusters/{cluster}/logs/{name}", get(logs::logs))
        .route("/clusters/{cluster}/exec/{name}", get(tunnel::exec))
        .route(
            "/clusters/{cluster}/port-forward/{name}",
            get(tunnel::port_forward),
        )
}

fn container_routes() -> Router<Api> {
    let one = "/clusters/{cluster}/containers/{container}";
    Router::new()
        .route(
            "/clusters/{cluster}/containers",
            post(containers::create).get(containers::list),
        )
        .route(one, get(containers::get))
        .route(one, patch(containers::update))
        .route(one, delete(containers::delete))
        .route(&format!("{one}/stop"), post(containers::stop))
        .route(&format!("{one}/start"), post(containers::start))
        .route(&format!("{one}/rollout/pause"), post(containers::pause_rollout))
        .route(&format!("{one}/rollout/resume"), post(containers::resume_rollout))
        .route(&format!("{one}/rollout/undo"), post(containers::undo_rollout))
}

fn event_routes() -> Router<Api> {
    Router::new()
        .route("/clusters/{cluster}/events", get(machines::events))
        .route(
            "/clusters/{cluster}/containers/{container}/events",
            get(machines::container_events),
        )
        .route(
            "/clusters/{cluster}/replicas/{replica}/events",
            get(machines::replica_events),
        )
        .route(
            "/clusters/{cluster}/machines/{machine}/events",
            get(machines::machine_events),
        )
        .route(
            "/clusters/{cluster}/capacity-groups/{group}/events",
            get(machines::group_events),
        )
}

fn aggregate_routes() -> Router<Api> {
    Router::new()
        .route("/aggregate/overview", get(aggregate::overview))
        .route("/aggregate/attention", get(aggregate::attention))
        .route("/aggregate/containers/{container}", get(aggregate::container))
        .route("/aggregate/machines", get(aggregate::machines))
}

/// Serves until `stop`, then lets the requests in flight end, and says so to tunnels.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, api: Api) -> std::io::Result<()> {
    let (stop, upgraded) = (api.stop.clone(), api.upgraded.clone());
    let service = api.router().into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, service)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    upgraded.close();
    upgraded.wait().await;
    served
}
