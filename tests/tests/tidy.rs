//! The tree keeps its own rules: pure files stay pure, no file is a drawer, the documents name what exists.
//!
//! Reads the sources as text; a rule that needs types is clippy's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files without async, IO, clock, randomness, globals or logging; `now` is an argument. A folder stands for all in it.
const PURE: &[&str] = &[
    "api/src",
    "scheduler/src/announce.rs",
    "scheduler/src/audit.rs",
    "scheduler/src/audit",
    "scheduler/src/autoscale.rs",
    "scheduler/src/autoscale",
    "scheduler/src/capacity.rs",
    "scheduler/src/capacity",
    "scheduler/src/check.rs",
    "scheduler/src/check",
    "scheduler/src/decide.rs",
    "scheduler/src/decide/squeezed.rs",
    "scheduler/src/entry.rs",
    "scheduler/src/explain.rs",
    "scheduler/src/explain",
    "scheduler/src/guard.rs",
    "scheduler/src/liveness.rs",
    "scheduler/src/placement.rs",
    "scheduler/src/placement",
    "scheduler/src/reconcile.rs",
    "scheduler/src/repack.rs",
    "scheduler/src/rollout.rs",
    "scheduler/src/shard/view.rs",
    "scheduler/src/store/etcd/layout.rs",
    "scheduler/src/reconcile",
    "scheduler/src/squeeze.rs",
    "scheduler/src/status.rs",
    "scheduler/src/world.rs",
    "scheduler/src/world",
    "node/src/plan.rs",
    "node/src/replica.rs",
    "node/src/replica",
    "node/src/health/state.rs",
    "node/src/host/spec.rs",
    "node/src/host/seccomp.rs",
    "node/src/host/image/challenge.rs",
    "node/src/host/image/collect.rs",
    "node/src/host/image/config.rs",
    "node/src/host/image/layer.rs",
    "node/src/host/image/reference.rs",
];

/// What a pure file may not contain, and why.
const IMPURE: [(&str, &str); 14] = [
    ("async fn", "it waits"),
    (".await", "it waits"),
    ("tokio", "it waits"),
    ("std::fs", "it reads or writes files"),
    ("std::net::Tcp", "it talks"),
    ("std::net::Udp", "it talks"),
    ("std::process", "it starts programs"),
    ("std::env", "it depends on its surroundings"),
    ("std::thread", "it starts threads"),
    ("Timestamp::now", "it reads a clock"),
    ("monotonic()", "it reads a clock"),
    ("getrandom::", "it is random"),
    ("tracing::", "it logs"),
    ("static mut", "it has a global"),
];

/// The one file that reads clocks, for everybody.
const CLOCK: &str = "api/src/time.rs";

const FILE_LINES_MAX: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .to_owned()
}

/// Every file below `directory` with this ending; build output is left out.
fn files(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), ending, &mut found);
    found.sort();
    found
}

/// The code of a file before its tests, without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

fn impurities(code: &str) -> Vec<&'static str> {
    IMPURE
        .iter()
        .filter(|(word, _)| code.contains(word))
        .map(|(word, _)| *word)
        .collect()
}

/// Every test that is named after a row of the fault reference is in the index, and the index names none that is not there.
#[test]
fn the_index_of_faults_names_what_exists() {
    let index = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let named = |text: &str, before: &str| -> BTreeSet<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let found = text.match_indices(before).map(|(at, _)| {
            let name = text.get(at + before.len()..).unwrap_or_default();
            name.chars().take_while(|c| is_name(*c)).collect::<String>()
        });
        found
            .filter(|name| {
                name.starts_with("fault_") && name.chars().nth(6).is_some_and(|c| c.is_ascii_digit())
            })
            .collect()
    };
    let mut written = BTreeSet::new();
    for file in sources("rs") {
        written.extend(named(&fs::read_to_string(file).unwrap(), "fn "));
    }
    assert_eq!(named(&index, "`"), written);
}

#[test]
fn pure_files_stay_pure() {
    let mut faults = Vec::new();
    for place in PURE {
        let place_path = root().join(place);
        assert!(
            place_path.exists(),
            "{place} is listed as pure and does not exist"
        );
        let mut paths = Vec::new();
        if place_path.is_dir() {
            files(&place_path, ".rs", &mut paths);
        } else {
            paths.push(place_path);
        }
        for path in paths
            .iter()
            .filter(|path| !path.ends_with(CLOCK) && !path.ends_with("tests.rs"))
        {
            for word in impurities(&code(path)) {
                faults.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "not pure:\n{}", faults.join("\n"));
}

#[test]
fn the_check_of_purity_finds_what_it_looks_for() {
    for (word, _) in IMPURE {
        assert_eq!(impurities(&format!("fn f() {{ {word} }}")).first(), Some(&word));
    }
}

#[test]
fn no_file_is_a_drawer() {
    let mut faults = Vec::new();
    for path in sources(".rs") {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if ["utils", "util", "common", "helpers", "types", "manager", "misc"].contains(&stem.as_str()) {
            faults.push(format!("{}: the name says nothing", path.display()));
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_test_on_the_real_host_and_every_decision_is_indexed() {
    let index = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("tests/tests")).unwrap() {
        let path = entry.unwrap().path();
        let is_target =
            path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").exists();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if is_target && !index.contains(&format!("`{name}`")) {
            missing.push(name);
        }
    }
    assert!(
        missing.is_empty(),
        "tests/README.md does not name: {}",
        missing.join(", ")
    );
}

#[test]
fn documents_link_to_files_that_exist() {
    let mut broken = Vec::new();
    for path in sources(".md") {
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            let is_file = !target.is_empty() && !target.contains("://") && !target.contains(' ');
            if is_file && !path.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// With the programs that are not installed here replaced by one that is.
#[test]
fn units_of_systemd_are_valid() {
    let mut units = Vec::new();
    files(&root().join("systemd"), ".service", &mut units);
    assert!(!units.is_empty());
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        assert!(
            text.contains("/usr/bin/berth-"),
            "{} starts nothing of ours",
            unit.display()
        );
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join(unit.file_name().unwrap());
        let words = text.split_inclusive(char::is_whitespace);
        let text: String = words
            .map(|word| match word.split_once("/usr/bin/berth-") {
                Some((before, after)) => {
                    let rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
                    format!("{before}/bin/true{rest}")
                }
                None => word.to_owned(),
            })
            .collect();
        fs::write(&copy, text).unwrap();
        let verified = std::process::Command::new("systemd-analyze")
            .arg("verify")
            .arg(&copy)
            .output();
        match verified {
            Ok(output) => {
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    output.status.success() && told.is_empty(),
                    "{}: {told}",
                    unit.display()
                );
            }
            // Without systemd there is nobody to ask.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }
}
