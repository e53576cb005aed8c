//! Waiting until containers are as declared, showing on the way what each replica waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::time::Duration;

use berth_api::explain::Subject;
use berth_api::replica::WireReplicaStatus;
use berth_api::rest::container::{ContainerStatus, ContainerSummary, ListContainersReply};
use berth_api::rest::operator::{ListReplicasReply, ReplicaView};
use berth_api::time::Timestamp;

use super::explain;
use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::output::{self, Paint, Screen};
use crate::render::explain::explanation;
use crate::render::text::{cut, replica_word, trouble};

const POLL: Duration = Duration::from_millis(400);
/// A container that fails this long without a break will not mend itself while somebody watches.
const FAILING_MAX: Duration = Duration::from_secs(15);

/// Names of the containers that are waited for.
pub(crate) type Wanted = BTreeSet<String>;

/// How one container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) name: String,
    pub(crate) done: bool,
    pub(crate) failing: bool,
    pub(crate) text: String,
}

/// Waits until every wanted container is healthy.
pub(crate) async fn wait(
    session: &Session,
    screen: &Screen,
    wanted: &Wanted,
    timeout: Duration,
) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let began = tokio::time::Instant::now();
    let mut failing_since = BTreeMap::new();
    let mut display = Display::new(screen);
    loop {
        let containers: ListContainersReply =
            session.client.get(&["clusters", cluster, "containers"]).await?;
        let replicas: ListReplicasReply = session.client.get(&["clusters", cluster, "replicas"]).await?;
        let standings = standings(
            screen,
            Timestamp::now(),
            wanted,
            &containers.containers,
            &replicas.replicas,
        );
        display.show(&standings)?;
        if standings.iter().all(|standing| standing.done) {
            return Ok(());
        }
        let now = tokio::time::Instant::now();
        for standing in &standings {
            if standing.failing {
                failing_since.entry(standing.name.clone()).or_insert(now);
            } else {
                failing_since.remove(&standing.name);
            }
        }
        let hopeless = failing_since
            .values()
            .any(|since| now.duration_since(*since) >= FAILING_MAX);
        if hopeless || began.elapsed() >= timeout {
            let code = if hopeless { Code::Failed } else { Code::TimedOut };
            let undone: Vec<&str> = standings
                .iter()
                .filter(|standing| !standing.done)
                .map(|standing| standing.name.as_str())
                .collect();
            why_not(session, screen, &undone, &replicas.replicas).await?;
            let told = if hopeless {
                "failing"
            } else {
                "not healthy in time"
            };
            return Err(Failure::new(code, format!("{told}: {}", undone.join(", "))));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Compares what there is with what is wanted. Pure.
pub(crate) fn standings(
    screen: &Screen,
    now: Timestamp,
    wanted: &Wanted,
    containers: &[ContainerSummary],
    replicas: &[ReplicaView],
) -> Vec<Standing> {
    wanted
        .iter()
        .map(|name| {
            let own: Vec<&ReplicaView> = replicas
                .iter()
                .filter(|replica| replica.container.as_str() == name)
                .collect();
            match containers
                .iter()
                .find(|container| container.name.as_str() == name)
            {
                Some(container) => standing(screen, now, container, &own),
                None => Standing {
                    name: name.clone(),
                    done: false,
                    failing: false,
                    text: "unknown to the scheduler".into(),
                },
            }
        })
        .collect()
}

fn standing(
    screen: &Screen,
    now: Timestamp,
    container: &ContainerSummary,
    replicas: &[&ReplicaView],
) -> Standing {
    let name = container.name.to_string();
    if container.status == ContainerStatus::Stopped {
        return Standing {
            name,
            done: true,
            failing: false,
            text: "stopped".into(),
        };
    }
    let going = |replica: &&&ReplicaView| {
        matches!(
            replica.status,
            WireReplicaStatus::Stopping | WireReplicaStatus::Stopped
        )
    };
    let ready = replicas
        .iter()
        .filter(|replica| replica.ready && !replica.outdated)
        .count();
    let leaving = replicas.iter().filter(going).count();
    let desired = usize::try_from(container.desired_replicas).unwrap_or(usize::MAX);
    let done = container.status == ContainerStatus::Running && ready >= desired && leaving == 0;
    let mut text = format!("{ready} of {desired} ready");
    if leaving > 0 {
        text.push_str(&format!(", {leaving} stopping"));
    }
    // The replica that is worst off speaks for all.
    let worst = replicas
        .iter()
        .filter(|replica| !going(replica) && (!replica.ready || replica.outdated))
        .min_by_key(|replica| (replica.machine_id.is_some(), replica.phase));
    if let Some(replica) = worst {
        let (word, _) = replica_word(replica);
        let why = trouble(replica, now)
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        text.push_str(&format!("  {} is {word}{why}", replica.replica_id));
    }
    Standing {
        done,
        failing: container.status == ContainerStatus::Failing,
        text: cut(
            &text.replace('\n', " "),
            screen.width.saturating_sub(name.len() + 5),
        ),
        name,
    }
}

/// On a terminal one line per container that changes in place; else a line whenever one changes.
struct Display<'a> {
    screen: &'a Screen,
    in_place: bool,
    shown: Vec<Standing>,
}

impl<'a> Display<'a> {
    fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            in_place: std::io::stdout().is_terminal() && screen.colour,
            shown: Vec::new(),
        }
    }

    fn show(&mut self, standings: &[Standing]) -> Result<(), Failure> {
        if self.shown == standings {
            return Ok(());
        }
        let mut text = String::new();
        if self.in_place && !self.shown.is_empty() {
            // Up over what was shown, then clear to the end of the screen.
            text.push_str(&format!("\x1b[{}A\x1b[J", self.shown.len()));
        }
        let lines: Vec<String> = standings
            .iter()
            .filter(|standing| self.in_place || !self.shown.contains(standing))
            .map(|standing| self.line(standing, standings))
            .collect();
        text.push_str(&lines.join("\n"));
        self.shown = standings.to_vec();
        output::line(text)
    }

    fn line(&self, standing: &Standing, all: &[Standing]) -> String {
        let width = all.iter().map(|standing| standing.name.len()).max().unwrap_or(0);
        let (paint, mark) = if standing.done {
            (Paint::Good, self.screen.symbol("✓", "ok"))
        } else if standing.failing {
            (Paint::Bad, self.screen.symbol("✗", "!!"))
        } else {
            (Paint::Warn, self.screen.symbol("…", ".."))
        };
        format!(
            "{} {:<width$}  {}",
            self.screen.paint(paint, mark),
            standing.name,
            standing.text
        )
    }
}

