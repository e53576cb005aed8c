//! containerd goes, tasks stay.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use berth_node::host::cgroup::Cgroup;
use berth_node::host::containerd::{Runtime, RuntimeConfig, RuntimeErrorClass, RuntimeEvent, TaskStatus};

use rustix::process::{Pid, Signal, kill_process};

use super::containerd::{Containerd, event, exit_of, is_alive, kill, processes, until};

#[tokio::test(flavor = "multi_thread")]
async fn fault_14_tasks_outlive_containerd() {
    let Some(mut containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    let mut pids = Vec::new();
    for id in ["dies", "lives"] {
        runtime
            .create(&containerd.plan(id, &image, "sleep 1000"))
            .await
            .unwrap();
        pids.push(runtime.start(id).await.unwrap());
    }
    containerd.kill();
    event(&mut events, &RuntimeEvent::Lost).await;
    until("it is called impaired", || runtime.impaired_since().is_some()).await;
    let error = runtime.list().await.unwrap_err();
    assert_eq!(error.class(), RuntimeErrorClass::Retry, "{error}");
    assert!(pids.iter().all(|pid| is_alive(*pid)), "tasks run on");
    assert!(runtime.usage("lives").is_some(), "usage needs no containerd");
    kill(i32::try_from(pids[0]).unwrap());

    containerd.spawn();
    event(&mut events, &RuntimeEvent::Reconnected).await;
    assert_eq!(runtime.impaired_since(), None);
    let listed = runtime.list().await.unwrap();
    let task = |id: &str| {
        listed
            .iter()
            .find(|container| container.id == id)
            .unwrap()
            .task
            .unwrap()
    };
    assert!(
        matches!(task("dies").status, TaskStatus::Stopped(exit) if exit.code == 137),
        "{:?}",
        task("dies")
    );
    assert_eq!(
        (task("lives").status, task("lives").pid),
        (TaskStatus::Running, pids[1])
    );
    // Listing has taken it over: its end is reported.
    kill(i32::try_from(pids[1]).unwrap());
    assert_eq!(exit_of(&mut events, "lives").await.code, 137);
    for id in ["dies", "lives"] {
        assert_eq!(runtime.delete(id).await.unwrap().unwrap().code, 137);
    }
    assert_eq!(containerd.shims(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_16_shim_killed() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    runtime
        .create(&containerd.plan("orphan", &image, "sleep 1000"))
        .await
        .unwrap();
    let pid = runtime.start("orphan").await.unwrap();
    for shim in containerd.shims() {
        kill(shim);
    }
    runtime.delete("orphan").await.unwrap();
    assert!(!is_alive(pid));
    assert_eq!(runtime.list().await.unwrap(), vec![]);
}

/// containerd was killed while it made a task: the directory of it is there, no task, and containerd refuses the id. Found by a soak.
#[tokio::test(flavor = "multi_thread")]
async fn fault_18_leftover_bundle_refuses_no_start() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    let tasks = containerd
        .directory
        .path()
        .join("state/io.containerd.runtime.v2.task");
    let bundle = tasks.join(&containerd.name).join("left");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    std::fs::write(bundle.join("config.json"), "{").unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(bundle.join("rootfs"))
        .status()
        .unwrap();
    assert!(mounted.success());
    runtime
        .create(&containerd.plan("left", &image, "echo runs"))
        .await
        .unwrap();
    runtime.start("left").await.unwrap();
    assert_eq!(exit_of(&mut events, "left").await.code, 0);
    until("the output arrives", || {
        containerd.read_output("left") == "runs\n"
    })
    .await;
    runtime.delete("left").await.unwrap();
    assert!(!bundle.exists());
    assert!(containerd.shims().is_empty());
}

fn signal(pid: i32, signal: Signal) {
    // One that is gone already is no fault.
    kill_process(Pid::from_raw(pid).unwrap(), signal).ok();
}

/// Everything of one container that the machine still has: bundle, mounts, what runc knows of it, shims.
fn left_of(containerd: &Containerd, id: &str) -> Vec<String> {
    let mut left: Vec<String> = containerd
        .shims()
        .iter()
        .map(|pid| format!("shim {pid}"))
        .collect();
    let state = containerd.directory.path().join("state");
    let bundle = state
        .join("io.containerd.runtime.v2.task")
        .join(&containerd.name)
        .join(id);
    for path in [
        bundle,
        Path::new("/run/containerd/runc").join(&containerd.name).join(id),
    ] {
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = state.display().to_string();
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&root))
            .map(str::to_owned),
    );
    left
}

