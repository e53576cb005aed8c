//! Links and dependencies between the resources of a stack: each end exists, and they form no cycle.

use std::collections::{BTreeMap, BTreeSet};

use super::{Link, Resource};

/// Records dangling, self and cyclic references. `whole` says that every resource could be read: only then is a
/// reference to an unknown one certain to dangle.
pub(super) fn check(resources: &[&Resource<'_>], whole: bool) -> Option<()> {
    let mut sound = true;
    for resource in resources {
        for link in references(resource) {
            sound &= check_one(resource, link, resources, whole).is_some();
        }
    }
    for cycle in cycles(resources) {
        sound = false;
        tell(&cycle, resources);
    }
    sound.then_some(())
}

fn references<'r, 'a>(resource: &'r Resource<'a>) -> impl Iterator<Item = &'r Link<'a>> {
    resource.links.iter().chain(&resource.dependencies)
}

fn check_one(resource: &Resource<'_>, link: &Link<'_>, all: &[&Resource<'_>], whole: bool) -> Option<()> {
    if link.id == resource.id {
        return link
            .at
            .refuse(format!("{} refers to itself; remove it", resource.id));
    }
    match all.iter().find(|target| target.id == link.id) {
        Some(target) if target.kind.as_str() == link.kind => Some(()),
        Some(target) => link.at.member("type").refuse(format!(
            "{:?} is not the type of {}; write {}",
            link.kind,
            link.id,
            target.kind.as_str()
        )),
        None if whole => {
            let known: Vec<&str> = all
                .iter()
                .map(|target| target.id)
                .filter(|id| *id != resource.id)
                .collect();
            let mend = if known.is_empty() {
                "add it or remove the reference".to_owned()
            } else {
                format!("add it or write one of {}", known.join(", "))
            };
            link.at
                .refuse(format!("no resource is named {}; {mend}", link.id))
        }
        None => Some(()),
    }
}

/// Every cycle that a depth-first walk closes, as the ids along it, the first one repeated at the end.
fn cycles<'a>(resources: &[&Resource<'a>]) -> Vec<Vec<&'a str>> {
    let edges: BTreeMap<&str, BTreeSet<&str>> = resources
        .iter()
        .map(|resource| {
            let targets = references(resource)
                .map(|link| link.id)
                .filter(|id| *id != resource.id)
                .collect();
            (resource.id, targets)
        })
        .collect();
    let mut found = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in edges.keys() {
        // An explicit stack: the depth is up to the author of the document.
        let mut path: Vec<&str> = Vec::new();
        let mut pending: Vec<(usize, &str)> = vec![(0, start)];
        while let Some((depth, id)) = pending.pop() {
            done.extend(path.drain(depth..));
            if let Some(from) = path.iter().position(|step| *step == id) {
                let mut cycle: Vec<&str> = path.iter().skip(from).copied().collect();
                cycle.push(id);
                found.push(cycle);
                continue;
            }
            if done.contains(id) {
                continue;
            }
            path.push(id);
            let targets = edges.get(id).into_iter().flatten();
            pending.extend(targets.rev().map(|target| (depth + 1, *target)));
        }
        done.extend(path);
    }
    found
}

/// The fault stands at the reference that closes the cycle.
fn tell(cycle: &[&str], resources: &[&Resource<'_>]) {
    let [.., from, to] = cycle else { return };
    let closing = resources
        .iter()
        .filter(|resource| resource.id == *from)
        .flat_map(|resource| references(resource))
        .find(|link| link.id == *to);
    if let Some(link) = closing {
        link.at.fault(format!(
            "closes the cycle {}; remove one of these links",
            cycle.join(" -> ")
        ));
    }
}
