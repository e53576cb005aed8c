//! A program run as a child with a deadline. What can hang in the kernel (mount, umount, mkfs) runs here: the child is
//! killed at its deadline, and one that the kernel will not let go costs only its own entry in the process table.

use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Output beyond this is not a message for people any more.
const OUTPUT_LEN_MAX: usize = 2048;

/// Why a child did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("starting {program}")]
    Start { program: String, source: io::Error },
    #[error("talking to {program}")]
    Talk { program: String, source: io::Error },
    #[error("{program} did not finish within {deadline:?}")]
    Deadline { program: String, deadline: Duration },
    #[error("{program} ended with {status}: {output}")]
    Failed {
        program: String,
        status: ExitStatus,
        output: String,
    },
}

/// Runs `program`, gives it `input`, and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started, fails, or is not done at the deadline; it is then killed.
pub async fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&[u8]>,
    deadline: Duration,
) -> Result<Vec<u8>, ChildError> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ChildError::Start {
            program: program.into(),
            source,
        })?;
    let pipe = child.stdin.take();
    let work = async {
        let feed = async {
            if let (Some(mut pipe), Some(input)) = (pipe, input) {
                pipe.write_all(input).await?;
            }
            io::Result::Ok(())
        };
        let (fed, output) = tokio::join!(feed, child.wait_with_output());
        output.map(|output| (fed, output))
    };
    let (fed, output) = tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| ChildError::Deadline {
            program: program.into(),
            deadline,
        })?
        .map_err(|source| ChildError::Talk {
            program: program.into(),
            source,
        })?;
    if !output.status.success() {
        return Err(ChildError::Failed {
            program: program.into(),
            status: output.status,
            output: Words(&output.stderr, &output.stdout).to_string(),
        });
    }
    fed.map_err(|source| ChildError::Talk {
        program: program.into(),
        source,
    })?;
    Ok(output.stdout)
}

/// What a program said, on one line.
struct Words<'a>(&'a [u8], &'a [u8]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<u8> = [self.0, b" ", self.1].concat();
        let all: Vec<u8> = all.into_iter().take(OUTPUT_LEN_MAX).collect();
        let text = String::from_utf8_lossy(&all);
        let words: Vec<&str> = text.split_whitespace().collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_what_the_child_says() {
        let said = run("cat", &[], Some(b"hello"), Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(said, b"hello");
    }

    #[tokio::test]
    async fn a_failure_carries_the_words() {
        let error = run(
            "sh",
            &["-c", "echo no room >&2; exit 3"],
            None,
            Duration::from_secs(60),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3: no room");
    }

    #[tokio::test]
    async fn kills_at_the_deadline() {
        let error = run("sleep", &["60"], None, Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, ChildError::Deadline { .. }));
    }
}
