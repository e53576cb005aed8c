//! The `berth dev` instance that is measured: its API as clients use it, its processes as the kernel counts them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_api::time::{Timestamp, monotonic};
use serde_json::{Value, json};

use crate::report::millis;

/// Nothing that is waited for here takes longer, however loaded the machine is.
const DEADLINE: Duration = Duration::from_secs(120);
/// Seldom enough not to be the load that is measured.
const POLL: Duration = Duration::from_millis(20);

/// The instance's only machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) daemon_pid: u32,
    pub(crate) keeper_pid: u32,
    pub(crate) cgroup: String,
    pub(crate) containerd_namespace: String,
}

/// Where a replica's start is on record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// The scheduler decided: just before its commit.
    pub(crate) placed: Timestamp,
    /// The node saw the process start.
    pub(crate) started: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Instance {
    berth: PathBuf,
    state_dir: PathBuf,
    http: reqwest::Client,
    cluster_url: String,
    token: String,
    group: String,
    pub(crate) containerd_socket: PathBuf,
    logs: PathBuf,
}

impl Instance {
    pub(crate) fn connect(berth: &Path, state_dir: &Path) -> anyhow::Result<Self> {
        let view = list(berth, state_dir)?;
        let token_file = text(&view, "managementTokenFile")?;
        let token = std::fs::read_to_string(token_file).with_context(|| format!("read {token_file}"))?;
        Ok(Self {
            berth: berth.to_owned(),
            state_dir: state_dir.to_owned(),
            http: reqwest::Client::builder().timeout(DEADLINE).build()?,
            cluster_url: format!("{}/clusters/{}", text(&view, "server")?, text(&view, "cluster")?),
            token: token.trim().to_owned(),
            // The only group of an instance.
            group: "general".to_owned(),
            containerd_socket: text(&view, "containerdSocket")?.into(),
            logs: text(&view, "logs")?.into(),
        })
    }

    pub(crate) fn machine(&self) -> anyhow::Result<Machine> {
        let view = list(&self.berth, &self.state_dir)?;
        let machine = &view["machines"][0];
        let pid = |name: &str| -> anyhow::Result<u32> {
            let pid = machine[name].as_u64().with_context(|| format!("no {name}"))?;
            Ok(u32::try_from(pid)?)
        };
        Ok(Machine {
            daemon_pid: pid("daemonPid")?,
            keeper_pid: pid("keeperPid")?,
            cgroup: text(machine, "cgroup")?.to_owned(),
            containerd_namespace: text(machine, "containerdNamespace")?.to_owned(),
        })
    }

    pub(crate) fn containerd_pid(&self) -> anyhow::Result<u32> {
        let view = list(&self.berth, &self.state_dir)?;
        let pid = view["containerdPid"]
            .as_u64()
            .context("containerd does not run")?;
        Ok(u32::try_from(pid)?)
    }

