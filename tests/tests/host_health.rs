//! Probes against small real servers: what passes, what fails, and that a slow one delays no other.

#![expect(clippy::unwrap_used, reason = "a broken step ends the test with its place")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use berth_api::container::{HealthCheck, ProbeKind, ProbeMethod};
use berth_api::id::ReplicaId;
use berth_node::health::{ProbePhase, ProbeReport, ProbeTarget, Prober, Programs};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Says of a program what its first word says: what it does is tested on a real containerd.
#[derive(Debug, Default)]
struct Script {
    runs: AtomicU32,
}

impl Programs for Script {
    fn run<'a>(
        &'a self,
        _: &'a ReplicaId,
        command: &'a [String],
        _: Duration,
    ) -> BoxFuture<'a, Option<Result<(), String>>> {
        let runs = self.runs.fetch_add(1, Ordering::Relaxed);
        let outcome = match command[0].as_str() {
            "ends" => Some(Ok(())),
            "unanswered-at-first" if runs < 2 => None,
            "unanswered-at-first" => Some(Ok(())),
            other => Some(Err(other.to_owned())),
        };
        Box::pin(async { outcome })
    }
}

fn prober(sender: mpsc::Sender<ProbeReport>) -> Prober {
    Prober::new(sender, Arc::new(Script::default()))
}

/// Answers every request with `status`, after `delay`; returns its port.
async fn server(tasks: &mut JoinSet<()>, status: &'static str, delay: Duration) -> u16 {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap_or(0);
            tokio::time::sleep(delay).await;
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let status = if text.starts_with("HEAD /health?deep=1 HTTP/1.1") {
                "204 No Content"
            } else {
                status
            };
            let answer = format!("HTTP/1.1 {status}\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    port
}

fn target(id: &str, port: u16) -> ProbeTarget {
    ProbeTarget {
        replica_id: ReplicaId::new(id).unwrap(),
        run: 1,
        ip: Ipv4Addr::LOCALHOST,
        check: HealthCheck {
            kind: ProbeKind::Http,
            command: vec![],
            path: "/health".into(),
            port,
            method: ProbeMethod::Get,
            timeout_seconds: 30,
            failure_threshold: 2,
        },
    }
}

async fn report(reports: &mut mpsc::Receiver<ProbeReport>, id: &str) -> ProbeReport {
    let wait = async {
        loop {
            let report = reports.recv().await.unwrap();
            if report.replica_id.as_str() == id {
                return report;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(90), wait)
        .await
        .expect("a report")
}

#[tokio::test]
async fn only_an_answer_of_2xx_in_time_passes() {
    let mut tasks = JoinSet::new();
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = prober(sender);
    for (id, status, delay_ms, error) in [
        ("ok", "200 OK", 0, None),
        ("empty", "204 No Content", 0, None),
        ("broken", "500 Internal Server Error", 0, Some("status 500")),
        ("moved", "302 Found", 0, Some("status 302")),
        ("slow", "200 OK", 60_000, Some("no answer within 1 s")),
    ] {
        let port = server(&mut tasks, status, Duration::from_millis(delay_ms)).await;
        let mut declared = target(id, port);
        if id == "slow" {
            declared.check.timeout_seconds = 1;
        }
        prober.put(declared);
        let report = report(&mut reports, id).await;
        assert_eq!(report.last_error.as_deref(), error, "{id}");
        assert_eq!(report.passing(), error.is_none(), "{id}");
        assert_eq!(report.consecutive_failures, u32::from(error.is_some()), "{id}");
        prober.remove(&report.replica_id);
    }
    prober.put(target("closed", 1));
    let closed = report(&mut reports, "closed").await;
    let error = closed.last_error.unwrap();
    assert!(error.starts_with("connecting to port 1: "), "{error}");
    prober.shutdown().await;
}

#[tokio::test]
async fn the_declared_request_is_sent() {
    let mut tasks = JoinSet::new();
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = prober(sender);
    let port = server(&mut tasks, "404 Not Found", Duration::ZERO).await;
    let mut declared = target("head", port);
    declared.check.path = "/health?deep=1".into();
    declared.check.method = ProbeMethod::Head;
    prober.put(declared);
    let head = report(&mut reports, "head").await;
    assert!(head.passing(), "{head:?}");
    // Another declaration starts anew.
    prober.put(target("head", port));
    let anew = loop {
        let anew = report(&mut reports, "head").await;
        if !anew.passing() {
            break anew;
        }
    };
    assert_eq!(anew.phase, ProbePhase::Starting);
}

#[tokio::test]
async fn a_slow_replica_delays_no_other_and_a_late_one_comes_up() {
    let mut tasks = JoinSet::new();
    let (sender, mut reports) = mpsc::channel(64);
    let mut prober = prober(sender);
    let slow = server(&mut tasks, "200 OK", Duration::from_secs(60)).await;
    for index in 0..20 {
        prober.put(target(&format!("slow{index}"), slow));
    }
    // Reserved, not listening yet.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = reserved.local_addr().unwrap();
    prober.put(target("late", address.port()));
    assert_eq!(report(&mut reports, "late").await.phase, ProbePhase::Starting);
    let listener = reserved.listen(64).unwrap();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _length = stream.read(&mut request).await.unwrap_or(0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await
                .ok();
        }
    });
    let up = async { while !report(&mut reports, "late").await.passing() {} };
    // One after the other, the slow ones alone would take ten minutes.
    tokio::time::timeout(Duration::from_secs(90), up)
        .await
        .expect("the late one passes while all others are slow");
}

#[tokio::test]
async fn a_port_that_accepts_passes_whatever_it_says() {
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = prober(sender);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut declared = target("open", port);
    declared.check.kind = ProbeKind::Tcp;
    prober.put(declared.clone());
    assert!(report(&mut reports, "open").await.passing());
    drop(listener);
    declared.replica_id = ReplicaId::new("closed").unwrap();
    prober.put(declared);
    let error = report(&mut reports, "closed").await.last_error.unwrap();
    assert!(
        error.starts_with(&format!("connecting to port {port}: ")),
        "{error}"
    );
    prober.shutdown().await;
}

#[tokio::test]
async fn a_program_decides_and_a_runtime_that_does_not_answer_says_nothing() {
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = prober(sender);
    for (id, error) in [
        ("unanswered-at-first", None),
        ("ends", None),
        ("ended with 3", Some("ended with 3")),
    ] {
        let mut declared = target("program", 0);
        declared.check.kind = ProbeKind::Exec;
        declared.check.command = vec![id.to_owned()];
        prober.put(declared);
        let report = report(&mut reports, "program").await;
        assert_eq!(report.last_error.as_deref(), error, "{id}");
        assert_eq!(report.consecutive_failures, u32::from(error.is_some()), "{id}");
        prober.remove(&report.replica_id);
    }
    prober.shutdown().await;
}
