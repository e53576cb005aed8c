//! `berth token`: rotate and revoke a cluster's tokens, print a platform token on the scheduler's own host.

use std::path::PathBuf;

use berth_api::rest::Success;
use berth_api::rest::cluster::{RotateTokenReply, TokenRequest, TokenType};
use clap::{Args, Subcommand, ValueEnum};

use crate::context::{self, Session};
use crate::exit::{Code, Failure};
use crate::output;

/// Arguments of `berth token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Replace a cluster's token and print the new one; the old one is void at once
    Rotate { kind: Kind },
    /// Make a cluster's token void
    Revoke { kind: Kind },
    /// Print a new platform token; runs where the scheduler runs
    Platform {
        /// The scheduler's configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/berth/scheduler.toml")]
        config: PathBuf,
    },
}

/// Which of a cluster's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// For this command line and control planes
    Management,
    /// For machines that enrol
    Machine,
}

impl From<Kind> for TokenRequest {
    fn from(kind: Kind) -> Self {
        Self {
            token_type: match kind {
                Kind::Management => TokenType::Management,
                Kind::Machine => TokenType::Machine,
            },
        }
    }
}

/// Rotate and revoke.
pub(crate) async fn run(kind: Kind, void: Void, session: &Session) -> Result<(), Failure> {
    let verb = match void {
        Void::Replace => "rotate",
        Void::Only => "revoke",
    };
    let path = ["clusters", session.cluster()?, "tokens", verb];
    let request = TokenRequest::from(kind);
    if void == Void::Only {
        session.client.post::<Success>(&path, Some(&request)).await?;
        return output::line("revoked");
    }
    let reply: RotateTokenReply = session.client.post(&path, Some(&request)).await?;
    let token = match kind {
        Kind::Management => reply.management_token,
        Kind::Machine => reply.machine_token,
    };
    let token = token.ok_or_else(|| Failure::failed("the scheduler's answer has no token"))?;
    if kind == Kind::Management {
        keep_context(session, &token);
    }
    output::line(token)
}

/// Whether a new token takes the place of the void one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Void {
    Replace,
    Only,
}

/// A context file that holds the token which has just become void gets the new one.
fn keep_context(session: &Session, token: &str) {
    let Some(path) = context::path() else { return };
    let Ok(mut context) = context::load(&path) else {
        return;
    };
    if context.token.as_deref() == Some(session.token.as_str()) {
        context.token = Some(token.to_owned());
        if let Err(error) = context::save(&path, &context) {
            output::note(format!("berth: cannot write {}: {error}", path.display()));
        }
    }
}

/// Asks the scheduler's program, which has the key.
pub(crate) async fn platform(config: PathBuf) -> Result<(), Failure> {
    let program = crate::dev::find_own("berth-scheduler").ok_or_else(|| {
        Failure::new(
            Code::NotFound,
            "berth-scheduler is not on this host; run this where the scheduler runs",
        )
    })?;
    let output = tokio::process::Command::new(program)
        .arg("--config")
        .arg(config)
        .args(["token", "platform"])
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), output)
        .await
        .map_err(|_| Failure::new(Code::TimedOut, "berth-scheduler did not answer within 30 s"))?
        .map_err(|error| Failure::failed(format!("cannot start berth-scheduler: {error}")))?;
    if !output.status.success() {
        return Err(Failure::failed(String::from_utf8_lossy(&output.stderr).trim()));
    }
    output::line(String::from_utf8_lossy(&output.stdout).trim())
}
