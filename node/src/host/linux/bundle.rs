//! The directory of one replica under `run_dir`: the files it sees as `/etc/hosts`, `/etc/hostname` and
//! `/etc/resolv.conf`, and the record of the volumes it holds.
//!
//! The record is written before a volume is claimed and removed after it is released, so that a daemon that lost its
//! database still knows what to release.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use berth_api::assignment::Assignment;
use berth_api::id::ReplicaId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::dns;
use crate::host::volume::VolumeOwner;

/// containerd takes ids of at most this many characters.
const CONTAINER_ID_MAX: usize = 76;
/// A host name is at most 64 bytes (`HOST_NAME_MAX` of uname(2)); a DNS label 63.
const HOSTNAME_MAX: usize = 63;

/// A volume that a replica holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeldVolume {
    pub(super) replica_id: ReplicaId,
    pub(super) path: String,
    pub(super) owner: VolumeOwner,
}

/// Where everything of one replica lies.
#[derive(Debug, Clone)]
pub(super) struct Bundle(PathBuf);

impl Bundle {
    pub(super) fn new(root: &Path, replica_id: &ReplicaId) -> Self {
        Self(root.join(container_id(replica_id)))
    }

    pub(super) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    pub(super) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    fn volume_record(&self) -> PathBuf {
        self.0.join("volume.json")
    }

    /// Writes the files that the replica sees.
    pub(super) fn write_files(&self, assignment: &Assignment, gateway: Ipv4Addr) -> io::Result<()> {
        let hostname = hostname(&assignment.replica_id);
        let ip: IpAddr = assignment.ip;
        fs::create_dir_all(&self.0)?;
        fs::write(
            self.hosts(),
            format!("127.0.0.1 localhost\n::1 localhost\n{ip} {hostname}\n"),
        )?;
        fs::write(self.hostname(), format!("{hostname}\n"))?;
        fs::write(self.resolv_conf(), dns::resolv_conf(gateway))
    }

    pub(super) fn record_volume(&self, held: &HeldVolume) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let temporary = self.0.join("volume.json.new");
        fs::write(&temporary, serde_json::to_vec(held)?)?;
        fs::rename(temporary, self.volume_record())
    }

    /// The volume it holds. A record that a power cut left unreadable names nothing.
    pub(super) fn held_volume(&self) -> io::Result<Option<HeldVolume>> {
        match fs::read(self.volume_record()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the directory. Nothing there is a success.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The volumes of all replicas that have a directory.
    pub(super) fn all_held(root: &Path) -> io::Result<Vec<HeldVolume>> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(error),
        };
        let mut held = Vec::new();
        for entry in entries {
            held.extend(Self(entry?.path()).held_volume()?);
        }
        Ok(held)
    }
}

/// containerd's id of a replica: the replica's own where containerd allows it, else a hash. The label is the truth.
pub(super) fn container_id(replica_id: &ReplicaId) -> String {
    let text = replica_id.as_str();
    let is_separator = |c: char| matches!(c, '.' | '_' | '-');
    let allowed = text.len() <= CONTAINER_ID_MAX
        && text.chars().all(|c| c.is_ascii_alphanumeric() || is_separator(c))
        && text.split(is_separator).all(|part| !part.is_empty());
    if allowed { text.to_owned() } else { hash(text) }
}

/// What the replica calls itself: its id where that is a host name, else as much of it as may be, and a hash.
pub(super) fn hostname(replica_id: &ReplicaId) -> String {
    let text = replica_id.as_str();
    let is_label = text.len() <= HOSTNAME_MAX
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label {
        return text.to_owned();
    }
    let readable: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    format!("r-{readable}-{}", hash(text).chars().take(12).collect::<String>())
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ReplicaId {
        ReplicaId::new(text).unwrap()
    }

    #[test]
    fn ordinary_ids_are_kept_and_odd_ones_hashed() {
        assert_eq!(container_id(&id("reader-m1-a8f3")), "reader-m1-a8f3");
        for odd in ["a--b", "-a", "a/b", "ä", &"x".repeat(77)] {
            let hashed = container_id(&id(odd));
            assert!(
                hashed.len() == 40 && hashed.chars().all(|c| c.is_ascii_hexdigit()),
                "{odd}: {hashed}"
            );
        }
        assert_ne!(container_id(&id("a--b")), container_id(&id("a---b")));
    }

    #[test]
    fn host_names_are_labels() {
        for text in ["reader-m1-a8f3", "A_b", "-a-", "i-0123/üñ", &"x".repeat(300)] {
            let name = hostname(&id(text));
            assert!((1..=HOSTNAME_MAX).contains(&name.len()), "{name}");
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{name}"
            );
        }
        assert_eq!(hostname(&id("writer-0")), "writer-0");
    }

    #[test]
    fn the_record_of_a_volume_outlives_and_ends_with_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(root.path(), &id("writer-0"));
        assert_eq!(bundle.held_volume().unwrap(), None);
        let held = HeldVolume {
            replica_id: id("writer-0"),
            path: "/srv/writer/0".into(),
            owner: VolumeOwner {
                cluster_id: "c".parse().unwrap(),
                container: "writer".parse().unwrap(),
                ordinal: 0,
            },
        };
        bundle.record_volume(&held).unwrap();
        assert_eq!(Bundle::all_held(root.path()).unwrap(), [held]);
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert_eq!(Bundle::all_held(root.path()).unwrap(), []);
    }
}
