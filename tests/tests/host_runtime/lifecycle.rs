//! Create, start, signal, delete: what comes back and what is left.

use berth_node::host::containerd::{RuntimeErrorClass, SignalTarget, TaskStatus};
use berth_node::host::spec::{Access, BindMount};

use super::containerd::{Containerd, exit_of, is_alive, until};

#[tokio::test(flavor = "multi_thread")]
async fn runs_a_container_and_leaves_nothing() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    // Only within one stream is there an order.
    let script = "exec 2>&1; echo $GREETING; hostname; id -u; cat /proc/self/status | grep -E 'NoNewPrivs|Seccomp:|CapBnd'; \
                  cat /data/f; echo x > /models/f || echo refused; unshare -r true || echo no namespaces; \
                  mount -t tmpfs t /tmp || echo no mounts; cat /proc/kcore | wc -c; cat /etc/hostname; exit 7";
    let mut input = containerd.input("a", &image, script);
    let volume = containerd.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "from the volume\n").unwrap();
    let mount = |destination: &str, access| BindMount {
        source: volume.clone(),
        destination: destination.into(),
        access,
    };
    input.mounts = vec![
        mount("/data", Access::ReadWrite),
        mount("/models", Access::ReadOnly),
    ];
    let plan = containerd.plan_of("a", &image, &input);
    let created = runtime.create(&plan).await.unwrap();
    let started = runtime.start("a").await.unwrap();
    assert_eq!(created, started);
    let exit = exit_of(&mut events, "a").await;
    assert_eq!(
        (exit.code, exit.oom_kills),
        (7, 0),
        "{}",
        containerd.read_output("a")
    );

    let listed = runtime.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].labels["berth.dev/replica-id"], "a");
    assert!(matches!(listed[0].task.unwrap().status, TaskStatus::Stopped(exit) if exit.code == 7));

    until("the output arrives", || {
        containerd.read_output("a").ends_with("\n0\na\n")
    })
    .await;
    let output = containerd.read_output("a");
    for expected in [
        "hello\na\n0\n",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapBnd:\t00000000a00405fb",
        "from the volume\n",
        "refused\n",
        "no namespaces\n",
        "no mounts\n",
        "\n0\na\n",
    ] {
        // NET_RAW is bit 13 of the usual 0xa80425fb.
        assert!(output.contains(expected), "{expected:?} is not in {output}");
    }
    let exit = runtime.delete("a").await.unwrap().unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(runtime.delete("a").await.unwrap(), None, "gone is success");
    assert_eq!(runtime.list().await.unwrap(), vec![]);
    assert_eq!(containerd.shims(), Vec::<i32>::new());
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_21_exit_within_milliseconds() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    for round in 0..5 {
        let id = format!("quick-{round}");
        let mut input = containerd.input(&id, &image, "");
        input.command = Some(vec!["/bin/false".into()]);
        runtime
            .create(&containerd.plan_of(&id, &image, &input))
            .await
            .unwrap();
        runtime.start(&id).await.unwrap();
        assert_eq!(exit_of(&mut events, &id).await.code, 1);
        runtime.delete(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_24_sigterm_ignored() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    let plan = containerd.plan("deaf", &image, "trap '' TERM; echo up; while :; do sleep 1; done");
    runtime.create(&plan).await.unwrap();
    let pid = runtime.start("deaf").await.unwrap();
    until("it is up", || containerd.read_output("deaf").contains("up")).await;
    runtime
        .signal("deaf", 15, SignalTarget::FirstProcess)
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(is_alive(pid));
    runtime
        .signal("deaf", 9, SignalTarget::AllProcesses)
        .await
        .unwrap();
    assert_eq!(exit_of(&mut events, "deaf").await.code, 137);
    let error = runtime
        .signal("deaf", 9, SignalTarget::FirstProcess)
        .await
        .unwrap_err();
    assert_eq!(error.class(), RuntimeErrorClass::NotFound);
    // Deleting what runs kills it.
    runtime.delete("deaf").await.unwrap();
    runtime.create(&plan).await.unwrap();
    let pid = runtime.start("deaf").await.unwrap();
    assert_eq!(runtime.delete("deaf").await.unwrap().unwrap().code, 137);
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_01_create_repeated_after_a_crash_anywhere_in_it() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let plan = containerd.plan("half", &image, "sleep 1000");
    // After the task: created, not started.
    runtime.create(&plan).await.unwrap();
    // Another life of the daemon knows nothing of the first.
    let second = containerd.runtime();
    second.create(&plan).await.unwrap();
    assert_eq!(containerd.shims().len(), 1, "one process for one id");
    // After the record: the task was never made.
    second.delete("half").await.unwrap();
    let mut crooked = plan.clone();
    crooked.stdout = "/nonexistent/fifo".into();
    crooked.stderr = "/nonexistent/fifo".into();
    assert!(second.create(&crooked).await.is_err());
    assert_eq!(
        second.list().await.unwrap(),
        vec![],
        "a create that can never succeed leaves nothing"
    );
    second.create(&plan).await.unwrap();
    let pid = second.start("half").await.unwrap();
    assert_eq!(
        second.start("half").await.unwrap(),
        pid,
        "a repeated start finds its work done"
    );
    let error = second.create(&plan).await.unwrap_err();
    assert_eq!(
        error.class(),
        RuntimeErrorClass::Exists,
        "what runs is not replaced: {error}"
    );
    assert!(is_alive(pid));
    second.delete("half").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_the_users_fault() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut input = containerd.input("none", &image, "");
    input.command = Some(vec!["/bin/nope".into()]);
    let plan = containerd.plan_of("none", &image, &input);
    let error = match runtime.create(&plan).await {
        Ok(_) => runtime.start("none").await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.is_bad_program(), "{error}");
    runtime.delete("none").await.unwrap();
    assert_eq!(containerd.shims(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_17_shim_mute() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut pids = Vec::new();
    for id in ["mute", "well"] {
        runtime
            .create(&containerd.plan(id, &image, "sleep 1000"))
            .await
            .unwrap();
        pids.push(runtime.start(id).await.unwrap());
    }
    let parent = std::fs::read_to_string(format!("/proc/{}/stat", pids[0])).unwrap();
    let shim: i32 = parent
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let shim_pid = rustix::process::Pid::from_raw(shim).unwrap();
    rustix::process::kill_process(shim_pid, rustix::process::Signal::STOP).unwrap();
    // The signal stops one thread after the other.
    let are_stopped = || {
        let threads = std::fs::read_dir(format!("/proc/{shim}/task")).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    };
    until("the shim stands still", are_stopped).await;

    let listed = runtime.list().await.unwrap();
    let status = |id: &str| {
        listed
            .iter()
            .find(|container| container.id == id)
            .unwrap()
            .task
            .unwrap()
            .status
    };
    assert_eq!(status("mute"), TaskStatus::Unanswered);
    assert_eq!(status("well"), TaskStatus::Running);
    runtime.delete("mute").await.unwrap();
    assert!(!is_alive(pids[0]) && is_alive(pids[1]));
    assert_eq!(containerd.shims().len(), 1);
}
