//! Limits bite: memory, CPU, processes.

use std::time::Duration;

use berth_api::time::monotonic;
use berth_api::units::{Bytes, Cpu};
use berth_node::host::spec;

use super::containerd::{Containerd, exit_of, until};

#[tokio::test(flavor = "multi_thread")]
async fn fault_22_out_of_memory() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut events = runtime.subscribe();
    let mut input = containerd.input("eater", &image, "");
    // The shell doubles a text until the limit is hit.
    input.command = Some(vec![
        "/bin/sh".into(),
        "-c".into(),
        "x=0123456789; while :; do x=$x$x; done".into(),
    ]);
    input.memory.desired = Bytes::mib(24);
    input.cpu.desired = Cpu::from_micros(1_000_000);
    runtime
        .create(&containerd.plan_of("eater", &image, &input))
        .await
        .unwrap();
    runtime.start("eater").await.unwrap();
    let exit = exit_of(&mut events, "eater").await;
    assert_eq!(exit.code, 137);
    assert!(exit.oom_kills > 0, "{exit:?}");
    assert!(runtime.delete("eater").await.unwrap().unwrap().oom_kills > 0);

    // The first process eats nothing and would live on: it goes with its child, so that what is left is no ruin.
    let script = "(x=0123456789; while :; do x=$x$x; done) & while true; do sleep 1; done";
    let mut parent = containerd.input("parent", &image, script);
    parent.memory.desired = Bytes::mib(24);
    parent.cpu.desired = Cpu::from_micros(1_000_000);
    runtime
        .create(&containerd.plan_of("parent", &image, &parent))
        .await
        .unwrap();
    runtime.start("parent").await.unwrap();
    let exit = exit_of(&mut events, "parent").await;
    assert_eq!(exit.code, 137);
    assert!(exit.oom_kills > 0, "{exit:?}");
    runtime.delete("parent").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_and_processes_are_capped_and_change_while_it_runs() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let mut input = containerd.input("busy", &image, "while :; do :; done");
    input.cpu.min = Cpu::from_micros(50_000);
    input.cpu.desired = Cpu::from_micros(100_000);
    runtime
        .create(&containerd.plan_of("busy", &image, &input))
        .await
        .unwrap();
    runtime.start("busy").await.unwrap();
    until("the limit is hit", || {
        runtime
            .usage("busy")
            .is_some_and(|usage| usage.throttled_periods >= 10)
    })
    .await;
    let start = monotonic();
    let before = runtime.usage("busy").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = runtime.usage("busy").unwrap().cpu_nanos - before.cpu_nanos;
    let elapsed = monotonic().duration_since(start).as_nanos();
    // A share of the time that really passed: a busy host stretches both. One period of 100 ms may be counted twice.
    assert!(
        u128::from(used) < elapsed / 10 + 150_000_000,
        "{used} ns in {elapsed} ns at 0.1 vCPU"
    );
    assert!(before.pids >= 1 && before.memory_bytes > 0, "{before:?}");

    input.cpu.desired = Cpu::from_micros(2_000_000);
    let resources = spec::resources(input.cpu, input.memory, input.pids_max).unwrap();
    runtime.update("busy", &resources).await.unwrap();
    until("the new limit lets it run", || {
        runtime
            .usage("busy")
            .is_some_and(|usage| usage.cpu_nanos - before.cpu_nanos > 800_000_000)
    })
    .await;
    // It would take the processors from what follows.
    runtime.delete("busy").await.unwrap();

    let mut forks = containerd.input(
        "forks",
        &image,
        "for i in $(seq 80); do sleep 1000 & done; echo all; wait",
    );
    forks.pids_max = 32;
    runtime
        .create(&containerd.plan_of("forks", &image, &forks))
        .await
        .unwrap();
    runtime.start("forks").await.unwrap();
    until("fork fails", || containerd.read_output("forks").contains("fork")).await;
    assert!(runtime.usage("forks").unwrap_or_default().pids <= 32);
    runtime.delete("forks").await.unwrap();
}
