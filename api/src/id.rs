//! Names of things, each its own type, so that a machine id is never passed for a replica id. Cheap to clone: the state of a
//! cluster is copied with each change of it, and most of it is names.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid name. The message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {noun}: {rule}")]
pub struct InvalidId {
    pub noun: &'static str,
    pub text: String,
    pub rule: &'static str,
}

/// Pattern of an opaque id.
#[cfg(feature = "openapi")]
const OPAQUE: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $noun:literal, $rule:literal, $accepts:path, $pattern:expr, $len_max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Reads a name.
            ///
            /// # Errors
            /// When the text breaks the rule of this kind of name.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                if $accepts(&text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { noun: $noun, text, rule: $rule })
                }
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let schema = utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($rule))
                    .min_length(Some(1))
                    .max_length(Some($len_max))
                    .pattern($pattern);
                schema.into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", &self.0)
            }
        }
    };
}

id! {
    /// A cluster, chosen by its caller; may contain slashes.
    ClusterId, "cluster id", "1 to 512 characters without control characters", is_opaque, Some(OPAQUE), 512
}
id! {
    /// A capacity group of a cluster.
    GroupId, "capacity group id", "1 to 63 of a-z, 0-9 and '-', starting with a letter", is_group, Some("^[a-z][a-z0-9-]*$"), 63
}
id! {
    /// A container of a cluster; also its DNS label.
    ContainerName, "container name", "1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit", is_label,
    Some("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), 63
}
id! {
    /// A machine: the cloud's instance id.
    MachineId, "machine id", "1 to 512 characters without control characters", is_opaque, Some(OPAQUE), 512
}
id! {
    /// A replica: `{container}-{ordinal}` when stateful, `{container}-{machine}-{random}` when not.
    ReplicaId, "replica id", "1 to 512 characters without control characters", is_opaque, Some(OPAQUE), 512
}
id! {
    /// An availability zone, as the cloud names it.
    Zone, "zone", "1 to 512 characters without control characters", is_opaque, Some(OPAQUE), 512
}

id! {
    /// Something that machines have and containers ask for, for example `disk=ssd`.
    Label, "label", "1 to 63 of a-z, A-Z, 0-9 and '-', '_', '.', '/', '=', starting and ending with a letter or digit",
    is_machine_label, Some("^[A-Za-z0-9]([A-Za-z0-9_./=-]*[A-Za-z0-9])?$"), 63
}

fn is_machine_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./=".contains(byte))
}

fn is_opaque(text: &str) -> bool {
    !text.is_empty() && text.len() <= 512 && !text.chars().any(char::is_control)
}

fn is_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_group(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

impl ContainerName {
    /// The name that answers with every ready replica.
    #[must_use]
    pub fn service_name(&self) -> String {
        format!("{self}.svc")
    }

    /// The name of one stateful ordinal.
    #[must_use]
    pub fn ordinal_name(&self, ordinal: u32) -> String {
        format!("{self}-{ordinal}.{self}.svc")
    }
}

impl ReplicaId {
    /// The id of a stateful replica, the same for ever.
    ///
    /// # Panics
    /// Never: every container name followed by a number is a valid replica id.
    #[must_use]
    pub fn stateful(container: &ContainerName, ordinal: u32) -> Self {
        Self(format!("{container}-{ordinal}").into())
    }

    /// The id of a stateless replica. `suffix` makes it unique among all replicas the container ever had.
    ///
    /// # Errors
    /// When container, machine and suffix together are longer than an id may be.
    pub fn stateless(
        container: &ContainerName,
        machine: &MachineId,
        suffix: &str,
    ) -> Result<Self, InvalidId> {
        Self::new(format!("{container}-{machine}-{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_follow_the_wire_pattern() {
        for good in ["a", "0", "reader", "a-b", "a--b", &"x".repeat(63)] {
            assert!(ContainerName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"x".repeat(64), "ä"] {
            assert!(ContainerName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_start_with_a_letter_and_may_end_with_a_dash() {
        assert!(GroupId::new("a-").is_ok());
        assert!(GroupId::new("1a").is_err());
    }

    #[test]
    fn cluster_ids_may_contain_slashes_but_not_control_characters() {
        assert!(ClusterId::new("acme/prod/compute").is_ok());
        assert!(ClusterId::new("a\nb").is_err());
    }

    #[test]
    fn an_invalid_name_does_not_deserialise() {
        assert!(serde_json::from_str::<GroupId>("\"Not-a-group\"").is_err());
    }
}
