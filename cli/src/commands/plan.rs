//! `berth plan`: what the scheduler would do to the machines. Nothing is changed by looking.

use berth_api::rest::cluster::CapacityPlanReply;
use berth_api::rest::repack::RepackPlanReply;
use clap::{Args, Subcommand};

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::Failure;
use crate::output::{self, Screen};
use crate::render::plan::{capacity_plan, repack_plan};

/// Arguments of `berth plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    command: PlanCommand,
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// How many machines each capacity group should have, why, and which it could do without
    Capacity(CapacityArgs),
    /// Which replicas could move so that machines become empty, in which order
    Repack(RepackArgs),
}

#[derive(Debug, Args)]
struct CapacityArgs {
    #[command(flatten)]
    output: Output,
    /// The same as `-o json`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RepackArgs {
    /// Moves that the plan may have
    #[arg(long, value_name = "N", default_value_t = 20)]
    moves_per_hour: u32,
    /// Let stateful replicas move, inside the zone of their disk
    #[arg(long)]
    stateful: bool,
    #[command(flatten)]
    output: Output,
    /// The same as `-o json`
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: PlanArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    match args.command {
        PlanCommand::Capacity(args) => capacity(&args, session, screen).await,
        PlanCommand::Repack(args) => repack(&args, session, screen).await,
    }
}

async fn repack(args: &RepackArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let path = ["clusters", session.cluster()?, "repack-plan"];
    let query = [
        ("movesPerHour", args.moves_per_hour.to_string()),
        ("stateful", args.stateful.to_string()),
    ];
    if args.json || args.output.output == Format::Json {
        let reply: serde_json::Value = session.client.get_with(&path, &query).await?;
        return output::json(&reply);
    }
    let reply: RepackPlanReply = session.client.get_with(&path, &query).await?;
    output::line(repack_plan(screen, &reply))
}

async fn capacity(args: &CapacityArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let path = ["clusters", session.cluster()?, "capacity-plan"];
    if args.json || args.output.output == Format::Json {
        let reply: serde_json::Value = session.client.get(&path).await?;
        return output::json(&reply);
    }
    let reply: CapacityPlanReply = session.client.get(&path).await?;
    output::line(capacity_plan(screen, &reply))
}
