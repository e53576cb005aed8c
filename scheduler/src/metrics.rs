//! What the scheduler counts of itself, for Prometheus: `GET /metrics`. Labels are bounded: operations of the API and classes of
//! status, never ids.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Labels = Vec<(&'static str, String)>;

/// From half a millisecond to four seconds.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}

/// Figures that are looked up when they are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Census {
    pub clusters: i64,
    pub machines: i64,
    pub sessions: i64,
    pub replicas: i64,
    /// Clusters in which too many machines are unhealthy for any move.
    pub frozen: i64,
    /// Clusters with stops that nobody asked for.
    pub holding: i64,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    request_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    refused: Family<Labels, Counter>,
    replayed: Counter,
    decisions: Counter,
    decision_seconds: Histogram,
    appends: Counter,
    appended_entries: Counter,
    append_failures: Counter,
    append_seconds: Histogram,
    clusters: Gauge<i64, AtomicI64>,
    machines: Gauge<i64, AtomicI64>,
    sessions: Gauge<i64, AtomicI64>,
    replicas: Gauge<i64, AtomicI64>,
    frozen: Gauge<i64, AtomicI64>,
    holding: Gauge<i64, AtomicI64>,
    /// The last append failed.
    is_store_failing: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("berth_scheduler"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(latency),
            refused: Family::default(),
            replayed: Counter::default(),
            decisions: Counter::default(),
            decision_seconds: latency(),
            appends: Counter::default(),
            appended_entries: Counter::default(),
            append_failures: Counter::default(),
            append_seconds: latency(),
            clusters: Gauge::default(),
            machines: Gauge::default(),
            sessions: Gauge::default(),
            replicas: Gauge::default(),
            frozen: Gauge::default(),
            holding: Gauge::default(),
            is_store_failing: AtomicBool::new(false),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let it = &mut self.registry;
        it.register(
            "requests",
            "Requests to the API, by operation and status",
            self.requests.clone(),
        );
        it.register_with_unit(
            "request",
            "Time to answer, by operation; waits of ?watch are inside",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        it.register(
            "requests_limited",
            "Requests that were too many, by kind of token",
            self.refused.clone(),
        );
        it.register(
            "replays",
            "Writes that were answered from their idempotency key",
            self.replayed.clone(),
        );
        it.register(
            "decisions",
            "Decisions of the clusters' actors",
            self.decisions.clone(),
        );
        it.register_with_unit(
            "decision",
            "Time of a decision",
            Unit::Seconds,
            self.decision_seconds.clone(),
        );
        it.register(
            "appends",
            "Appends to clusters' logs that are durable",
            self.appends.clone(),
        );
        it.register(
            "appended_entries",
            "Entries of those appends",
            self.appended_entries.clone(),
        );
        it.register(
            "append_failures",
            "Appends that failed",
            self.append_failures.clone(),
        );
        it.register_with_unit(
            "append",
            "Time until an append is durable",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        it.register("clusters", "Clusters that are loaded", self.clusters.clone());
        it.register("machines", "Machines that are registered", self.machines.clone());
        it.register("sessions", "Machines that are linked", self.sessions.clone());
        it.register("replicas", "Replicas that are placed", self.replicas.clone());
        it.register(
            "frozen_clusters",
            "Clusters in which nothing moves, because too many machines are unhealthy",
            self.frozen.clone(),
        );
        it.register(
            "holding_clusters",
            "Clusters with stops that nobody has asked for and that are held",
            self.holding.clone(),
        );
    }

    pub(crate) fn answered(&self, operation: &'static str, status: u16, elapsed: Duration) {
        let label = |value: String| vec![("operation", operation.to_owned()), ("status", value)];
        self.requests.get_or_create(&label(status.to_string())).inc();
        self.request_seconds
            .get_or_create(&vec![("operation", operation.to_owned())])
            .observe(elapsed.as_secs_f64());
    }

    pub(crate) fn limited(&self, kind: &'static str) {
        self.refused.get_or_create(&vec![("kind", kind.to_owned())]).inc();
    }

    pub(crate) fn replayed(&self) {
        self.replayed.inc();
    }

    pub(crate) fn decided(&self, elapsed: Duration) {
        self.decisions.inc();
        self.decision_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn appended(&self, entries: usize, elapsed: Duration) {
        self.appends.inc();
        self.appended_entries
            .inc_by(u64::try_from(entries).unwrap_or(u64::MAX));
        self.append_seconds.observe(elapsed.as_secs_f64());
        self.is_store_failing.store(false, Ordering::Relaxed);
    }

    pub(crate) fn append_failed(&self) {
        self.append_failures.inc();
        self.is_store_failing.store(true, Ordering::Relaxed);
    }

    /// Whether the last append of any cluster failed.
    #[must_use]
    pub fn is_store_failing(&self) -> bool {
        self.is_store_failing.load(Ordering::Relaxed)
    }

    /// The text that Prometheus reads (OpenMetrics).
    #[must_use]
    pub fn text(&self, census: Census) -> String {
        self.clusters.set(census.clusters);
        self.machines.set(census.machines);
        self.sessions.set(census.sessions);
        self.replicas.set(census.replicas);
        self.frozen.set(census.frozen);
        self.holding.set(census.holding);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a String takes whatever is written");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::default();
        metrics.answered("get_cluster", 200, Duration::from_millis(3));
        metrics.answered("get_cluster", 404, Duration::from_millis(3));
        metrics.appended(7, Duration::from_millis(1));
        metrics.append_failed();
        assert!(metrics.is_store_failing());
        metrics.appended(1, Duration::from_millis(1));
        assert!(!metrics.is_store_failing());
        let text = metrics.text(Census {
            clusters: 3,
            ..Census::default()
        });
        for line in [
            "berth_scheduler_requests_total{operation=\"get_cluster\",status=\"404\"} 1",
            "berth_scheduler_request_seconds_count{operation=\"get_cluster\"} 2",
            "berth_scheduler_appended_entries_total 8",
            "berth_scheduler_append_failures_total 1",
            "berth_scheduler_clusters 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
