//! `berthd upgrade`: puts another version of the daemon or of the log keeper in the place of the one that runs, and the former back
//! when the new one is not ready in time.
//!
//! ```text
//! stage (digest) ▶ preflight ▶ journal ▶ switch ▶ restart ▶ ready and acknowledged? ─ yes ▶ done, journal away
//!                                                                └ no ▶ switch back ▶ end the new ▶ former ready ▶ journal away
//! ```
//!
//! The supervisor starts a link in `program_dir`, which is replaced in one rename, and starts again whatever ends: so ending the
//! process is the restart, under systemd and under `berth dev` alike. Invariant: whenever this is killed, the link is of one whole
//! version, and what runs is that or the other. The journal says what was begun; the next call finishes it when the new version is
//! ready, and undoes it otherwise.
//!
//! Owner: whoever calls it, one at a time (a lock). Failure: before the switch nothing has changed; after it the former is put back.

mod files;
mod process;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_api::time::{Timestamp, duration_in_words, monotonic};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use files::Programs;
use process::Seen;

/// A new version is ready and acknowledged by the scheduler within this, or it goes.
pub const READY_WITHIN: Duration = Duration::from_secs(90);
/// It is the same process still after this: one that is ready and dies is not ready.
const STAYS_FOR: Duration = Duration::from_secs(3);
/// A program that is told to end and does not is killed after this.
const END_WITHIN: Duration = Duration::from_secs(15);
const PREFLIGHT_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What can be upgraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    Berthd,
    BerthLogkeeper,
}

impl Program {
    /// The name of its link.
    fn name(self) -> &'static str {
        match self {
            Self::Berthd => "berthd",
            Self::BerthLogkeeper => "berth-logkeeper",
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub struct Order {
    pub program: Program,
    pub file: PathBuf,
    /// Of the file, hexadecimal.
    pub sha256: String,
    pub ready_within: Duration,
}

/// Why there is no new version.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another upgrade is under way: {0} is locked")]
    Busy(PathBuf),
    #[error("{path} has the SHA-256 {found}, and {expected} was asked for")]
    Digest {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error(
        "{0} is no symbolic link; let the supervisor start a link there, so that it can be replaced in one step"
    )]
    NoLink(PathBuf),
    #[error("what runs now is not well, so nobody could say whether the new version is: {0}")]
    NotWell(String),
    #[error("the new version does not pass its preflight: {0}")]
    Preflight(String),
    #[error("the new version was not ready within {}: {reason}; the former is back", duration_in_words(*within))]
    RolledBack { within: Duration, reason: String },
    #[error("the new version was not ready ({reason}), and the former, put back, is not ready either: {now}")]
    NeitherReady { reason: String, now: String },
}

/// What was begun. Written before the switch, removed when one version is in place and ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Journal {
    program: Program,
    /// Where the link led before; leads now, or is to lead again.
    from: PathBuf,
    to: PathBuf,
    began_at: Timestamp,
    ready_within_seconds: u64,
}

/// Does what was asked, or without an order finishes or undoes what was begun. Says each step.
///
/// # Errors
/// When the new version is not in place in the end; says which one runs.
pub fn run(
    config: &Config,
    config_file: &Path,
    order: Option<&Order>,
    say: &mut dyn FnMut(&str),
) -> Result<(), UpgradeError> {
    let programs = Programs::open(&config.program_dir)?;
    let mut upgrade = Upgrade {
        config,
        config_file,
        programs,
        say,
    };
    let settled = match upgrade.programs.journal()? {
        Some(journal) => upgrade.settle(&journal),
        None => {
            if order.is_none() {
                upgrade.say("nothing was begun that is not finished");
            }
            Ok(())
        }
    };
    match order {
        // What was begun is over, well or not; a new order does not suffer for it.
        Some(order) => {
            if let Err(error) = settled {
                upgrade.say(&error.to_string());
            }
            upgrade.obey(order)
        }
        None => settled,
    }
}

struct Upgrade<'a> {
    config: &'a Config,
    config_file: &'a Path,
    programs: Programs,
    say: &'a mut dyn FnMut(&str),
}

