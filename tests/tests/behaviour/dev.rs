//! One instance of `berth dev` for one test: starts it, asks it, breaks it, and proves at the end that it left nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use berth_api::explain::Explanation;
use berth_api::rest::operator::ReplicaView;
use berth_api::time::monotonic;
use berth_tests::oci_layout::Image;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Long enough for a crowded host; nothing is proven by how long a thing takes. A daemon looks for leftovers once a
/// minute, and may have begun its minute just before.
const PATIENCE: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(100);
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
const PROFILE: &str = "cpu=4,memory=4Gi,ephemeral=1Gi";

/// A running instance. Dropped, it is ended, and the test fails when anything of it is left.
pub(super) struct Dev {
    directory: tempfile::TempDir,
    programs: PathBuf,
    id: String,
    server: String,
}

/// What of a machine may die while its replicas run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Program {
    Daemon,
    Containerd,
}

/// An HTTP answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks again until there is a value, for at most [`PATIENCE`].
pub(super) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = monotonic();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(monotonic().duration_since(began) < PATIENCE, "never: {what}");
        std::thread::sleep(POLL);
    }
}

/// A container of the test workload, small, with a health check that a late answer alone does not fail.
pub(super) fn container(dev: &Dev, name: &str, replicas: u32) -> Value {
    json!({
        "name": name, "capacityGroup": "general", "image": dev.image(), "stateful": false, "replicas": replicas,
        "resources": {
            "cpu": {"min": "0.1", "desired": "0.25"}, "memory": {"min": "32Mi", "desired": "64Mi"},
        },
        "ports": [8080],
        "healthCheck": {
            "path": "/health", "port": 8080, "method": "GET", "timeoutSeconds": 5, "failureThreshold": 3,
        },
    })
}

/// The same, stateful, with a volume at `/wal` for each ordinal.
pub(super) fn stateful(dev: &Dev, name: &str, replicas: u32) -> Value {
    let mut declaration = container(dev, name, replicas);
    let root = dev.state().join("volumes").join(name);
    declaration["stateful"] = json!(true);
    declaration["volumes"] = (0..replicas)
        .map(|ordinal| {
            json!({
                "ordinal": ordinal, "mountPath": "/wal",
                "volume": {"type": "hostpath", "path": root.join(ordinal.to_string())},
            })
        })
        .collect();
    declaration
}

impl Dev {
    /// Starts an instance; none, and a line that says so, where that is not possible.
    pub(super) fn up(machines: u32) -> Option<Self> {
        Self::start(machines, &[], |_| ())
    }

    /// The same, after something was done to its directory, of which `state` will be the state's.
    pub(super) fn up_after(machines: u32, prepare: impl FnOnce(&Path)) -> Option<Self> {
        Self::start(machines, &[], prepare)
    }

    /// The same, with machines that count as silent after three seconds, which a crowded host may take from one that is well.
    pub(super) fn up_and_soon_silent(machines: u32) -> Option<Self> {
        Self::start(machines, &["--fast-failover"], |_| ())
    }

