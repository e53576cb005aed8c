//! How long a scheduler takes from its start to ready when its log was a million entries long: with the snapshots that it
//! keeps, and with none.

use std::path::Path;

use anyhow::Context as _;
use berth_api::id::ClusterId;
use berth_api::time::{Timestamp, monotonic};
use berth_scheduler::entry::Entry;
use berth_scheduler::store::{SNAPSHOT_INTERVAL, Snapshot, Sqlite, Store as _};
use berth_scheduler::world::World;
use serde_json::json;

use crate::Context as Bench;
use crate::figures::Figures;
use crate::program::{Program, container};

const ENTRIES: u64 = 1_000_000;
const CONTAINERS: u64 = 200;

pub(crate) async fn measure(context: &Bench, figures: &mut Figures) -> anyhow::Result<()> {
    let entries = ENTRIES / u64::try_from(context.divisor)?;
    let kept = recover(context, "recovery", entries, Snapshots::Kept).await?;
    figures.add(
        "recover_s",
        "from start to ready, 1 000 000 entries",
        "s",
        kept,
        Some(5.0),
    );
    let none = recover(context, "recovery-whole", entries, Snapshots::None).await?;
    figures.add("replay_s", "the same without any snapshot", "s", none, None);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Snapshots {
    Kept,
    None,
}

async fn recover(context: &Bench, name: &str, entries: u64, snapshots: Snapshots) -> anyhow::Result<f64> {
    let dir = context.work.join(name);
    let mut program = Program::start(&context.scheduler, &dir, "").await?;
    program.create_cluster("recovered", 10).await?;
    program.kill()?;
    fill(&dir.join("data/store.db"), entries, snapshots).await?;
    let begun = monotonic();
    program.spawn()?;
    program.ready().await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Appends changes of declarations to the only cluster of a store.
async fn fill(path: &Path, entries: u64, snapshots: Snapshots) -> anyhow::Result<()> {
    let store = Sqlite::open(path)?;
    let cluster = ClusterId::new("recovered")?;
    let history = store.load(&cluster).await?;
    let mut world: Option<World> = None;
    for record in &history.records {
        let entry = Entry::from_record(&record.payload)?;
        match &mut world {
            Some(world) => world.apply(&entry),
            None => world = Some(World::create(&entry)?),
        }
    }
    let mut world = world.context("the cluster was created")?;
    let mut seq = history.next_seq;
    let mut records = Vec::new();
    let at = Timestamp::now();
    for number in 0..entries {
        let mut body = container(&format!("c{}", number % CONTAINERS), 1, "1");
        body["image"] = json!(format!("registry.example/app:{}", number / CONTAINERS));
        let spec = berth_api::rest::container::read_container(&body, world.spec())?;
        let entry = world.put(spec, at);
        world.apply(&entry);
        records.push(entry.to_record());
        if u64::try_from(records.len())? == SNAPSHOT_INTERVAL {
            seq = store.append(&cluster, seq, std::mem::take(&mut records)).await?;
            if snapshots == Snapshots::Kept {
                let payload = serde_json::to_vec(&json!({"v": 1, "world": world}))?;
                store
                    .snapshot(
                        &cluster,
                        Snapshot {
                            seq: seq - 1,
                            payload,
                        },
                    )
                    .await?;
            }
        }
    }
    Ok(())
}
