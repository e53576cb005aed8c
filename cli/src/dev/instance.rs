//! A running instance: how it comes up step by step, and what can be done to its machines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::config::{self, Wishes};
use super::control::{Reply, Request};
use super::layout::Layout;
use super::network::{self, NetworkError};
use super::preflight::Binaries;
use super::record::{Record, write_private};
use super::supervisor::{Program, Supervisor, tail};
use super::tool::{self, ToolError};
use super::{proc, teardown};
use crate::client::{Client, ClientError};
use crate::context::{self, Context};

/// A program answers within this long after its start, or the instance is given up. Debug builds on a busy host are slow.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// All machines have registered within this long.
const MACHINES_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// A program that dies this often while it is waited for will not come up.
const STARTS_MAX: u32 = 4;
/// berthd and the scheduler close their databases well within this.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why an instance does not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} did not come within {seconds} s{log}")]
    Late { what: String, seconds: u64, log: String },
    #[error("{program} keeps ending{log}")]
    Dies { program: String, log: String },
    #[error("the scheduler's answer has no {0}")]
    Answer(&'static str),
}

/// An instance and its owner's tools.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) record: Record,
    pub(crate) layout: Layout,
    binaries: Binaries,
    wishes: Wishes,
    supervisor: Supervisor,
    progress: mpsc::Sender<String>,
    ready: bool,
    /// Once the cluster exists: asks the scheduler in its name.
    client: Option<Client>,
    orphans: BTreeSet<u32>,
    /// Machines that the scheduler was told are off for good.
    lost: BTreeSet<String>,
}

/// One machine, as `berth dev machine list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MachineView {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) ip: String,
    /// Its network namespace, for `nsenter --net=PATH`.
    pub(crate) netns: PathBuf,
    pub(crate) containerd_namespace: String,
    pub(crate) cgroup: String,
    /// Process ids of its daemons; none while a daemon is down.
    pub(crate) daemon_pid: Option<u32>,
    pub(crate) keeper_pid: Option<u32>,
    /// Process ids of everything that runs in its containers.
    pub(crate) container_pids: Vec<u32>,
}

/// The instance, as `berth dev list -o json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceView {
    pub(crate) id: String,
    pub(crate) ready: bool,
    pub(crate) server: String,
    pub(crate) cluster: String,
    pub(crate) management_token_file: PathBuf,
    pub(crate) platform_token_file: PathBuf,
    /// Where machines reach this host.
    pub(crate) gateway: String,
    pub(crate) container_cidr: String,
    /// hostpath volumes lie below.
    pub(crate) volumes: PathBuf,
    pub(crate) containerd_socket: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) scheduler_pid: Option<u32>,
    pub(crate) containerd_pid: Option<u32>,
    pub(crate) machines: Vec<MachineView>,
}

impl Instance {
    /// `progress` takes what a person should see.
    pub(crate) fn new(
        record: Record,
        layout: Layout,
        binaries: Binaries,
        wishes: Wishes,
        progress: mpsc::Sender<String>,
    ) -> Self {
        Self {
            supervisor: Supervisor::new(progress.clone()),
            record,
            layout,
            binaries,
            wishes,
            progress,
            ready: false,
            client: None,
            orphans: BTreeSet::new(),
            lost: BTreeSet::new(),
        }
    }

    async fn say(&self, text: impl Into<String>) {
        drop(self.progress.send(text.into()).await);
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), StartError> {
        write_private(path, text.as_bytes()).map_err(|source| StartError::Write {
            path: path.into(),
            source,
        })
    }

