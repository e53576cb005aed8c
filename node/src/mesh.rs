//! The other machines of the cluster, as the scheduler's messages built the list. Pure.

use std::collections::BTreeMap;

use berth_api::id::MachineId;
use berth_api::link;

use crate::dns::Applied;
use crate::host::Peer;

/// The list and the generation it stands at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshState {
    generation: u64,
    peers: BTreeMap<String, link::Peer>,
}

impl MeshState {
    /// Applies a full list or a delta. A full one replaces whatever is here, also a newer one: the scheduler's history
    /// may have been restored.
    pub fn apply(&mut self, message: &link::Mesh) -> Applied {
        if message.base_generation == 0 {
            self.peers.clear();
        } else if message.generation <= self.generation {
            return Applied::Old;
        } else if message.base_generation != self.generation {
            return Applied::NeedFull;
        }
        self.generation = message.generation;
        for peer in &message.put {
            self.peers.insert(peer.machine_id.clone(), peer.clone());
        }
        for removed in &message.removed_machine_ids {
            self.peers.remove(removed);
        }
        Applied::Yes
    }

    /// Everything as one full message, to be kept over a restart.
    #[must_use]
    pub fn to_message(&self) -> link::Mesh {
        link::Mesh {
            generation: self.generation,
            base_generation: 0,
            put: self.peers.values().cloned().collect(),
            removed_machine_ids: Vec::new(),
        }
    }

    /// The peers that a machine of the given id routes to. One that cannot be read is left out, with a word in the log.
    #[must_use]
    pub fn peers(&self, own: &MachineId) -> Vec<Peer> {
        let read = |peer: &link::Peer| {
            let parsed = (
                MachineId::new(&*peer.machine_id),
                peer.cidr.parse(),
                peer.underlay_ip.parse(),
            );
            let (Ok(machine_id), Ok(cidr), Ok(underlay_ip)) = parsed else {
                return None;
            };
            (machine_id != *own).then_some(Peer {
                machine_id,
                cidr,
                underlay_ip,
            })
        };
        self.peers.values().filter_map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> link::Peer {
        link::Peer {
            machine_id: format!("m{n}"),
            cidr: format!("10.0.{n}.0/24"),
            underlay_ip: format!("192.0.2.{n}"),
            ..link::Peer::default()
        }
    }

    fn message(generation: u64, base_generation: u64, put: &[u8], removed: &[u8]) -> link::Mesh {
        link::Mesh {
            generation,
            base_generation,
            put: put.iter().map(|n| peer(*n)).collect(),
            removed_machine_ids: removed.iter().map(|n| format!("m{n}")).collect(),
        }
    }

    #[test]
    fn deltas_chain_and_a_gap_asks_for_all() {
        let mut mesh = MeshState::default();
        assert_eq!(mesh.apply(&message(5, 4, &[1], &[])), Applied::NeedFull);
        assert_eq!(mesh.apply(&message(5, 0, &[1, 2], &[])), Applied::Yes);
        assert_eq!(mesh.apply(&message(6, 5, &[3], &[1])), Applied::Yes);
        assert_eq!(mesh.apply(&message(6, 5, &[4], &[])), Applied::Old);
        assert_eq!(mesh.apply(&message(9, 8, &[4], &[])), Applied::NeedFull);
        let own = MachineId::new("m2").unwrap();
        let peers = mesh.peers(&own);
        assert_eq!(
            peers
                .iter()
                .map(|peer| peer.machine_id.as_str())
                .collect::<Vec<_>>(),
            ["m3"]
        );
        let mut restored = MeshState::default();
        restored.apply(&mesh.to_message());
        assert_eq!(restored, mesh);
    }
}
