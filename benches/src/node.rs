//! The node with 200 replicas on one machine, each figure beside raw containerd in the same run where it has a peer.

mod many;
mod programs;
mod pull;

use crate::arguments::Arguments;
use crate::figures::Figures;
use crate::instance::Instance;
use crate::raw::Raw;
use crate::report::say;

pub(crate) async fn measure(
    instance: &Instance,
    raw: &Raw,
    arguments: &Arguments,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    say("pulling 500 MB, by ctr and by Berth in turns")?;
    pull::measure(instance, arguments, figures).await?;
    say("starting 200 at once, raw and by Berth")?;
    many::start(instance, raw, &arguments.image, figures).await?;
    say("reading memory and idle use with 200 replicas")?;
    many::idle(instance, figures).await?;
    say("running a program in a replica, by ctr and by berth exec in turns")?;
    programs::measure(instance, arguments, figures).await?;
    say("killing the daemon under 200 replicas")?;
    many::adopt(instance, figures).await
}
