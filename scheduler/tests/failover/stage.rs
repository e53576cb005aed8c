//! etcd, the scheduler processes before it, and what is done to them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use berth_api::rest::tunnel;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::Fault;
use super::fixture::{self, EtcdCluster, free_ports};
use super::node::Node;
use super::proxy::Proxy;
use super::writer::Writer;

pub(crate) const CONTAINER: &str = "web";
/// The shortest that there is: how soon another process takes over is what the faults measure.
pub(crate) const SHORT_LEASE_SECONDS: u64 = 2;
/// Longer than etcd hesitates on a crowded machine, for what is not about losing a lease.
pub(crate) const LONG_LEASE_SECONDS: u64 = 15;
/// Longer than any answer may take: a scheduler that is paused does not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than an answer takes that waits for another process, or for etcd.
const SLOW_ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Polls of 50 ms: a minute, which only a hang exceeds.
const POLLS_MAX: u32 = 1200;

pub(crate) fn cluster_id(cluster: usize) -> String {
    format!("acme/c{cluster}")
}

pub(crate) fn cluster_body(cluster: usize) -> Value {
    json!({
        "clusterId": cluster_id(cluster), "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 10, "profile":
            {"cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
    })
}

pub(crate) fn cluster_path(cluster: usize) -> String {
    format!("/clusters/acme%2Fc{cluster}")
}

/// Ports of every scheduler; they stay the same when it is started again.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    ports: Arc<Vec<(u16, u16)>>,
}

impl Addresses {
    pub(crate) fn link(&self, number: usize) -> String {
        format!("https://localhost:{}", self.ports[number % self.ports.len()].1)
    }

    fn rest(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[number % self.ports.len()].0)
    }
}

/// The REST APIs, under a platform token.
#[derive(Clone)]
pub(crate) struct Api {
    addresses: Addresses,
    token: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Api {
    /// Status and body; none when there is no answer.
    pub(crate) async fn ask(
        &self,
        through: usize,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.addresses.rest(through)))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))
            .unwrap();
        let answer = async {
            let answer = self.client.request(request).await.ok()?;
            let status = answer.status().as_u16();
            let bytes = answer.into_body().collect().await.ok()?.to_bytes();
            Some((status, serde_json::from_slice(&bytes).ok()?))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.ok()?
    }

    /// Asks until that succeeds.
    async fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut last = None;
        for attempt in 0..1200 {
            last = self.ask(attempt, method, path, body).await;
            if let Some((200, answer)) = last {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{method} {path}: {last:?}");
    }
}

struct Process {
    dir: PathBuf,
    child: Option<Child>,
    to_etcd: Vec<Proxy>,
}

/// See the module documentation. Dropping it kills everything.
pub(crate) struct Stage {
    pub(crate) etcd: EtcdCluster,
    processes: Vec<Process>,
    api: Api,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn start(count: usize, lease_seconds: u64) -> Self {
        let dir = tempfile::tempdir_in(fixture::data_root()).unwrap();
        let etcd_dir = dir.path().join("etcd");
        std::fs::create_dir(&etcd_dir).unwrap();
        let etcd = EtcdCluster::start(&etcd_dir, 3, &[]);
        let ports = free_ports(count * 2);
        let ports: Vec<(u16, u16)> = ports.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let mut processes = Vec::new();
        for number in 0..count {
            let mut to_etcd = Vec::new();
            for endpoint in etcd.endpoints() {
                to_etcd.push(Proxy::start(endpoint).await);
            }
            processes.push(Process {
                dir: dir.path().join(format!("s{number}")),
                child: None,
                to_etcd,
            });
        }
        let mut stage = Self {
            etcd,
            api: Api {
                addresses: Addresses {
                    ports: Arc::new(ports),
                },
                token: String::new(),
                client: Client::builder(TokioExecutor::new()).build_http(),
            },
            processes,
            _dir: dir,
        };
        stage.configure(lease_seconds);
        for number in 0..count {
            stage.spawn(number);
        }
        stage
    }

    /// Writes the configuration of every process; all hold the keys of the first.
    fn configure(&mut self, lease_seconds: u64) {
        for (number, process) in self.processes.iter().enumerate() {
            std::fs::create_dir(&process.dir).unwrap();
            let (rest, link) = self.api.addresses.ports[number];
            let endpoints: Vec<String> = process
                .to_etcd
                .iter()
                .map(|proxy| proxy.address.to_string())
                .collect();
            let text = format!(
                "data_dir = {:?}\nlisten = \"127.0.0.1:{rest}\"\nlink_listen = \"127.0.0.1:{link}\"\nheartbeat_ms = 500\n\
                 store = \"etcd://{}/berth\"\nlease_seconds = {lease_seconds}\n",
                process.dir.join("data"),
                endpoints.join(","),
            );
            std::fs::write(process.dir.join("config.toml"), text).unwrap();
        }
        let first = self.processes[0].dir.join("data");
        let token = program(&self.processes[0].dir)
            .args(["token", "platform"])
            .output()
            .unwrap();
        assert!(
            token.status.success(),
            "{}",
            String::from_utf8_lossy(&token.stderr)
        );
        self.api.token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
        // The secret of tokens is made by the first start; every process has the same from the outset.
        std::fs::write(first.join("token-secret"), [7_u8; 32]).unwrap();
        for process in &self.processes[1..] {
            let data = process.dir.join("data");
            std::fs::create_dir(&data).unwrap();
            for file in ["ca.key", "ca.pem", "platform.key", "token-secret"] {
                std::fs::copy(first.join(file), data.join(file)).unwrap();
            }
        }
    }

