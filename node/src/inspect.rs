//! `berthd status` and `berthd explain`: what the daemon on this machine says of itself, for people.
//!
//! Input: the status socket of a running daemon. Output: text, or the document as it came. Nothing is changed, and neither the
//! scheduler nor containerd is asked, so that it answers when they do not.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use berth_api::explain::{Explanation, Subject, Waiting};
use berth_api::replica::{Phase, ReplicaStatus};
use berth_api::time::{Timestamp, duration_in_words};

use crate::status::{STARTING, Status};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no daemon answers at {path}; see whether it runs: systemctl status berthd")]
    Connect { path: String, source: io::Error },
    #[error("the daemon's answer at {path} ended early")]
    Read { path: String, source: io::Error },
    #[error("the daemon's answer cannot be read; it may be of another version than this program")]
    Parse(#[from] serde_json::Error),
    #[error("there is no replica {id} on this machine; it has: {known}")]
    Unknown { id: String, known: String },
}

/// Asks the daemon behind a status socket. The document as it came, and as it is understood.
///
/// # Errors
/// When nobody answers in time, or not in a form that is known.
pub fn ask(socket: &Path) -> Result<(String, Status), InspectError> {
    let path = || socket.display().to_string();
    let connect = |source| InspectError::Connect { path: path(), source };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(connect)?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|source| InspectError::Read { path: path(), source })?;
    let status = serde_json::from_str(&text)?;
    Ok((text, status))
}

