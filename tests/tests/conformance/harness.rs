//! A scheduler on loopback, and two ways to speak to it: the published client and plain HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::time::{Timestamp, monotonic};
use berth_scheduler::Scheduler;
use berth_scheduler::config::Config;
use berth_scheduler::store::Store;
use horizon_client_sdk::{Client, Error, types};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// With slashes, as control planes name them.
pub(crate) const CLUSTER: &str = "acme/prod/compute";

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) running: berth_scheduler::Running,
    pub(crate) platform: String,
    pub(crate) dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// With a configuration of its own.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, change).await
    }

    async fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> anyhow::Result<Self> {
        // Every test of the process wants the same one; the first installs it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut config = config(dir.path());
        change(&mut config);
        let running = Scheduler::start(config).await?;
        let platform = running.scheduler().identity().platform_token(Timestamp::now())?;
        Ok(Self {
            running,
            platform,
            dir,
        })
    }

    /// On a store of the test's own.
    pub(crate) async fn start_on(store: Arc<dyn Store>) -> anyhow::Result<Self> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let dir = tempfile::tempdir()?;
        let running = Scheduler::start_on(store, config(dir.path())).await?;
        let platform = running.scheduler().identity().platform_token(Timestamp::now())?;
        Ok(Self {
            running,
            platform,
            dir,
        })
    }

    pub(crate) async fn restart(self) -> anyhow::Result<Self> {
        self.running.shutdown().await;
        Self::start_in(self.dir, |_| {}).await
    }

    pub(crate) async fn stop(self) {
        self.running.shutdown().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.rest_addr)
    }

    /// The published client under a token.
    pub(crate) fn client(&self, token: &str) -> Client {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("tokens are ASCII");
        headers.insert(AUTHORIZATION, value);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .timeout(DEADLINE)
            .build()
            .expect("a client of plain HTTP needs nothing");
        Client::new_with_client(&self.url(""), http)
    }

    /// Plain HTTP; an empty token sends none.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(u16, Value, HeaderMap)> {
        let text = body.map(|body| body.to_string());
        self.send(method, path, token, text).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<String>,
    ) -> anyhow::Result<(u16, Value, HeaderMap)> {
        self.send_with(method, path, token, body, &[]).await
    }

    /// As [`Stage::send`], with further headers.
    pub(crate) async fn send_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<(u16, Value, HeaderMap)> {
        let mut request = reqwest::Client::new()
            .request(method.parse()?, self.url(path))
            .timeout(DEADLINE);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, value, headers))
    }

    /// Creates [`CLUSTER`], or gives it when it is there.
    pub(crate) async fn create_cluster(&self) -> anyhow::Result<types::CreateClusterResponse> {
        let reply = self
            .client(&self.platform)
            .create_cluster()
            .body(read::<types::CreateClusterRequest>(cluster_body()))
            .send()
            .await?;
        Ok(reply.into_inner())
    }

    /// Entries in the log of [`CLUSTER`]; 0 when there is none.
    pub(crate) fn log_len(&self) -> u64 {
        let id = CLUSTER.parse().expect("a valid id");
        let cluster = self.running.scheduler().cluster(&id);
        cluster.map_or(0, |cluster| cluster.world().applied_count())
    }
}

fn config(dir: &Path) -> Config {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    Config {
        listen: any,
        link_listen: any,
        link_names: vec!["127.0.0.1".into()],
        ..Config::new(dir.to_owned())
    }
}

/// JSON as a type of the published client, whose own types are how it would have been written.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// The status that the client refused; 200 when it did not.
pub(crate) fn status_of<T>(outcome: Result<T, Error<()>>) -> u16 {
    match outcome {
        Ok(_) => 200,
        Err(Error::UnexpectedResponse(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

/// Waits until `done` gives something.
pub(crate) async fn until<T, F: Future<Output = anyhow::Result<Option<T>>>>(
    what: &str,
    mut done: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let deadline = monotonic() + DEADLINE;
    loop {
        if let Some(found) = done().await? {
            return Ok(found);
        }
        anyhow::ensure!(monotonic() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn cluster_body() -> Value {
    json!({
        "clusterId": CLUSTER, "name": "Acme production", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 3, "profile": {
            "cpu": 8.0, "memoryBytes": 17_179_869_184_i64, "ephemeralStorageBytes": 107_374_182_400_i64}}],
        "projectId": "p-1"
    })
}

pub(crate) fn container_body(name: &str) -> Value {
    json!({
        "name": name, "capacityGroup": "general", "image": format!("registry.example/{name}:1"),
        "stateful": false, "ports": [8080], "replicas": 2, "env": {"A": "1"},
        "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "512Mi", "desired": "1Gi"}},
        "healthCheck": {"path": "/health"}
    })
}

pub(crate) fn register_body(machine: &str) -> Value {
    json!({
        "clusterId": CLUSTER, "machineId": machine, "capacityGroup": "general", "zone": "zone-a",
        "vpcIp": "10.0.1.7", "wireguardPublicKey": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
        "wireguardEndpoint": "10.0.1.7:51820",
        "capacity": {"cpu": {"total": 8.0, "systemReserve": 0.5},
            "memory": {"total": 17_179_869_184_i64, "systemReserve": 1_073_741_824_i64},
            "ephemeralStorage": {"total": 107_374_182_400_i64}}
    })
}

pub(crate) fn heartbeat_body(machine: &str, replicas: Value) -> Value {
    json!({"clusterId": CLUSTER, "machineId": machine, "status": "running", "replicas": replicas})
}
