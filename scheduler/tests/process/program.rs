//! A scheduler as a process of its own, and plain HTTP to it. Dropping it kills it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Polls of 20 ms: a minute, which only a hang exceeds.
const POLLS_MAX: u32 = 3000;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

pub(crate) const CLUSTER: &str = "/clusters/acme";

pub(crate) fn cluster_body() -> Value {
    json!({
        "clusterId": "acme", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 10, "profile":
            {"cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
    })
}

pub(crate) fn container_body(name: &str) -> Value {
    json!({
        "name": name, "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [8080],
        "resources": {"cpu": {"min": "0.1", "desired": "0.1"}, "memory": {"min": "64Mi", "desired": "64Mi"}}
    })
}

/// Asks until `done` gives something.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..POLLS_MAX {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen");
}

pub(crate) struct Program {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) rest: String,
    child: Child,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Program {
    /// With these lines besides in its configuration.
    pub(crate) async fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Held together, so that they differ; free again when the program wants them.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [rest, link] = listeners.map(|listener| listener.local_addr().unwrap());
        let text = format!(
            "data_dir = {:?}\nlisten = \"{rest}\"\nlink_listen = \"{link}\"\n{more}\n",
            dir.path().join("data")
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = command(dir.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let program = Self {
            dir,
            rest: rest.to_string(),
            child,
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        until("the program to be ready", async || {
            let answer = program.ask("GET", "/readyz", "", &[], None).await?;
            (answer.0 == 200).then_some(())
        })
        .await;
        program
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What a subcommand prints.
    pub(crate) fn print(&self, arguments: &[&str]) -> String {
        let output = command(self.dir.path()).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn platform_token(&self) -> String {
        self.print(&["token", "platform"])
    }

    /// Status and body; none when there is no answer.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.rest))
            .header("content-type", "application/json");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(text))).unwrap();
        let answer = async {
            let answer = self.client.request(request).await.ok()?;
            let status = answer.status().as_u16();
            let bytes = answer.into_body().collect().await.ok()?.to_bytes();
            Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.ok()?
    }

    pub(crate) async fn must(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Value {
        let answer = self.ask(method, path, token, &[], body).await;
        match answer {
            Some((200, value)) => value,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        until("the end of the program", async || self.has_ended()).await
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-scheduler"));
    command.arg("--config").arg(dir.join("config.toml"));
    command
        .env("BERTH_LOG", "info")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command
}