impl Upgrade<'_> {
    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    fn obey(&mut self, order: &Order) -> Result<(), UpgradeError> {
        let name = order.program.name();
        let from = self.programs.target(name)?;
        let to = self.programs.stage(name, &order.file, &order.sha256)?;
        if from == to {
            self.say(&format!("{name}: this version is in place already"));
            return Ok(());
        }
        self.look(order.program, &from).map_err(UpgradeError::NotWell)?;
        self.preflight(order.program, &to)?;
        let journal = Journal {
            program: order.program,
            from,
            to,
            began_at: Timestamp::now(),
            ready_within_seconds: order.ready_within.as_secs().max(1),
        };
        self.programs.begin(&journal)?;
        self.programs.point(name, &journal.to)?;
        self.say(&format!("{name}: switched to {}", journal.to.display()));
        self.finish(&journal)
    }

    /// Something was begun and its caller was killed.
    fn settle(&mut self, journal: &Journal) -> Result<(), UpgradeError> {
        let name = journal.program.name();
        let began = journal.began_at;
        if self.programs.target(name)? == journal.to {
            self.say(&format!(
                "{name}: going on with the upgrade that was begun at {began}"
            ));
            return self.finish(journal);
        }
        self.say(&format!("{name}: undoing the upgrade that was begun at {began}"));
        let reason = String::from("it was interrupted");
        match self.undo(journal, reason)? {
            UpgradeError::RolledBack { .. } => Ok(()),
            error => Err(error),
        }
    }

    /// The link leads to the new version: it runs and is ready, or the former comes back.
    fn finish(&mut self, journal: &Journal) -> Result<(), UpgradeError> {
        let within = Duration::from_secs(journal.ready_within_seconds);
        self.end_all_but(journal.program, &journal.to);
        match self.until_ready(journal.program, &journal.to, within) {
            Ok(()) => {
                self.programs.end(journal)?;
                self.say(&format!("{}: the new version is ready", journal.program.name()));
                Ok(())
            }
            Err(reason) => Err(self.undo(journal, reason)?),
        }
    }

    /// Puts the former back; the error to end with.
    fn undo(&mut self, journal: &Journal, reason: String) -> Result<UpgradeError, UpgradeError> {
        let name = journal.program.name();
        self.say(&format!("{name}: putting the former version back: {reason}"));
        self.programs.point(name, &journal.from)?;
        self.end_all_but(journal.program, &journal.from);
        // One that hangs answers nobody: it is found as what was started from the link and is not the former.
        let (link, former) = (
            self.programs.resolve(Path::new(name)),
            self.programs.resolve(&journal.from),
        );
        for pid in process::started_from(&link, &former) {
            process::end(pid, END_WITHIN);
        }
        if let Err(now) = self.until_ready(journal.program, &journal.from, READY_WITHIN) {
            // The journal stays: a later call looks again.
            return Ok(UpgradeError::NeitherReady { reason, now });
        }
        self.programs.give_up(journal)?;
        let within = Duration::from_secs(journal.ready_within_seconds);
        Ok(UpgradeError::RolledBack { within, reason })
    }

    /// Ends the program that answers, unless it is of this version already. The supervisor starts what the link leads to.
    fn end_all_but(&mut self, program: Program, version: &Path) {
        if let Ok(seen) = process::see(self.config, program)
            && !seen.is_of(&self.programs.resolve(version))
        {
            process::end(seen.pid, END_WITHIN);
        }
    }

    /// Whether this version of the program runs and is well; its process, or why not.
    fn look(&self, program: Program, version: &Path) -> Result<Seen, String> {
        let seen = process::see(self.config, program)?;
        if !seen.is_of(&self.programs.resolve(version)) {
            return Err(format!(
                "process {} answers, which is of another version",
                seen.pid.as_raw_nonzero()
            ));
        }
        seen.fault.clone().map_or(Ok(seen), Err)
    }

    /// Waits until a version is ready and stays so.
    fn until_ready(&self, program: Program, version: &Path, within: Duration) -> Result<(), String> {
        let end = monotonic() + within;
        let mut since: Option<(Seen, Instant)> = None;
        let mut reason = String::from("nothing of it was seen");
        loop {
            let now = monotonic();
            match (self.look(program, version), since.take()) {
                (Ok(seen), Some((before, at))) if seen.pid == before.pid => {
                    if now.duration_since(at) >= STAYS_FOR {
                        return Ok(());
                    }
                    since = Some((before, at));
                }
                (Ok(seen), _) => since = Some((seen, now)),
                (Err(why), _) => reason = why,
            }
            // One that has just become ready is looked at once more.
            let late = if since.is_some() {
                STAYS_FOR * 2
            } else {
                Duration::ZERO
            };
            if now >= end + late {
                return Err(reason);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn preflight(&mut self, program: Program, version: &Path) -> Result<(), UpgradeError> {
        let path = self.programs.resolve(version);
        let mut command = std::process::Command::new(&path);
        match program {
            Program::Berthd => command.arg("--config").arg(self.config_file).arg("preflight"),
            Program::BerthLogkeeper => command.arg("--version"),
        };
        let said = process::output(&mut command, PREFLIGHT_WITHIN).map_err(UpgradeError::Preflight)?;
        for line in said.lines() {
            self.say(&format!("preflight: {line}"));
        }
        Ok(())
    }
}
