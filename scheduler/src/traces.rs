//! Traces of the scheduler itself, over OTLP: request ─▶ commit ─▶ append, announce. Off unless `traces.endpoint` is configured.
//!
//! Input: spans of `tracing`, a caller's `traceparent` (W3C Trace Context). Output: spans to a collector over gRPC, batched; what it
//! does not take is dropped, and nothing waits for it. Owner: `main`, which flushes them when the scheduler has stopped.
//!
//! A commit may stand for many requests. It is a child of the first and linked with the others, so none looks as if it had
//! committed by itself.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Span, debug_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use crate::config::TracesConfig;

/// A collector that does not answer a batch by then has lost it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the last batch gets when the scheduler stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const SERVICE: &str = "berth-scheduler";

/// The way to the collector. Dropping it without [`Traces::stop`] loses the last batch.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to export; none when nothing is configured. Needs the runtime that the exporter is to use.
    ///
    /// # Errors
    /// When the endpoint cannot be used at all. One that does not answer is no error.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, ExporterBuildError> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let ratio = Sampler::TraceIdRatioBased(f64::from(config.sample_percent) / 100.0);
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                env!("CARGO_PKG_VERSION"),
            ))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // A caller who has decided decides for us too.
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider }))
    }

    /// What turns our spans into those of the collector; other crates' are left out.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = Targets::new().with_target("berth_scheduler", LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE))
            .with_filter(ours)
    }

    /// Sends what waits, for a bounded time. To be called outside of the runtime, while it still runs.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(error = %error, "the last traces are lost");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// Makes the span of a request a child of the caller's, where the request names one.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    if caller.span().span_context().is_valid() {
        // Without traces there is nobody to tell, which is the only error here.
        drop(span.set_parent(caller));
    }
}

/// Names the present span in a request that goes to another process.
pub(crate) fn hand_on(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
}

/// What became of a request.
pub(crate) fn answered(span: &Span, operation: &'static str, status: u16) {
    span.set_attribute("berth.operation", operation);
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(Status::error("the scheduler could not do it"));
    }
}

/// The span of a commit on behalf of these requests; a disabled one when none of them is traced.
pub(crate) fn commit<'a>(requests: impl IntoIterator<Item = &'a Span>) -> Span {
    let mut requests = requests.into_iter().filter(|span| !span.is_disabled());
    let Some(first) = requests.next() else {
        return Span::none();
    };
    let commit = debug_span!(parent: first, "commit", entries = tracing::field::Empty);
    for other in requests {
        commit.follows_from(other);
    }
    commit
}

/// A part of a commit.
pub(crate) fn part(commit: &Span, name: Part) -> Span {
    if commit.is_disabled() {
        return Span::none();
    }
    match name {
        Part::Append => debug_span!(parent: commit, "append"),
        Part::Announce => debug_span!(parent: commit, "announce"),
    }
}

/// What a commit is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Making its entries durable.
    Append,
    /// Telling those who watch: sessions, reads that wait.
    Announce,
}
