//! `berth dev`: the scheduler and several machines on this host, each machine a network namespace with its own daemon.
//!
//! ```text
//! berth dev ─▶ leftovers away ─▶ network ─▶ containerd ─▶ scheduler, cluster ─▶ keeper and berthd of each machine ─▶ ready
//!     ▲                                                                                                           │
//!     └── Ctrl-C, SIGTERM, an error anywhere: everything away again ◀──────────────────────────────────────────────┘
//! ```
//!
//! One process owns an instance: it starts the programs, restarts what dies, and answers on the control socket. With
//! `--keep` that process goes to the background. What it makes on the host is in `dev.json` before it is made.

mod args;
mod config;
mod control;
mod instance;
mod kept;
mod layout;
mod mounts;
mod network;
mod preflight;
mod proc;
mod profile;
mod record;
mod supervisor;
mod teardown;
mod tool;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use berth_api::time::Timestamp;
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub(crate) use args::DevArgs;
use args::{DevCommand, MachineCommand, UpArgs};
use config::{Failover, Wishes};
use control::{Reply, Request};
use instance::{Instance, InstanceView, StartError};
use layout::{DEFAULT_STATE_DIR, Layout, REGISTRY_DIR};
pub(crate) use preflight::find_own;
pub(crate) use record::write_private;
use record::{MachineRecord, Record};
use teardown::Files;

use crate::args::Format;
use crate::exit::{Code, Failure, chain};
use crate::output::{self, Paint, Screen};

/// Runs `berth dev` and its subcommands.
pub(crate) async fn run(args: DevArgs, screen: &Screen) -> Result<(), Failure> {
    match args.command {
        None => up(args.up, screen).await,
        Some(DevCommand::Down { instance }) => down(instance.state_dir, screen).await,
        Some(DevCommand::List { instance, output }) => {
            let view = view(&locate(instance.state_dir)?).await?;
            match output.output {
                Format::Json => output::json(&view),
                Format::Table => output::line(instance_text(screen, &view)),
            }
        }
        Some(DevCommand::Daemon { command, instance }) => {
            let args::DaemonCommand::Kill { name } = command;
            ask(&locate(instance.state_dir)?, &Request::DaemonKill { name })
                .await
                .map(drop)
        }
        Some(DevCommand::Machine { command, instance }) => {
            let layout = locate(instance.state_dir)?;
            let request = match command {
                MachineCommand::Kill { name, silent } => Request::MachineKill { name, silent },
                MachineCommand::Start { name } => Request::MachineStart { name },
                MachineCommand::List { output } => {
                    let view = view(&layout).await?;
                    return match output.output {
                        Format::Json => output::json(&view.machines),
                        Format::Table => output::line(machine_table(screen, &view)),
                    };
                }
            };
            ask(&layout, &request).await.map(drop)
        }
    }
}

/// The instance that a subcommand means.
fn locate(state_dir: Option<PathBuf>) -> Result<Layout, Failure> {
    if let Some(root) = state_dir {
        return Ok(Layout::new(root));
    }
    let mut registered = record::registered();
    match registered.len() {
        0 => Ok(Layout::new(DEFAULT_STATE_DIR)),
        1 => Ok(Layout::new(registered.remove(0).1)),
        _ => {
            let roots: Vec<String> = registered
                .iter()
                .map(|(_, root)| format!("\n  --state-dir {}", root.display()))
                .collect();
            Err(Failure::input(format!(
                "several instances are here; say which one:{}",
                roots.concat()
            )))
        }
    }
}

async fn ask(layout: &Layout, request: &Request) -> Result<serde_json::Value, Failure> {
    match control::ask(&layout.control_socket(), request).await {
        Ok(Reply::Done(value)) => Ok(value),
        Ok(Reply::Refused { not_found, message }) => Err(Failure::new(
            if not_found { Code::NotFound } else { Code::Failed },
            message,
        )),
        Err(error) => Err(Failure::new(
            Code::Refused,
            format!(
                "no development instance answers at {}: {error}",
                layout.root.display()
            ),
        )),
    }
}

async fn view(layout: &Layout) -> Result<InstanceView, Failure> {
    let value = ask(layout, &Request::List).await?;
    serde_json::from_value(value).map_err(|error| Failure::of(Code::Failed, &error))
}

