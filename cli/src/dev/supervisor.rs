//! Runs the programs of an instance the way an init system does: output to a file, restarted when they die.
//!
//! One task per program is the only one that starts, signals and awaits it.
//!
//! ```text
//!            ended by itself                 Start
//! running ──────────────────▶ delay ─▶ running ◀──── resting
//!    └── Stop, PowerOff ─────────────────────────────────▲
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::time::monotonic;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::kept::Kept;
use super::proc::{self, INSTANCE_VARIABLE};

/// A program's first restart comes after this long, so that the loss can be seen; it doubles up to the maximum.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(500);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(8);
/// A program that ran this long starts with the first delay again.
const GOOD_RUN: Duration = Duration::from_secs(20);
/// How much of a dead program's log is shown.
const TAIL_LINES: usize = 8;
const TAIL_BYTES: u64 = 8192;

/// How one program is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Unique in the instance, for example `m1/berthd`.
    pub(crate) name: String,
    pub(crate) instance: String,
    pub(crate) executable: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// The network namespace it runs in, unless the host's.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) log: PathBuf,
    /// Where it may ask to have sockets kept over its restarts, as systemd does it.
    pub(crate) keeps: Option<PathBuf>,
}

impl Program {
    /// The command, with the kept sockets as standard input and output: a shell puts them where the program looks for them, and
    /// becomes it.
    fn command(&self, kept: &Kept) -> std::io::Result<Command> {
        let [(first, udp), (second, tcp)] = kept.sockets() else {
            return Ok(self.plain_command());
        };
        let script = "exec 3<&0 4>&1 0</dev/null 1>&2; LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let plain = self.plain_command();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .arg(plain.as_std().get_program())
            .args(plain.as_std().get_args())
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", format!("{first}:{second}"))
            .stdin(udp.try_clone()?)
            .stdout(tcp.try_clone()?);
        Ok(command)
    }

    fn plain_command(&self) -> Command {
        let mut command = match &self.netns {
            // nsenter executes the program in its own place: the process id stays.
            Some(netns) => {
                let mut net = OsString::from("--net=");
                net.push(netns);
                let mut command = Command::new("nsenter");
                command.arg(net).arg("--").arg(&self.executable);
                command
            }
            None => Command::new(&self.executable),
        };
        command.args(&self.arguments);
        command
    }

    fn start(&self, kept: &Kept) -> std::io::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)?;
        let mut command = self.command(kept)?;
        if kept.sockets().len() != 2 {
            command.stdin(Stdio::null()).stdout(log.try_clone()?);
        }
        if let Some(path) = &self.keeps {
            command.env("NOTIFY_SOCKET", path);
        }
        command
            .env(INSTANCE_VARIABLE, &self.instance)
            .env("PATH", super::preflight::search_path())
            .stderr(log)
            // The terminal's Ctrl-C is for the supervisor alone.
            .process_group(0)
            .spawn()
    }
}

/// What a program is told.
#[derive(Debug)]
enum Order {
    Start,
    /// SIGTERM, after the grace SIGKILL; stays down.
    Stop(Duration),
    /// SIGKILL; stays down.
    PowerOff,
    /// SIGKILL; restarted as after any other death.
    Crash,
}

type Orders = mpsc::Receiver<(Order, oneshot::Sender<()>)>;

/// What is known of a program at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) pid: Option<u32>,
    /// Starts so far.
    pub(crate) starts: u32,
}

type Table = Arc<Mutex<BTreeMap<String, State>>>;

/// Owner of the instance's programs.
#[derive(Debug)]
pub(crate) struct Supervisor {
    tasks: JoinSet<()>,
    orders: BTreeMap<String, mpsc::Sender<(Order, oneshot::Sender<()>)>>,
    table: Table,
    notices: mpsc::Sender<String>,
}

impl Supervisor {
    /// `notices` takes what a person should see, such as a death and its last words. A full queue drops it: the log file has all.
    pub(crate) fn new(notices: mpsc::Sender<String>) -> Self {
        Self {
            tasks: JoinSet::new(),
            orders: BTreeMap::new(),
            table: Table::default(),
            notices,
        }
    }

    /// Starts a program and keeps it running.
    pub(crate) fn add(&mut self, program: Program) {
        let (sender, receiver) = mpsc::channel(4);
        self.orders.insert(program.name.clone(), sender);
        let task = Task {
            program,
            table: self.table.clone(),
            notices: self.notices.clone(),
        };
        self.tasks.spawn(task.run(receiver));
    }

    pub(crate) fn state(&self, name: &str) -> State {
        lock(&self.table).get(name).copied().unwrap_or_default()
    }

    /// Starts a program that was stopped; returns when it has been told.
    pub(crate) async fn start(&self, name: &str) {
        self.order(name, Order::Start).await;
    }

