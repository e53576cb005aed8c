//! The description holds every route and no other, refers to nothing that is missing, and demands of a reply what the public
//! API demands.

use std::collections::BTreeSet;

use super::*;

/// Every `$ref` inside a value.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if let (true, Some(target)) = (name == "$ref", member.as_str()) {
                    found.insert(target);
                }
                references(member, found);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 60, "{found:?}");
    for target in &found {
        let pointer = target.strip_prefix('#').unwrap_or_default();
        assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
    }
    for kind in ["schemas", "headers", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let target = format!("#/components/{kind}/{name}");
            assert!(found.contains(target.as_str()), "{target} is used by nobody");
        }
    }
}

#[test]
fn every_operation_is_described_whole_and_once() {
    let document = document();
    let mut ids = BTreeSet::new();
    for operation in OPERATIONS {
        assert!(ids.insert(operation.id), "{} is there twice", operation.id);
        let described = &document["paths"][operation.path][operation.method.to_ascii_lowercase()];
        assert_eq!(described["operationId"], operation.id);
        assert!(
            described["summary"]
                .as_str()
                .is_some_and(|summary| summary.len() > 8)
        );
        let responses = described["responses"].as_object().unwrap();
        assert!(responses.contains_key(&operation.status.to_string()) && responses.contains_key("429"));
        for segment in operation.segments() {
            let is_there = described["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|parameter| {
                    parameter["in"] == "path" && parameter["name"] == segment && parameter["required"] == true
                });
            assert!(is_there, "{} does not tell {segment}", operation.id);
        }
        let is_body_wanted = operation.body.is_some();
        assert_eq!(
            described.get("requestBody").is_some(),
            is_body_wanted,
            "{}",
            operation.id
        );
    }
}

/// The router's source names each route once: `.route("path", get(..).patch(..))`.
#[test]
fn the_table_holds_every_route_and_no_other() {
    let source = include_str!("../../rest.rs");
    let mut routed = BTreeSet::new();
    for part in source.split(".route(").skip(1) {
        let end = part.find("\n        .route(").unwrap_or(part.len());
        let part = part.get(..end).unwrap();
        let one = "/clusters/{cluster}/containers/{container}";
        let path = if part.trim_start().starts_with("one,") {
            one.to_owned()
        } else {
            let path = part.split('"').nth(1).unwrap();
            path.replace("{one}", one)
        };
        let call = part.split_once(',').map_or("", |(_, call)| call);
        for method in ["get", "post", "patch", "delete"] {
            if call.contains(&format!(" {method}(")) || call.contains(&format!(".{method}(")) {
                routed.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let table: BTreeSet<String> = OPERATIONS
        .iter()
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    assert_eq!(routed, table);
}

#[test]
fn members_have_the_names_of_the_wire() {
    fn names(value: &Value, found: &mut BTreeSet<String>) {
        if let Some(properties) = value["properties"].as_object() {
            found.extend(properties.keys().cloned());
        }
        match value {
            Value::Object(members) => members.values().for_each(|member| names(member, found)),
            Value::Array(elements) => elements.iter().for_each(|element| names(element, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = BTreeSet::new();
    names(&document()["components"]["schemas"], &mut found);
    assert!(found.len() > 200, "{}", found.len());
    for name in [
        "volumeId",
        "targetGroupArn",
        "secondsSinceHeartbeat",
        "status2xx",
        "latencyP95Ms",
    ] {
        assert!(found.contains(name), "{name}");
    }
    for name in found {
        assert!(!name.contains('_'), "{name}");
    }
}

#[test]
fn a_path_is_of_the_operation_whose_form_it_has() {
    let at = |path: &str| {
        let found = OPERATIONS
            .iter()
            .filter(|known| known.method == "GET" && known.is_at(path));
        found.map(|known| known.id).collect::<Vec<_>>()
    };
    assert_eq!(at("/clusters/a%2Fb"), ["get_cluster"]);
    assert_eq!(at("/clusters/a/containers/b/events"), ["list_container_events"]);
    assert_eq!(at("/clusters"), ["list_clusters"]);
    assert!(at("/clusters/").is_empty() && at("/clusters/a/b").is_empty() && at("").is_empty());
}