/// Makes sure that only this process owns the instance; none when another does.
fn take_lock(layout: &Layout) -> Result<Option<File>, Failure> {
    let open = || {
        std::fs::create_dir_all(&layout.root)?;
        File::create(layout.lock())
    };
    let file = open().map_err(|error| {
        Failure::failed(format!(
            "cannot write the state directory {}: {error}",
            layout.root.display()
        ))
    })?;
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .ok()
        .map(|()| file))
}

async fn up(args: UpArgs, screen: &Screen) -> Result<(), Failure> {
    let root = args.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let binaries = preflight::check(&root).map_err(|faults| {
        Failure::failed(format!(
            "this host cannot run a development instance:\n  {}",
            faults.join("\n  ")
        ))
    })?;
    refuse_foreign(&root)?;
    let layout = Layout::new(&root);
    let lock = take_lock(&layout)?.ok_or_else(|| {
        Failure::failed(format!(
            "an instance runs at {}; end it with `berth dev down`, or choose another --state-dir",
            root.display()
        ))
    })?;
    clear_crashed(&layout).await?;
    if args.keep {
        drop(lock);
        return up_in_background(&layout, screen).await;
    }
    let ending = Ending::listen()?;
    let (progress, notices) = mpsc::channel(64);
    let record = prepare(&args, &layout).await?;
    let wishes = Wishes {
        profile: args.machine_profile,
        insecure_registries: args.insecure_registry,
        failover: if args.fast_failover {
            Failover::Fast
        } else {
            Failover::Normal
        },
    };
    if let Some(warning) = network::forward_warning(&record).await {
        output::note(format!("berth: {warning}"));
    }
    let instance = Instance::new(record, layout, binaries, wishes, progress);
    own(instance, notices, ending, screen).await
    // Invariant: the lock is held until nothing of the instance is left.
}

/// What may lie in a state directory without a record: the rest of a start that ended very early.
const OWN_FILES: [&str; 8] = [
    "containerd",
    "lock",
    "logs",
    "machines",
    "run",
    "scheduler",
    "tokens",
    "volumes",
];

/// A directory with other things in it is not ours to empty.
fn refuse_foreign(root: &Path) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(root) else {
        return Ok(());
    };
    let names: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .collect();
    let ours = names.iter().any(|name| name == "dev.json")
        || names.iter().all(|name| OWN_FILES.iter().any(|own| name == own));
    if ours {
        return Ok(());
    }
    Err(Failure::input(format!(
        "{} holds other files; the state directory must be empty or new",
        root.display()
    )))
}

/// Takes away what a crashed run at this place, or a crashed run whose place is known, has left.
async fn clear_crashed(layout: &Layout) -> Result<(), Failure> {
    let mut layouts = vec![layout.clone()];
    for (id, root) in record::registered() {
        if !root.exists() {
            record::unregister(&id);
        } else if root != layout.root {
            layouts.push(Layout::new(root));
        }
    }
    for (index, other) in layouts.iter().enumerate() {
        // The first one's lock is held by the caller.
        let _lock = match index {
            0 => None,
            _ => match take_lock(other)? {
                Some(lock) => Some(lock),
                None => continue,
            },
        };
        let Some(record) = load_record(other)? else {
            continue;
        };
        output::note(format!(
            "berth: taking away what the crashed instance {} left",
            record.id
        ));
        let left = teardown::teardown(&record, other, Files::KeepLogs).await;
        if !left.is_empty() {
            return Err(leftover(&left));
        }
        if index > 0 {
            drop(std::fs::remove_dir_all(&other.root));
        }
    }
    Ok(())
}

fn load_record(layout: &Layout) -> Result<Option<Record>, Failure> {
    Record::load(layout)
        .map_err(|error| Failure::failed(format!("cannot read {}: {error}", layout.record().display())))
}

fn leftover(left: &[String]) -> Failure {
    Failure::failed(format!(
        "not everything could be removed; try again with `berth dev down`:\n  {}",
        left.join("\n  ")
    ))
}

