//! One call to containerd: its namespace header, its deadline, its error by class.

use std::time::Duration;

use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Code, Request, Status};

/// What a caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeErrorClass {
    /// The same call may succeed later: containerd is away, slow or busy.
    Retry,
    /// The object is not there. Success for whoever wanted it gone.
    NotFound,
    /// The object is there already, in a state in which it may not be replaced.
    Exists,
    /// The call can never succeed as it is.
    Fatal,
}

/// A call to containerd that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody listens on the socket, or the connection broke.
    #[error("containerd does not answer: {operation} {object}: {message}")]
    Unreachable {
        operation: &'static str,
        object: String,
        message: String,
    },
    /// containerd or the shim behind it did not answer in time.
    #[error("{operation} {object} took longer than {} ms", deadline.as_millis())]
    Timeout {
        operation: &'static str,
        object: String,
        deadline: Duration,
    },
    #[error("{operation} {object}: not found: {message}")]
    NotFound {
        operation: &'static str,
        object: String,
        message: String,
    },
    #[error("{operation} {object}: exists already: {message}")]
    Exists {
        operation: &'static str,
        object: String,
        message: String,
    },
    /// The object is in another state than the call needs, for example a task that still runs.
    #[error("{operation} {object}: not in this state: {message}")]
    WrongState {
        operation: &'static str,
        object: String,
        message: String,
    },
    /// The snapshot of the image is gone: forget the image ([`super::super::image::Images::forget`]) and ensure it again.
    #[error("the unpacked image {chain_id} of {object} is gone")]
    ImageGone { object: String, chain_id: String },
    /// The runtime tried and failed, for example because the command is not in the image.
    #[error("{operation} {object}: {message}")]
    Failed {
        operation: &'static str,
        object: String,
        message: String,
    },
}

impl RuntimeError {
    #[must_use]
    pub fn class(&self) -> RuntimeErrorClass {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::WrongState { .. }
            | Self::ImageGone { .. } => RuntimeErrorClass::Retry,
            Self::NotFound { .. } => RuntimeErrorClass::NotFound,
            Self::Exists { .. } => RuntimeErrorClass::Exists,
            Self::Failed { .. } => RuntimeErrorClass::Fatal,
        }
    }

    /// Whether the program itself could not be started: its command is not in the image, is no program, or its
    /// working directory cannot be used. The user's fault, not the machine's.
    #[must_use]
    pub fn is_bad_program(&self) -> bool {
        let Self::Failed { message, .. } = self else {
            return false;
        };
        [
            "executable file not found",
            "no such file or directory",
            "exec format error",
            "permission denied",
            "is a directory",
        ]
        .iter()
        .any(|part| message.contains(part))
            && (message.contains("exec") || message.contains("chdir"))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    fn from_status(operation: &'static str, object: &str, status: &Status) -> Self {
        let (object, message) = (object.to_string(), status.message().to_owned());
        match status.code() {
            Code::Unavailable => Self::Unreachable {
                operation,
                object,
                message,
            },
            // So are a shim's own transport that closes, by containerd 1.6, and a connection that breaks under a call, by the client.
            Code::Unknown
                if ["ttrpc: closed", "connection refused", "transport error"]
                    .iter()
                    .any(|part| message.contains(part)) =>
            {
                Self::Unreachable {
                    operation,
                    object,
                    message,
                }
            }
            // So is a deadline of its own that ran out: the request carries ours, and its clock may be the first.
            Code::Unknown if message.contains("context deadline exceeded") => Self::Unreachable {
                operation,
                object,
                message,
            },
            // So is the refusal to delete what runs.
            Code::Unknown if message.contains("cannot delete a running process") => Self::WrongState {
                operation,
                object,
                message,
            },
            Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => Self::Unreachable {
                operation,
                object,
                message: format!("{}: {message}", status.code()),
            },
            Code::NotFound => Self::NotFound {
                operation,
                object,
                message,
            },
            Code::AlreadyExists => Self::Exists {
                operation,
                object,
                message,
            },
            Code::FailedPrecondition => Self::WrongState {
                operation,
                object,
                message,
            },
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Failed {
                operation,
                object,
                message,
            },
        }
    }
}

/// Success when the object was already there or already gone.
pub(crate) trait Tolerate<T> {
    fn or_gone(self) -> Result<Option<T>, RuntimeError>;
    fn or_exists(self) -> Result<Option<T>, RuntimeError>;
}

impl<T> Tolerate<T> for Result<T, RuntimeError> {
    fn or_gone(self) -> Result<Option<T>, RuntimeError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn or_exists(self) -> Result<Option<T>, RuntimeError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(RuntimeError::Exists { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The headers that every call carries.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    pub(crate) namespace: MetadataValue<Ascii>,
    pub(crate) lease: Option<MetadataValue<Ascii>>,
}

impl Headers {
    /// A request with the namespace, the lease if there is one, and the deadline for the server's side.
    pub(crate) fn request<T>(&self, message: T, deadline: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        request
    }
}

/// Waits for `call`, for at most `deadline`.
pub(crate) async fn within<T>(
    operation: &'static str,
    object: &str,
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => Err(RuntimeError::Timeout {
            operation,
            object: object.to_string(),
            deadline,
        }),
        // tonic reports its own, client-side expiry of the request's time-out as Cancelled.
        Ok(Err(status)) if status.code() == Code::Cancelled && status.message().contains("Timeout") => {
            Err(RuntimeError::Timeout {
                operation,
                object: object.to_string(),
                deadline,
            })
        }
        Ok(Err(status)) => Err(RuntimeError::from_status(operation, object, &status)),
        Err(_elapsed) => Err(RuntimeError::Timeout {
            operation,
            object: object.to_string(),
            deadline,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_status() {
        let class = |code, message: &str| {
            RuntimeError::from_status("get task", "a", &Status::new(code, message.to_owned())).class()
        };
        assert_eq!(class(Code::Unavailable, "x"), RuntimeErrorClass::Retry);
        assert_eq!(class(Code::NotFound, "x"), RuntimeErrorClass::NotFound);
        assert_eq!(class(Code::AlreadyExists, "x"), RuntimeErrorClass::Exists);
        assert_eq!(class(Code::FailedPrecondition, "x"), RuntimeErrorClass::Retry);
        assert_eq!(class(Code::Unknown, "ttrpc: closed"), RuntimeErrorClass::Retry);
        assert_eq!(class(Code::Unknown, "exec: no"), RuntimeErrorClass::Fatal);
        assert_eq!(
            class(Code::Unknown, "context deadline exceeded: unknown"),
            RuntimeErrorClass::Retry
        );
    }

    #[test]
    fn a_missing_program_is_the_users_fault() {
        let error = RuntimeError::Failed {
            operation: "start task",
            object: "a".into(),
            message: "OCI runtime create failed: exec: \"/nope\": stat /nope: no such file or directory"
                .into(),
        };
        assert!(error.is_bad_program());
    }
}
