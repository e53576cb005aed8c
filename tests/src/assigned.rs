//! What a scheduler would assign, for tests of the node's own code.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use berth_api::assignment::Assignment;
use berth_api::container::{CpuRange, MemoryRange};
use berth_api::id::{ContainerName, ReplicaId};
use berth_api::units::{Bytes, Cpu};

/// The least of a replica: one port, forwarded from port 8001 of the machine, and nothing else.
///
/// # Panics
/// When `replica` is no id.
#[must_use]
pub fn assignment(replica: &str, ip: Ipv4Addr, port: u16) -> Assignment {
    let cpu = Cpu::from_micros(1);
    let memory = Bytes::mib(1);
    Assignment {
        replica_id: ReplicaId::new(replica).expect("an id"),
        container: ContainerName::new("web").expect("a name"),
        ordinal: None,
        image: "image".into(),
        command: None,
        env: BTreeMap::new(),
        cpu: CpuRange {
            min: cpu,
            desired: cpu,
        },
        memory: MemoryRange {
            min: memory,
            desired: memory,
        },
        granted: None,
        ephemeral_storage: None,
        gpu: None,
        gpu_devices: vec![],
        ip: IpAddr::V4(ip),
        ports: vec![port],
        host_port: Some(8001),
        volume: None,
        shared_mounts: vec![],
        health_check: None,
        probes: None,
        load_balancer_target: None,
        service_account: None,
        stop_grace_ms: 1000,
        drain_ms: None,
    }
}
