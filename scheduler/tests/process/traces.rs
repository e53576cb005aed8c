//! What a collector is sent: a tiny one takes real OTLP over gRPC from the real program.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::program::{CLUSTER, Program, cluster_body, container_body, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Keeps the spans that it is sent, and the name of the service that sent them.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource_spans in request.into_inner().resource_spans {
            let resource = resource_spans.resource.unwrap_or_default();
            let named = resource
                .attributes
                .iter()
                .find(|known| known.key == "service.name");
            let service = named.map(|named| text(named.value.as_ref())).unwrap_or_default();
            let spans = resource_spans
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            let mut kept = self.spans.lock().unwrap();
            kept.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|known| known.key == name);
    text(found.and_then(|found| found.value.as_ref()))
}

impl Collector {
    async fn serve(&self, tasks: &mut JoinSet<()>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn(async move { server.await.unwrap() });
        format!("[traces]\nendpoint = \"http://{address}\"\n")
    }

    /// The span of this name in the trace that the caller began, below `parent`.
    async fn span(&self, name: &str, parent: &str) -> Span {
        until(&format!("the span {name}"), async || {
            let kept = self.spans.lock().unwrap();
            let mut of_trace = kept.iter().filter(|(_, span)| hex(&span.trace_id) == TRACE);
            let found = of_trace.find(|(_, span)| span.name == name && hex(&span.parent_span_id) == parent);
            found.map(|(service, span)| {
                assert_eq!(service, "berth-scheduler");
                span.clone()
            })
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_traced_from_its_caller_to_the_store() {
    let (collector, mut tasks) = (Collector::default(), JoinSet::new());
    let config = collector.serve(&mut tasks).await;
    let mut program = Program::start(&config).await;
    let token = program.platform_token();
    program
        .must("POST", "/clusters", &token, Some(&cluster_body()))
        .await;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("traceparent", traceparent.as_str()),
        ("x-request-id", "traced-1"),
    ];
    let path = format!("{CLUSTER}/containers");
    let body = container_body("web");
    let answer = program.ask("POST", &path, &token, &headers, Some(&body)).await;
    assert_eq!(answer.map(|(status, _)| status), Some(200));

    let request = collector.span("request", CALLER).await;
    assert_eq!(attribute(&request, "request_id"), "traced-1");
    assert_eq!(attribute(&request, "berth.operation"), "create_container");
    assert_eq!(attribute(&request, "http.response.status_code"), "200");
    let commit = collector.span("commit", &hex(&request.span_id)).await;
    assert!(attribute(&commit, "entries").parse::<u32>().unwrap() >= 1);
    let append = collector.span("append", &hex(&commit.span_id)).await;
    let announce = collector.span("announce", &hex(&commit.span_id)).await;
    assert!(request.start_time_unix_nano <= commit.start_time_unix_nano);
    assert!(
        append.end_time_unix_nano <= announce.start_time_unix_nano,
        "append, then act"
    );
    for span in [&request, &commit, &append] {
        for known in &span.attributes {
            assert!(
                !text(known.value.as_ref()).contains(&token),
                "no token is in a trace"
            );
        }
    }

    // A caller who does not want to be traced is not; the next one is.
    let unsampled = format!("00-{}-{CALLER}-00", TRACE.replace("0af", "0bf"));
    program
        .ask(
            "GET",
            CLUSTER,
            &token,
            &[("traceparent", unsampled.as_str())],
            None,
        )
        .await
        .unwrap();
    // What waits at the end is sent before the program ends.
    let last = format!("00-{TRACE}-00000000000000aa-01");
    program
        .ask("GET", CLUSTER, &token, &[("traceparent", last.as_str())], None)
        .await
        .unwrap();
    program.signal("-TERM");
    assert!(program.end().await.success());
    collector.span("request", "00000000000000aa").await;
    let kept = collector.spans.lock().unwrap();
    assert!(
        kept.iter()
            .all(|(_, span)| !hex(&span.trace_id).starts_with("0bf"))
    );
    tasks.abort_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut program = Program::start(&format!("[traces]\nendpoint = \"http://{address}\"\n")).await;
    let token = program.platform_token();
    program
        .must("POST", "/clusters", &token, Some(&cluster_body()))
        .await;
    for number in 0..50 {
        let body = container_body(&format!("c{number}"));
        program
            .must("POST", &format!("{CLUSTER}/containers"), &token, Some(&body))
            .await;
    }
    program.signal("-TERM");
    assert!(program.end().await.success());
}
