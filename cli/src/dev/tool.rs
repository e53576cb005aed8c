//! Child processes of system tools (`ip`, `nft`, `umount`, ...), each with a deadline.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What an `ip`, `nft` or `losetup` call may take on a busy machine; their work is milliseconds.
pub(crate) const TOOL_DEADLINE: Duration = Duration::from_secs(20);

/// Why a tool gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` failed: {output}")]
    Exit { command: String, output: String },
    #[error("`{command}` did not end within {seconds} s")]
    Deadline { command: String, seconds: u64 },
}

/// Runs a tool to its end and gives what it wrote to standard output.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<String, ToolError> {
    run_with(program, arguments, "", TOOL_DEADLINE).await
}

/// As [`run`], with text for its standard input and another deadline. The child is killed when the deadline passes.
pub(crate) async fn run_with(
    program: &str,
    arguments: &[&str],
    input: &str,
    deadline: Duration,
) -> Result<String, ToolError> {
    let command = || {
        std::iter::once(program)
            .chain(arguments.iter().copied())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let start = |source| ToolError::Start {
        program: program.into(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", super::preflight::search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let work = async move {
        if let Some(mut stdin) = stdin {
            // A tool that ends without reading its input says so by its exit status.
            drop(stdin.write_all(input.as_bytes()).await);
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| ToolError::Deadline {
            command: command(),
            seconds: deadline.as_secs(),
        })?
        .map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        said = output.status.to_string();
    }
    Err(ToolError::Exit {
        command: command(),
        output: said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_input_and_gives_output() {
        assert_eq!(run_with("cat", &[], "text", TOOL_DEADLINE).await.unwrap(), "text");
    }

    #[tokio::test]
    async fn tells_what_a_failing_tool_said() {
        let error = run("sh", &["-c", "echo no such thing >&2; exit 3"])
            .await
            .unwrap_err();
        assert!(error.to_string().ends_with("failed: no such thing"), "{error}");
    }

    #[tokio::test]
    async fn kills_a_tool_that_hangs() {
        let error = run_with("sleep", &["60"], "", Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, ToolError::Deadline { .. }));
    }
}
