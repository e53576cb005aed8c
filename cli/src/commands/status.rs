//! `berth status`: the picture of a cluster.

use berth_api::rest::container::ListContainersReply;
use berth_api::rest::node::ListMachinesReply;
use berth_api::rest::operator::ListReplicasReply;
use berth_api::time::Timestamp;
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::Failure;
use crate::output::{self, Screen};
use crate::render::status::{Picture, picture};

/// Arguments of `berth status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: StatusArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let (client, cluster) = (&session.client, session.cluster()?);
    if args.output.output == Format::Json {
        let mut all = json!({"cluster": client.get::<Value>(&["clusters", cluster]).await?});
        for list in ["machines", "containers", "replicas"] {
            let reply: Value = client.get(&["clusters", cluster, list]).await?;
            all[list] = reply.get(list).cloned().unwrap_or_default();
        }
        return output::json(&all);
    }
    let reply = client.get(&["clusters", cluster]).await?;
    let machines: ListMachinesReply = client.get(&["clusters", cluster, "machines"]).await?;
    let containers: ListContainersReply = client.get(&["clusters", cluster, "containers"]).await?;
    let replicas: ListReplicasReply = client.get(&["clusters", cluster, "replicas"]).await?;
    let it = Picture {
        cluster: &reply,
        machines: &machines.machines,
        containers: &containers.containers,
        replicas: &replicas.replicas,
    };
    output::line(picture(screen, Timestamp::now(), &it))
}
