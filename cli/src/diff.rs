//! What an apply will change: declarations wanted against declarations there, member by member. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::output::{Paint, Screen};

/// Members that are fixed when a container is created.
const FIXED: [&str; 4] = ["stateful", "ports", "capacityGroup", "loadBalancerTarget"];

/// One leaf that differs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Leaf {
    /// For example `resources.cpu.desired`.
    pub(crate) path: String,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
}

/// What happens to one container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    Create,
    Update(Vec<Leaf>),
    Keep,
    Delete,
    /// Not in the file, and left alone.
    Ignore,
}

/// Everything that an apply does, in the order of the file, then what the file does not name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Diff {
    pub(crate) changes: Vec<(String, Change)>,
}

/// What to do with containers that the file does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    Keep,
    Prune,
}

/// Compares request bodies by container name.
pub(crate) fn diff(wanted: &[(String, Value)], present: &BTreeMap<String, Value>, others: Others) -> Diff {
    let mut changes: Vec<(String, Change)> = wanted
        .iter()
        .map(|(name, after)| {
            let change = match present.get(name) {
                None => Change::Create,
                Some(before) => match leaves_that_differ(before, after) {
                    leaves if leaves.is_empty() => Change::Keep,
                    leaves => Change::Update(leaves),
                },
            };
            (name.clone(), change)
        })
        .collect();
    let named: BTreeSet<&String> = wanted.iter().map(|(name, _)| name).collect();
    changes.extend(
        present
            .keys()
            .filter(|name| !named.contains(name))
            .map(|name| match others {
                Others::Prune => (name.clone(), Change::Delete),
                Others::Keep => (name.clone(), Change::Ignore),
            }),
    );
    Diff { changes }
}

fn leaves_that_differ(before: &Value, after: &Value) -> Vec<Leaf> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", before, &mut old);
    flatten("", after, &mut new);
    let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    paths
        .into_iter()
        .filter(|path| old.get(*path) != new.get(*path))
        .map(|path| Leaf {
            path: path.clone(),
            before: old.get(path).cloned(),
            after: new.get(path).cloned(),
        })
        .collect()
}

/// Objects are walked; a list is one leaf, since its elements have no names. Empty and null count as absent.
fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Null => {}
        Value::Array(list) if list.is_empty() => {}
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                flatten(&path, member, leaves);
            }
        }
        Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            leaves.insert(path.to_owned(), value.clone());
        }
    }
}

impl Diff {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes
            .iter()
            .all(|(_, change)| matches!(change, Change::Keep | Change::Ignore))
    }

    pub(crate) fn deletions(&self) -> Vec<&str> {
        self.changes
            .iter()
            .filter(|(_, change)| *change == Change::Delete)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Changes that the API refuses, told before anything is done.
    pub(crate) fn impossible(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, change) in &self.changes {
            let Change::Update(leaves) = change else { continue };
            for leaf in leaves {
                let member = leaf.path.split('.').next().unwrap_or_default();
                if FIXED.contains(&member) {
                    faults.push(format!(
                        "{name}: {} cannot be changed ({} to {}); delete the container first: berth delete {name}",
                        leaf.path,
                        shown(&leaf.path, leaf.before.as_ref()),
                        shown(&leaf.path, leaf.after.as_ref()),
                    ));
                }
            }
        }
        faults
    }

    /// `+ name`, `~ name` with its changed members, `- name`; the unchanged in one line.
    pub(crate) fn text(&self, screen: &Screen) -> String {
        let arrow = screen.symbol("→", "->");
        let mut lines = Vec::new();
        let (mut kept, mut ignored) = (Vec::new(), Vec::new());
        for (name, change) in &self.changes {
            match change {
                Change::Create => lines.push(screen.paint(Paint::Good, &format!("+ {name}"))),
                Change::Delete => lines.push(screen.paint(Paint::Bad, &format!("- {name}"))),
                Change::Keep => kept.push(name.as_str()),
                Change::Ignore => ignored.push(name.as_str()),
                Change::Update(leaves) => {
                    lines.push(screen.paint(Paint::Warn, &format!("~ {name}")));
                    let width = leaves
                        .iter()
                        .map(|leaf| leaf.path.chars().count())
                        .max()
                        .unwrap_or(0);
                    for leaf in leaves {
                        lines.push(format!(
                            "    {:<width$}  {} {arrow} {}",
                            leaf.path,
                            shown(&leaf.path, leaf.before.as_ref()),
                            shown(&leaf.path, leaf.after.as_ref()),
                        ));
                    }
                }
            }
        }
        if !kept.is_empty() {
            lines.push(screen.paint(Paint::Dim, &format!("= {}", kept.join(", "))));
        }
        if !ignored.is_empty() {
            lines.push(screen.paint(
                Paint::Dim,
                &format!(
                    "  not in the file, left alone: {} (delete with --prune)",
                    ignored.join(", ")
                ),
            ));
        }
        lines.join("\n")
    }
}

