//! Requests about clusters of another process: they are sent on to it, and its answer is given back as it is.
//!
//! The client of the wire API follows redirects, but HTTP clients drop the token on the way to another host, so a
//! redirect would end in 401 (decision 11). A request is sent on once: what a process is sent by another one, it
//! answers itself. What is about all clusters is asked of every process ([`super::gather`]).

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::id::ClusterId;
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::around::SentOn;
use super::gather::{AsPart, Whole, gather, part};
use super::request::{ApiError, RefusalCode, read_body};
use crate::refusal::Refused;
use crate::shard::Place;
use crate::store::Member;

/// Marks what another process has sent.
const FORWARDED: HeaderName = HeaderName::from_static("x-berth-forwarded");
/// A process that does not begin to answer by then counts as away. Below the deadline of a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Of an answer that is read here.
const ANSWER_MAX: usize = 64 << 20;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Cluster(ClusterId),
    /// The cluster that the body names.
    Body,
    /// The clusters that the elements of the body name.
    Batch,
    /// All clusters.
    All(Whole),
    /// This process, or nothing that is known.
    Here,
}

/// Middleware: answers here what is about clusters of this process, and asks the others about theirs.
pub(super) async fn forward(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    if api.scheduler.shard().is_none() {
        return next.run(request).await;
    }
    if request.headers().contains_key(FORWARDED) {
        request.extensions_mut().insert(AsPart);
        return match subject(request.method(), request.uri()) {
            Subject::All(_) => part(&api, request, next).await,
            subject => confirmed(&api, subject, next.run(request).await).await,
        };
    }
    let subject = subject(request.method(), request.uri());
    let answer = match subject {
        Subject::Here => Ok(next.run(request).await),
        Subject::Cluster(cluster) => match api.scheduler.elsewhere(&cluster) {
            Some(member) => send(&api, &member, request).await,
            None => {
                let answer = next.run(request).await;
                Ok(confirmed(&api, Subject::Cluster(cluster), answer).await)
            }
        },
        Subject::Body => by_body(&api, request, next).await,
        Subject::Batch => batch(&api, request, next).await,
        Subject::All(whole) => gather(&api, whole, request, next).await,
    };
    answer.unwrap_or_else(ApiError::into_response)
}

/// An answer that says or means that a cluster does not exist is true only when the store says so too: this process may not have
/// heard yet of one that another process has just created. Then the caller tries again.
async fn confirmed(api: &Api, subject: Subject, answer: Response) -> Response {
    let (Subject::Cluster(cluster), Some(shard)) = (subject, api.scheduler.shard()) else {
        return answer;
    };
    let code = answer
        .extensions()
        .get::<RefusalCode>()
        .map(|code| code.0.as_str());
    let is_doubtful = matches!(code, Some("cluster_not_found" | "unauthenticated"));
    if !is_doubtful || !matches!(api.scheduler.place(&cluster), Place::Unknown) {
        return answer;
    }
    let refused = match shard.etcd.has_history(&cluster).await {
        Ok(false) => return answer,
        Ok(true) => Refused::unavailable(format!(
            "cluster {:?} is not known to this scheduler yet; try again",
            cluster.as_str()
        )),
        Err(error) => Refused::from(&error),
    };
    ApiError::from(refused).into_response()
}

fn subject(method: &Method, uri: &Uri) -> Subject {
    let mut segments = uri.path().trim_start_matches('/').split('/');
    let (first, second, third) = (segments.next(), segments.next(), segments.next());
    match (first, second) {
        (Some("clusters"), Some(id)) if !id.is_empty() => {
            crate::store::cluster_of_segment(id).map_or(Subject::Here, Subject::Cluster)
        }
        (Some("clusters"), None) if method == Method::GET => Subject::All(Whole::List("clusters")),
        (Some("aggregate"), Some(kind)) if method == Method::GET => match (kind, third) {
            ("overview", None) => Subject::All(Whole::Overview),
            ("attention", None) => Subject::All(Whole::List("clusters")),
            ("machines", None) => Subject::All(Whole::Machines),
            ("containers", Some(_)) => Subject::All(Whole::List("deployments")),
            _ => Subject::Here,
        },
        (Some("clusters" | "register" | "heartbeat" | "events"), None) if method == Method::POST => {
            Subject::Body
        }
        (Some("batch"), Some("heartbeat")) if third.is_none() && method == Method::POST => Subject::Batch,
        _ => Subject::Here,
    }
}

fn cluster_in(value: &Value) -> Option<ClusterId> {
    ClusterId::new(value.get("clusterId")?.as_str()?).ok()
}

