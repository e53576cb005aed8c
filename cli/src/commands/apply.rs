//! `berth apply`: makes a cluster's containers what a file declares.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::rest::Success;
use berth_api::rest::cluster::GetClusterReply;
use berth_api::rest::container::{CreateContainerReply, ListContainersReply};
use clap::Args;
use serde_json::{Map, Value};

use super::progress::{self, Wanted};
use crate::context::Session;
use crate::diff::{self, Change, Diff, Others};
use crate::exit::{Code, Failure};
use crate::manifest::{self, Manifest};
use crate::output::{self, Paint, Screen};

/// A stack is text written by people; more is a mistake.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What a container's reply says beside its declaration.
const STATE_MEMBERS: [&str; 6] = [
    "status",
    "statusReason",
    "statusMessage",
    "recentCrashes",
    "lastCrashTime",
    "backoffUntil",
];

/// Arguments of `berth apply`.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Stack JSON, or a JSON list of containers; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Delete containers that the file does not name
    #[arg(long)]
    prune: bool,
    /// Show what would change and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before something is deleted
    #[arg(short, long)]
    yes: bool,
    /// Return at once instead of when all is healthy
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after this long
    #[arg(long, default_value = "3m", value_name = "TIME", value_parser = crate::args::duration)]
    timeout: Duration,
    /// Run another image than the file says; may be repeated
    #[arg(long, value_name = "NAME=IMAGE", value_parser = set_image)]
    set_image: Vec<(String, String)>,
    /// Directory of the volumes that the stack leaves open, on platform `local`
    #[arg(long, value_name = "DIR")]
    volumes: Option<PathBuf>,
}

fn set_image(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, image)) if !name.is_empty() && !image.is_empty() => Ok((name.into(), image.into())),
        _ => Err("write NAME=IMAGE, for example reader=registry.example.org/reader:2".into()),
    }
}

pub(crate) async fn run(args: ApplyArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let text = read_file(&args.file)?;
    let reply: GetClusterReply = session.client.get(&["clusters", cluster]).await?;
    let volumes = args.volumes.as_deref().or(session.volumes.as_deref());
    let manifest = manifest::read(&text, &reply, volumes, &args.set_image)
        .map_err(|faults| Failure::input(format!("{}:\n{faults}", args.file.display())))?;
    for warning in &manifest.warnings {
        output::note(format!("berth: {warning}"));
    }
    let present = present(session).await?;
    let others = if args.prune { Others::Prune } else { Others::Keep };
    let diff = diff::diff(&manifest.containers, &present, others);
    output::line(diff.text(screen))?;
    let impossible = diff.impossible();
    if !impossible.is_empty() {
        return Err(Failure::input(impossible.join("\n")));
    }
    if args.dry_run {
        return Ok(());
    }
    let deletions = diff.deletions();
    if !deletions.is_empty() && !args.yes {
        let question = format!("delete {} from {cluster}?", deletions.join(", "));
        if !super::change::confirm(&question).await? {
            return Err(Failure::failed("nothing was changed"));
        }
    }
    if diff.is_empty() {
        output::line(screen.paint(Paint::Dim, "nothing to change"))?;
    }
    make_directories(session, &manifest);
    carry_out(session, &manifest, &present, &diff).await?;
    if args.no_wait {
        return Ok(());
    }
    let wanted: Wanted = manifest.containers.iter().map(|(name, _)| name.clone()).collect();
    progress::wait(session, screen, &wanted, args.timeout).await
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        } else {
            std::fs::File::open(path)?
                .take(FILE_BYTES_MAX)
                .read_to_string(&mut text)?;
        }
        Ok(text)
    };
    read().map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            Code::NotFound
        } else {
            Code::Input
        };
        Failure::new(code, format!("cannot read {}: {error}", path.display()))
    })
}

/// The declarations that the scheduler has, as request bodies.
async fn present(session: &Session) -> Result<BTreeMap<String, Value>, Failure> {
    let cluster = session.cluster()?;
    let list: ListContainersReply = session.client.get(&["clusters", cluster, "containers"]).await?;
    let mut present = BTreeMap::new();
    for container in list.containers {
        let name = container.name.as_str();
        let reply: Value = session
            .client
            .get(&["clusters", cluster, "containers", name])
            .await?;
        let mut config: Map<String, Value> = reply
            .get("config")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        config.retain(|member, value| !STATE_MEMBERS.contains(&member.as_str()) && !value.is_null());
        present.insert(name.to_owned(), Value::Object(config));
    }
    Ok(present)
}

/// Directories that a stack shares, on the host of a development instance; elsewhere they are the operator's matter.
fn make_directories(session: &Session, manifest: &Manifest) {
    let Some(root) = &session.volumes else { return };
    for directory in &manifest.directories {
        if Path::new(directory).starts_with(root)
            && let Err(error) = std::fs::create_dir_all(directory)
        {
            output::note(format!("berth: cannot make {directory}: {error}"));
        }
    }
}

async fn carry_out(
    session: &Session,
    manifest: &Manifest,
    present: &BTreeMap<String, Value>,
    diff: &Diff,
) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let bodies: BTreeMap<&str, &Value> = manifest
        .containers
        .iter()
        .map(|(name, body)| (name.as_str(), body))
        .collect();
    for (name, change) in &diff.changes {
        let name = name.as_str();
        let path = ["clusters", cluster, "containers", name];
        let body = bodies.get(name).copied();
        let result = match (change, body, present.get(name)) {
            (Change::Create, Some(body), _) => session
                .client
                .post::<CreateContainerReply>(&path[..3], Some(body))
                .await
                .map(drop),
            (Change::Update(_), Some(after), Some(before)) => session
                .client
                .patch::<CreateContainerReply>(&path, &diff::patch(before, after))
                .await
                .map(drop),
            (Change::Delete, _, _) => session.client.delete::<Success>(&path).await.map(drop),
            _ => Ok(()),
        };
        result.map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(failure.code, format!("{name}: {}", failure.message))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_have_an_equals_sign_and_a_name_may_not() {
        assert_eq!(set_image("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(set_image("a").is_err());
        assert!(set_image("=b").is_err());
    }
}