/// Chooses names and networks and writes them down before anything is made.
async fn prepare(args: &UpArgs, layout: &Layout) -> Result<Record, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot prepare {}: {error}", layout.root.display()));
    for directory in layout.directories() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&layout.root, private).map_err(failed)?;
    std::fs::create_dir_all(REGISTRY_DIR).map_err(failed)?;
    // Held to the end of this function: another instance that starts now chooses after this one has its bridge's name
    // in the registry; its routes follow within the network step, which the registry entry's subnet stands for.
    let registry = File::create(record::registry_lock()).map_err(failed)?;
    rustix::fs::flock(&registry, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    let mut taken = network::host_routes()
        .await
        .map_err(|error| Failure::of(Code::Failed, &error))?;
    let mut ports = Vec::new();
    for (_, root) in record::registered() {
        if let Ok(Some(other)) = Record::load(&Layout::new(root)) {
            taken.extend([other.subnet, other.container_cidr]);
            ports.push(other.rest);
        }
    }
    let subnets = network::choose(&taken).ok_or_else(|| Failure::failed(network::NetworkError::NoSubnet))?;
    let rest = free_address(&ports).ok_or_else(|| {
        Failure::failed("no free port between 7600 and 7699 on 127.0.0.1 for the scheduler")
    })?;
    let id = instance_id()?;
    let record = Record {
        schema: record::SCHEMA,
        created_at: Timestamp::now(),
        cluster_id: args.cluster_id.clone(),
        subnet: subnets.underlay,
        container_cidr: subnets.containers,
        rest,
        machines: machines(args, &id, subnets.underlay),
        forwarded_before: network::forwards(),
        run_containerd_before: Path::new("/run/containerd").exists(),
        context: None,
        id,
    };
    record.save(layout).map_err(failed)?;
    record::register(&record.id, &layout.root).map_err(failed)?;
    Ok(record)
}

fn machines(args: &UpArgs, id: &str, subnet: ipnet::Ipv4Net) -> Vec<MachineRecord> {
    (0..args.machines)
        .map(|index| MachineRecord {
            name: format!("m{}", index + 1),
            zone: args.zones[index as usize % args.zones.len()].clone(),
            address: network::machine_address(subnet, index),
            veth: format!("bdev{id}-{}", index + 1),
            remade: 0,
        })
        .collect()
}

fn instance_id() -> Result<String, Failure> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| Failure::failed(format!("no random bytes: {error}")))?;
    Ok(format!("{:02x}{:02x}", bytes[0], bytes[1]))
}

/// The first address of the loopback where nothing listens.
fn free_address(taken: &[String]) -> Option<String> {
    (7600..7700u16)
        .map(|port| format!("127.0.0.1:{port}"))
        .filter(|address| !taken.contains(address))
        .find(|address| std::net::TcpListener::bind(address).is_ok())
}

