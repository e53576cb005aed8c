//! SIGTERM: what is under way is answered, what waits ends, nothing new is taken, and the program ends well within its deadline,
//! whatever its callers do.

use std::time::Duration;

use berth_api::time::monotonic;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::program::{CLUSTER, Program, cluster_body, container_body, until};

/// A request whose body has not arrived whole: under way for as long as the test likes.
struct Half {
    stream: TcpStream,
    rest: String,
}

impl Half {
    async fn begin(program: &Program, token: &str, path: &str, body: &Value) -> Self {
        let text = body.to_string();
        let (head, rest) = text.split_at(text.len() / 2);
        let mut stream = TcpStream::connect(&program.rest).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{head}",
            text.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        Self {
            stream,
            rest: rest.to_owned(),
        }
    }

    /// Sends the rest; what is answered until the connection ends.
    async fn finish(mut self) -> String {
        self.stream.write_all(self.rest.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = self.stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(40), read)
            .await
            .expect("an answer in time")
            .unwrap();
        String::from_utf8(answer).unwrap()
    }
}

async fn stage() -> (Program, String) {
    let program = Program::start("").await;
    let token = program.platform_token();
    program
        .must("POST", "/clusters", &token, Some(&cluster_body()))
        .await;
    (program, token)
}

async fn is_refused(program: &Program) {
    until("new connections to be refused", async || {
        TcpStream::connect(&program.rest).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_answered_and_what_waits_ends() {
    let (mut program, token) = stage().await;
    let containers = format!("{CLUSTER}/containers");
    let half = Half::begin(&program, &token, &containers, &container_body("late")).await;
    // A read that would wait for 15 s.
    let watch =
        format!("GET {CLUSTER}?watch=1000000 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut watching = TcpStream::connect(&program.rest).await.unwrap();
    watching.write_all(watch.as_bytes()).await.unwrap();
    // An idle connection that is kept.
    let mut idle = TcpStream::connect(&program.rest).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut begin = [0; 12];
    idle.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    // Requests on the way have arrived once a later one is answered.
    program.must("GET", CLUSTER, &token, None).await;

    let asked = monotonic();
    // After 10 s what is under way is cut, which a machine that stalls may come to.
    let is_late = || monotonic().duration_since(asked) > Duration::from_secs(9);
    program.signal("-TERM");
    is_refused(&program).await;
    assert!(
        program.has_ended().is_none() || is_late(),
        "a request is still under way"
    );
    let mut answer = Vec::new();
    watching.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 503"),
        "{answer}"
    );
    assert!(
        program.has_ended().is_none() || is_late(),
        "the watch has ended before the request under way"
    );
    let answer = half.finish().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(program.end().await.success());
    // What was acknowledged is there after the next start.
    let kept = rusqlite::Connection::open(program.data().join("store.db")).unwrap();
    let records: i64 = kept
        .query_row("SELECT count(*) FROM record", [], |row| row.get(0))
        .unwrap();
    assert!(records >= 2, "{records}");
    assert!(!program.log().contains("panicked"), "{}", program.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_never_ends_does_not_keep_the_program_from_ending() {
    let (mut program, token) = stage().await;
    let containers = format!("{CLUSTER}/containers");
    let half = Half::begin(&program, &token, &containers, &container_body("never")).await;
    program.must("GET", CLUSTER, &token, None).await;
    program.signal("-TERM");
    assert!(program.end().await.success());
    drop(half);
}
