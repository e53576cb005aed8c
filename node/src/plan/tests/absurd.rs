//! Sets that no scheduler of ours would send, at the ends of what their numbers hold: they are taken or refused, and the node lives.

use berth_api::machine::GpuDevice;

use super::*;

/// The greatest numbers that the wire can say.
fn absurd(n: usize) -> Assignment {
    Assignment {
        ordinal: Some(u32::MAX),
        image: "\u{0}".repeat(1000),
        command: Some(vec![]),
        env: BTreeMap::from([(String::new(), "\u{0}=".into())]),
        cpu: CpuRange {
            min: Cpu::from_micros(u64::MAX),
            desired: Cpu::ZERO,
        },
        memory: MemoryRange {
            min: Bytes::new(u64::MAX),
            desired: Bytes::new(0),
        },
        granted: Some(Granted {
            cpu: Cpu::from_micros(u64::MAX),
            memory: Bytes::new(u64::MAX),
        }),
        ephemeral_storage: Some(Bytes::new(u64::MAX)),
        gpu_devices: vec![
            GpuDevice {
                index: u8::MAX,
                milli: u16::MAX,
            };
            3
        ],
        ports: vec![0, 0, u16::MAX],
        host_port: Some(0),
        health_check: Some(HealthCheck {
            kind: ProbeKind::Exec,
            command: vec![],
            path: String::new(),
            port: 0,
            method: ProbeMethod::Get,
            timeout_seconds: u32::MAX,
            failure_threshold: 0,
        }),
        stop_grace_ms: u64::MAX,
        ..assignment(n, 1)
    }
}

#[test]
fn numbers_at_their_ends_are_taken_and_taken_back() {
    let mut node = Node::new();
    node.offer(vec![absurd(0), assignment(1, 1), absurd(2)], vec![]);
    node.settle();
    for _ in 0..5 {
        node.now.boot = node.now.boot.plus(Duration::from_secs(3600));
        node.observe();
        node.settle();
    }
    assert_eq!(node.status(1).phase, Phase::Healthy, "the others do not notice");
    let probes = node.core.probes();
    assert!(probes.iter().all(|probe| probe.replica_id != id(1)));
    let _ = (node.core.host_ports(), node.core.needed(), node.core.running());
    // They end, though their grace is longer than the world.
    node.offer(vec![assignment(1, 1)], vec![stop(0), stop(2)]);
    node.settle();
    for _ in 0..5 {
        node.now.boot = BootTime(node.now.boot.0.saturating_add(u64::MAX / 4));
        node.observe();
        node.settle();
    }
    assert_eq!(node.status(1).phase, Phase::Healthy);
}

#[test]
fn a_replica_that_is_listed_twice_is_one() {
    let mut node = Node::new();
    node.offer(
        vec![assignment(0, 1), assignment(0, 2), assignment(1, 1)],
        vec![stop(1)],
    );
    node.settle();
    assert_eq!(node.host.processes().len(), 2);
    assert_eq!(node.core.status().len(), 2);
}

/// What is not for this machine, not of this position or no set at all is refused and changes nothing.
#[test]
fn what_is_no_set_for_this_machine_is_refused() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    let (set, _) = node.set.clone().unwrap();
    let later = |change: &dyn Fn(&mut AssignmentSet)| {
        let mut set = set.clone();
        set.generation += 1;
        change(&mut set);
        set.seal()
    };
    let other_machine = later(&|set| set.machine_id = MachineId::new("other").unwrap());
    let other_cluster = later(&|set| set.cluster_id = ClusterId::new("other").unwrap());
    let changed = later(&|set| {
        set.generation -= 1;
        set.replicas.clear();
    });
    let older = later(&|set| set.generation = 0);
    let (mut bytes, position) = later(&|_| {});
    bytes[0] = b' ';
    let digest = |bytes: &[u8]| Position {
        digest: berth_api::assignment::Digest::of(bytes),
        ..position
    };
    let deep = vec![b'['; 100_000];
    for (bytes, position) in [
        other_machine,
        other_cluster,
        changed,
        older,
        (bytes.clone(), position),
        (bytes.clone(), digest(&bytes)),
        (deep.clone(), digest(&deep)),
        (vec![], digest(b"")),
        (b"{}".to_vec(), digest(b"{}")),
    ] {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert!(
            node.core.check(&bytes, &position, &Position::default()).is_err(),
            "{text}"
        );
    }
    assert_eq!(node.status(0).phase, Phase::Healthy);
}