    fn start(machines: u32, options: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for namespaces, mounts and containers");
            return None;
        }
        let test = std::env::current_exe().unwrap();
        let programs = test.parent().unwrap().parent().unwrap().to_owned();
        for program in ["berth", "berth-scheduler", "berthd", "berth-logkeeper"] {
            let path = programs.join(program);
            assert!(
                path.exists(),
                "{path:?} is missing: cargo build --workspace --bins"
            );
        }
        let directory = tempfile::Builder::new()
            .prefix("bb")
            .tempdir_in("/var/tmp")
            .unwrap();
        pack_workload(&directory.path().join("image"));
        prepare(directory.path());
        let mut dev = Self {
            directory,
            programs,
            id: String::new(),
            server: String::new(),
        };
        let state = dev.state().display().to_string();
        let machines = machines.to_string();
        let mut arguments = vec!["dev", "--keep", "--machines", &machines];
        arguments.extend(["--machine-profile", PROFILE, "--state-dir", &state]);
        arguments.extend(options);
        dev.succeed(&arguments);
        let list = dev.list();
        dev.id = list["id"].as_str().unwrap().to_owned();
        dev.server = list["server"]
            .as_str()
            .unwrap()
            .trim_start_matches("http://")
            .to_owned();
        Some(dev)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub(super) fn image(&self) -> String {
        format!("oci-layout:{}", self.path("image").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of("berth", arguments)
    }

    /// A program of Berth's, or of the host when it has no such one, that finds this instance.
    pub(super) fn command_of(&self, program: &str, arguments: &[&str]) -> Command {
        let own = self.program(program);
        let mut command = if own.exists() {
            Command::new(own)
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `berth`.
    pub(super) fn berth(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(super) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.berth(arguments);
        let said = text(&output.stdout);
        assert!(
            output.status.success(),
            "{arguments:?}: {said}{}",
            text(&output.stderr)
        );
        said
    }

    pub(super) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }

    /// `berth dev ..` for this instance.
    pub(super) fn dev(&self, arguments: &[&str]) -> String {
        let state = self.state().display().to_string();
        self.succeed(&[&["dev"], arguments, &["--state-dir", &state]].concat())
    }

    pub(super) fn list(&self) -> Value {
        serde_json::from_str(&self.dev(&["list", "-o", "json"])).unwrap()
    }

    /// A machine as `berth dev` lists it.
    pub(super) fn machine(&self, name: &str) -> Value {
        let list = self.list();
        let machines = list["machines"].as_array().unwrap();
        machines
            .iter()
            .find(|machine| machine["name"] == name)
            .unwrap()
            .clone()
    }

    /// The process of a machine's daemon, once it runs.
    pub(super) fn daemon(&self, machine: &str) -> u32 {
        until("a daemon runs", || pid_of(&self.machine(machine)["daemonPid"]))
    }

    /// The process of a program of the first machine, once it is another than before.
    pub(super) fn another(&self, program: Program, before: Option<u32>) -> u32 {
        until("a program runs", || {
            let pid = match program {
                Program::Daemon => pid_of(&self.machine("m1")["daemonPid"]),
                Program::Containerd => pid_of(&self.list()["containerdPid"]),
            };
            pid.filter(|pid| Some(*pid) != before)
        })
    }

    /// Declares containers; what is declared already and not named stays.
    pub(super) fn declare(&self, containers: &[Value], arguments: &[&str]) -> Output {
        let file = self.path("containers.json");
        std::fs::write(&file, serde_json::to_vec(containers).unwrap()).unwrap();
        let file = file.display().to_string();
        self.berth(&[&["apply", "--yes", "-f", &file], arguments].concat())
    }

    /// Declares containers and waits until all is healthy.
    pub(super) fn apply(&self, containers: &[Value]) {
        let output = self.declare(containers, &["--timeout", "150s"]);
        assert!(
            output.status.success(),
            "{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }

    pub(super) fn apply_at_once(&self, containers: &[Value]) {
        let output = self.declare(containers, &["--no-wait"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// Deletes a container and waits until its replicas are gone.
    pub(super) fn delete(&self, name: &str) {
        self.succeed(&["delete", "--yes", name]);
        until("the replicas of a deleted container are gone", || {
            self.of(name).is_empty().then_some(())
        });
    }

    pub(super) fn replicas(&self) -> Vec<ReplicaView> {
        serde_json::from_value(self.json(&["get", "replicas", "-o", "json"])).unwrap()
    }

    /// The replicas of a container, by id.
    pub(super) fn of(&self, container: &str) -> Vec<ReplicaView> {
        let mut replicas = self.replicas();
        replicas.retain(|replica| replica.container.as_str() == container);
        replicas.sort_by(|a, b| a.replica_id.cmp(&b.replica_id));
        replicas
    }

    pub(super) fn find(&self, id: &str) -> Option<ReplicaView> {
        self.replicas()
            .into_iter()
            .find(|replica| replica.replica_id.as_str() == id)
    }

    pub(super) fn replica(&self, id: &str) -> ReplicaView {
        self.find(id).unwrap_or_else(|| panic!("{id} is no replica"))
    }

    /// Waits until a container has exactly so many replicas and all are ready.
    pub(super) fn until_ready(&self, container: &str, count: usize) -> Vec<ReplicaView> {
        until(&format!("{count} of {container} are ready"), || {
            let replicas = self.of(container);
            (replicas.len() == count && replicas.iter().all(|replica| replica.ready)).then_some(replicas)
        })
    }

    /// Waits until the rollouts of containers are over: until then a container's own description changes by itself.
    pub(super) fn until_rolled_out(&self, names: &[&str]) {
        for name in names {
            until(&format!("the rollout of {name} is over"), || {
                let rollout = self.json(&["rollout", "status", name, "-o", "json"]);
                (rollout["phase"] == "completed").then_some(())
            });
        }
    }

    /// Waits until a replica is as it should be.
    pub(super) fn until_replica(
        &self,
        id: &str,
        what: &str,
        check: impl Fn(&ReplicaView) -> bool,
    ) -> ReplicaView {
        until(&format!("{id} {what}"), || self.find(id).filter(&check))
    }

    /// Asks a replica over HTTP, from inside its machine.
    pub(super) fn try_ask(&self, replica: &ReplicaView, path: &str) -> std::io::Result<Answer> {
        ask_inside(&self.netns(replica), replica.ip.unwrap(), path)
    }

    fn netns(&self, replica: &ReplicaView) -> PathBuf {
        let machine = replica.machine_id.as_ref().unwrap().as_str();
        self.state().join("run/netns").join(machine)
    }

    /// Says, each time it is called and from any thread, whether a replica finds something under a name.
    pub(super) fn asker(&self, from: &ReplicaView, name: &str) -> impl Fn() -> bool + Send + use<> {
        let (netns, address, path) = (
            self.netns(from),
            from.ip.unwrap(),
            format!("/resolve?name={name}"),
        );
        move || {
            let answer = ask_inside(&netns, address, &path);
            answer.is_ok_and(|answer| answer.status == 200 && !answer.body.is_empty())
        }
    }

    /// A request to a replica, from inside its machine, that it is at work on until the connection is dropped.
    pub(super) fn hold(&self, replica: &ReplicaView) -> TcpStream {
        let machine = replica.machine_id.as_ref().unwrap().as_str();
        let netns = self.state().join("run/netns").join(machine);
        let file = std::fs::File::open(netns).unwrap();
        let to = SocketAddr::from((replica.ip.unwrap(), 8080));
        let connecting = std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut stream = TcpStream::connect_timeout(&to, ANSWER_DEADLINE).unwrap();
            let request = "GET /burn?threads=1&ms=3600000 HTTP/1.1\r\nhost: replica\r\n\r\n";
            stream.write_all(request.as_bytes()).unwrap();
            stream
        });
        connecting.join().unwrap()
    }

    pub(super) fn ask(&self, replica: &ReplicaView, path: &str) -> String {
        let id = &replica.replica_id;
        let answer = self
            .try_ask(replica, path)
            .unwrap_or_else(|error| panic!("{id} {path}: {error}"));
        assert_eq!(answer.status, 200, "{id} {path}: {}", answer.body);
        answer.body
    }

    /// What a replica finds under a name.
    pub(super) fn resolve(&self, from: &ReplicaView, name: &str) -> BTreeSet<IpAddr> {
        match self.try_ask(from, &format!("/resolve?name={name}")) {
            Ok(Answer { status: 200, body }) => body.lines().map(|line| line.parse().unwrap()).collect(),
            _ => BTreeSet::new(),
        }
    }

    pub(super) fn crash(&self, replica: &ReplicaView) {
        drop(self.try_ask(replica, "/crash?code=7"));
    }

    pub(super) fn explain(&self, name: &str) -> Explanation {
        serde_json::from_value(self.json(&["explain", name, "-o", "json"])).unwrap()
    }

    /// Waits until the explanation of something has a text in it, and gives it.
    pub(super) fn until_explained(&self, name: &str, part: &str) -> Explanation {
        let mut last = String::new();
        until(&format!("explain {name} says {part:?}"), || {
            let explanation = self.explain(name);
            let now = explanation.to_string();
            if now != last {
                eprintln!("{now}");
                last.clone_from(&now);
            }
            now.contains(part).then_some(explanation)
        })
    }

    /// Events of one reason about one object.
    pub(super) fn events(&self, reason: &str, object: &str) -> Vec<Value> {
        let reply = self.json(&["events", "-o", "json", "--limit", "1000"]);
        let events = reply["events"].as_array().unwrap().iter();
        events
            .filter(|event| event["reason"] == reason && event["involvedObject"]["id"] == object)
            .cloned()
            .collect()
    }

    /// Asks the scheduler's REST API with the management token.
    pub(super) fn rest(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let token = std::fs::read_to_string(self.state().join("tokens/management")).unwrap();
        let body = body.map(ToString::to_string).unwrap_or_default();
        let head = format!(
            "{method} /clusters/dev{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
            self.server,
            token.trim()
        );
        let answer = http(self.server.parse().unwrap(), &head, &body).unwrap();
        (
            answer.status,
            serde_json::from_str(&answer.body).unwrap_or(Value::Null),
        )
    }

    /// Waits until the log of a replica that counts in it (`LOG_PER_SECOND`) has come to a number; each one up to there is in it once and
    /// in order.
    pub(super) fn until_counted(&self, replica: &str, number: usize) {
        until(&format!("{replica} has counted to {number}"), || {
            let log = self.succeed(&["logs", replica]);
            let ticks = log.lines().filter_map(|line| line.strip_prefix("tick "));
            let ticks: Vec<usize> = ticks.map(|tick| tick.parse().unwrap()).collect();
            for (expected, tick) in ticks.iter().enumerate() {
                assert_eq!(expected, *tick, "{replica} has lost or doubled a line");
            }
            (ticks.len() > number).then_some(())
        });
    }

    /// How far a replica that counts has come.
    pub(super) fn counted(&self, replica: &str) -> usize {
        let last = self.succeed(&["logs", replica, "--tail", "1"]);
        last.trim()
            .strip_prefix("tick ")
            .and_then(|tick| tick.parse().ok())
            .unwrap_or(0)
    }

    /// What a program of the instance has written.
    pub(super) fn words_of(&self, program: &str) -> String {
        std::fs::read_to_string(self.state().join("logs").join(format!("{program}.log"))).unwrap_or_default()
    }

    /// `berth logs -f` of something, into a file.
    pub(super) fn follow(&self, name: &str) -> Follower {
        let file = self.path(&format!("follow-{name}"));
        let child = self
            .command(&["logs", "-f", name])
            .stdout(std::fs::File::create(&file).unwrap())
            .spawn()
            .unwrap();
        Follower { child, file }
    }

    /// The processes of each replica, by the cgroups they are in: the kernel's word, not Berth's.
    pub(super) fn processes(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let marker = format!(":/berth-dev-{}/", self.id);
        let mut found: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for pid in all_pids() {
            let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let program = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let place = cgroups.lines().find_map(|line| line.split_once(&marker));
            if let Some((_, place)) = place
                && !program.is_empty()
                && let Some((_, replica)) = place.split_once('/')
            {
                found.entry(replica.to_owned()).or_default().insert(pid);
            }
        }
        found
    }

    /// One process per replica: replica id and process id.
    pub(super) fn pids(&self) -> BTreeMap<String, u32> {
        self.processes()
            .into_iter()
            .map(|(replica, pids)| {
                assert_eq!(pids.len(), 1, "{replica} has {pids:?}");
                (replica, pids.into_iter().next().unwrap())
            })
            .collect()
    }

    /// Waits until what runs is what is declared, with nothing beside it: processes, containers, network namespaces.
    pub(super) fn until_tidy(&self) {
        let mut difference = String::new();
        let began = monotonic();
        while let Some(found) = self.untidy() {
            difference = found;
            assert!(
                monotonic().duration_since(began) < PATIENCE,
                "never tidy: {difference}"
            );
            std::thread::sleep(POLL);
        }
        drop(difference);
    }

    fn untidy(&self) -> Option<String> {
        let replicas = self.replicas();
        let wanted: BTreeSet<String> = replicas
            .iter()
            .map(|replica| replica.replica_id.to_string())
            .collect();
        let processes = self.processes();
        let running: BTreeSet<String> = processes.keys().cloned().collect();
        if running != wanted || processes.values().any(|pids| pids.len() != 1) {
            return Some(format!("{processes:?} run, {wanted:?} are wanted"));
        }
        let list = self.list();
        let socket = list["containerdSocket"].as_str().unwrap();
        for machine in list["machines"].as_array().unwrap() {
            let name = machine["name"].as_str().unwrap();
            let here: BTreeSet<String> = replicas
                .iter()
                .filter(|replica| replica.machine_id.as_ref().is_some_and(|id| id.as_str() == name))
                .map(|replica| replica.replica_id.to_string())
                .collect();
            let namespace = machine["containerdNamespace"].as_str().unwrap();
            let containers: BTreeSet<String> =
                output_of("ctr", &["-a", socket, "-n", namespace, "containers", "ls", "-q"])
                    .lines()
                    .map(str::to_owned)
                    .collect();
            if containers != here {
                return Some(format!("{name}: containers {containers:?}, replicas {here:?}"));
            }
            let mut namespaces = names_in(&self.state().join("run").join(name).join("netns"));
            // Beside each lies what the daemon knows of it.
            namespaces.retain(|name| !name.ends_with(".json"));
            if namespaces.len() != here.len() {
                return Some(format!(
                    "{name}: network namespaces {namespaces:?}, replicas {here:?}"
                ));
            }
        }
        None
    }

    /// Everything on the host that belongs to the instance.
    fn left(&self) -> BTreeSet<String> {
        let state = self.state().display().to_string();
        let id = &self.id;
        let lines = |text: String, word: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.contains(word));
            lines.map(str::to_owned).collect()
        };
        let mut left = BTreeSet::new();
        left.extend(lines(output_of("ip", &["-o", "link"]), &format!("bdev{id}")));
        left.extend(lines(
            output_of("nft", &["list", "tables"]),
            &format!("berth_dev_{id}"),
        ));
        left.extend(lines(
            std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
            &state,
        ));
        left.extend(lines(output_of("losetup", &["-l", "-n"]), &state));
        let cgroup = format!("berth-dev-{id}");
        left.extend(
            output_of("find", &["/sys/fs/cgroup", "-maxdepth", "2", "-name", &cgroup])
                .lines()
                .map(str::to_owned),
        );
        let marker = format!("BERTH_DEV_INSTANCE={id}");
        for pid in all_pids() {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environ
                .split(|byte| *byte == 0)
                .any(|entry| entry == marker.as_bytes())
            {
                left.insert(format!("process {pid}"));
            }
        }
        for path in [
            self.state(),
            format!("/run/berth-dev/{id}").into(),
            self.path("config/berth/context.toml"),
        ] {
            if path.exists() {
                left.insert(path.display().to_string());
            }
        }
        left
    }

    /// The last words of every program, for a test that failed.
    fn last_words(&self) {
        for name in names_in(&self.state().join("logs")) {
            let text = std::fs::read_to_string(self.state().join("logs").join(&name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("── {name}");
            for line in &lines[lines.len().saturating_sub(12)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", text(&self.berth(&["get", "replicas"]).stdout));
            self.last_words();
        }
        let state = self.state().display().to_string();
        let output = self.berth(&["dev", "down", "--state-dir", &state]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(self.left(), BTreeSet::new(), "left behind");
        }
    }
}

/// `berth logs -f` under way; ended when dropped.
pub(super) struct Follower {
    child: Child,
    file: PathBuf,
}

impl Follower {
    pub(super) fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    pub(super) fn until(&self, part: &str) {
        let mut last = String::new();
        let began = monotonic();
        while !last.contains(part) {
            assert!(
                monotonic().duration_since(began) < PATIENCE,
                "never logged: {part:?}; there is:\n{last}"
            );
            std::thread::sleep(POLL);
            last = self.text();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn pack_workload(layout: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = format!(
        "target/{}-unknown-linux-gnu/release/berth-test-workload",
        std::env::consts::ARCH
    );
    let program = root.join(&target);
    assert!(program.exists(), "the test workload is not built: make {target}");
    let image = Image::program(&program).unwrap();
    image.write_layout(layout, "latest").unwrap();
}

/// Asks an address within a network namespace.
fn ask_inside(netns: &Path, address: IpAddr, path: &str) -> std::io::Result<Answer> {
    let file = std::fs::File::open(netns)?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n");
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        http((address, 8080).into(), &head, "")
    })
    .join()
    .unwrap()
}

/// One HTTP/1.1 exchange on a connection of its own.
fn http(to: SocketAddr, head: &str, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER_DEADLINE)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    write!(
        stream,
        "{head}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let answer = text(&bytes);
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(cut)?;
    Ok(Answer {
        status,
        body: body.to_owned(),
    })
}

pub(super) fn pid_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// Signals a process; one that is gone already is no fault.
pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).ok();
}

pub(super) fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    text(&output.unwrap_or_else(|error| panic!("{program}: {error}")).stdout)
}

pub(super) fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn all_pids() -> Vec<u32> {
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}
