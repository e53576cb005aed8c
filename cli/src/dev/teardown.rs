//! Takes everything of an instance away again. Works from the record alone, so that it serves the orderly end, a start
//! that failed half-way and what a crashed run left behind. Each step is idempotent; what could not be removed is told.

use std::path::Path;
use std::time::Duration;

use super::layout::Layout;
use super::record::{self, Record};
use super::tool::{self, ToolError};
use super::{mounts, network, proc};

/// Killing is retried this long; a process in an uninterruptible call may need it.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// Where containerd's shims put sockets and runc keeps its state, whatever containerd's own directories are.
const RUN_CONTAINERD: &str = "/run/containerd";

/// What happens to the state directory at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    Remove,
    /// After a failure: logs stay for the person who asks why.
    KeepLogs,
}

/// Removes the instance. Gives one line for each thing that is still there.
pub(crate) async fn teardown(record: &Record, layout: &Layout, files: Files) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(kill_everything(record).await);
    remove_shim_files(record, layout);
    for mount in mounts::unmount_all(&layout.root).await {
        left.push(format!("{} is still mounted", mount.display()));
    }
    for device in mounts::detach_loops(&layout.root).await {
        left.push(format!("{device} still holds a file of the instance"));
    }
    left.extend(remove_network(record).await);
    for directory in remove_cgroups(record).await {
        left.push(format!("cgroup {} cannot be removed", directory.display()));
    }
    if let Some(context) = &record.context {
        crate::context::remove_if_of(context, &record.id);
    }
    if left.is_empty() {
        left.extend(remove_files(layout, files));
    }
    if left.is_empty() {
        record::unregister(&record.id);
    }
    left
}

/// Containers first, by their cgroups: their shims then report to nobody. Then all that carries the instance's mark.
async fn kill_everything(record: &Record) -> Vec<String> {
    let cgroup = record.cgroup();
    let alive = proc::kill_all(
        || {
            let mut pids = proc::of_instance(&record.id);
            pids.extend(proc::in_cgroup(&cgroup));
            pids
        },
        KILL_DEADLINE,
    )
    .await;
    alive
        .into_iter()
        .map(|pid| format!("process {pid} does not end"))
        .collect()
}

/// Kills what runs on one machine beside its daemons: container processes and their shims.
pub(crate) async fn kill_machine(record: &Record, machine: &str) -> Vec<String> {
    let (cgroup, namespace) = (
        record.machine_cgroup(machine),
        super::config::containerd_namespace(record, machine),
    );
    let find = || {
        let mut pids = proc::with_argument(&proc::of_instance(&record.id), &namespace);
        pids.extend(proc::in_cgroup(&cgroup));
        pids
    };
    proc::kill_all(find, KILL_DEADLINE)
        .await
        .into_iter()
        .map(|pid| format!("process {pid} of {machine} does not end"))
        .collect()
}

/// What the kernel holds for one machine and loses with its power: mounts, loop devices, network namespaces.
pub(crate) async fn forget_machine(layout: &Layout, machine: &str) -> Vec<String> {
    let mut left = Vec::new();
    for place in [
        layout.netns(machine),
        layout.run_dir(machine),
        layout.machine(machine),
    ] {
        for mount in mounts::unmount_all(&place).await {
            left.push(format!("{} is still mounted", mount.display()));
        }
        for device in mounts::detach_loops(&place).await {
            left.push(format!("{device} still holds a file of {machine}"));
        }
    }
    left
}

/// A killed shim leaves its socket and runc's state in the host's own directories. The bundle says which socket.
fn remove_shim_files(record: &Record, layout: &Layout) {
    let tasks = layout.containerd_state().join("io.containerd.runtime.v2.task");
    for namespace in subdirectories(&tasks) {
        for bundle in subdirectories(&namespace) {
            if let Ok(address) = std::fs::read_to_string(bundle.join("address"))
                && let Some(socket) = address.trim().strip_prefix("unix://")
                && socket.starts_with(RUN_CONTAINERD)
            {
                drop(std::fs::remove_file(socket));
            }
        }
    }
    let prefix = format!("berth-dev-{}-", record.id);
    for state in subdirectories(&Path::new(RUN_CONTAINERD).join("runc")) {
        let name = state.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) {
            drop(std::fs::remove_dir_all(&state));
        }
    }
    // Only where nothing else of containerd was on this host; a directory in use is not empty and stays.
    if !record.run_containerd_before {
        for directory in ["s", "runc", ""] {
            drop(std::fs::remove_dir(Path::new(RUN_CONTAINERD).join(directory)));
        }
    }
}

fn subdirectories(directory: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Links by name: a namespace that something still holds open may keep its end of a cable for a moment.
async fn remove_network(record: &Record) -> Vec<String> {
    let mut left = Vec::new();
    let links = record.machines.iter().map(|machine| machine.veth.clone());
    for link in links.chain([record.bridge()]) {
        if Path::new("/sys/class/net").join(&link).exists()
            && let Err(error) = tool::run("ip", &["link", "del", &link]).await
            && Path::new("/sys/class/net").join(&link).exists()
        {
            left.push(error.to_string());
        }
    }
    let table = record.nft_table();
    match tool::run("nft", &["delete", "table", "ip", &table]).await {
        Err(ToolError::Exit { output, .. }) if output.contains("No such file") => {}
        Err(error) => left.push(error.to_string()),
        Ok(_) => {}
    }
    let others = record::registered().iter().any(|(id, _)| *id != record.id);
    if !record.forwarded_before
        && !others
        && let Err(error) = network::set_forwarding(false)
    {
        left.push(error.to_string());
    }
    left
}

/// The kernel frees a cgroup a moment after its last process has ended.
async fn remove_cgroups(record: &Record) -> Vec<std::path::PathBuf> {
    let mut left = proc::remove_cgroup(&record.cgroup());
    for _ in 0..50 {
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = proc::remove_cgroup(&record.cgroup());
    }
    left
}

fn remove_files(layout: &Layout, files: Files) -> Vec<String> {
    // Invariant: nothing is deleted through a mount.
    let mounted = mounts::below(&layout.root);
    assert!(
        mounted.is_empty(),
        "deleting below {:?} with mounts {mounted:?}",
        layout.root
    );
    let mut left = Vec::new();
    let mut remove = |result: std::io::Result<()>, path: &Path| {
        if let Err(error) = result
            && error.kind() != std::io::ErrorKind::NotFound
        {
            left.push(format!("{} cannot be removed: {error}", path.display()));
        }
    };
    match files {
        Files::Remove => remove(std::fs::remove_dir_all(&layout.root), &layout.root),
        Files::KeepLogs => {
            for entry in std::fs::read_dir(&layout.root)
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
            {
                let path = entry.path();
                if path == layout.logs() {
                    continue;
                }
                let result = if path.is_dir() && !path.is_symlink() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                remove(result, &path);
            }
        }
    }
    left
}