async fn by_body(api: &Api, request: Request, next: Next) -> Result<Response, ApiError> {
    let (request, bytes) = buffered(request).await?;
    // What cannot be read is refused here, with every fault.
    let cluster = serde_json::from_slice(&bytes)
        .ok()
        .and_then(|value| cluster_in(&value));
    match cluster.and_then(|cluster| api.scheduler.elsewhere(&cluster)) {
        Some(member) => send(api, &member, request).await,
        None => Ok(next.run(request).await),
    }
}

/// Reads the body of a request and leaves it in its place.
async fn buffered(request: Request) -> Result<(Request, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts, body).await?;
    let again = Request::from_parts(parts, Body::from(bytes.clone()));
    Ok((again, bytes))
}

/// A copy of a request's head, with another body.
pub(super) fn again(head: &axum::http::request::Parts, body: Bytes) -> Request {
    let mut request = Request::from_parts(head.clone(), Body::empty());
    request
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *request.body_mut() = Body::from(body);
    request
}

/// Sends a request to another process.
pub(super) async fn send(api: &Api, member: &Member, mut request: Request) -> Result<Response, ApiError> {
    let away = |problem: &str| -> ApiError {
        Refused::unavailable(format!(
            "the scheduler at {}, which serves this, {problem}; try again",
            member.rest_url
        ))
        .into()
    };
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", axum::http::uri::PathAndQuery::as_str);
    let uri: Uri = format!("{}{path}", member.rest_url)
        .parse()
        .map_err(|_| away("has an address that is no URL"))?;
    let upgrade = is_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = head.method;
    *onward.uri_mut() = uri;
    *onward.headers_mut() = end_to_end(head.headers);
    if upgrade.is_some() {
        to_websocket(onward.headers_mut());
    }
    crate::traces::hand_on(onward.headers_mut());
    onward
        .headers_mut()
        .insert(FORWARDED, HeaderValue::from_static("1"));
    let shard = api.scheduler.shard().ok_or_else(|| away("is not known"))?;
    let mut answer = tokio::time::timeout(ANSWER_TIMEOUT, shard.client.request(onward))
        .await
        .map_err(|_| away("does not answer"))?
        .map_err(|_| away("cannot be reached"))?;
    let joined = match upgrade {
        Some(here) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            api.upgraded
                .spawn(join(here, hyper::upgrade::on(&mut answer), api.stop.clone()));
            true
        }
        Some(_) | None => false,
    };
    let (mut head, body) = answer.into_parts();
    head.headers = end_to_end(head.headers);
    if joined {
        to_websocket(&mut head.headers);
    }
    head.extensions.insert(SentOn);
    Ok(Response::from_parts(head, Body::new(body)))
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The way of RFC 6455, section 4: what concerns one connection is said anew on each.
fn to_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Makes one WebSocket of the client's connection to this process and this one's to another, until either side or this process
/// ends it. Both ends watch over each other by their pings.
async fn join(here: OnUpgrade, there: OnUpgrade, stop: CancellationToken) {
    let (here, there) = match tokio::try_join!(here, there) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a WebSocket is not sent on"
            );
            return;
        }
    };
    let (mut client, mut to_client) = tokio::io::split(TokioIo::new(here));
    let (mut owner, mut to_owner) = tokio::io::split(TokioIo::new(there));
    // A WebSocket has no half: when one side has closed, the other has all that it will get.
    let carried = async {
        tokio::select! {
            _ = tokio::io::copy(&mut client, &mut to_owner) => {}
            _ = tokio::io::copy(&mut owner, &mut to_client) => {}
        }
        // Both are dropped next; what was written to either is on its way.
        drop(tokio::join!(to_owner.shutdown(), to_client.shutdown()));
    };
    // How it ended is known to both ends.
    stop.run_until_cancelled(carried).await;
}

/// Without what concerns one connection only (RFC 9110, section 7.6.1).
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::HOST,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    headers
}

