//! Any bytes as what one end of the node link may send to the other: they must be read or refused, and what was read must
//! survive being written and read again.
//!
//! Shared by the fuzz target and by a test of `berth-api`, which runs its corpus. The first byte chooses the reader.

use berth_api::assignment::{AssignmentSet, Position, Refusal};
use berth_api::event::read_event;
use berth_api::id::{MachineId, ReplicaId};
use berth_api::link::{EnrolRequest, NodeMessage, SchedulerMessage, node_message, scheduler_message};
use berth_api::machine::MachineHealth;
use berth_api::replica::ReplicaStatus;
use berth_api::rest::node::RegisterRequest;
use berth_api::validate::parse_json;
use prost::Message as _;

pub(crate) fn drive(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    match first {
        b'n' => node_message(rest),
        b's' => scheduler_message(rest),
        b'r' => replicas(rest),
        b'h' => health(rest),
        b'a' => set(rest),
        b'e' => event(rest),
        b'g' => register(rest),
        _ => {
            if let Ok(request) = EnrolRequest::decode(rest) {
                register(&request.register);
            }
        }
    }
}

/// As the scheduler takes it.
fn node_message(bytes: &[u8]) {
    use node_message::Kind;
    let Ok(message) = NodeMessage::decode(bytes) else {
        return;
    };
    match message.kind {
        Some(Kind::Hello(hello)) => {
            let _id = MachineId::new(hello.machine_id);
            position(hello.accepted.as_ref());
            let _running: Vec<_> = hello
                .running_replica_ids
                .into_iter()
                .map(ReplicaId::new)
                .collect();
        }
        Some(Kind::Ack(ack)) => position(ack.position.as_ref()),
        Some(Kind::Status(status)) => {
            replicas(&status.replicas);
            health(&status.machine);
            position(status.accepted.as_ref());
        }
        Some(Kind::Event(bytes)) => event(&bytes),
        Some(Kind::LogChunk(_) | Kind::Pong(_) | Kind::NeedFull(_)) | None => {}
    }
}

/// As the node takes it.
fn scheduler_message(bytes: &[u8]) {
    use scheduler_message::Kind;
    let Ok(message) = SchedulerMessage::decode(bytes) else {
        return;
    };
    if let Some(Kind::Assignments(assignments)) = message.kind {
        position(assignments.position.as_ref());
        if let Some(Ok(position)) = assignments.position.as_ref().map(Position::try_from) {
            let _opened = AssignmentSet::open(&assignments.set, &position);
        }
        set(&assignments.set);
    }
}

fn position(position: Option<&berth_api::link::Position>) {
    let Some(Ok(read)) = position.map(Position::try_from) else {
        return;
    };
    assert_eq!(Position::try_from(&read.into()), Ok(read));
}

fn replicas(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<Vec<ReplicaStatus>>(bytes) {
        let written = serde_json::to_vec(&read).expect("a status has text keys");
        assert_eq!(
            serde_json::from_slice::<Vec<ReplicaStatus>>(&written).ok(),
            Some(read)
        );
    }
}

fn health(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<MachineHealth>(bytes) {
        let written = serde_json::to_vec(&read).expect("a health has text keys");
        assert_eq!(serde_json::from_slice::<MachineHealth>(&written).ok(), Some(read));
    }
}

/// What can be read seals to a set that opens as itself, at its own position and at no other.
fn set(bytes: &[u8]) {
    let Ok(set) = serde_json::from_slice::<AssignmentSet>(bytes) else {
        return;
    };
    let (sealed, mut position) = set.seal();
    assert_eq!(AssignmentSet::open(&sealed, &position).as_ref(), Ok(&set));
    for assignment in &set.replicas {
        let _digest = assignment.digest();
    }
    position.generation = position.generation.wrapping_add(1);
    assert!(matches!(
        AssignmentSet::open(&sealed, &position),
        Err(Refusal::Unreadable(_))
    ));
}

fn event(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else {
        return;
    };
    if let Ok(read) = read_event(&value) {
        let written = serde_json::to_value(&read).expect("an event has text keys");
        assert_eq!(read_event(&written).as_ref(), Ok(&read));
    }
}

fn register(bytes: &[u8]) {
    match parse_json(bytes) {
        Ok(value) => {
            if let Err(faults) = RegisterRequest::read(&value) {
                assert!(!faults.list().is_empty());
            }
        }
        Err(faults) => assert!(!faults.list().is_empty()),
    }
}