/// The disk is so slow that no delete of a task comes back in time: neither the shim's own nor containerd's clean-up after it. It is
/// repeated until nothing is left, and says so until then.
#[tokio::test(flavor = "multi_thread")]
async fn fault_19_delete_times_out() {
    let Some(mut containerd) = Containerd::start() else {
        return;
    };
    let held = containerd.hold_deletes();
    containerd.kill();
    containerd.spawn();
    let config = RuntimeConfig {
        ping_interval: Duration::from_millis(300),
        delete_timeout: Duration::from_secs(8),
        ..RuntimeConfig::new(containerd.socket(), containerd.name.clone())
    };
    let runtime = Runtime::connect(config).unwrap();
    let image = containerd.busybox(&runtime).await;
    runtime
        .create(&containerd.plan("slow", &image, "sleep 1000"))
        .await
        .unwrap();
    let pid = runtime.start("slow").await.unwrap();

    std::fs::write(&held, "").unwrap();
    let mut attempts = 0;
    let told = loop {
        attempts += 1;
        let result = runtime.delete("slow").await;
        let left = left_of(&containerd, "slow");
        // Success is only said of what is gone.
        assert!(result.is_err() || left.is_empty(), "{left:?}");
        if attempts == 3 || result.is_ok() {
            break result;
        }
    };
    assert!(!is_alive(pid), "its process at least is gone: {told:?}");
    std::fs::remove_file(&held).unwrap();
    // What was given up goes on by itself, and must be over before the id is used again below.
    let late = containerd.directory.path().join("bin/runc").display().to_string();
    until("no late delete is under way", || {
        !processes().any(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == late.as_bytes())
        })
    })
    .await;
    // With the patience of a daemon: what is held no more still takes its time on a crowded host.
    let runtime = Runtime::connect(RuntimeConfig::new(containerd.socket(), containerd.name.clone())).unwrap();
    runtime.delete("slow").await.unwrap();
    assert_eq!(left_of(&containerd, "slow"), Vec::<String>::new());
    assert_eq!(runtime.list().await.unwrap(), vec![]);
    // The id is as good as new.
    let mut events = runtime.subscribe();
    runtime
        .create(&containerd.plan("slow", &image, "exit 3"))
        .await
        .unwrap();
    runtime.start("slow").await.unwrap();
    assert_eq!(exit_of(&mut events, "slow").await.code, 3);
    runtime.delete("slow").await.unwrap();
    assert_eq!(left_of(&containerd, "slow"), Vec::<String>::new());
}

/// containerd is away, and some of the shims that it will ask when it starts do not answer. The one of a dead task is ended; one with a
/// living task, and one that answers, are left as they are: the task runs on, and the exit code is kept.
#[tokio::test(flavor = "multi_thread")]
async fn fault_18_leftover_shims_while_containerd_is_away() {
    let Some(mut containerd) = Containerd::start() else {
        return;
    };
    let config = RuntimeConfig {
        ping_interval: Duration::from_millis(300),
        leftover_after: Duration::from_millis(500),
        ..RuntimeConfig::new(containerd.socket(), containerd.name.clone())
    };
    let runtime = Runtime::connect(config).unwrap();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    let mut pids = BTreeMap::new();
    for id in ["dead", "ends", "lives"] {
        let plan = containerd.plan(id, &image, "trap 'exit 7' TERM; while true; do sleep 0.1; done");
        runtime.create(&plan).await.unwrap();
        pids.insert(id, runtime.start(id).await.unwrap());
    }
    let shim_of = |id: &str| {
        let mut shims = containerd.shims().into_iter();
        shims.find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
        })
    };
    let shims: BTreeMap<&str, i32> = pids.keys().map(|id| (*id, shim_of(id).unwrap())).collect();
    for id in ["dead", "lives"] {
        signal(shims[id], Signal::STOP);
    }
    containerd.kill();
    Cgroup::at(&containerd.cgroup("dead")).kill_all();
    signal(i32::try_from(pids["ends"]).unwrap(), Signal::TERM);
    event(&mut events, &RuntimeEvent::Lost).await;

    let is_there = |id: &str| is_alive(u32::try_from(shims[id]).unwrap());
    until("the mute shim of the dead task is ended", || !is_there("dead")).await;
    assert!(is_there("ends") && is_there("lives"), "the others are left alone");
    assert!(is_alive(pids["lives"]), "what runs runs on");

    // It was slow, not broken; containerd 1.6 would kill it, and what it runs, after 5 s of silence at its start.
    signal(shims["lives"], Signal::CONT);
    containerd.spawn();
    event(&mut events, &RuntimeEvent::Reconnected).await;
    runtime.list().await.unwrap();
    assert_eq!(
        runtime.delete("ends").await.unwrap().unwrap().code,
        7,
        "its exit code is kept"
    );
    assert!(is_alive(pids["lives"]));
    for id in ["dead", "lives"] {
        runtime.delete(id).await.unwrap();
    }
    assert_eq!(runtime.list().await.unwrap(), vec![]);
    for id in pids.keys() {
        assert_eq!(left_of(&containerd, id), Vec::<String>::new());
    }
}
