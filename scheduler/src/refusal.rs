//! Why the scheduler does not do what it was asked: one form for the REST API, the node link and callers inside.

use berth_api::validate::{Fault, Faults};

use crate::store::StoreError;

/// Who is at fault and whether a retry helps; each has one HTTP and one gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong in itself.
    Invalid,
    /// Nobody is known by these credentials.
    Unauthenticated,
    /// The caller is known and may not do this.
    Forbidden,
    NotFound,
    /// The request contradicts what is there.
    Conflict,
    /// Too much waits already; try again later.
    Busy,
    /// The scheduler cannot do it now; try again.
    Unavailable,
}

impl Class {
    /// The HTTP status.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Busy => 429,
            Self::Unavailable => 503,
        }
    }

    fn grpc_code(self) -> tonic::Code {
        match self {
            Self::Invalid => tonic::Code::InvalidArgument,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::Forbidden => tonic::Code::PermissionDenied,
            Self::NotFound => tonic::Code::NotFound,
            Self::Conflict => tonic::Code::AlreadyExists,
            Self::Busy => tonic::Code::ResourceExhausted,
            Self::Unavailable => tonic::Code::Unavailable,
        }
    }
}

/// A refusal: what programs match on, what people read, and every fault of the input where that is the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub class: Class,
    /// Stable word, for example `machine_not_found`.
    pub code: &'static str,
    pub message: String,
    pub faults: Vec<Fault>,
}

impl Refused {
    #[must_use]
    pub fn new(class: Class, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            class,
            code,
            message: message.into(),
            faults: Vec::new(),
        }
    }

    /// An input with faults; the message lists them all.
    #[must_use]
    pub fn invalid(code: &'static str, faults: Faults) -> Self {
        Self {
            class: Class::Invalid,
            code,
            message: faults.to_string(),
            faults: faults.into_list(),
        }
    }

    /// The actor or the store is not there at the moment.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, "unavailable", message)
    }

    #[must_use]
    pub fn cluster_not_found(id: &str) -> Self {
        Self::new(
            Class::NotFound,
            "cluster_not_found",
            format!("cluster {id:?} does not exist"),
        )
    }

    #[must_use]
    pub fn container_not_found(name: &str) -> Self {
        Self::new(
            Class::NotFound,
            "container_not_found",
            format!("container {name:?} does not exist"),
        )
    }

    #[must_use]
    pub fn machine_not_found(id: &str) -> Self {
        Self::new(
            Class::NotFound,
            "machine_not_found",
            format!("machine {id:?} is not registered"),
        )
    }

    #[must_use]
    pub fn replica_not_found(id: &str) -> Self {
        Self::new(
            Class::NotFound,
            "replica_not_found",
            format!("replica {id:?} does not exist"),
        )
    }
}

impl From<&StoreError> for Refused {
    fn from(error: &StoreError) -> Self {
        Self::unavailable(format!("the change could not be stored: {error}"))
    }
}

impl From<Refused> for tonic::Status {
    fn from(refused: Refused) -> Self {
        Self::new(
            refused.class.grpc_code(),
            format!("{}: {}", refused.code, refused.message),
        )
    }
}