    /// Brings everything up. On an error, or when this is dropped half-way, [`Instance::end`] takes away what was made.
    pub(crate) async fn start(&mut self) -> Result<(), StartError> {
        network::create(&self.record, &self.layout).await?;
        self.say(format!(
            "network     {} on {}, containers in {}",
            self.record.subnet,
            self.record.bridge(),
            self.record.container_cidr
        ))
        .await;
        self.start_containerd().await?;
        self.say("containerd  running").await;
        let platform = self.start_scheduler().await?;
        self.say(format!("scheduler   running at http://{}", self.record.rest))
            .await;
        let management = self.create_cluster(&platform).await?;
        self.client = Some(Client::new(&self.server(), &management)?);
        for index in 0..self.record.machines.len() {
            self.start_machine(index)?;
        }
        self.say(format!(
            "machines    {} started, waiting until they have registered",
            self.record.machines.len()
        ))
        .await;
        self.wait_for_machines().await?;
        self.write_context(&management)?;
        self.ready = true;
        Ok(())
    }

    fn add(&mut self, name: &str, executable: PathBuf, arguments: &[&Path], netns: Option<PathBuf>) {
        self.supervisor.add(Program {
            name: name.to_owned(),
            instance: self.record.id.clone(),
            executable,
            arguments: arguments
                .iter()
                .map(|argument| argument.as_os_str().into())
                .collect(),
            netns,
            log: self.layout.log_of(&name.replace('/', "-")),
            // Only who runs in a machine's namespace has sockets that others there rely on.
            keeps: name
                .strip_suffix("/berthd")
                .map(|machine| self.layout.notify_socket(machine)),
        });
    }

    async fn start_containerd(&mut self) -> Result<(), StartError> {
        let file = self.layout.root.join("containerd.toml");
        self.write(&file, &config::containerd(&self.layout))?;
        let executable = self.binaries.containerd.clone();
        self.add("containerd", executable, &[Path::new("--config"), &file], None);
        self.wait_for_socket("containerd", &self.layout.containerd_socket())
            .await
    }

    /// Gives a platform token.
    async fn start_scheduler(&mut self) -> Result<String, StartError> {
        let file = self.layout.root.join("scheduler.toml");
        self.write(
            &file,
            &config::scheduler(&self.record, &self.layout, &self.wishes),
        )?;
        let executable = self.binaries.scheduler.clone();
        let arguments = [Path::new("--config"), file.as_path()];
        self.add("scheduler", executable.clone(), &arguments, None);
        let client = Client::new(&self.server(), "")?;
        self.wait("the scheduler", &["scheduler"], READY_DEADLINE, async || {
            client.is_ready().await
        })
        .await?;
        let token = tool::run(
            &executable.display().to_string(),
            &["--config", &file.display().to_string(), "token", "platform"],
        )
        .await?
        .trim()
        .to_owned();
        self.write(&config::platform_token(&self.layout), &token)?;
        Ok(token)
    }

    fn server(&self) -> String {
        format!("http://{}", self.record.rest)
    }

