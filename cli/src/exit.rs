//! How a command ends: the exit codes, and the failure that carries one with its message.

use std::fmt;

/// Exit codes of `berth`, also listed in `berth --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The thing asked for did not work.
    Failed,
    /// The command line, the file or the request was wrong.
    Input,
    /// What was named does not exist.
    NotFound,
    /// The scheduler could not be reached, or refused the token.
    Refused,
    /// A wait ended before what it waited for came.
    TimedOut,
    /// That of a program which was run elsewhere.
    Program(u8),
}

impl Code {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Input => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::TimedOut => 5,
            Self::Program(code) => code,
        }
    }
}

/// Text of the exit codes for `--help`.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed
  2  bad command line, file or request
  3  not found
  4  scheduler not reachable, or token refused
  5  timed out while waiting";

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Code::Failed, message)
    }

    pub(crate) fn input(message: impl fmt::Display) -> Self {
        Self::new(Code::Input, message)
    }

    /// The error and everything that caused it, on one line.
    pub(crate) fn of(code: Code, error: &dyn std::error::Error) -> Self {
        Self::new(code, chain(error))
    }
}

/// An error with its causes: `outer: inner: innermost`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_in_the_help() {
        for code in [
            Code::Failed,
            Code::Input,
            Code::NotFound,
            Code::Refused,
            Code::TimedOut,
        ] {
            assert!(
                EXIT_CODES.contains(&format!("\n  {}  ", code.number())),
                "{code:?}"
            );
        }
    }
}