/// Values of variables that look like secrets are not shown.
fn shown(path: &str, value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "(none)".into();
    };
    let upper = path.to_ascii_uppercase();
    let secret = path.starts_with("env.")
        && ["SECRET", "PASSWORD", "TOKEN", "PRIVATE", "CREDENTIAL"]
            .iter()
            .any(|word| upper.contains(word));
    match value {
        _ if secret => "(hidden)".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The body of the PATCH that turns `before` into `after`: whole top-level members, `null` for those that go.
pub(crate) fn patch(before: &Value, after: &Value) -> Value {
    let empty = Map::new();
    let (old, new) = (
        before.as_object().unwrap_or(&empty),
        after.as_object().unwrap_or(&empty),
    );
    let mut body = Map::new();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (old, new) = (old.get(name), new.get(name));
        if leaves_that_differ(old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null)).is_empty() {
            continue;
        }
        body.insert(name.clone(), new.cloned().unwrap_or_else(|| emptied(old)));
    }
    // The wire says: setting one of the two clears the other.
    for (set, cleared) in [("replicas", "autoscaling"), ("autoscaling", "replicas")] {
        if body.get(set).is_some_and(|value| !value.is_null()) {
            body.shift_remove(cleared);
        }
    }
    Value::Object(body)
}

/// What says "nothing" for a member of this kind: a list or map is emptied, the rest is null.
fn emptied(old: Option<&Value>) -> Value {
    match old {
        Some(Value::Array(_)) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn present() -> BTreeMap<String, Value> {
        BTreeMap::from([
            (
                "reader".into(),
                json!({"name": "reader", "image": "app:1", "replicas": 2, "ports": [80],
                       "resources": {"cpu": {"min": "0.5", "desired": "1"}}, "env": {"A": "1", "API_TOKEN": "x"},
                       "volumes": [], "healthCheck": {"path": "/health"}}),
            ),
            ("old".into(), json!({"name": "old"})),
            ("same".into(), json!({"name": "same", "links": []})),
        ])
    }

    fn wanted() -> Vec<(String, Value)> {
        vec![
            ("new".into(), json!({"name": "new"})),
            (
                "reader".into(),
                json!({"name": "reader", "image": "app:2", "autoscaling": {"min": 1, "max": 4}, "ports": [80],
                       "resources": {"cpu": {"min": "0.5", "desired": "2"}}, "env": {"A": "1", "API_TOKEN": "y"}}),
            ),
            ("same".into(), json!({"name": "same"})),
        ]
    }

    #[test]
    fn shows_creations_changes_and_what_stays() {
        let golden = "\
+ new
~ reader
    autoscaling.max        (none) -> 4
    autoscaling.min        (none) -> 1
    env.API_TOKEN          (hidden) -> (hidden)
    healthCheck.path       /health -> (none)
    image                  app:1 -> app:2
    replicas               2 -> (none)
    resources.cpu.desired  1 -> 2
= same
  not in the file, left alone: old (delete with --prune)";
        let diff = diff(&wanted(), &present(), Others::Keep);
        assert_eq!(diff.text(&Screen::PLAIN), golden);
        assert!(diff.deletions().is_empty() && !diff.is_empty());
    }

    #[test]
    fn prune_deletes_what_the_file_does_not_name() {
        let diff = diff(&wanted(), &present(), Others::Prune);
        assert_eq!(diff.deletions(), ["old"]);
        assert!(diff.text(&Screen::PLAIN).contains("\n- old"));
    }

    #[test]
    fn nothing_to_do_is_empty() {
        let same = vec![("same".to_owned(), json!({"name": "same"}))];
        assert!(diff(&same, &present(), Others::Keep).is_empty());
    }

    #[test]
    fn a_change_of_what_is_fixed_is_told_before() {
        let wanted = vec![("reader".to_owned(), json!({"ports": [81], "image": "app:1"}))];
        let faults = diff(&wanted, &present(), Others::Keep).impossible();
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("reader: ports cannot be changed ([80] to [81])"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_patch_names_whole_members_and_only_those_that_differ() {
        let body = patch(&present()["reader"], &wanted()[1].1);
        assert_eq!(
            body,
            json!({
                "autoscaling": {"min": 1, "max": 4},
                "env": {"A": "1", "API_TOKEN": "y"},
                "healthCheck": null,
                "image": "app:2",
                "resources": {"cpu": {"min": "0.5", "desired": "2"}},
            })
        );
        let cleared = patch(&json!({"links": ["a"]}), &json!({}));
        assert_eq!(cleared, json!({"links": []}));
    }
}