    fn spawn(&mut self, number: usize) {
        let process = &mut self.processes[number];
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(process.dir.join("log"))
            .unwrap();
        let child = program(&process.dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        process.child = Some(child);
    }

    /// Creates clusters, each with a container, and a writer for each.
    pub(crate) async fn writers(&self, count: usize) -> Vec<Writer> {
        let mut writers = Vec::new();
        for cluster in 0..count {
            self.create(cluster).await;
            writers.push(Writer::start(self.api.clone(), cluster));
        }
        writers
    }

    /// Creates a cluster with a container.
    pub(crate) async fn create(&self, cluster: usize) {
        self.api
            .must("POST", "/clusters", Some(&cluster_body(cluster)))
            .await;
        let body = json!({
            "name": CONTAINER, "capacityGroup": "general", "image": "app:1",
            "resources": {"cpu": {"min": "0.1", "desired": "0.1"}, "memory": {"min": "64Mi", "desired": "64Mi"}},
            "stateful": false, "ports": [8080], "replicas": 2, "env": {"N": "0"}
        });
        let path = format!("{}/containers", cluster_path(cluster));
        self.api.must("POST", &path, Some(&body)).await;
    }

    /// What a process answers to a read, and whose clusters it says are missing; none when it does not succeed.
    pub(crate) async fn answer(&self, through: usize, path: &str) -> Option<(Value, Option<String>)> {
        let request = self.request(through, "GET", path).body(Full::default()).unwrap();
        let answer = tokio::time::timeout(SLOW_ANSWER_TIMEOUT, self.api.client.request(request));
        let answer = answer.await.ok()?.ok()?;
        if answer.status() != 200 {
            return None;
        }
        let missing = answer.headers().get("x-berth-missing");
        let missing = missing.map(|missing| missing.to_str().unwrap().to_owned());
        let bytes = answer.into_body().collect().await.ok()?.to_bytes();
        Some((serde_json::from_slice(&bytes).ok()?, missing))
    }

    pub(crate) async fn answer_status(&self, through: usize, path: &str) -> Option<u16> {
        self.api
            .ask(through, "GET", path, None)
            .await
            .map(|(status, _)| status)
    }

    fn request(&self, through: usize, method: &str, path: &str) -> hyper::http::request::Builder {
        hyper::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.api.addresses.rest(through)))
            .header("authorization", format!("Bearer {}", self.api.token))
            .header("content-type", "application/json")
    }

    async fn send(&self, request: hyper::Request<Full<Bytes>>) -> (u16, Value) {
        let answer = tokio::time::timeout(SLOW_ANSWER_TIMEOUT, self.api.client.request(request));
        let answer = answer.await.expect("an answer in time").unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    /// One attempt of a write through one process, with headers of its own.
    pub(crate) async fn post(
        &self,
        through: usize,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        let mut request = self.request(through, "POST", path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::new(Bytes::from(body.to_string()))).unwrap())
            .await
    }

    /// A write through one process that is tried again for as long as it is refused for now: 503, which an etcd that is slow
    /// for longer than a lease brings about. What was refused so may have been written: it must be a write that may be repeated.
    pub(crate) async fn settle(
        &self,
        through: usize,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        for _ in 0..POLLS_MAX {
            let (status, answer) = self.post(through, path, headers, body).await;
            if status != 503 {
                return (status, answer);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} is refused for ever");
    }

    /// One attempt of a change through the first process.
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(0, "PATCH", path);
        self.send(request.body(Full::new(Bytes::from(body.to_string()))).unwrap())
            .await
    }

    /// A node for each cluster.
    pub(crate) async fn nodes(&self, count: usize) -> Vec<Node> {
        let mut nodes = Vec::new();
        for cluster in 0..count {
            let path = format!("{}/tokens/rotate", cluster_path(cluster));
            let answer = self
                .api
                .must("POST", &path, Some(&json!({ "tokenType": "machine" })))
                .await;
            let token = answer["machineToken"].as_str().unwrap().to_owned();
            let ca = self.processes[0].dir.join("data/ca.pem");
            nodes.push(Node::start(cluster, token, self.api.addresses.clone(), ca).await);
        }
        nodes
    }

    /// A tunnel to a replica through one process; none when it is refused for now.
    pub(crate) async fn tunnel(&self, through: usize, path: &str) -> Option<WebSocketStream<TcpStream>> {
        let address = self.api.addresses.rest(through);
        let mut request = format!("{}{path}", address.replacen("http", "ws", 1))
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert(
            "authorization",
            format!("Bearer {}", self.api.token).parse().unwrap(),
        );
        headers.insert("sec-websocket-protocol", tunnel::PROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(address.strip_prefix("http://").unwrap())
            .await
            .ok()?;
        let opened = tokio_tungstenite::client_async(request, stream);
        match tokio::time::timeout(SLOW_ANSWER_TIMEOUT, opened).await.ok()? {
            Ok((socket, answer)) => {
                assert_eq!(answer.headers()["sec-websocket-protocol"], tunnel::PROTOCOL);
                assert!(answer.headers().contains_key("berth-replica"));
                Some(socket)
            }
            Err(_) => None,
        }
    }

    /// The process that serves a cluster: the one that answers about it though it may not ask others.
    pub(crate) async fn owner_of(&self, cluster: usize) -> usize {
        for _ in 0..POLLS_MAX {
            for number in 0..self.processes.len() {
                if self.processes[number].child.is_some() && self.serves(number, cluster).await {
                    return number;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody serves cluster {cluster}");
    }

    async fn serves(&self, number: usize, cluster: usize) -> bool {
        let request = hyper::Request::builder()
            .uri(format!(
                "{}{}",
                self.api.addresses.rest(number),
                cluster_path(cluster)
            ))
            .header("authorization", format!("Bearer {}", self.api.token))
            .header("x-berth-forwarded", "1")
            .body(Full::default())
            .unwrap();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.api.client.request(request)).await;
        matches!(answer, Ok(Ok(answer)) if answer.status() == 200)
    }

    pub(crate) async fn strike(&mut self, fault: Fault, owner: usize, number: usize) {
        match fault {
            Fault::Kill => self.kill(owner),
            Fault::Pause => self.signal(owner, "-STOP"),
            Fault::CutOff => self.processes[owner].to_etcd.iter().for_each(Proxy::cut),
            Fault::Etcd => self.etcd.kill(number % 3),
            Fault::KillAndEtcd => {
                self.etcd.kill(number % 3);
                self.kill(owner);
            }
            Fault::Leave => {
                self.signal(owner, "-TERM");
                let mut child = self.processes[owner].child.take().unwrap();
                let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap();
                assert!(
                    ended.unwrap().success(),
                    "a scheduler that is asked to stop ends well"
                );
            }
        }
    }

    pub(crate) async fn mend(&mut self, fault: Fault, owner: usize, number: usize) {
        match fault {
            Fault::Kill | Fault::Leave => self.spawn(owner),
            Fault::Pause => self.signal(owner, "-CONT"),
            Fault::CutOff => self.processes[owner].to_etcd.iter().for_each(Proxy::mend),
            Fault::Etcd => self.etcd.restart(number % 3),
            Fault::KillAndEtcd => {
                self.etcd.restart(number % 3);
                self.spawn(owner);
            }
        }
        self.all_ready().await;
    }

    /// Every process answers.
    async fn all_ready(&self) {
        for number in 0..self.processes.len() {
            let mut polls = 0;
            while self
                .api
                .ask(number, "GET", "/readyz", None)
                .await
                .is_none_or(|(status, _)| status != 200)
            {
                polls += 1;
                assert!(polls < POLLS_MAX, "scheduler {number} does not become ready");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.processes[number].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, number: usize, signal: &str) {
        let pid = self.processes[number].child.as_ref().unwrap().id();
        let sent = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// The number that a cluster holds.
    pub(crate) async fn number_of(&self, cluster: usize) -> u64 {
        let path = format!("{}/containers/{CONTAINER}", cluster_path(cluster));
        let answer = self.api.must("GET", &path, None).await;
        find_number(&answer).expect("the container has its environment")
    }

    pub(crate) async fn stop_schedulers(&mut self) {
        for number in 0..self.processes.len() {
            self.kill(number);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in &self.processes {
                let log = std::fs::read_to_string(process.dir.join("log")).unwrap_or_default();
                eprintln!("{}:\n{log}", process.dir.display());
            }
        }
        for number in 0..self.processes.len() {
            self.kill(number);
        }
    }
}

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-scheduler"));
    command.arg("--config").arg(dir.join("config.toml"));
    command.env("BERTH_LOG", "info");
    command
}

/// `env.N`, wherever in the answer it stands.
fn find_number(value: &Value) -> Option<u64> {
    if let Some(number) = value.pointer("/env/N") {
        return number.as_str()?.parse().ok();
    }
    let members = value.as_object()?;
    members.values().find_map(find_number)
}