/// Heartbeats go to the owners of their clusters; refusals keep the numbers of the whole batch.
async fn batch(api: &Api, request: Request, next: Next) -> Result<Response, ApiError> {
    let (request, bytes) = buffered(request).await?;
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    let beats = value
        .as_ref()
        .and_then(|value| value.get("heartbeats"))
        .and_then(Value::as_array);
    let Some(beats) = beats else {
        return Ok(next.run(request).await);
    };
    let mut shares: BTreeMap<Option<Member>, Vec<usize>> = BTreeMap::new();
    for (index, beat) in beats.iter().enumerate() {
        let member = cluster_in(beat).and_then(|cluster| api.scheduler.elsewhere(&cluster));
        shares.entry(member).or_default().push(index);
    }
    if shares.keys().all(Option::is_none) {
        return Ok(next.run(request).await);
    }
    let (head, _) = request.into_parts();
    let mut next = Some(next);
    let mut refused: Option<(StatusCode, Value)> = None;
    let mut last = None;
    for (member, indexes) in shares {
        let share: Vec<&Value> = indexes.iter().filter_map(|index| beats.get(*index)).collect();
        let body = Bytes::from(json!({ "heartbeats": share }).to_string());
        let part = again(&head, body);
        let answer = match (&member, next.take()) {
            (Some(member), kept) => {
                next = kept;
                send(api, member, part).await?
            }
            (None, Some(next)) => next.run(part).await,
            (None, None) => continue,
        };
        let (status, answer) = read(answer).await?;
        match status {
            StatusCode::OK => last = Some(answer),
            StatusCode::BAD_REQUEST => merge_faults(&mut refused, status, answer, &indexes),
            _ => return Ok((status, axum::Json(answer)).into_response()),
        }
    }
    let answer = refused.or_else(|| last.map(|answer| (StatusCode::OK, answer)));
    let (status, body) = answer.unwrap_or((StatusCode::OK, json!({ "success": true })));
    Ok((status, axum::Json(body)).into_response())
}

/// Adds the faults of a share to those of the others, under the numbers of the whole.
fn merge_faults(
    refused: &mut Option<(StatusCode, Value)>,
    status: StatusCode,
    mut answer: Value,
    indexes: &[usize],
) {
    let faults = answer.get_mut("faults").and_then(Value::as_array_mut);
    for fault in faults.into_iter().flatten() {
        let renumbered = fault.get("path").and_then(Value::as_str).and_then(|path| {
            let (number, rest) = path.strip_prefix("heartbeats[")?.split_once(']')?;
            let index = indexes.get(number.parse::<usize>().ok()?)?;
            Some(format!("heartbeats[{index}]{rest}"))
        });
        if let (Some(path), Some(fault)) = (renumbered, fault.as_object_mut()) {
            fault.insert("path".into(), path.into());
        }
    }
    match refused {
        None => *refused = Some((status, answer)),
        Some((_, whole)) => {
            let more = answer.get_mut("faults").map(Value::take);
            let known = whole.get_mut("faults").and_then(Value::as_array_mut);
            if let (Some(known), Some(Value::Array(more))) = (known, more) {
                known.extend(more);
            }
        }
    }
}

/// Status and JSON of an answer.
pub(super) async fn read(answer: Response) -> Result<(StatusCode, Value), ApiError> {
    let status = answer.status();
    let unreadable =
        || -> ApiError { Refused::unavailable("another scheduler's answer cannot be read").into() };
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX);
    let bytes = body.collect().await.map_err(|_| unreadable())?.to_bytes();
    let value = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
    Ok((status, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, path: &str) -> Subject {
        subject(&method, &path.parse().unwrap())
    }

    #[test]
    fn requests_are_known_by_what_they_are_about() {
        let acme = Subject::Cluster(ClusterId::new("acme/prod").unwrap());
        assert_eq!(of(Method::GET, "/clusters/acme%2Fprod"), acme);
        assert_eq!(of(Method::POST, "/clusters/acme%2Fprod/containers?x=1"), acme);
        assert_eq!(
            of(Method::GET, "/clusters"),
            Subject::All(Whole::List("clusters"))
        );
        assert_eq!(
            of(Method::GET, "/aggregate/overview?projectId=p"),
            Subject::All(Whole::Overview)
        );
        assert_eq!(of(Method::GET, "/aggregate/nothing"), Subject::Here);
        for path in ["/clusters", "/register", "/heartbeat", "/events"] {
            assert_eq!(of(Method::POST, path), Subject::Body, "{path}");
        }
        assert_eq!(of(Method::POST, "/batch/heartbeat"), Subject::Batch);
        for path in [
            "/",
            "/healthz",
            "/clusters/",
            "/clusters/%2",
            "/batch/heartbeat/x",
        ] {
            assert_eq!(of(Method::POST, path), Subject::Here, "{path}");
        }
    }

    #[test]
    fn faults_of_shares_get_the_numbers_of_the_whole() {
        let share = |path: &str| json!({ "error": {}, "faults": [{ "path": path, "problem": "p" }] });
        let mut refused = None;
        merge_faults(
            &mut refused,
            StatusCode::BAD_REQUEST,
            share("heartbeats[1]"),
            &[0, 4],
        );
        merge_faults(
            &mut refused,
            StatusCode::BAD_REQUEST,
            share("heartbeats[0].x"),
            &[3],
        );
        let (_, whole) = refused.unwrap();
        let paths: Vec<_> = whole["faults"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["path"].as_str().unwrap())
            .collect();
        assert_eq!(paths, ["heartbeats[4]", "heartbeats[3].x"]);
    }
}
