//! A private containerd and what the tests need around it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_api::container::{CpuRange, MemoryRange};
use berth_api::time::monotonic;
use berth_api::units::{Bytes, Cpu};
use berth_node::host::cgroup::Cgroup;
use berth_node::host::containerd::{ContainerPlan, Exit, Runtime, RuntimeConfig, RuntimeEvent};
use berth_node::host::image::{Images, ImagesConfig, PulledImage};
use berth_node::host::spec::{self, SpecInput};
use berth_tests::oci_layout::Image;
use tokio::sync::broadcast;

pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// A containerd of its own; killed with all its containers when dropped.
pub(crate) struct Containerd {
    pub(crate) directory: tempfile::TempDir,
    child: Option<Child>,
    /// Unique in the kernel: namespace, cgroup parent.
    pub(crate) name: String,
}

impl Containerd {
    /// None, and a line that says why, where the test cannot run.
    pub(crate) fn start() -> Option<Self> {
        if let Some(reason) = missing() {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: {reason}").unwrap();
            return None;
        }
        // Short: the path of a socket holds 107 bytes.
        let directory = tempfile::Builder::new().prefix("brt").tempdir_in("/tmp").unwrap();
        let suffix = directory
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .replace('.', "");
        let mut containerd = Self {
            directory,
            child: None,
            name: suffix,
        };
        containerd.spawn();
        Some(containerd)
    }

