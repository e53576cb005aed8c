//! `berth logs`: what replicas wrote, through scheduler and node link.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_api::rest::operator::{ListReplicasReply, LogRecord, LogStream};
use berth_api::time::Timestamp;
use clap::Args;
use futures::StreamExt as _;

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::{Code, Failure, chain};
use crate::output::{self, Paint, Screen};

/// One record is a line of JSON around a line of log; the keeper cuts lines long before this.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Arguments of `berth logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// A container (all its replicas) or one replica
    name: String,
    /// Go on showing new lines
    #[arg(short, long)]
    follow: bool,
    /// Only lines since then: 10m, 2h, or a time such as 2026-01-01T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// At most so many last lines of each replica
    #[arg(long, value_name = "N")]
    tail: Option<u32>,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    #[command(flatten)]
    output: Output,
}

/// The value of `--since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    At(Timestamp),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(time) = text.parse() {
        return Ok(Since::At(time));
    }
    crate::args::duration(text)
        .map(Since::Ago)
        .map_err(|_| "write a length of time such as 10m, or a time such as 2026-01-01T10:00:00Z".into())
}

pub(crate) async fn run(args: LogsArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let mut query = vec![("follow", args.follow.to_string())];
    let since = args.since.map(|since| match since {
        Since::At(time) => time.millis(),
        Since::Ago(ago) => {
            let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            Timestamp::now().millis().saturating_sub(ago)
        }
    });
    query.extend(since.map(|since| ("sinceMs", since.to_string())));
    query.extend(args.tail.map(|tail| ("tail", tail.to_string())));
    let mut printer = Printer {
        screen,
        format: args.output.output,
        timestamps: args.timestamps,
        prefixed: is_several(session, &args.name).await,
        colours: BTreeMap::new(),
    };
    let response = session
        .client
        .stream(&["clusters", cluster, "logs", &args.name], &query)
        .await?;
    let mut chunks = response.bytes_stream();
    let mut lines = Lines::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Failure::new(
                Code::Refused,
                format!("the scheduler stopped sending: {}", chain(&error)),
            )
        })?;
        for line in lines.add(&chunk)? {
            printer.print(&line)?;
        }
    }
    if let Some(line) = lines.rest() {
        printer.print(&line)?;
    }
    Ok(())
}

/// Whether the name means a container with more than one replica. Only looks: a failure shows with the logs themselves.
async fn is_several(session: &Session, name: &str) -> bool {
    let Ok(cluster) = session.cluster() else {
        return false;
    };
    let reply: Result<ListReplicasReply, _> = session.client.get(&["clusters", cluster, "replicas"]).await;
    reply.is_ok_and(|reply| {
        reply
            .replicas
            .iter()
            .filter(|replica| replica.container.as_str() == name)
            .count()
            > 1
    })
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    fn add(&mut self, chunk: &[u8]) -> Result<Vec<String>, Failure> {
        self.pending.extend_from_slice(chunk);
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            if self.pending.len() > RECORD_BYTES_MAX {
                return Err(Failure::failed("the scheduler sends a record without end"));
            }
            return Ok(Vec::new());
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }

    fn rest(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }
}

struct Printer<'a> {
    screen: &'a Screen,
    format: Format,
    timestamps: bool,
    prefixed: bool,
    /// Each replica's colour, in the order of their first lines.
    colours: BTreeMap<String, usize>,
}

impl Printer<'_> {
    fn print(&mut self, line: &str) -> Result<(), Failure> {
        if self.format == Format::Json {
            return output::line(line);
        }
        let record: LogRecord = serde_json::from_str(line).map_err(|error| {
            Failure::failed(format!(
                "the scheduler sent a record that cannot be read: {error}"
            ))
        })?;
        output::line(self.text(&record))
    }

    fn text(&mut self, record: &LogRecord) -> String {
        let mut text = String::new();
        if self.prefixed {
            let next = self.colours.len();
            let colour = *self.colours.entry(record.replica_id.to_string()).or_insert(next);
            let bar = self.screen.symbol("│", "|");
            let prefix = format!("{} {bar} ", record.replica_id);
            text.push_str(&self.screen.paint(Paint::Series(colour), &prefix));
        }
        if self.timestamps {
            text.push_str(&self.screen.paint(Paint::Dim, &format!("{} ", record.time)));
        }
        match record.stream {
            LogStream::Stdout | LogStream::Stderr => text.push_str(&record.line),
            LogStream::Keeper => {
                text.push_str(&self.screen.paint(Paint::Dim, &format!("[berth] {}", record.line)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_the_chunks_are() {
        let mut lines = Lines::default();
        assert!(lines.add(b"{\"a\"").unwrap().is_empty());
        assert_eq!(
            lines.add(b":1}\n{\"b\":2}\n{").unwrap(),
            ["{\"a\":1}", "{\"b\":2}"]
        );
        assert_eq!(lines.rest().as_deref(), Some("{"));
        let mut endless = Lines::default();
        assert!(endless.add(&vec![b'x'; RECORD_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn several_replicas_are_told_apart() {
        let mut printer = Printer {
            screen: &Screen::PLAIN,
            format: Format::Table,
            timestamps: true,
            prefixed: true,
            colours: BTreeMap::new(),
        };
        let record = LogRecord {
            time: Timestamp::from_millis(0),
            replica_id: "reader-0".parse().unwrap(),
            stream: LogStream::Keeper,
            line: "gap".into(),
            partial: false,
            run: 1,
        };
        assert_eq!(
            printer.text(&record),
            "reader-0 | 1970-01-01T00:00:00.000Z [berth] gap"
        );
    }

    #[test]
    fn since_takes_a_length_or_a_time() {
        assert_eq!(since("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(
            since("1970-01-01T00:00:01Z"),
            Ok(Since::At(Timestamp::from_millis(1000)))
        );
        assert!(since("yesterday").is_err());
    }
}
