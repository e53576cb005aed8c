//! An independent verifier of decisions: it recomputes from the replicas alone and shares no code with what decided.

use crate::entry::Entry;
use crate::world::World;

/// A rule that a decision would break. The cluster's actor appends nothing of such a decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("entry {number} of the decision cannot follow the log: {error}")]
    Inapplicable { number: usize, error: String },
}

/// Applies `entries` to a copy of `before`.
///
/// # Errors
/// With every rule that the result, or the way to it, would break.
pub fn check(before: &World, entries: &[Entry]) -> Result<World, Vec<Violation>> {
    let mut after = before.clone();
    for (index, entry) in entries.iter().enumerate() {
        if let Err(error) = after.try_apply(entry) {
            return Err(vec![Violation::Inapplicable {
                number: index + 1,
                error: error.to_string(),
            }]);
        }
    }
    Ok(after)
}