/// The scheduler's own explanations of what did not become healthy.
async fn why_not(
    session: &Session,
    screen: &Screen,
    undone: &[&str],
    replicas: &[ReplicaView],
) -> Result<(), Failure> {
    let now = Timestamp::now();
    for name in undone {
        // A container's own explanation covers replicas without a place; one with a place has more to tell.
        let placed = replicas
            .iter()
            .filter(|replica| replica.container.as_str() == *name && !replica.ready)
            .find(|replica| replica.machine_id.is_some());
        let (subject, id) = match placed {
            Some(replica) => (Subject::Replica, replica.replica_id.as_str()),
            None => (Subject::Container, *name),
        };
        if let Ok(it) = explain::get(session, subject, id).await {
            output::line(format!("\n{}", explanation(screen, now, &it)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(status: &str) -> ContainerSummary {
        serde_json::from_value(
            json!({"name": "reader", "image": "app:2", "status": status, "statusReason": null,
            "statusMessage": null, "currentReplicas": 1, "desiredReplicas": 2, "readyReplicas": 2}),
        )
        .unwrap()
    }

    fn replica(id: &str, status: &str, image: &str) -> ReplicaView {
        serde_json::from_value(
            json!({"replicaId": id, "container": "reader", "image": image, "machineId": "m1",
            "status": status, "phase": if status == "running" { "healthy" } else { "image" },
            "ready": status == "running", "run": 1, "outdated": image == "app:1", "recentCrashes": 0, "cpu": "1", "memory": 1024,
            "wait": if status == "pending" { json!({"reason": "pulling app:2", "since": "1970-01-01T00:00:00Z"}) }
                else { json!(null) }}),
        )
        .unwrap()
    }

    fn check(status: &str, replicas: &[ReplicaView]) -> Standing {
        let wanted = Wanted::from(["reader".to_owned()]);
        standings(
            &Screen::PLAIN,
            Timestamp::from_millis(0),
            &wanted,
            &[container(status)],
            replicas,
        )
        .remove(0)
    }

    #[test]
    fn replicas_of_an_older_declaration_do_not_count() {
        let old = [
            replica("r-1", "running", "app:1"),
            replica("r-2", "running", "app:2"),
        ];
        assert!(!check("running", &old).done);
        let new = [
            replica("r-1", "running", "app:2"),
            replica("r-2", "running", "app:2"),
        ];
        assert!(check("running", &new).done);
    }

    #[test]
    fn says_what_the_worst_replica_waits_for() {
        let some = [
            replica("r-1", "running", "app:2"),
            replica("r-2", "pending", "app:2"),
        ];
        let standing = check("pending", &some);
        assert_eq!(standing.text, "1 of 2 ready  r-2 is image: pulling app:2");
        assert!(!standing.done && !standing.failing);
    }

    #[test]
    fn a_replica_that_is_still_stopping_is_waited_for() {
        let mut gone = replica("r-0", "stopping", "app:1");
        gone.ready = false;
        let all = [
            gone,
            replica("r-1", "running", "app:2"),
            replica("r-2", "running", "app:2"),
        ];
        assert!(!check("running", &all).done);
        assert!(check("running", &all[1..]).done);
    }
}