    /// Makes `runc delete` hang from now on while the file exists that is given, as under a disk that takes its time. Before containerd
    /// starts a shim: it takes over at the next [`Containerd::spawn`].
    pub(crate) fn hold_deletes(&self) -> PathBuf {
        let (bin, held) = (
            self.directory.path().join("bin"),
            self.directory.path().join("held"),
        );
        fs::create_dir_all(&bin).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let runc = path.split(':').map(|directory| Path::new(directory).join("runc"));
        let runc = runc.into_iter().find(|program| program.exists()).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *\" delete \"*) while [ -e {held:?} ]; do sleep 0.1; done;; esac\nexec {runc:?} \"$@\"\n"
        );
        fs::write(bin.join("runc"), script).unwrap();
        fs::set_permissions(
            bin.join("runc"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        held
    }

    pub(crate) fn spawn(&mut self) {
        let root = self.directory.path();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{0}/c.sock\"\n[ttrpc]\naddress = \"{0}/c.sock.ttrpc\"\n",
            root.display()
        );
        fs::write(root.join("config.toml"), config).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(root.join("log"))
            .unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(root.join("config.toml"))
            .env(
                "PATH",
                format!(
                    "{}:{}",
                    root.join("bin").display(),
                    std::env::var("PATH").unwrap_or_default()
                ),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let end = monotonic() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(monotonic() < end, "containerd does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9; tasks and shims live on.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("c.sock")
    }

    /// Removes an image, and before it returns whatever nothing keeps.
    pub(crate) fn collect_garbage(&self, image: &str) {
        let status = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", &self.name, "images", "rm", "--sync", image])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn cgroup(&self, id: &str) -> String {
        format!("/{}/{id}", self.name)
    }

    pub(crate) fn runtime(&self) -> Runtime {
        let config = RuntimeConfig {
            ping_interval: Duration::from_millis(300),
            ..RuntimeConfig::new(self.socket(), self.name.clone())
        };
        Runtime::connect(config).unwrap()
    }

    /// Pids of the shims of this containerd.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let socket = self.socket();
        let socket = socket.to_string_lossy();
        processes()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.contains("containerd-shim") && line.contains(socket.as_ref()))
            })
            .collect()
    }

    /// A busybox image in this containerd.
    pub(crate) async fn busybox(&self, runtime: &Runtime) -> PulledImage {
        let layout = self.directory.path().join("layout");
        Image::busybox()
            .unwrap()
            .write_layout(&layout, "busybox")
            .unwrap();
        let images = Images::new(runtime, ImagesConfig::default()).unwrap();
        images
            .ensure(&format!("oci-layout:{}:busybox", layout.display()), |_| ())
            .await
            .unwrap()
    }

    /// A plan that runs a shell script.
    pub(crate) fn plan(&self, id: &str, image: &PulledImage, script: &str) -> ContainerPlan {
        self.plan_of(id, image, &self.input(id, image, script))
    }

    pub(crate) fn input(&self, id: &str, image: &PulledImage, script: &str) -> SpecInput {
        let file = |name: &str, text: &str| {
            let path = self.directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        SpecInput {
            command: Some(vec!["/bin/sh".into(), "-c".into(), script.into()]),
            env: BTreeMap::from([("GREETING".into(), "hello".into())]),
            image: image.config.clone(),
            user: image.user.clone(),
            hostname: id.into(),
            network_namespace: self.network_namespace(),
            cgroup_path: self.cgroup(id),
            cpu: CpuRange {
                min: Cpu::from_micros(100_000),
                desired: Cpu::from_micros(500_000),
            },
            memory: MemoryRange {
                min: Bytes::mib(16),
                desired: Bytes::mib(64),
            },
            pids_max: 64,
            nofile_max: 1024,
            resolv_conf: file("resolv.conf", "nameserver 127.0.0.1\n"),
            hosts: file("hosts", "127.0.0.1 localhost\n"),
            hostname_file: file("hostname", &format!("{id}\n")),
            mounts: Vec::new(),
        }
    }

    pub(crate) fn plan_of(&self, id: &str, image: &PulledImage, input: &SpecInput) -> ContainerPlan {
        // Two files: the shim of containerd 1.6 may close one that both streams share when the first of them ends, and
        // then loses what the other one says.
        let (stdout, stderr) = (self.output(id), self.errors(id));
        fs::write(&stdout, "").unwrap();
        fs::write(&stderr, "").unwrap();
        ContainerPlan {
            id: id.into(),
            labels: BTreeMap::from([("berth.dev/replica-id".into(), id.into())]),
            image: image.clone(),
            spec: spec::oci_spec(input).unwrap(),
            stdout,
            stderr,
            cgroup_path: self.cgroup(id),
        }
    }

    fn output(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.out"))
    }

    fn errors(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.err"))
    }

    /// What a container wrote to standard output, and behind it what it wrote to standard error.
    pub(crate) fn read_output(&self, id: &str) -> String {
        let both = [self.output(id), self.errors(id)].map(|path| fs::read_to_string(path).unwrap());
        both.concat()
    }

    /// A network namespace made once per containerd.
    fn network_namespace(&self) -> PathBuf {
        let path = PathBuf::from("/run/netns").join(&self.name);
        if !path.exists() {
            run("ip", &["netns", "add", &self.name]);
        }
        path
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for pid in self.shims() {
            kill(pid);
        }
        let parent = Cgroup::at(&format!("/{}", self.name));
        parent.kill_all();
        self.kill();
        // Mounts of tasks go with their processes; what is left is unmounted before the directory is removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = self.directory.path().to_string_lossy().into_owned();
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if path.starts_with(&root) {
                Command::new("umount").args(["-l", path]).status().ok();
            }
        }
        // A killed process leaves its cgroup only once it has ended.
        let end = monotonic() + Duration::from_secs(5);
        parent.remove();
        while parent.exists() && monotonic() < end {
            std::thread::sleep(Duration::from_millis(20));
            parent.remove();
        }
        Command::new("ip")
            .args(["netns", "del", &self.name])
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

pub(crate) fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
}

pub(crate) fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state
        .rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    for program in ["containerd", "containerd-shim-runc-v2", "runc", "ip"] {
        let found = std::env::var("PATH")
            .unwrap_or_default()
            .split(':')
            .any(|directory| Path::new(directory).join(program).exists());
        if !found {
            return Some(format!("{program} is not installed"));
        }
    }
    if Image::busybox().is_none() {
        return Some("the static busybox of Debian's package busybox-static is not installed".into());
    }
    None
}

/// Waits for the end of a task.
pub(crate) async fn exit_of(events: &mut broadcast::Receiver<RuntimeEvent>, id: &str) -> Exit {
    let wait = async {
        loop {
            if let RuntimeEvent::Exit { id: ended, exit, .. } = events.recv().await.unwrap()
                && ended == id
            {
                return exit;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("no exit of {id} within {DEADLINE:?}"))
}

pub(crate) async fn event(events: &mut broadcast::Receiver<RuntimeEvent>, wanted: &RuntimeEvent) {
    let wait = async { while events.recv().await.unwrap() != *wanted {} };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("no {wanted:?} within {DEADLINE:?}"));
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = monotonic() + DEADLINE;
    while !condition() {
        assert!(monotonic() < end, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
