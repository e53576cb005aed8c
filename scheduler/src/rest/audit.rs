//! The audit log: a line of JSON for each request that changes something, opens a tunnel, or was refused to, with who asked, for what, and what
//! became of it. Heartbeats and posted events are no changes that somebody asks for and are left out.
//!
//! It goes to the file that the configuration names, or else to the ordinary log under the target `berth::audit`. A line is
//! written in one piece, after the change is durable and before its answer is sent. A file that was moved away by log
//! rotation is opened anew.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use berth_api::id::{ClusterId, ReplicaId};
use berth_api::time::Timestamp;
use serde::Serialize;

use super::told::Caller;

/// One line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line<'a> {
    pub(super) time: Timestamp,
    pub(super) request_id: &'a str,
    /// Nobody, when no valid token was shown.
    pub(super) caller: Option<&'a Caller>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<std::net::IpAddr>,
    pub(super) operation: &'a str,
    pub(super) path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cluster_id: Option<&'a ClusterId>,
    /// Into which a tunnel was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replica_id: Option<&'a ReplicaId>,
    pub(super) status: u16,
    /// Of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<&'a str>,
    /// Answered from its idempotency key: nothing was changed.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) replayed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Debug)]
struct Sink {
    file: File,
    inode: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Audit {
    target: Option<(PathBuf, Mutex<Sink>)>,
}

impl Audit {
    /// Opens the file, when there is one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: Option<&Path>) -> std::io::Result<Self> {
        let target = match path {
            Some(path) => Some((path.to_owned(), Mutex::new(open(path)?))),
            None => None,
        };
        Ok(Self { target })
    }

    pub(super) fn write(&self, line: &Line<'_>) {
        let mut text = serde_json::to_string(line).expect("a line has text keys");
        let Some((path, sink)) = &self.target else {
            tracing::info!(target: "berth::audit", line = text, "audit");
            return;
        };
        text.push('\n');
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let written = renew(path, &mut sink).and_then(|()| sink.file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                line = text.trim_end(),
                "cannot write the audit log; here is its line"
            );
        }
    }
}

fn open(path: &Path) -> std::io::Result<Sink> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let inode = file.metadata()?.ino();
    Ok(Sink { file, inode })
}

fn renew(path: &Path, sink: &mut Sink) -> std::io::Result<()> {
    let is_moved = match std::fs::metadata(path) {
        Ok(metadata) => metadata.ino() != sink.inode,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    if is_moved {
        *sink = open(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line<'_> {
        Line {
            time: Timestamp::from_millis(0),
            request_id: "r-1",
            caller: None,
            address: None,
            operation: "delete_cluster",
            path,
            cluster_id: None,
            replica_id: None,
            status: 403,
            code: Some("forbidden"),
            replayed: false,
        }
    }

    #[test]
    fn lines_are_appended_and_a_moved_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(Some(&path)).unwrap();
        audit.write(&line("/clusters/a"));
        audit.write(&line("/clusters/b\nforged"));
        std::fs::rename(&path, dir.path().join("audit.1")).unwrap();
        audit.write(&line("/clusters/c"));
        let old = std::fs::read_to_string(dir.path().join("audit.1")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert_eq!((old.lines().count(), new.lines().count()), (2, 1));
        let first: serde_json::Value = serde_json::from_str(old.lines().next().unwrap()).unwrap();
        assert_eq!(first["code"], "forbidden");
        assert!(first["caller"].is_null());
    }
}