    /// Stops a program and waits for its end.
    pub(crate) async fn stop(&self, name: &str, grace: Duration) {
        self.order(name, Order::Stop(grace)).await;
    }

    /// Ends a program without warning; it stays down.
    pub(crate) async fn power_off(&self, name: &str) {
        self.order(name, Order::PowerOff).await;
    }

    /// Ends a program without warning; it is restarted.
    pub(crate) async fn crash(&self, name: &str) {
        self.order(name, Order::Crash).await;
    }

    async fn order(&self, name: &str, order: Order) {
        let (done, wait) = oneshot::channel();
        if let Some(orders) = self.orders.get(name)
            && orders.send((order, done)).await.is_ok()
        {
            // The task drops the sender when it ends, which is an answer as well.
            drop(wait.await);
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.orders.keys().cloned().collect()
    }

    /// Waits for ended children that no task waits for: shims and their orphans, adopted by this process.
    pub(crate) fn reap_orphans(&self, seen_before: &mut std::collections::BTreeSet<u32>) {
        let own: Vec<u32> = lock(&self.table).values().filter_map(|state| state.pid).collect();
        let ended: std::collections::BTreeSet<u32> = proc::children_ended()
            .into_iter()
            .filter(|pid| !own.contains(pid))
            .collect();
        // Seen twice: a child of a tool call is awaited by its caller well before the second look.
        proc::reap(&ended.intersection(seen_before).copied().collect());
        *seen_before = ended;
    }
}

fn lock(table: &Table) -> std::sync::MutexGuard<'_, BTreeMap<String, State>> {
    // The table stays whole whatever a holder did.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    program: Program,
    table: Table,
    notices: mpsc::Sender<String>,
}

/// Why a wait is over.
enum Turn {
    /// The program ended without an order to stay down.
    Ended(Option<ExitStatus>),
    /// Ordered down; it is.
    Rest,
    /// The supervisor is gone.
    Closed,
}

impl Task {
    async fn run(self, mut orders: Orders) {
        let mut delay = RESTART_DELAY_MIN;
        let mut kept = Kept::open(self.program.keeps.as_deref());
        loop {
            let began = monotonic();
            let log_start = std::fs::metadata(&self.program.log).map_or(0, |meta| meta.len());
            let turn = match self.program.start(&kept) {
                Ok(child) => self.attend(child, &mut orders, &mut kept).await,
                Err(error) => {
                    self.notify(format!("{} cannot be started: {error}", self.program.name));
                    Turn::Ended(None)
                }
            };
            self.set_pid(None);
            if monotonic().duration_since(began) >= GOOD_RUN {
                delay = RESTART_DELAY_MIN;
            }
            let go_on = match turn {
                Turn::Ended(status) => {
                    self.report(status, delay, log_start);
                    let next = pause(delay, &mut orders, &mut kept).await;
                    delay = (delay * 2).min(RESTART_DELAY_MAX);
                    next
                }
                Turn::Rest => {
                    kept.clear();
                    rest(&mut orders).await
                }
                Turn::Closed => false,
            };
            if !go_on {
                return;
            }
        }
    }

    async fn attend(&self, mut child: Child, orders: &mut Orders, kept: &mut Kept) -> Turn {
        self.set_pid(child.id());
        loop {
            tokio::select! {
                // Cancel-safe: a status that was not taken is given again.
                status = child.wait() => {
                    kept.take_all();
                    return Turn::Ended(status.ok());
                }
                // Cancel-safe: what is not taken stays in the socket.
                () = kept.ready() => kept.take_all(),
                // Cancel-safe: an order is taken only when this arm wins.
                order = orders.recv() => match order {
                    None => {
                        end(&mut child, Duration::ZERO).await;
                        return Turn::Closed;
                    }
                    Some((Order::Start, done)) => acknowledge(done),
                    Some((Order::Crash, done)) => {
                        drop(child.start_kill());
                        acknowledge(done);
                    }
                    Some((order @ (Order::Stop(_) | Order::PowerOff), done)) => {
                        let grace = if let Order::Stop(grace) = order { grace } else { Duration::ZERO };
                        end(&mut child, grace).await;
                        self.set_pid(None);
                        acknowledge(done);
                        return Turn::Rest;
                    }
                },
            }
        }
    }

    fn set_pid(&self, pid: Option<u32>) {
        let mut table = lock(&self.table);
        let state = table.entry(self.program.name.clone()).or_default();
        state.pid = pid;
        if pid.is_some() {
            state.starts += 1;
        }
    }

    fn report(&self, status: Option<ExitStatus>, delay: Duration, log_start: u64) {
        let Some(status) = status else { return };
        let name = &self.program.name;
        let mut text = format!(
            "{name} ended ({status}); starts again in {:.1} s",
            delay.as_secs_f32()
        );
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        if !killed {
            for line in tail(&self.program.log, log_start) {
                text.push_str("\n    ");
                text.push_str(&line);
            }
        }
        self.notify(text);
    }