/// What ends an instance from outside.
struct Ending {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Ending {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Cancel-safe: a signal that was not taken is given again.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Owns an instance from its start to its end.
async fn own(
    mut instance: Instance,
    mut notices: mpsc::Receiver<String>,
    mut ending: Ending,
    screen: &Screen,
) -> Result<(), Failure> {
    // Children whose parents ended come to this process, and are waited for.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
    let (calls, mut heard) = mpsc::channel(4);
    let mut tasks = JoinSet::new();
    let listener = UnixListener::bind(instance.layout.control_socket());
    match listener {
        Ok(listener) => drop(tasks.spawn(control::serve(listener, calls))),
        Err(error) => output::note(format!("berth: no control socket: {error}")),
    }
    let printer = async {
        while let Some(text) = notices.recv().await {
            drop(output::line(text));
        }
    };
    let work = async {
        let result = start(&mut instance, &mut heard, &mut ending).await;
        let asked = match result {
            Ok(None) => {
                drop(output::line(instance_text(screen, &instance.view())));
                attend(&mut instance, &mut heard, &mut ending).await
            }
            Ok(Some(asked)) => asked,
            Err(error) => return (instance, Err(error)),
        };
        (instance, Ok(asked))
    };
    let (instance, result) = {
        tokio::pin!(work);
        tokio::pin!(printer);
        tokio::select! {
            ended = &mut work => ended,
            // The instance holds a sender of notices: this arm never ends first.
            () = &mut printer => work.await,
        }
    };
    finish(instance, result, screen).await
}

/// Why an instance ends in order.
enum Asked {
    Signal,
    /// By `berth dev down`, which waits for the answer until all is away.
    Down(tokio::sync::oneshot::Sender<Reply>),
}

/// Brings the instance up. None when it is up, or what asked for its end before that.
async fn start(
    instance: &mut Instance,
    heard: &mut mpsc::Receiver<control::Call>,
    ending: &mut Ending,
) -> Result<Option<Asked>, StartError> {
    let start = instance.start();
    tokio::pin!(start);
    loop {
        tokio::select! {
            // Dropped half-way when another arm ends the start: what was made by then is in the record.
            result = &mut start => return result.map(|()| None),
            // Cancel-safe, as said there.
            () = ending.wait() => return Ok(Some(Asked::Signal)),
            // Cancel-safe: a call is taken only when this arm wins.
            Some((request, done)) = heard.recv() => match request {
                Request::Down => return Ok(Some(Asked::Down(done))),
                Request::Status => drop(done.send(Reply::Done(serde_json::json!({"ready": false})))),
                _ => drop(done.send(Reply::refused("the instance is still starting"))),
            },
        }
    }
}

/// Serves a running instance until its end is asked for.
async fn attend(
    instance: &mut Instance,
    heard: &mut mpsc::Receiver<control::Call>,
    ending: &mut Ending,
) -> Asked {
    let mut reap = tokio::time::interval(Duration::from_secs(1));
    reap.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Cancel-safe, as said there.
            () = ending.wait() => return Asked::Signal,
            // Cancel-safe: a tick that was not taken comes again.
            _ = reap.tick() => instance.reap(),
            // Cancel-safe: a call is taken only when this arm wins.
            Some((request, done)) = heard.recv() => match request {
                Request::Down => return Asked::Down(done),
                request => drop(done.send(instance.answer(&request).await)),
            },
        }
    }
}

async fn finish(
    instance: Instance,
    result: Result<Asked, StartError>,
    screen: &Screen,
) -> Result<(), Failure> {
    drop(output::line(screen.paint(
        Paint::Dim,
        "ending: containers, machines, networks and files go away",
    )));
    let logs = instance.layout.logs();
    let files = match &result {
        Ok(_) => Files::Remove,
        Err(_) => Files::KeepLogs,
    };
    let left = instance.end(files).await;
    match result {
        Err(error) => Err(Failure::failed(format!(
            "{}\n  logs are kept in {}{}",
            chain(&error),
            logs.display(),
            left.iter().map(|line| format!("\n  {line}")).collect::<String>()
        ))),
        Ok(asked) => {
            if let Asked::Down(done) = asked {
                let reply = match left.is_empty() {
                    true => Reply::Done(std::process::id().into()),
                    false => Reply::refused(left.join("\n")),
                };
                drop(done.send(reply));
                // The answer goes out on a task of its own, which ends with this process.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if left.is_empty() {
                drop(output::line("ended; nothing is left"));
                Ok(())
            } else {
                Err(leftover(&left))
            }
        }
    }
}

/// Ends an instance: asks its owner, or does it here when the owner is gone.
async fn down(state_dir: Option<PathBuf>, screen: &Screen) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::failed("must run as root; try sudo"));
    }
    let layout = locate(state_dir)?;
    match ask(&layout, &Request::Down).await {
        Ok(owner) => {
            wait_for_owner(&layout, &owner).await;
            output::line("ended; nothing is left")
        }
        Err(failure) if failure.code != Code::Refused => Err(failure),
        Err(_) => {
            if !layout.root.exists() {
                return output::line(screen.paint(Paint::Dim, "no instance is here"));
            }
            refuse_foreign(&layout.root)?;
            let _lock = take_lock(&layout)?
                .ok_or_else(|| Failure::failed("the instance is starting or ending; try again"))?;
            let left = match load_record(&layout)? {
                Some(record) => teardown::teardown(&record, &layout, Files::Remove).await,
                None => Vec::new(),
            };
            if !left.is_empty() {
                return Err(leftover(&left));
            }
            // Logs and lock of a start that failed.
            drop(std::fs::remove_dir_all(&layout.root));
            output::line("ended; nothing is left")
        }
    }
}