    /// Gives the management token.
    async fn create_cluster(&self, platform_token: &str) -> Result<String, StartError> {
        let count = self.record.machines.len();
        let request = json!({
            "clusterId": self.record.cluster_id,
            "name": self.record.cluster_id,
            "containerCidr": self.record.container_cidr,
            "platform": "local",
            "capacityGroups": [{
                "groupId": config::GROUP,
                "profile": self.wishes.profile,
                "minSize": count,
                "maxSize": count,
            }],
        });
        let client = Client::new(&self.server(), platform_token)?;
        let created: Value = client.post(&["clusters"], Some(&request)).await?;
        let token = |member: &'static str| {
            created
                .get(member)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or(StartError::Answer(member))
        };
        let management = token("managementToken")?;
        self.write(&config::management_token(&self.layout), &management)?;
        self.write(&config::machine_token(&self.layout), &token("machineToken")?)?;
        Ok(management)
    }

    /// Directories and configuration of a machine.
    fn lay_out(&self, name: &str) -> Result<PathBuf, StartError> {
        let directory = self.layout.machine(name);
        for path in [
            directory.join("state"),
            directory.join("logs"),
            self.layout.run_dir(name),
            self.layout.program_dir(name),
        ] {
            std::fs::create_dir_all(&path).map_err(|source| StartError::Write { path, source })?;
        }
        self.link_program(name, BERTHD, &self.binaries.berthd)?;
        self.link_program(name, KEEPER, &self.binaries.keeper)?;
        let file = directory.join("berthd.toml");
        if let Some(machine) = self.record.machine(name) {
            let text = config::berthd(&self.record, machine, &self.layout, &self.wishes);
            self.write(&file, &text)?;
        }
        Ok(file)
    }

    /// The program as the machine starts it. One that an upgrade has put there stays.
    fn link_program(&self, machine: &str, name: &str, program: &Path) -> Result<(), StartError> {
        let path = self.layout.program_dir(machine).join(name);
        let is_upgraded = std::fs::read_link(&path).is_ok_and(|target| target.is_relative()) && path.exists();
        if is_upgraded {
            return Ok(());
        }
        let program = std::path::absolute(program);
        let link = |program: PathBuf| {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            std::os::unix::fs::symlink(program, &path)
        };
        program
            .and_then(link)
            .map_err(|source| StartError::Write { path, source })
    }

    fn start_machine(&mut self, index: usize) -> Result<(), StartError> {
        let machine = self.record.machines[index].clone();
        let name = machine.name.as_str();
        let directory = self.layout.machine(name);
        let file = self.lay_out(name)?;
        let programs = self.layout.program_dir(name);
        let keeper = programs.join(KEEPER);
        let (socket, store) = (self.layout.keeper_socket(name), directory.join("logs"));
        let arguments = [
            Path::new("--socket"),
            &socket,
            Path::new("--store"),
            store.as_path(),
        ];
        self.add(&keeper_name(name), keeper, &arguments, None);
        let berthd = programs.join(BERTHD);
        let netns = self.layout.netns(name);
        self.add(
            &berthd_name(name),
            berthd,
            &[Path::new("--config"), &file],
            Some(netns),
        );
        Ok(())
    }

    async fn wait_for_machines(&self) -> Result<(), StartError> {
        let client = self
            .client
            .as_ref()
            .ok_or(StartError::Answer("managementToken"))?;
        let names: Vec<String> = self
            .record
            .machines
            .iter()
            .flat_map(|machine| [berthd_name(&machine.name), keeper_name(&machine.name)])
            .collect();
        let names: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .chain(["scheduler", "containerd"])
            .collect();
        let wanted = self.record.machines.len();
        let cluster = self.record.cluster_id.as_str();
        self.wait(
            "every machine's registration",
            &names,
            MACHINES_DEADLINE,
            async || {
                let list = client.get::<Value>(&["clusters", cluster, "machines"]).await;
                let running = list.ok().and_then(|list| {
                    let machines = list.get("machines")?.as_array()?;
                    Some(
                        machines
                            .iter()
                            .filter(|machine| {
                                machine.get("status").and_then(Value::as_str) == Some("running")
                            })
                            .count(),
                    )
                });
                running == Some(wanted)
            },
        )
        .await
    }

    async fn wait_for_socket(&self, program: &str, socket: &Path) -> Result<(), StartError> {
        self.wait(program, &[program], READY_DEADLINE, async || {
            tokio::net::UnixStream::connect(socket).await.is_ok()
        })
        .await
    }

    /// Waits until `check` holds; gives up at the deadline, and when one of `programs` keeps dying.
    async fn wait(
        &self,
        what: &str,
        programs: &[&str],
        deadline: Duration,
        check: impl AsyncFn() -> bool,
    ) -> Result<(), StartError> {
        let end = tokio::time::Instant::now() + deadline;
        while !check().await {
            for program in programs {
                if self.supervisor.state(program).starts >= STARTS_MAX {
                    return Err(StartError::Dies {
                        program: (*program).to_owned(),
                        log: self.last_words(program),
                    });
                }
            }
            if tokio::time::Instant::now() >= end {
                return Err(StartError::Late {
                    what: what.to_owned(),
                    seconds: deadline.as_secs(),
                    log: programs
                        .first()
                        .map(|name| self.last_words(name))
                        .unwrap_or_default(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn last_words(&self, program: &str) -> String {
        let path = self.layout.log_of(&program.replace('/', "-"));
        let lines = tail(&path, 0);
        if lines.is_empty() {
            return format!("; {} is empty", path.display());
        }
        format!("; the end of {}:\n    {}", path.display(), lines.join("\n    "))
    }

    fn write_context(&mut self, management: &str) -> Result<(), StartError> {
        let Some(path) = context::path() else {
            return Ok(());
        };
        let write = |source| StartError::Write {
            path: path.clone(),
            source,
        };
        let context = Context {
            server: Some(self.server()),
            token: Some(management.to_owned()),
            cluster: Some(self.record.cluster_id.clone()),
            volumes: Some(self.layout.volumes()),
            dev_instance: Some(self.record.id.clone()),
        };
        self.record.context = Some(path.clone());
        self.record.save(&self.layout).map_err(write)?;
        context::save(&path, &context).map_err(write)
    }

    /// Looks after ended children; called from time to time.
    pub(crate) fn reap(&mut self) {
        self.supervisor.reap_orphans(&mut self.orphans);
    }

    /// Does what was asked over the control socket.
    pub(crate) async fn answer(&mut self, request: &Request) -> Reply {
        let name = match request {
            Request::Status => return Reply::Done(json!({"ready": self.ready})),
            Request::Down => return Reply::Done(Value::Null),
            Request::List => {
                return serde_json::to_value(self.view())
                    .map_or_else(|error| Reply::refused(error.to_string()), Reply::Done);
            }
            Request::MachineKill { name, .. }
            | Request::MachineStart { name }
            | Request::DaemonKill { name } => name,
        };
        if self.record.machine(name).is_none() {
            return Reply::Refused {
                not_found: true,
                message: format!("there is no machine {name}; see: berth dev machine list"),
            };
        }
        let left = match request {
            Request::MachineKill { silent, .. } => {
                let left = self.power_off(name).await;
                if !silent {
                    self.tell_lost(name).await;
                }
                left
            }
            Request::MachineStart { .. } => self.power_on(name).await,
            Request::DaemonKill { .. } => {
                self.supervisor.crash(&berthd_name(name)).await;
                Vec::new()
            }
            Request::Status | Request::Down | Request::List => Vec::new(),
        };
        if left.is_empty() {
            Reply::Done(Value::Null)
        } else {
            Reply::refused(left.join("\n"))
        }
    }

    /// As if the power failed: the cable first, so that nothing can be said any more.
    async fn power_off(&self, name: &str) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(machine) = self.record.machine(name)
            && let Err(error) = network::cut_cable(&machine.veth).await
        {
            left.push(error.to_string());
        }
        self.supervisor.power_off(&berthd_name(name)).await;
        self.supervisor.power_off(&keeper_name(name)).await;
        left.extend(teardown::kill_machine(&self.record, name).await);
        left.extend(teardown::forget_machine(&self.layout, name).await);
        left
    }

    /// What a cloud would know: this machine is powered off for good, so nothing of it still writes. A scheduler that
    /// cannot be told finds out by silence.
    async fn tell_lost(&mut self, name: &str) {
        let Some(client) = &self.client else { return };
        let path = ["clusters", self.record.cluster_id.as_str(), "machines", name];
        let query = [("poweredOff", "true".to_owned())];
        match client.delete_with::<Value>(&path, &query).await {
            Ok(_) => {
                self.lost.insert(name.to_owned());
            }
            Err(error) => {
                self.say(format!(
                    "{name}: the scheduler could not be told that it is off: {error}"
                ))
                .await;
            }
        }
    }

    async fn power_on(&mut self, name: &str) -> Vec<String> {
        if self.supervisor.state(&berthd_name(name)).pid.is_some() {
            return vec![format!("{name} runs already")];
        }
        if let Err(error) = self.bring_back(name).await {
            return vec![crate::exit::chain(&error)];
        }
        self.supervisor.start(&keeper_name(name)).await;
        self.supervisor.start(&berthd_name(name)).await;
        Vec::new()
    }

    /// A machine that was only silent comes back with its disk. One that was declared off for good is another machine of
    /// the same name: its old replicas run elsewhere by now, and a disk that still knows them would start them twice.
    async fn bring_back(&mut self, name: &str) -> Result<(), StartError> {
        if self.lost.remove(name) {
            for path in [self.layout.machine(name), self.layout.run_dir(name)] {
                std::fs::remove_dir_all(&path).map_err(|source| StartError::Write { path, source })?;
            }
            if let Some(machine) = self
                .record
                .machines
                .iter_mut()
                .find(|machine| machine.name == name)
            {
                machine.remade += 1;
            }
            self.record
                .save(&self.layout)
                .map_err(|source| StartError::Write {
                    path: self.layout.record(),
                    source,
                })?;
        }
        self.lay_out(name)?;
        if let Some(machine) = self.record.machine(name) {
            network::create_again(&self.record, machine, &self.layout).await?;
        }
        Ok(())
    }

    pub(crate) fn view(&self) -> InstanceView {
        let (record, layout) = (&self.record, &self.layout);
        InstanceView {
            id: record.id.clone(),
            ready: self.ready,
            server: self.server(),
            cluster: record.cluster_id.clone(),
            management_token_file: config::management_token(layout),
            platform_token_file: config::platform_token(layout),
            gateway: record.gateway().to_string(),
            container_cidr: record.container_cidr.to_string(),
            volumes: layout.volumes(),
            containerd_socket: layout.containerd_socket(),
            logs: layout.logs(),
            scheduler_pid: self.supervisor.state("scheduler").pid,
            containerd_pid: self.supervisor.state("containerd").pid,
            machines: record
                .machines
                .iter()
                .map(|machine| MachineView {
                    name: machine.name.clone(),
                    zone: machine.zone.clone(),
                    ip: machine.address.to_string(),
                    netns: layout.netns(&machine.name),
                    containerd_namespace: config::containerd_namespace(record, &machine.name),
                    cgroup: record.machine_cgroup(&machine.name),
                    daemon_pid: self.supervisor.state(&berthd_name(&machine.name)).pid,
                    keeper_pid: self.supervisor.state(&keeper_name(&machine.name)).pid,
                    container_pids: proc::in_cgroup(&record.machine_cgroup(&machine.name))
                        .into_iter()
                        .collect(),
                })
                .collect(),
        }
    }

    /// Stops every program, daemons first so that nobody restarts what is ended, then takes all the rest away.
    pub(crate) async fn end(self, files: teardown::Files) -> Vec<String> {
        let names = self.supervisor.names();
        let daemons = names.iter().filter(|name| name.ends_with("/berthd"));
        futures::future::join_all(daemons.map(|name| self.supervisor.stop(name, STOP_GRACE))).await;
        for machine in &self.record.machines {
            // What is left is told by the last sweep.
            teardown::kill_machine(&self.record, &machine.name).await;
        }
        futures::future::join_all(names.iter().map(|name| self.supervisor.stop(name, STOP_GRACE))).await;
        teardown::teardown(&self.record, &self.layout, files).await
    }
}

/// Names of the programs in a machine's directory of programs.
const BERTHD: &str = "berthd";
const KEEPER: &str = "berth-logkeeper";

fn berthd_name(machine: &str) -> String {
    format!("{machine}/berthd")
}

fn keeper_name(machine: &str) -> String {
    format!("{machine}/keeper")
}
