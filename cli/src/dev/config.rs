//! The configuration files of the programs that an instance runs.

use berth_api::cluster::MachineProfile;
use serde_json::{Value, json};

use super::layout::Layout;
use super::record::{MachineRecord, Record};

/// The one capacity group of the cluster.
pub(crate) const GROUP: &str = "general";
/// Port of the node link on the bridge's address.
pub(crate) const LINK_PORT: u16 = 7601;

/// What the person asked for that goes into configuration files.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    pub(crate) profile: MachineProfile,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) failover: Failover,
}

/// How soon a silent machine counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failover {
    /// The scheduler's own limits.
    Normal,
    /// Seconds, to watch replicas move.
    Fast,
}

/// The containerd namespace of a machine. runc's state lies in a directory of the host under this name, so it must
/// differ between instances.
/// A machine made anew has a new one: nothing of the lost machine is on its disk.
pub(crate) fn containerd_namespace(record: &Record, machine: &str) -> String {
    let remade = record.machine(machine).map_or(0, |machine| machine.remade);
    match remade {
        0 => format!("berth-dev-{}-{machine}", record.id),
        _ => format!("berth-dev-{}-{machine}-{remade}", record.id),
    }
}

/// containerd without what an instance does not use: no CRI, and nothing that writes outside its own directories.
pub(crate) fn containerd(layout: &Layout) -> String {
    let socket = layout.containerd_socket();
    to_toml(&json!({
        "version": 2,
        "root": layout.containerd_dir(),
        "state": layout.containerd_state(),
        "disabled_plugins": [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.internal.v1.opt",
            "io.containerd.nri.v1.nri",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.blockfile",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.zfs",
        ],
        "grpc": {"address": socket},
        "ttrpc": {"address": format!("{}.ttrpc", socket.display())},
    }))
}

/// The scheduler's REST API on the host's loopback, its node link on the bridge.
pub(crate) fn scheduler(record: &Record, layout: &Layout, wishes: &Wishes) -> String {
    let mut config = json!({
        "data_dir": layout.scheduler_dir(),
        "listen": record.rest,
        "link_listen": format!("{}:{LINK_PORT}", record.gateway()),
        "link_names": [record.gateway().to_string()],
    });
    if wishes.failover == Failover::Fast
        && let Value::Object(members) = &mut config
    {
        members.insert("heartbeat_ms".into(), json!(500));
        let limits = json!({"unhealthy_after_seconds": 3, "replace_after_seconds": 5});
        members.insert("limits".into(), limits);
    }
    to_toml(&config)
}

/// Where the scheduler writes the certificate that nodes pin.
pub(crate) fn ca_file(layout: &Layout) -> std::path::PathBuf {
    layout.scheduler_dir().join("ca.pem")
}

/// One machine's daemon.
pub(crate) fn berthd(record: &Record, machine: &MachineRecord, layout: &Layout, wishes: &Wishes) -> String {
    let name = &machine.name;
    let profile = &wishes.profile;
    let mut capacity = json!({
        "cpu": profile.cpu.to_string(),
        "memory": profile.memory_bytes.to_string(),
        "ephemeral": profile.ephemeral_storage_bytes.to_string(),
    });
    if let (Some(gpu), Value::Object(members)) = (&profile.gpu, &mut capacity) {
        members.insert("gpu_type".into(), json!(gpu.kind));
        members.insert("gpu_count".into(), json!(gpu.count));
    }
    let name_servers = super::network::name_servers();
    let registries: serde_json::Map<String, Value> = wishes
        .insecure_registries
        .iter()
        .map(|host| (host.clone(), json!({"plain_http": true})))
        .collect();
    to_toml(&json!({
        "cluster_id": record.cluster_id,
        "machine_id": name,
        "capacity_group": GROUP,
        "zone": machine.zone,
        "scheduler": format!("https://{}:{LINK_PORT}", record.gateway()),
        "ca_file": ca_file(layout),
        "token_file": machine_token(layout),
        "state_dir": layout.machine(name).join("state"),
        "run_dir": layout.run_dir(name),
        "program_dir": layout.program_dir(name),
        "containerd_socket": layout.containerd_socket(),
        "containerd_namespace": containerd_namespace(record, name),
        "cgroup_parent": record.machine_cgroup(name),
        "underlay_ip": machine.address,
        "keeper_socket": layout.keeper_socket(name),
        "dns_upstream": name_servers.iter().map(|address| format!("{address}:53")).collect::<Vec<_>>(),
        "registries": registries,
        "hostpath_root": layout.volumes(),
        "ephemeral_overcommit": true,
        "capacity": capacity,
    }))
}

pub(crate) fn machine_token(layout: &Layout) -> std::path::PathBuf {
    layout.tokens().join("machine")
}

pub(crate) fn management_token(layout: &Layout) -> std::path::PathBuf {
    layout.tokens().join("management")
}

pub(crate) fn platform_token(layout: &Layout) -> std::path::PathBuf {
    layout.tokens().join("platform")
}

fn to_toml(value: &Value) -> String {
    toml::to_string(value).expect("made of tables, texts, numbers and lists, which TOML has")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::record::tests::record;

    fn wishes() -> Wishes {
        Wishes {
            profile: crate::dev::profile::parse_profile("cpu=8,memory=16Gi,ephemeral=1Ti,gpu=nvidia-t4:2")
                .unwrap(),
            insecure_registries: vec!["100.80.7.1:5000".into()],
            failover: Failover::Fast,
        }
    }

    #[test]
    fn every_file_is_toml_that_says_what_was_asked() {
        let layout = Layout::new("/s");
        let record = record();
        let berthd: toml::Table = berthd(&record, &record.machines[0], &layout, &wishes())
            .parse()
            .unwrap();
        assert_eq!(berthd["capacity"]["gpu_count"].as_integer(), Some(2));
        assert_eq!(berthd["capacity"]["ephemeral"].as_str(), Some("1Ti"));
        assert_eq!(
            berthd["registries"]["100.80.7.1:5000"]["plain_http"].as_bool(),
            Some(true)
        );
        assert_eq!(berthd["cgroup_parent"].as_str(), Some("/berth-dev-3f9a/m1"));
        assert_eq!(berthd["scheduler"].as_str(), Some("https://100.80.7.1:7601"));
        assert!(containerd(&layout).parse::<toml::Table>().is_ok());
        assert!(
            scheduler(&record, &layout, &wishes())
                .parse::<toml::Table>()
                .is_ok()
        );
    }
}