/// The owner answers with its process id just before it ends.
async fn wait_for_owner(layout: &Layout, owner: &serde_json::Value) {
    // A process that has ended and is not yet awaited has an empty command line.
    let command_line = format!("/proc/{owner}/cmdline");
    let alive = || std::fs::read(&command_line).is_ok_and(|line| !line.is_empty());
    for _ in 0..100 {
        if !layout.root.exists() && !alive() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts this program again as the owner of the instance and returns when that is ready.
async fn up_in_background(layout: &Layout, screen: &Screen) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot go to the background: {error}"));
    std::fs::create_dir_all(layout.logs()).map_err(failed)?;
    let log = layout.log_of("dev");
    let file = File::create(&log).map_err(failed)?;
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--keep");
    let mut child = tokio::process::Command::new(std::env::current_exe().map_err(failed)?)
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(failed)?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let mut shown = 0;
    let mut ending = Ending::listen()?;
    loop {
        // Cancel-safe, as said there.
        if tokio::time::timeout(Duration::ZERO, ending.wait()).await.is_ok() {
            let owner = ask(layout, &Request::Down).await?;
            wait_for_owner(layout, &owner).await;
            return Err(Failure::failed("interrupted; nothing is left"));
        }
        // Cancel-safe: both are asked again.
        let ended = tokio::time::timeout(Duration::from_millis(100), child.wait()).await;
        if let Ok(Ok(status)) = ended {
            show_progress(&log, &mut shown, screen);
            let code = if status.code() == Some(Code::Input.number().into()) {
                Code::Input
            } else {
                Code::Failed
            };
            // What went wrong was in its output.
            return Err(Failure::new(code, ""));
        }
        let ready = control::ask(&layout.control_socket(), &Request::Status).await;
        if let Ok(Reply::Done(value)) = ready
            && value.get("ready").and_then(serde_json::Value::as_bool) == Some(true)
        {
            let text = instance_text(screen, &view(layout).await?);
            output::line(text)?;
            return output::line("It runs on in the background; end it with: berth dev down");
        }
        show_progress(&log, &mut shown, screen);
    }
}

/// Shows what the background process has written since the last look.
fn show_progress(log: &Path, shown: &mut usize, screen: &Screen) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // Whole lines only; the rest comes with the next look.
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    for line in text.get(*shown..end).unwrap_or_default().lines() {
        drop(output::line(screen.paint(Paint::Dim, line)));
    }
    *shown = end.max(*shown);
}

/// What a person needs to know of a running instance.
fn instance_text(screen: &Screen, view: &InstanceView) -> String {
    let head = screen.paint(
        Paint::Bold,
        &format!(
            "{} machines run: cluster {}, instance {}",
            view.machines.len(),
            view.cluster,
            view.id
        ),
    );
    let facts = [
        ("scheduler", view.server.as_str()),
        ("token file", &view.management_token_file.display().to_string()),
        ("this host, from a machine", &view.gateway),
        ("replicas' addresses", &view.container_cidr),
        ("hostpath volumes below", &view.volumes.display().to_string()),
        ("logs", &view.logs.display().to_string()),
    ]
    .map(|(label, value)| format!("{} {value}", screen.paint(Paint::Dim, &format!("{label:<26}"))))
    .join("\n");
    format!(
        "\n{head}\n{facts}\n\n{}\n\nTry: berth status   berth apply -f STACK.json   berth dev machine kill m1\n",
        machine_table(screen, view)
    )
}

fn machine_table(screen: &Screen, view: &InstanceView) -> String {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let rows = view
        .machines
        .iter()
        .map(|machine| {
            let state = if machine.daemon_pid.is_some() {
                screen.paint(Paint::Good, "running")
            } else {
                screen.paint(Paint::Bad, "down")
            };
            vec![
                machine.name.clone(),
                state,
                machine.zone.clone(),
                machine.ip.clone(),
                pid(machine.daemon_pid),
                pid(machine.keeper_pid),
                machine.container_pids.len().to_string(),
                machine.netns.display().to_string(),
            ]
        })
        .collect();
    output::table(
        screen,
        &[
            "MACHINE",
            "STATE",
            "ZONE",
            "IP",
            "BERTHD",
            "KEEPER",
            "PROCESSES",
            "NETNS",
        ],
        rows,
    )
}
