//! Where replicas may run beside what they need of a machine: labels, and machines of their own. Berth's own, optional.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::Label;
use crate::validate::{Cursor, Fault};

/// A machine, a group and each list of a container's rules have at most so many labels.
pub const LABELS_MAX: usize = 32;
/// All containers of a cluster together name at most so many: placement has one bit for each.
pub const CLUSTER_LABELS_MAX: usize = 64;

/// Which machines a container's replicas may run on. The labels of a machine are its own and those of its group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlacementRules {
    /// Labels that the machine must have, all of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub requires: BTreeSet<Label>,
    /// Labels that the machine should have, the most important first: a machine with more of them from the front is
    /// taken before one with fewer, and one with none before no machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub prefers: Vec<Label>,
    /// Labels that the machine must not have, none of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub forbids: BTreeSet<Label>,
    /// Each replica has a machine to itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exclusive: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl PlacementRules {
    /// Every label that the rules name.
    pub fn labels(&self) -> impl Iterator<Item = &Label> {
        self.requires.iter().chain(&self.prefers).chain(&self.forbids)
    }

    /// Whether a machine with these labels may take the replicas.
    #[must_use]
    pub fn allow(&self, labels: &BTreeSet<&Label>) -> bool {
        self.requires.iter().all(|label| labels.contains(label))
            && !self.forbids.iter().any(|label| labels.contains(label))
    }
}

/// Labels, each once.
pub(crate) fn labels(cursor: &Cursor<'_>) -> Option<BTreeSet<Label>> {
    Some(label_list(cursor)?.into_iter().collect())
}

fn label_list(cursor: &Cursor<'_>) -> Option<Vec<Label>> {
    let labels = cursor.list(|label| label.parse("a label such as \"disk=ssd\"", Label::new))?;
    if labels.len() > LABELS_MAX {
        return cursor.refuse(format!("has {} labels; write at most {LABELS_MAX}", labels.len()));
    }
    let mut seen = BTreeSet::new();
    match labels.iter().find(|label| !seen.insert(*label)) {
        Some(twice) => cursor.refuse(format!("{twice} is there twice; write each label once")),
        None => Some(labels),
    }
}

pub(crate) fn placement(cursor: &Cursor<'_>) -> Option<PlacementRules> {
    cursor.object()?;
    let requires = cursor.member("requires").or(BTreeSet::new(), labels);
    let prefers = cursor.member("prefers").or(Vec::new(), label_list);
    let forbids = cursor.member("forbids").or(BTreeSet::new(), labels);
    let exclusive = cursor.member("exclusive").or(false, Cursor::boolean);
    Some(PlacementRules {
        requires: requires?,
        prefers: prefers?,
        forbids: forbids?,
        exclusive: exclusive?,
    })
}

/// What the rules both want and do not want.
pub(crate) fn placement_faults(rules: &PlacementRules) -> Vec<Fault> {
    let wanted = [
        ("placement.requires", rules.requires.iter().collect::<Vec<_>>()),
        ("placement.prefers", rules.prefers.iter().collect()),
    ];
    let mut faults = Vec::new();
    for (path, labels) in wanted {
        let both = labels.into_iter().filter(|label| rules.forbids.contains(*label));
        faults.extend(both.map(|label| Fault {
            path: path.to_owned(),
            problem: format!("{label} is forbidden too; keep it in one of the two"),
        }));
    }
    faults
}
