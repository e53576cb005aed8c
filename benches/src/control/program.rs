//! A real scheduler process on loopback, and its API as clients use it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_api::time::monotonic;
use serde_json::{Value, json};

use crate::process;

const DEADLINE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(5);

/// One process with its directory. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) dir: PathBuf,
    program: PathBuf,
    child: Option<Child>,
    rest: String,
    pub(crate) link: String,
    pub(crate) token: String,
    http: reqwest::Client,
}

/// A cluster and the tokens of its own.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) management: String,
    pub(crate) machine: String,
}

impl Cluster {
    pub(crate) fn path(&self) -> String {
        format!("/clusters/{}", self.id.replace('/', "%2F"))
    }
}

impl Program {
    /// Starts a scheduler with its data in `dir`, and waits until it is ready. `more` are lines of its configuration that go
    /// before all tables.
    pub(crate) async fn start(program: &Path, dir: &Path, more: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let [rest, link] = free_ports()?;
        let data = dir.join("data");
        let text = format!(
            "data_dir = {data:?}\nlisten = \"127.0.0.1:{rest}\"\nlink_listen = \"127.0.0.1:{link}\"\n{more}\n[rest]\n\
             platform_per_second = 1000000\nmanagement_per_second = 1000000\nmachine_per_second = 1000000\n\
             audit_file = {:?}\n",
            dir.join("audit.jsonl")
        );
        std::fs::write(dir.join("config.toml"), text)?;
        let mut started = Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            child: None,
            rest: format!("http://127.0.0.1:{rest}"),
            link: format!("https://localhost:{link}"),
            token: String::new(),
            http: reqwest::Client::builder().timeout(DEADLINE).build()?,
        };
        let token = started
            .command()
            .args(["token", "platform", "--ttl", "6h"])
            .output()?;
        if !token.status.success() {
            bail!("no platform token: {}", String::from_utf8_lossy(&token.stderr));
        }
        started.token = String::from_utf8(token.stdout)?.trim().to_owned();
        started.spawn()?;
        started.ready().await?;
        Ok(started)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.join("config.toml"));
        command
    }

    /// Starts the process again, as it was configured.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let child = self
            .command()
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let begun = monotonic();
        loop {
            let answer = self.http.get(format!("{}/readyz", self.rest)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            let child = self.child.as_mut().context("it was started")?;
            if child.try_wait()?.is_some() || begun.elapsed() > DEADLINE {
                bail!(
                    "the scheduler is not ready: {}",
                    std::fs::read_to_string(self.dir.join("log"))?
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("it was started")?.id())
    }

    pub(crate) fn rss_mib(&self) -> anyhow::Result<f64> {
        process::rss_mib(self.pid()?)
    }

    /// Processor time over `period`, as a share of one core in percent.
    pub(crate) async fn cpu_percent(&self, period: Duration) -> anyhow::Result<f64> {
        let before = process::cpu_time(self.pid()?)?;
        tokio::time::sleep(period).await;
        let used = process::cpu_time(self.pid()?)? - before;
        Ok(100.0 * used.as_secs_f64() / period.as_secs_f64())
    }

    pub(crate) fn ca(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("data/ca.pem"))?)
    }

    /// One request; the answer of a success.
    pub(crate) async fn ask(
        &self,
        method: reqwest::Method,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.rest))
            .bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("{path}: {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(reqwest::Method::POST, path, token, Some(body)).await
    }

    /// A cluster with one capacity group, `general`.
    pub(crate) async fn create_cluster(&self, id: &str, machines: usize) -> anyhow::Result<Cluster> {
        let body = json!({
            "clusterId": id, "name": id, "containerCidr": "10.128.0.0/12", "platform": "local",
            "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": machines.max(1), "profile": {
                "cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
        });
        let created = self.post("/clusters", &self.token, &body).await?;
        let text = |member: &str| -> anyhow::Result<String> {
            Ok(created[member]
                .as_str()
                .context("a created cluster has tokens")?
                .to_owned())
        };
        Ok(Cluster {
            id: id.to_owned(),
            management: text("managementToken")?,
            machine: text("machineToken")?,
        })
    }

    /// Value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let response = self.http.get(format!("{}/metrics", self.rest)).send().await?;
        let text = response.text().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("no metric {name}"))?;
        Ok(value.trim().parse()?)
    }

    /// Waits until a metric is at least `value`.
    pub(crate) async fn metric_reaches(&self, name: &str, value: f64) -> anyhow::Result<()> {
        let begun = monotonic();
        loop {
            let present = self.metric(name).await?;
            if present >= value {
                return Ok(());
            }
            if begun.elapsed() > DEADLINE {
                bail!("{name} is {present} and not {value} after {DEADLINE:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.kill());
    }
}

/// A stateless container; no two replicas of more than 4 cores share a machine of 8.
pub(crate) fn container(name: &str, replicas: usize, cpu: &str) -> Value {
    json!({
        "name": name, "capacityGroup": "general", "image": "registry.example/app:1", "replicas": replicas,
        "stateful": false, "ports": [8080],
        "resources": {"cpu": {"min": cpu, "desired": cpu}, "memory": {"min": "64Mi", "desired": "64Mi"}}
    })
}

/// What a machine says of itself when it registers.
pub(crate) fn registration(cluster: &Cluster, machine: &str, number: usize) -> Value {
    let mut key = [0_u8; 32];
    for (place, byte) in key.iter_mut().zip(number.to_be_bytes()) {
        *place = byte;
    }
    let ip = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    json!({
        "clusterId": cluster.id, "machineId": machine, "capacityGroup": "general", "zone": "z-1", "vpcIp": ip,
        "wireguardPublicKey": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key),
        "wireguardEndpoint": format!("{ip}:51820"),
        "capacity": {"cpu": {"total": 8}, "memory": {"total": 16_u64 << 30},
                     "ephemeralStorage": {"total": 100_u64 << 30}}
    })
}

fn free_ports() -> anyhow::Result<[u16; 2]> {
    let one = std::net::TcpListener::bind("127.0.0.1:0")?;
    let other = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}