    fn notify(&self, text: String) {
        drop(self.notices.try_send(text));
    }
}

/// Tells who ordered that it is done; a caller that left does not need to know.
fn acknowledge(done: oneshot::Sender<()>) {
    done.send(()).ok();
}

/// Ends a child: SIGTERM, and SIGKILL when the grace is over.
async fn end(child: &mut Child, grace: Duration) {
    if !grace.is_zero()
        && let Some(pid) = child.id()
    {
        proc::signal(pid, Signal::TERM);
        if tokio::time::timeout(grace, child.wait()).await.is_ok() {
            return;
        }
    }
    drop(child.kill().await);
}

/// Waits before a restart; false when the supervisor is gone.
async fn pause(delay: Duration, orders: &mut Orders, kept: &mut Kept) -> bool {
    let over = tokio::time::sleep(delay);
    tokio::pin!(over);
    loop {
        tokio::select! {
            // Cancel-safe: the same sleep is polled again.
            () = &mut over => return true,
            // Cancel-safe: an order is taken only when this arm wins.
            order = orders.recv() => match order {
                None => return false,
                Some((Order::Start, done)) => {
                    acknowledge(done);
                    return true;
                }
                Some((Order::Crash, done)) => acknowledge(done),
                Some((Order::Stop(_) | Order::PowerOff, done)) => {
                    kept.clear();
                    acknowledge(done);
                    return rest(orders).await;
                }
            },
        }
    }
}

/// Waits for the order to start; false when the supervisor is gone.
async fn rest(orders: &mut Orders) -> bool {
    while let Some((order, done)) = orders.recv().await {
        acknowledge(done);
        if matches!(order, Order::Start) {
            return true;
        }
    }
    false
}

/// The last lines of a log file after this many bytes.
pub(crate) fn tail(path: &Path, start: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size_bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(size_bytes.saturating_sub(TAIL_BYTES).max(start)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(log: &Path, script: &str) -> Program {
        Program {
            name: "m1/berthd".into(),
            instance: format!("s{}", std::process::id()),
            executable: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            netns: None,
            log: log.into(),
            keeps: None,
        }
    }

    async fn wait_for(supervisor: &Supervisor, accept: impl Fn(State) -> bool) -> State {
        for _ in 0..500 {
            let state = supervisor.state("m1/berthd");
            if accept(state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never reached; it is {:?}", supervisor.state("m1/berthd"));
    }

    #[tokio::test]
    async fn a_killed_program_comes_back_with_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let (notices, mut heard) = mpsc::channel(8);
        let mut supervisor = Supervisor::new(notices);
        supervisor.add(program(&dir.path().join("log"), "exec sleep 60"));
        let first = wait_for(&supervisor, |state| state.pid.is_some()).await;
        supervisor.crash("m1/berthd").await;
        let second = wait_for(&supervisor, |state| state.starts == 2 && state.pid.is_some()).await;
        assert_ne!(first.pid, second.pid);
        assert!(heard.recv().await.unwrap().contains("starts again"));
        supervisor.stop("m1/berthd", Duration::from_secs(5)).await;
        assert_eq!(supervisor.state("m1/berthd").pid, None);
    }

    #[tokio::test]
    async fn a_powered_off_program_stays_down_until_it_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let (notices, _heard) = mpsc::channel(8);
        let mut supervisor = Supervisor::new(notices);
        supervisor.add(program(&dir.path().join("log"), "exec sleep 60"));
        wait_for(&supervisor, |state| state.pid.is_some()).await;
        supervisor.power_off("m1/berthd").await;
        tokio::time::sleep(RESTART_DELAY_MIN * 2).await;
        assert_eq!(supervisor.state("m1/berthd").starts, 1);
        supervisor.start("m1/berthd").await;
        wait_for(&supervisor, |state| state.starts == 2).await;
    }

    #[tokio::test]
    async fn a_death_is_reported_with_the_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let (notices, mut heard) = mpsc::channel(8);
        let mut supervisor = Supervisor::new(notices);
        supervisor.add(program(&dir.path().join("log"), "echo no disk >&2; exit 4"));
        let notice = heard.recv().await.unwrap();
        assert!(
            notice.contains("exit status: 4") && notice.ends_with("no disk"),
            "{notice}"
        );
    }

    #[test]
    fn the_tail_is_the_end_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
        std::fs::write(&path, text.join("\n")).unwrap();
        assert_eq!(tail(&path, 0).last().unwrap(), "4999");
        assert_eq!(tail(&path, 0).len(), TAIL_LINES);
        assert!(tail(&dir.path().join("none"), 0).is_empty());
    }
}
