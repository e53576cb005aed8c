//! A replica in a full group: it runs with less than it desires, says so, and gets more while it runs.

use berth_api::units::Cpu;
use serde_json::{Value, json};

use super::dev::{Dev, container, output_of, until};

/// A container that asks for vCPU only, from `min` to `desired`.
fn asking(dev: &Dev, name: &str, min: Cpu, desired: Cpu) -> Value {
    let mut declaration = container(dev, name, 1);
    declaration["resources"]["cpu"] = json!({"min": min.to_string(), "desired": desired.to_string()});
    declaration
}

/// The limit of a replica's cgroup in thousandths of a vCPU, on cgroup v1 or v2.
fn limit_of(id: &str) -> Option<u64> {
    let find = |file: &str| output_of("find", &["/sys/fs/cgroup", "-path", &format!("*/{id}/{file}")]);
    let read = |path: &str| std::fs::read_to_string(path).ok();
    if let Some(path) = find("cpu.max").lines().next() {
        let text = read(path)?;
        let (quota, period) = text.trim().split_once(' ')?;
        return Some(quota.parse::<u64>().ok()? * 1000 / period.parse::<u64>().ok()?);
    }
    let path = find("cpu.cfs_quota_us");
    let path = path.lines().next()?;
    let quota: u64 = read(path)?.trim().parse().ok()?;
    let period = read(&path.replace("cpu.cfs_quota_us", "cpu.cfs_period_us"))?;
    Some(quota * 1000 / period.trim().parse::<u64>().ok()?)
}

/// `berth dev` gives its group as many machines as it may have, so the second container finds no whole place.
#[test]
fn a_squeezed_replica_runs_says_so_and_grows_without_a_restart() {
    let Some(dev) = Dev::up(1) else { return };
    let machines = dev.json(&["get", "machines", "-o", "json"]);
    let cpu = &machines[0]["cpu"];
    let vcpu = |value: &Value| Cpu::from_number(value.as_number().unwrap()).unwrap();
    let usable = vcpu(&cpu["total"]).saturating_sub(vcpu(&cpu["systemReserve"]));
    let filled = usable.saturating_sub(Cpu::from_micros(500_000));
    dev.apply(&[asking(&dev, "filler", filled, filled)]);
    let (min, desired) = (Cpu::from_micros(100_000), Cpu::from_micros(2_000_000));
    dev.apply(&[asking(&dev, "web", min, desired)]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();

    assert_eq!(limit_of(id), Some(500));
    dev.until_explained(id, "it is squeezed, runs with 0.5 of 2 vCPU");
    let explanation = dev.until_explained("web", "squeezed").to_string();
    assert!(
        explanation.contains("raise maxSize of group general"),
        "{explanation}"
    );
    let (_, seen) = dev.rest("GET", "/containers/web", None);
    assert!(
        seen.to_string().contains("1 of 1 replicas are squeezed"),
        "{seen}"
    );

    let pid = dev.pids()[id];
    dev.delete("filler");
    until("the limit is what is desired", || {
        (limit_of(id) == Some(2000)).then_some(())
    });
    let grown = dev.replica(id);
    assert_eq!(
        (grown.run, grown.ready, dev.pids()[id]),
        (web.run, true, pid),
        "the process ran on"
    );
    let explanation = dev.explain(id).to_string();
    assert!(!explanation.contains("squeezed"), "{explanation}");
}
