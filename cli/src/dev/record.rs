//! `dev.json`: what an instance has made on the host, written before it is made, so that `berth dev down` can take it
//! away after a crash. Names in the kernel carry the instance id, so that instances never meet.

use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_api::time::Timestamp;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, REGISTRY_DIR};

/// What one instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Version of this file.
    pub(crate) schema: u32,
    /// Four hexadecimal digits.
    pub(crate) id: String,
    pub(crate) created_at: Timestamp,
    pub(crate) cluster_id: String,
    /// The underlay that joins the machines; the bridge has its first address.
    pub(crate) subnet: Ipv4Net,
    pub(crate) container_cidr: Ipv4Net,
    /// Where the REST API listens on this host.
    pub(crate) rest: String,
    pub(crate) machines: Vec<MachineRecord>,
    /// Whether the host forwarded IPv4 before; put back at the end.
    pub(crate) forwarded_before: bool,
    /// Whether the host had a `/run/containerd` before.
    pub(crate) run_containerd_before: bool,
    /// The context file that was written, if any.
    #[serde(default)]
    pub(crate) context: Option<PathBuf>,
}

/// One machine of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MachineRecord {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) address: Ipv4Addr,
    /// The root end of its cable.
    pub(crate) veth: String,
    /// How often it was made anew under its name, after it was lost for good.
    #[serde(default)]
    pub(crate) remade: u32,
}

/// The schema this program writes and reads.
pub(crate) const SCHEMA: u32 = 1;

impl Record {
    pub(crate) fn bridge(&self) -> String {
        format!("bdev{}", self.id)
    }

    pub(crate) fn nft_table(&self) -> String {
        format!("berth_dev_{}", self.id)
    }

    /// Parent of every cgroup of the instance, below each hierarchy's root.
    pub(crate) fn cgroup(&self) -> String {
        format!("/berth-dev-{}", self.id)
    }

    pub(crate) fn machine_cgroup(&self, machine: &str) -> String {
        format!("{}/{machine}", self.cgroup())
    }

    /// The bridge's address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    pub(crate) fn machine(&self, name: &str) -> Option<&MachineRecord> {
        self.machines.iter().find(|machine| machine.name == name)
    }

    /// Writes the record so that a crash leaves the old one or the new one.
    pub(crate) fn save(&self, layout: &Layout) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        write_private(&layout.record(), &text)
    }

    /// Reads the record; none when there is no file.
    pub(crate) fn load(layout: &Layout) -> io::Result<Option<Self>> {
        let text = match std::fs::read(layout.record()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Self = serde_json::from_slice(&text).map_err(io::Error::other)?;
        if record.schema != SCHEMA {
            return Err(io::Error::other(format!(
                "it has schema {}, this program reads {SCHEMA}",
                record.schema
            )));
        }
        Ok(Some(record))
    }
}

/// Writes a file that only its owner may read, atomically.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // A leftover of a crash may have another mode: made anew.
    drop(std::fs::remove_file(&temporary));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Every instance this host knows: (id, state directory).
pub(crate) fn registered() -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(REGISTRY_DIR) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let id = entry.file_name().into_string().ok()?;
            let root = std::fs::read_to_string(entry.path()).ok()?;
            (!id.contains('.')).then(|| (id, PathBuf::from(root.trim())))
        })
        .collect();
    found.sort();
    found
}

/// Enters an instance into the host's registry.
pub(crate) fn register(id: &str, root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(REGISTRY_DIR)?;
    std::fs::write(
        Path::new(REGISTRY_DIR).join(id),
        root.as_os_str().as_encoded_bytes(),
    )
}

/// Takes an instance out of the registry; the registry goes with its last entry.
pub(crate) fn unregister(id: &str) {
    drop(std::fs::remove_file(Path::new(REGISTRY_DIR).join(id)));
    if registered().is_empty() {
        drop(std::fs::remove_file(registry_lock()));
        drop(std::fs::remove_dir(REGISTRY_DIR));
    }
}

/// Held while an instance chooses its subnet, so that two that start together choose two.
pub(crate) fn registry_lock() -> PathBuf {
    Path::new(REGISTRY_DIR).join(".lock")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record() -> Record {
        Record {
            schema: SCHEMA,
            id: "3f9a".into(),
            created_at: Timestamp::from_millis(1_700_000_000_000),
            cluster_id: "dev".into(),
            subnet: "100.80.7.0/24".parse().unwrap(),
            container_cidr: "10.237.0.0/16".parse().unwrap(),
            rest: "127.0.0.1:7600".into(),
            machines: vec![MachineRecord {
                name: "m1".into(),
                zone: "a".into(),
                address: "100.80.7.11".parse().unwrap(),
                veth: "bdev3f9a-1".into(),
                remade: 0,
            }],
            forwarded_before: false,
            run_containerd_before: true,
            context: None,
        }
    }

    #[test]
    fn a_saved_record_is_read_back_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert_eq!(Record::load(&layout).unwrap(), None);
        record().save(&layout).unwrap();
        record().save(&layout).unwrap();
        assert_eq!(Record::load(&layout).unwrap(), Some(record()));
        let mode = std::fs::metadata(layout.record()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_record_of_another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let other = Record {
            schema: 9,
            ..record()
        };
        other.save(&layout).unwrap();
        assert!(Record::load(&layout).is_err());
    }

    #[test]
    fn names_in_the_kernel_hold_fifteen_bytes() {
        assert!(record().bridge().len() <= 15);
        assert!("bdev3f9a-200".len() <= 15);
    }
}
