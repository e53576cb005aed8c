//! Logs of a replica, or of every replica of a container, as lines of JSON.

use std::convert::Infallible;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use berth_api::id::ReplicaId;
use berth_api::link::{LogChunk, log_line};
use berth_api::rest::operator::{LogRecord, LogStream as Origin};
use berth_api::time::Timestamp;
use berth_api::validate::{Fault, Faults};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::Api;
use super::auth::{Manager, revoked};
use super::request::{ApiError, Pairs, Segments};
use super::told::Told;
use crate::link::{LogQuery, LogStream};

pub(super) async fn logs(
    State(api): State<Api>,
    Manager(cluster): Manager,
    Extension(told): Extension<Told>,
    segments: Segments,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let query = query(&pairs).map_err(|faults| ApiError::invalid("invalid_query", faults))?;
    let streams = api.scheduler.logs(cluster.id(), segments.text("name"), query)?;
    let told = told.facts();
    let revoked = async move { revoked(&cluster, told).await };
    let lines = stream::select_all(streams.into_iter().map(lines))
        .take_until(api.stop.cancelled_owned())
        .take_until(Box::pin(revoked))
        .map(Ok::<Bytes, Infallible>);
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

fn query(pairs: &Pairs) -> Result<LogQuery, Faults> {
    let mut query = LogQuery::default();
    let mut faults = Vec::new();
    for (key, value) in pairs.iter() {
        let wanted = match key {
            "follow" => value
                .parse()
                .map(|follow| query.follow = follow)
                .err()
                .map(|_| "true or false"),
            "sinceMs" => value
                .parse()
                .map(|millis| query.since = Some(Timestamp::from_millis(millis)))
                .err()
                .map(|_| "milliseconds since 1970"),
            "tail" => value
                .parse()
                .map(|lines| query.tail = Some(lines))
                .err()
                .map(|_| "a number of lines"),
            _ => None,
        };
        if let Some(wanted) = wanted {
            faults.push(Fault {
                path: key.to_owned(),
                problem: format!("{value:?} is not valid; write {wanted}"),
            });
        }
    }
    Faults::check(faults)?;
    Ok(query)
}

/// The lines of one replica. Ends when its log ends, or when the reader goes away and drops it.
fn lines(log: LogStream) -> BoxStream<'static, Bytes> {
    stream::unfold(log, |mut log| async move {
        let chunk = log.next().await?;
        let bytes = encode(log.replica(), &chunk);
        Some((bytes, log))
    })
    .boxed()
}

fn encode(replica: &ReplicaId, chunk: &LogChunk) -> Bytes {
    let mut out = Vec::new();
    let mut push = |record: &LogRecord| {
        out.extend(serde_json::to_vec(record).expect("a record has text keys"));
        out.push(b'\n');
    };
    for line in &chunk.lines {
        push(&LogRecord {
            time: Timestamp::from_millis(line.time_ms),
            replica_id: replica.clone(),
            stream: match line.stream() {
                log_line::Stream::Stdout => Origin::Stdout,
                log_line::Stream::Stderr => Origin::Stderr,
                log_line::Stream::Keeper => Origin::Keeper,
            },
            line: String::from_utf8_lossy(&line.line).into_owned(),
            partial: line.partial,
            run: line.run,
        });
    }
    if !chunk.error.is_empty() {
        push(&LogRecord {
            time: Timestamp::now(),
            replica_id: replica.clone(),
            stream: Origin::Keeper,
            line: format!("the log ends here: {}", chunk.error),
            partial: false,
            run: 0,
        });
    }
    Bytes::from(out)
}
