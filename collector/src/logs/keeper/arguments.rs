//! The command line of `berth-logkeeper`.

use std::path::PathBuf;

use super::KeeperError;

/// What `--version` prints.
pub const VERSION: &str = concat!("berth-logkeeper ", env!("CARGO_PKG_VERSION"));

/// What `--help` prints.
pub const HELP: &str = "\
berth-logkeeper: keeps what containers write, as a process of its own

usage: berth-logkeeper --socket PATH --store DIR [options]

  --socket PATH          control socket to make; for root and the keeper's own user only
  --store DIR            where segments and FIFOs lie
  --quota-bytes N        disk use of the whole store (default 10737418240, 10 GiB; at least 131072)
  --run-quota-bytes N    disk use of one run, where its open names none (default 268435456, 256 MiB)
  --segment-bytes N      size of a segment, where the open names none (default 8388608, 8 MiB; at most 1 GiB)
  --version              print the version
  --help                 print this text

Signals: SIGTERM and SIGINT store what the FIFOs hold and leave; SIGKILL is safe too.
Exit status: 0 after a signal, 1 when it could not start or go on.";

const QUOTA_BYTES: u64 = 10 * 1024 * 1024 * 1024;
const RUN_QUOTA_BYTES: u64 = 256 * 1024 * 1024;
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Two streams with one smallest segment, its index and a tombstone each, and one to spare.
const QUOTA_BYTES_MIN: u64 = 128 * 1024;
pub(super) const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How the keeper is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    pub socket: PathBuf,
    pub store: PathBuf,
    pub quota_bytes: u64,
    pub run_quota_bytes: u64,
    pub segment_bytes: u64,
}

/// What is wrong with the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    #[error("{0} is missing; see --help")]
    Missing(&'static str),
    #[error("unknown argument {0:?}; see --help")]
    Unknown(String),
    #[error("{flag} needs a value; see --help")]
    NoValue { flag: String },
    #[error("{flag}: {value:?} is not a number of bytes from {min} to {max}")]
    Number {
        flag: String,
        value: String,
        min: u64,
        max: u64,
    },
}

impl Arguments {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// When one is unknown, lacks its value or is out of bounds.
    pub fn parse(arguments: &[String]) -> Result<Self, KeeperError> {
        Ok(Self::read(arguments)?)
    }

    fn read(arguments: &[String]) -> Result<Self, ArgumentsError> {
        let (mut socket, mut store) = (None, None);
        let (mut quota, mut run_quota, mut segment) = (QUOTA_BYTES, RUN_QUOTA_BYTES, SEGMENT_BYTES);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut value = || {
                value
                    .clone()
                    .or_else(|| rest.next().cloned())
                    .ok_or_else(|| ArgumentsError::NoValue {
                        flag: flag.to_owned(),
                    })
            };
            match flag {
                "--socket" => socket = Some(PathBuf::from(value()?)),
                "--store" => store = Some(PathBuf::from(value()?)),
                "--quota-bytes" => quota = number(flag, &value()?, QUOTA_BYTES_MIN, u64::MAX)?,
                "--run-quota-bytes" => run_quota = number(flag, &value()?, QUOTA_BYTES_MIN, u64::MAX)?,
                "--segment-bytes" => {
                    segment = number(flag, &value()?, super::SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)?;
                }
                _ => return Err(ArgumentsError::Unknown(argument.clone())),
            }
        }
        Ok(Self {
            socket: socket.ok_or(ArgumentsError::Missing("--socket"))?,
            store: store.ok_or(ArgumentsError::Missing("--store"))?,
            quota_bytes: quota,
            run_quota_bytes: run_quota,
            segment_bytes: segment,
        })
    }
}

fn number(flag: &str, value: &str, min: u64, max: u64) -> Result<u64, ArgumentsError> {
    value
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| ArgumentsError::Number {
            flag: flag.to_owned(),
            value: value.to_owned(),
            min,
            max,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Arguments, ArgumentsError> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Arguments::read(&arguments)
    }

    #[test]
    fn reads_both_forms_of_a_flag() {
        let arguments = read("--socket /s --store=/d --quota-bytes 1048576").unwrap();
        assert_eq!(arguments.store, PathBuf::from("/d"));
        assert_eq!(arguments.quota_bytes, 1_048_576);
        assert_eq!(arguments.segment_bytes, SEGMENT_BYTES);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(read("--store /d"), Err(ArgumentsError::Missing("--socket")));
        assert!(matches!(read("--socket"), Err(ArgumentsError::NoValue { .. })));
        assert!(matches!(read("--sock /s"), Err(ArgumentsError::Unknown(_))));
        assert!(matches!(
            read("--quota-bytes 5"),
            Err(ArgumentsError::Number { .. })
        ));
    }
}