    /// The daemon's process, once it is another than before.
    pub(crate) async fn another_daemon(&self, before: u32) -> anyhow::Result<u32> {
        let begun = monotonic();
        loop {
            if let Ok(machine) = self.machine()
                && machine.daemon_pid != before
            {
                return Ok(machine.daemon_pid);
            }
            ensure!(begun.elapsed() < DEADLINE, "no other daemon after {DEADLINE:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// One replica of a container that runs.
    pub(crate) async fn a_replica(&self, name: &str) -> anyhow::Result<String> {
        let running = |replicas: &[Value]| replicas.iter().any(|replica| replica["status"] == "running");
        let replicas = self.until(name, running).await?;
        let replica = replicas.iter().find(|replica| replica["status"] == "running");
        Ok(text(replica.context("one runs")?, "replicaId")?.to_owned())
    }

    /// Declares a container; returns when the scheduler has committed it.
    pub(crate) async fn create(&self, name: &str, image: &str, replicas: usize) -> anyhow::Result<()> {
        let body = json!({
            "name": name,
            "capacityGroup": self.group,
            "image": image,
            "resources": {
                "cpu": {"min": "0.05", "desired": "1"},
                "memory": {"min": "16Mi", "desired": "64Mi"},
            },
            "replicas": replicas,
            "stateful": false,
            "ports": [8080],
        });
        let url = format!("{}/containers", self.cluster_url);
        self.send(self.http.post(url).json(&body)).await.map(drop)
    }

    /// Deletes a container and waits until nothing of it is left.
    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let url = format!("{}/containers/{name}", self.cluster_url);
        self.send(self.http.delete(url)).await?;
        self.until(name, <[Value]>::is_empty).await.map(drop)
    }

    /// Waits until so many replicas of a container run, and tells when each was placed and started.
    pub(crate) async fn started(&self, name: &str, count: usize) -> anyhow::Result<Vec<Start>> {
        let running = |replicas: &[Value]| {
            let started = replicas
                .iter()
                .filter(|replica| replica["startedAt"].is_string() && replica["status"] == "running");
            started.count() == count
        };
        let replicas = self.until(name, running).await?;
        let mut starts = Vec::new();
        for replica in replicas {
            if replica["run"] != 1 {
                bail!("a replica has started more than once: {replica}");
            }
            starts.push(Start {
                placed: self.placed(text(&replica, "replicaId")?).await?,
                started: text(&replica, "startedAt")?.parse()?,
            });
        }
        Ok(starts)
    }

    /// When a replica was given its machine, as its event says.
    async fn placed(&self, replica_id: &str) -> anyhow::Result<Timestamp> {
        let url = format!("{}/replicas/{replica_id}/events", self.cluster_url);
        let reply = self.send(self.http.get(url)).await?;
        let events = reply["events"].as_array().context("events are a list")?;
        let event = events
            .iter()
            .find(|event| event["reason"] == "Scheduled")
            .with_context(|| format!("{replica_id} was never scheduled"))?;
        Ok(text(event, "firstTimestamp")?.parse()?)
    }

    async fn until(&self, name: &str, done: impl Fn(&[Value]) -> bool) -> anyhow::Result<Vec<Value>> {
        let begun = monotonic();
        let url = format!("{}/replicas", self.cluster_url);
        loop {
            let reply = self.send(self.http.get(&url)).await?;
            let all = reply["replicas"].as_array().context("replicas are a list")?;
            let own: Vec<Value> = all
                .iter()
                .filter(|replica| replica["container"] == name)
                .cloned()
                .collect();
            if done(&own) {
                return Ok(own);
            }
            if begun.elapsed() > DEADLINE {
                bail!("{name} is not there after {DEADLINE:?}: {own:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let response = request.bearer_auth(&self.token).send().await?;
        let (status, body) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("the scheduler answers {status}: {body}");
        }
        Ok(serde_json::from_str(&body)?)
    }

    /// When the daemon wrote a line with these words, at `since` or later.
    pub(crate) async fn logged(&self, words: &str, since: Timestamp) -> anyhow::Result<Timestamp> {
        let begun = monotonic();
        loop {
            let found = self.lines(&[words])?.into_iter().find(|time| *time >= since);
            if let Some(time) = found {
                return Ok(time);
            }
            ensure!(
                begun.elapsed() < DEADLINE,
                "{words:?} is not logged after {DEADLINE:?}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// When the node had accepted, that is stored, a set with so many replicas; every such line of its log.
    pub(crate) fn accepted(&self, replicas: usize) -> anyhow::Result<Vec<Timestamp>> {
        self.lines(&["accepted an assignment set", &format!("replicas={replicas} ")])
    }

    /// The times of all lines of the daemon's log with these words.
    fn lines(&self, words: &[&str]) -> anyhow::Result<Vec<Timestamp>> {
        let path = self.logs.join("m1-berthd.log");
        let log = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        log.lines()
            .filter(|line| words.iter().all(|words| line.contains(words)))
            .map(|line| {
                let time = line.split(' ').next().unwrap_or_default();
                time.parse().with_context(|| format!("no time in {line}"))
            })
            .collect()
    }
}

/// From the first decision to the last start, in milliseconds.
pub(crate) fn span_ms(starts: &[Start]) -> f64 {
    let first = starts.iter().map(|start| start.placed).min().unwrap_or_default();
    let last = starts.iter().map(|start| start.started).max().unwrap_or_default();
    millis(last.since(first))
}

fn list(berth: &Path, state_dir: &Path) -> anyhow::Result<Value> {
    let output = Command::new(berth)
        .args(["dev", "list", "-o", "json", "--state-dir"])
        .arg(state_dir)
        .output()
        .with_context(|| format!("run {}", berth.display()))?;
    if !output.status.success() {
        bail!("berth dev list: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text<'a>(value: &'a Value, member: &str) -> anyhow::Result<&'a str> {
    value[member]
        .as_str()
        .with_context(|| format!("{member} is missing in {value}"))
}
