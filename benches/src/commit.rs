//! Time of one durable append to the scheduler's log, on the file system of the instance.

use std::path::Path;

use anyhow::Context as _;
use berth_api::id::ClusterId;
use berth_api::time::monotonic;
use berth_scheduler::store::{Sqlite, Store as _};

use crate::figures::{Figures, percentile};
use crate::report::millis;

const APPENDS: u64 = 500;
/// About the size of the entries of one placed replica.
const PAYLOAD_BYTES: usize = 1024;

pub(crate) async fn measure(directory: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let path = directory.join("bench-store.db");
    let store = Sqlite::open(&path).context("open a store")?;
    let cluster = ClusterId::new("bench").context("name a cluster")?;
    let mut samples = Vec::new();
    for seq in 1..=APPENDS {
        let payload = vec![b'x'; PAYLOAD_BYTES];
        let begun = monotonic();
        store.append(&cluster, seq, vec![payload]).await?;
        samples.push(millis(begun.elapsed()));
    }
    figures.add(
        "commit_p50_ms",
        "commit of a record, p50",
        "ms",
        percentile(&samples, 50),
        None,
    );
    figures.add(
        "commit_p99_ms",
        "commit of a record, p99",
        "ms",
        percentile(&samples, 99),
        None,
    );
    Ok(())
}
