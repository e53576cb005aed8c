//! Exit codes: the command line against a tiny HTTP server that answers what a test says. Proves that each kind of answer ends
//! with the code that the help promises, and that the server's own words are shown.

use std::collections::BTreeMap;

use clap::Parser as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::args::Arguments;
use crate::exit::{Code, Failure};

/// Answers by `METHOD path`, everything else with 404. One request a connection.
struct Server {
    address: String,
    _tasks: JoinSet<()>,
}

type Answers = BTreeMap<&'static str, (u16, String)>;

impl Server {
    async fn start(answers: &[(&'static str, u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answers: Answers = answers
            .iter()
            .map(|(request, status, body)| (*request, (*status, (*body).to_owned())))
            .collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                answer(stream, &answers).await;
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

async fn answer(mut stream: TcpStream, answers: &Answers) {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut head = String::new();
    reader.read_line(&mut head).await.unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    let request = head.rsplit_once(' ').map_or("", |(request, _)| request);
    let missing = (
        404,
        r#"{"error":{"code":"not_found","message":"there is no such thing"}}"#.to_owned(),
    );
    let (status, body) = answers.get(request).unwrap_or(&missing);
    let reply = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    writer.write_all(reply.as_bytes()).await.unwrap();
}

async fn berth(server: &str, arguments: &[&str]) -> Result<(), Failure> {
    let all = [
        "berth",
        "--server",
        server,
        "--token",
        "t",
        "--cluster",
        "acme/dev",
    ];
    let parsed = Arguments::try_parse_from(all.iter().chain(arguments)).unwrap();
    crate::run(parsed).await
}

const CLUSTER: &str = r#"{"clusterId":"acme/dev","name":"dev","containerCidr":"10.244.0.0/16","platform":"local",
    "capacityGroups":[{"groupId":"general","minSize":1,"maxSize":1,
        "profile":{"cpu":8,"memoryBytes":17179869184,"ephemeralStorageBytes":1099511627776}}],
    "machineCount":0,"containerCount":0,"createdAt":"2026-01-01T00:00:00Z",
    "capacity":{"cpu":{"total":0,"available":0},"memory":{"total":0,"available":0},"ephemeralStorage":{"total":0,"available":0}}}"#;

#[tokio::test]
async fn lists_end_with_0() {
    let server = Server::start(&[
        ("GET /clusters/acme%2Fdev", 200, CLUSTER),
        ("GET /clusters/acme%2Fdev/containers", 200, r#"{"containers":[]}"#),
        ("GET /clusters/acme%2Fdev/machines", 200, r#"{"machines":[]}"#),
        ("GET /clusters/acme%2Fdev/replicas", 200, r#"{"replicas":[]}"#),
        (
            "GET /clusters/acme%2Fdev/events?limit=100",
            200,
            r#"{"events":[]}"#,
        ),
    ])
    .await;
    for arguments in [
        &["get"][..],
        &["get", "machines", "-o", "json"],
        &["status"],
        &["status", "-o", "json"],
        &["events"],
    ] {
        assert_eq!(berth(&server.address, arguments).await, Ok(()), "{arguments:?}");
    }
}

#[tokio::test]
async fn what_does_not_exist_ends_with_3() {
    let server = Server::start(&[("GET /clusters/acme%2Fdev", 200, CLUSTER)]).await;
    for arguments in [
        &["explain", "ghost"][..],
        &["delete", "ghost", "--yes"],
        &["stop", "ghost"],
        &["logs", "ghost"],
        &["apply", "-f", "/nonexistent.json"],
    ] {
        let failure = berth(&server.address, arguments).await.unwrap_err();
        assert_eq!(failure.code, Code::NotFound, "{arguments:?}: {failure}");
    }
}

#[tokio::test]
async fn a_scheduler_that_is_not_there_or_says_no_ends_with_4() {
    let gone = Server::start(&[]).await.address.clone();
    let failure = berth(&gone, &["get"]).await.unwrap_err();
    assert!(
        matches!(failure.code, Code::Refused | Code::NotFound),
        "{failure}"
    );
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    assert_eq!(berth(&closed, &["get"]).await.unwrap_err().code, Code::Refused);
    let body = r#"{"error":{"code":"unauthorized","message":"the token is void"}}"#;
    let server = Server::start(&[("GET /clusters/acme%2Fdev/containers", 401, body)]).await;
    let failure = berth(&server.address, &["get"]).await.unwrap_err();
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (Code::Refused, "the token is void")
    );
}

#[tokio::test]
async fn a_bad_file_ends_with_2_and_every_fault() {
    let server = Server::start(&[
        ("GET /clusters/acme%2Fdev", 200, CLUSTER),
        ("GET /clusters/acme%2Fdev/containers", 200, r#"{"containers":[]}"#),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.json");
    std::fs::write(
        &file,
        r#"[{"name":"A","capacityGroup":"general","image":"","stateful":false,"ports":[0],
        "resources":{"cpu":{"min":"500m","desired":"1"},"memory":{"min":"1Gi","desired":"1Gi"}}}]"#,
    )
    .unwrap();
    let failure = berth(&server.address, &["apply", "-f", &file.display().to_string()])
        .await
        .unwrap_err();
    assert_eq!(failure.code, Code::Input);
    for part in ["name", "image", "ports[0]", "write 0.5"] {
        assert!(failure.message.contains(part), "{part}: {failure}");
    }
}

#[tokio::test]
async fn an_apply_that_does_not_become_healthy_ends_with_5() {
    let replica = r#"{"replicas":[{"replicaId":"web-0","container":"web","image":"app:1","status":"pending","ready":false,
        "run":0,"recentCrashes":0,"cpu":"0.1","memory":67108864,
        "wait":{"reason":"no machine of group general","since":"2026-01-01T00:00:00Z"}}]}"#;
    let config = r#"{"config":{"name":"web","capacityGroup":"general","image":"app:1","stateful":false,"ports":[80],
        "replicas":1,"volumes":[],"env":{},"sharedMounts":[],"links":[],"status":"pending","statusReason":null,
        "resources":{"cpu":{"min":"0.1","desired":"0.1"},"memory":{"min":"64Mi","desired":"64Mi"}}}}"#;
    let list = r#"{"containers":[{"name":"web","image":"app:1","status":"pending","statusReason":null,
        "statusMessage":null,"currentReplicas":0,"desiredReplicas":1,"readyReplicas":0}]}"#;
    let server = Server::start(&[
        ("GET /clusters/acme%2Fdev", 200, CLUSTER),
        ("GET /clusters/acme%2Fdev/containers", 200, list),
        ("GET /clusters/acme%2Fdev/containers/web", 200, config),
        ("GET /clusters/acme%2Fdev/replicas", 200, replica),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.json");
    std::fs::write(
        &file,
        r#"[{"name":"web","capacityGroup":"general","image":"app:1","stateful":false,"ports":[80],
        "resources":{"cpu":{"min":"0.1","desired":"0.1"},"memory":{"min":"64Mi","desired":"64Mi"}}}]"#,
    )
    .unwrap();
    let file = file.display().to_string();
    let arguments = ["apply", "-f", &file, "--timeout", "1s"];
    let failure = berth(&server.address, &arguments).await.unwrap_err();
    assert_eq!(failure.code, Code::TimedOut, "{failure}");
    assert_eq!(
        berth(&server.address, &["apply", "-f", &file, "--no-wait"]).await,
        Ok(())
    );
}
