//! `berth get`: lists.

use berth_api::rest::container::ListContainersReply;
use berth_api::rest::node::ListMachinesReply;
use berth_api::rest::operator::{ListClustersReply, ListReplicasReply};
use berth_api::time::Timestamp;
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::Failure;
use crate::output::{self, Paint, Screen};
use crate::render::text::{age, cut, gpus_held, machine_paint, replica_word, trouble};

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Kind {
    #[default]
    #[value(alias = "container")]
    Containers,
    #[value(alias = "machine")]
    Machines,
    #[value(alias = "replica")]
    Replicas,
    /// Needs a platform token
    #[value(alias = "cluster")]
    Clusters,
}

/// Arguments of `berth get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// What to list
    #[arg(value_enum, default_value_t)]
    kind: Kind,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: GetArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let now = Timestamp::now();
    match args.kind {
        Kind::Clusters => {
            list(&["clusters"], args, session, |reply: &ListClustersReply| {
                clusters(screen, now, reply)
            })
            .await
        }
        Kind::Containers => {
            let path = ["clusters", session.cluster()?, "containers"];
            list(&path, args, session, |reply| containers(screen, reply)).await
        }
        Kind::Machines => {
            let path = ["clusters", session.cluster()?, "machines"];
            list(&path, args, session, |reply| machines(screen, now, reply)).await
        }
        Kind::Replicas => {
            let path = ["clusters", session.cluster()?, "replicas"];
            list(&path, args, session, |reply| replicas(screen, now, reply)).await
        }
    }
}

async fn list<T: DeserializeOwned>(
    path: &[&str],
    args: GetArgs,
    session: &Session,
    table: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    match args.output.output {
        // The list as the scheduler said it: members that this version does not know stay.
        Format::Json => {
            let reply: serde_json::Value = session.client.get(path).await?;
            let list = path.last().and_then(|name| reply.get(*name));
            output::json(list.unwrap_or(&reply))
        }
        Format::Table => output::line(table(&session.client.get(path).await?)),
    }
}

fn clusters(screen: &Screen, now: Timestamp, reply: &ListClustersReply) -> String {
    let rows = reply
        .clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.cluster_id.to_string(),
                cluster.name.clone(),
                cluster.platform.to_string(),
                cluster.machine_count.to_string(),
                cluster.container_count.to_string(),
                age(now, Some(cluster.created_at)),
            ]
        })
        .collect();
    output::table(
        screen,
        &["CLUSTER", "NAME", "PLATFORM", "MACHINES", "CONTAINERS", "AGE"],
        rows,
    )
}

fn containers(screen: &Screen, reply: &ListContainersReply) -> String {
    use berth_api::rest::container::ContainerStatus;
    let rows = reply
        .containers
        .iter()
        .map(|container| {
            let paint = match container.status {
                ContainerStatus::Running => Paint::Good,
                ContainerStatus::Pending => Paint::Warn,
                ContainerStatus::Stopped => Paint::Dim,
                ContainerStatus::Failing => Paint::Bad,
            };
            let reason = container.status_reason.map(|reason| format!("{reason:?}"));
            let why = [reason, container.status_message.clone()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(": ");
            vec![
                container.name.to_string(),
                screen.paint(paint, &container.status.to_string()),
                format!("{}/{}", container.ready_replicas, container.desired_replicas),
                container.image.clone(),
                cut(&why.replace('\n', " "), 80),
            ]
        })
        .collect();
    output::table(screen, &["CONTAINER", "STATUS", "READY", "IMAGE", "WHY"], rows)
}

fn machines(screen: &Screen, now: Timestamp, reply: &ListMachinesReply) -> String {
    let rows = reply
        .machines
        .iter()
        .map(|machine| {
            let memory = &machine.memory;
            vec![
                machine.machine_id.to_string(),
                screen.paint(machine_paint(machine.status), &machine.status.to_string()),
                machine.capacity_group.to_string(),
                machine.zone.to_string(),
                format!("{}/{}", machine.cpu.allocated, machine.cpu.total),
                format!("{} / {}", memory.allocated.rounded(), memory.total.rounded()),
                machine.gpu.as_ref().map_or_else(
                    || "-".into(),
                    |gpu| {
                        let held = gpus_held(machine).map_or_else(String::new, |held| format!("{held}/"));
                        format!("{held}{} {}", gpu.total, gpu.kind)
                    },
                ),
                machine.replica_count.to_string(),
                machine
                    .container_cidr
                    .map_or_else(|| "-".into(), |cidr| cidr.to_string()),
                age(now, Some(machine.last_heartbeat)),
            ]
        })
        .collect();
    output::table(
        screen,
        &[
            "MACHINE", "STATUS", "GROUP", "ZONE", "CPU", "MEMORY", "GPU", "REPLICAS", "NETWORK", "HEARD",
        ],
        rows,
    )
}

fn replicas(screen: &Screen, now: Timestamp, reply: &ListReplicasReply) -> String {
    let rows = reply
        .replicas
        .iter()
        .map(|replica| {
            let (word, paint) = replica_word(replica);
            vec![
                replica.replica_id.to_string(),
                screen.paint(paint, &word),
                replica
                    .machine_id
                    .as_ref()
                    .map_or_else(|| "-".into(), ToString::to_string),
                replica.ip.map_or_else(|| "-".into(), |ip| ip.to_string()),
                replica.run.to_string(),
                age(now, replica.started_at),
                replica.image.clone(),
                cut(&trouble(replica, now).unwrap_or_default(), 80),
            ]
        })
        .collect();
    output::table(
        screen,
        &[
            "REPLICA",
            "STATE",
            "MACHINE",
            "IP",
            "RUN",
            "UP",
            "IMAGE",
            "WAITS FOR",
        ],
        rows,
    )
}