/// The whole machine on one page.
#[must_use]
pub fn page(status: &Status) -> String {
    let (snapshot, now) = (&status.snapshot, status.now);
    let ago = |then: Timestamp| format!("{} ago", duration_in_words(now.since(then)));
    let mut text = format!(
        "machine {} of cluster {}: {}\nberthd {}, boot {}\nassignment {}.{}, {} replicas, {} with a process; read {}\n",
        snapshot.machine_id,
        snapshot.cluster_id,
        if status.is_well() { "well" } else { "impaired" },
        snapshot.version,
        snapshot.boot_id,
        snapshot.epoch,
        snapshot.generation,
        snapshot.replicas.len(),
        snapshot.running.len(),
        ago(snapshot.taken_at),
    );
    if snapshot.state_rebuilt {
        text.push_str("the ledger was lost and has been rebuilt from what runs (state_rebuilt)\n");
    }
    let mut rows = vec![
        ["SUBSYSTEM", "STATE", "SINCE", "REASON"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(status.machine.subsystems.iter().map(|part| {
        let state = if part.ok { "works" } else { "impaired" };
        vec![
            part.name.clone(),
            state.into(),
            ago(part.since),
            part.reason.clone(),
        ]
    }));
    push_table(&mut text, &rows);
    if !snapshot.replicas.is_empty() {
        let header = ["REPLICA", "PHASE", "READY", "RUN", "PID", "SINCE", "WAITS FOR"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(snapshot.replicas.iter().map(|replica| {
            vec![
                replica.replica_id.to_string(),
                replica.phase.to_string(),
                if replica.ready { "yes" } else { "no" }.into(),
                replica.run.to_string(),
                replica.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
                since(replica).map_or_else(|| "-".into(), ago),
                replica
                    .wait
                    .as_ref()
                    .map_or_else(String::new, |wait| wait.reason.clone()),
            ]
        }));
        push_table(&mut text, &rows);
    }
    for id in &snapshot.unlisted {
        write!(
            text,
            "\n{id} runs and is in no assignment: it is stopped once the scheduler says so"
        )
        .ok();
    }
    text
}

fn since(replica: &ReplicaStatus) -> Option<Timestamp> {
    replica
        .wait
        .as_ref()
        .map(|wait| wait.since)
        .or(replica.started_at)
}

/// Columns as wide as their widest text; the last one is as long as it is.
fn push_table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    text.push('\n');
    for row in rows {
        let padded = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line: Vec<String> = padded.collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
}

/// Why the machine, or a replica on it, is as it is.
///
/// # Errors
/// [`InspectError::Unknown`], with the replicas that there are.
pub fn explain(status: &Status, replica: Option<&str>) -> Result<Explanation, InspectError> {
    let Some(id) = replica else {
        return Ok(of_machine(status));
    };
    let replicas = &status.snapshot.replicas;
    let found = replicas.iter().find(|replica| replica.replica_id.as_str() == id);
    found.map(of_replica).ok_or_else(|| {
        let known: Vec<&str> = replicas
            .iter()
            .map(|replica| replica.replica_id.as_str())
            .collect();
        InspectError::Unknown {
            id: id.to_owned(),
            known: if known.is_empty() {
                "none".into()
            } else {
                known.join(", ")
            },
        }
    })
}

fn of_machine(status: &Status) -> Explanation {
    let snapshot = &status.snapshot;
    let impaired = status.machine.subsystems.iter().filter(|part| !part.ok);
    let waits: Vec<Waiting> = impaired
        .map(|part| Waiting {
            what: format!("its {}: {}", part.name, part.reason),
            since: part.since,
            next_attempt: None,
            helps: if part.reason == STARTING {
                "nothing to do: it begins once what stands before it works".into()
            } else {
                remedy(&part.name).into()
            },
        })
        .collect();
    let unready = snapshot.replicas.iter().filter(|replica| !replica.ready).count();
    Explanation {
        kind: Subject::Machine,
        id: snapshot.machine_id.to_string(),
        state: if status.is_well() { "well" } else { "impaired" }.into(),
        since: None,
        summary: match unready {
            0 if snapshot.replicas.is_empty() => "it has no replicas".into(),
            0 => format!("all of its {} replicas are ready", snapshot.replicas.len()),
            unready => format!(
                "{unready} of its {} replicas are not ready",
                snapshot.replicas.len()
            ),
        },
        waits,
        filters: vec![],
        facts: vec![
            ("cluster".into(), snapshot.cluster_id.to_string()),
            ("berthd".into(), snapshot.version.clone()),
            ("boot".into(), snapshot.boot_id.clone()),
            (
                "assignment".into(),
                format!("{}.{}", snapshot.epoch, snapshot.generation),
            ),
            ("read at".into(), snapshot.taken_at.to_string()),
        ],
    }
}

/// What somebody on this machine can do about a subsystem.
fn remedy(subsystem: &str) -> &'static str {
    match subsystem {
        "runtime" => "systemctl status containerd; replicas run on meanwhile, none is started or stopped",
        "network" => {
            "journalctl -u berthd; nft list ruleset; it is mended within a minute unless the kernel refuses it"
        }
        "dns" => "see what else listens on port 53 of the gateway's address: ss -lnup",
        "keeper" => {
            "systemctl status berth-logkeeper; replicas run on, and wait only when their pipe is full"
        }
        "storage" => "df and df -i on the state directory; journalctl -u berthd",
        "link" => {
            "see whether the scheduler is up and reached from here; replicas run on as they were assigned last"
        }
        "loops" => "nothing: systemd starts the daemon again; keep journalctl -u berthd for its makers",
        _ => "journalctl -u berthd",
    }
}

fn of_replica(replica: &ReplicaStatus) -> Explanation {
    let mut facts = vec![("run".to_owned(), replica.run.to_string())];
    let mut fact = |label: &str, value: Option<String>| {
        facts.extend(value.map(|value| (label.to_owned(), value)));
    };
    fact("pid", replica.pid.map(|pid| pid.to_string()));
    fact("started", replica.started_at.map(|at| at.to_string()));
    fact("last failure", replica.cause.as_ref().map(ToString::to_string));
    fact("failed at", replica.failed_at.map(|at| at.to_string()));
    let count = |number: u32| (number > 0).then(|| number.to_string());
    fact("recent crashes", count(replica.recent_crashes));
    fact("failed checks in a row", count(replica.consecutive_failures));
    fact("cpu", replica.usage.map(|usage| format!("{} vCPU", usage.cpu)));
    fact(
        "memory",
        replica.usage.map(|usage| usage.memory.rounded().to_string()),
    );
    let waits = replica.wait.iter().map(|wait| Waiting {
        what: wait.reason.clone(),
        since: wait.since,
        next_attempt: wait.next_attempt,
        helps: helps(replica.phase).into(),
    });
    Explanation {
        kind: Subject::Replica,
        id: replica.replica_id.to_string(),
        state: replica.phase.to_string(),
        since: since(replica),
        summary: match (replica.ready, &replica.cause) {
            (true, _) => "it is ready".into(),
            (false, Some(cause)) => format!("it is not ready; last failure: {cause}"),
            (false, None) => "it is not ready".into(),
        },
        waits: waits.collect(),
        filters: vec![],
        facts,
    }
}

fn helps(phase: Phase) -> &'static str {
    match phase {
        Phase::Assigned | Phase::Volume | Phase::Network | Phase::Created | Phase::Releasing => {
            "nothing to do unless it lasts: then see berthd status and journalctl -u berthd"
        }
        Phase::Image => "nothing to do while bytes move; else see whether the registry is reached from here",
        Phase::Started => {
            "its health check or probe must pass once; see its log for what it waits for itself"
        }
        Phase::Healthy | Phase::Gone => "nothing to do",
        Phase::Unhealthy => {
            "see its log; a health check that stays so restarts it, a readiness probe does not"
        }
        Phase::Backoff => "see its log, and mend what the failure names; it is tried again by itself",
        Phase::Stopping => "it is killed when its grace is over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Part, Snapshot, Verdicts};
    use berth_api::replica::{Cause, Wait};

    fn status() -> Status {
        let verdicts = Verdicts::new();
        for part in Part::ALL {
            verdicts.set(part, Ok(()));
        }
        verdicts.set(Part::Link, Err("the scheduler did not answer within 10s".into()));
        let at = Timestamp::from_millis(1_700_000_000_000);
        let mut broken = ReplicaStatus::new("web-1".parse().unwrap(), Phase::Backoff);
        broken.wait = Some(Wait {
            reason: "the next start".into(),
            since: at,
            next_attempt: Some(at.plus(Duration::from_secs(8))),
        });
        (broken.cause, broken.recent_crashes) = (Some(Cause::Exit { code: 3 }), 4);
        let fine = ReplicaStatus::new("web-2".parse().unwrap(), Phase::Healthy);
        Status {
            snapshot: Snapshot {
                cluster_id: "acme/prod".parse().unwrap(),
                machine_id: "m1".parse().unwrap(),
                version: "1.2.3".into(),
                boot_id: "b".into(),
                epoch: 1,
                generation: 17,
                digest: berth_api::assignment::Digest::default(),
                state_rebuilt: false,
                observed: true,
                replicas: vec![broken, fine],
                unlisted: vec!["old-1".parse().unwrap()],
                running: vec![],
                taken_at: at,
            },
            machine: verdicts.health(),
            now: at.plus(Duration::from_secs(3)),
        }
    }

    #[test]
    fn a_page_says_what_is_impaired_and_what_waits() {
        let status = status();
        assert!(!status.is_well());
        let page = page(&status);
        for part in [
            "machine m1 of cluster acme/prod: impaired",
            "assignment 1.17, 2 replicas",
            "the scheduler did not answer",
            "web-1    backoff  no     1    -    3 s ago  the next start",
            "web-2    healthy  yes",
            "old-1 runs and is in no assignment",
        ] {
            assert!(page.contains(part), "{part}:\n{page}");
        }
    }

    #[test]
    fn explanations_name_cause_next_try_and_remedy() {
        let status = status();
        let broken = explain(&status, Some("web-1")).unwrap().to_string();
        for part in ["backoff", "exit code 3", "next try", "recent crashes"] {
            assert!(broken.contains(part), "{part}:\n{broken}");
        }
        let machine = explain(&status, None).unwrap();
        assert_eq!(machine.waits.len(), 1);
        assert!(machine.waits.iter().all(|wait| !wait.helps.is_empty()));
        let unknown = explain(&status, Some("web-9")).unwrap_err().to_string();
        assert!(unknown.contains("web-1, web-2"), "{unknown}");
    }
}
