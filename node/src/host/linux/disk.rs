//! How full the disk of images and of what replicas write beside their storage is, and who holds the most of it.

use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_api::time::monotonic;

use super::{LinuxHost, container_id};
use crate::host::image::Room;
use crate::host::{DiskPressure, Scarce};

/// Below this part of the disk images that nobody needs go: one in ten.
const SOFT_PART: u64 = 10;
/// Below this one the machine is impaired and says by whom: one in twenty.
const HARD_PART: u64 = 20;
/// Replicas are measured one after the other, each for at most a call of containerd; below the deadline of the whole.
const MEASURE_FOR: Duration = Duration::from_secs(40);

impl LinuxHost {
    pub(super) async fn pressure(&self, replicas: &[ReplicaId]) -> Option<DiskPressure> {
        let room = self.images.room().await?;
        if scarce(&room, SOFT_PART).is_some() {
            self.images.collect_soon();
        }
        let (scarce, free, total) = scarce(&room, HARD_PART)?;
        let mut holders = Vec::new();
        let until = monotonic() + MEASURE_FOR;
        for id in replicas {
            // Who is found by then is named: to find all may take longer than the disk lasts.
            if monotonic() >= until {
                break;
            }
            // One that cannot be measured is left out: the others are named all the same.
            if let Ok((bytes, inodes)) = self.runtime.written(&container_id(id)).await {
                let amount = match scarce {
                    Scarce::Bytes => bytes,
                    Scarce::Inodes => inodes,
                };
                holders.push((id.clone(), amount));
            }
        }
        holders.sort_by(|(a, held_a), (b, held_b)| held_b.cmp(held_a).then_with(|| a.cmp(b)));
        Some(DiskPressure {
            path: room.path,
            scarce,
            free,
            total,
            holders,
        })
    }
}

/// What there is less of than one in `part`, with how much of it is free and there in all.
fn scarce(room: &Room, part: u64) -> Option<(Scarce, u64, u64)> {
    let amounts = [
        (Scarce::Inodes, room.free_inodes, room.total_inodes),
        (Scarce::Bytes, room.free_bytes, room.total_bytes),
    ];
    // A file system that makes inodes as it goes counts none.
    amounts.into_iter().find(|(_, free, total)| *free < total / part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_count_as_bytes_do_and_none_where_they_are_not_counted() {
        let room = |free_bytes, free_inodes, total_inodes| Room {
            path: "/".into(),
            free_bytes,
            total_bytes: 1000,
            free_inodes,
            total_inodes,
        };
        assert_eq!(scarce(&room(500, 500, 1000), SOFT_PART), None);
        assert_eq!(
            scarce(&room(500, 99, 1000), SOFT_PART),
            Some((Scarce::Inodes, 99, 1000))
        );
        assert_eq!(scarce(&room(500, 99, 1000), HARD_PART), None);
        assert_eq!(
            scarce(&room(49, 500, 1000), HARD_PART),
            Some((Scarce::Bytes, 49, 1000))
        );
        assert_eq!(scarce(&room(500, 0, 0), HARD_PART), None);
    }
}
