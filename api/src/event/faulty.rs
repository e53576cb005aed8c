//! Which members of an event's details are wrong. The details are read by a derive that stops at the first fault and often does not
//! say where it is; so members are replaced by values of other forms until the rest reads.

use serde_json::{Value, json};

use super::EventDetails;

/// More faults than any kind of event has members.
const FAULTS_MAX: usize = 16;

/// A value of each form that a member of any kind of event has.
fn forms() -> [Value; 10] {
    [
        json!("10.0.0.1"),
        json!(0),
        json!([]),
        json!(false),
        json!("aws"),
        json!("attach"),
        json!("interface"),
        json!("scaled_down"),
        json!("cpu"),
        json!("unschedulable_replicas"),
    ]
}

fn parse(value: &Value) -> Result<(), String> {
    let details: Result<EventDetails, _> = serde_json::from_value(value.clone());
    details.map(drop).map_err(|error| error.to_string())
}

/// The member that an error says is missing.
fn missing(error: &str) -> Option<&str> {
    error.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Name and problem of each member that is wrong; no name where it cannot be told which one is.
pub(super) fn faulty(details: &Value) -> Vec<(String, String)> {
    let mut value = details.clone();
    let mut found = Vec::new();
    while let Err(error) = parse(&value) {
        let names: Vec<String> = match missing(&error) {
            Some(name) => vec![name.to_owned()],
            None => value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        };
        let mended = names.into_iter().find(|name| mend(&mut value, name));
        let problem = if missing(&error).is_some() {
            "is missing".to_owned()
        } else {
            error
        };
        let is_last = mended.is_none() || found.len() + 1 == FAULTS_MAX;
        found.push((mended.unwrap_or_default(), problem));
        if is_last {
            break;
        }
    }
    found
}

/// Replaces a member so that no fault is left but of members that are missing; false when no form of it does that.
fn mend(value: &mut Value, name: &str) -> bool {
    for form in forms() {
        let mut trial = value.clone();
        if let Some(members) = trial.as_object_mut() {
            members.insert(name.to_owned(), form);
        }
        let is_mended = match parse(&trial) {
            Ok(()) => true,
            Err(error) => missing(&error).is_some_and(|other| other != name),
        };
        if is_mended {
            *value = trial;
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(details: Value) -> Vec<String> {
        let faults = faulty(&details);
        faults
            .into_iter()
            .map(|(name, problem)| format!("{name}: {problem}"))
            .collect()
    }

    #[test]
    fn every_missing_member_is_told_and_a_wrong_one_by_name() {
        assert_eq!(
            told(json!({"reason": "VolumeAttachError"})),
            [
                "volumeId: is missing",
                "volumeType: is missing",
                "error: is missing",
                "step: is missing",
            ]
        );
        let wrong = json!({"reason": "ImagePulled", "image": ["a"], "pullDurationMs": 1});
        assert_eq!(told(wrong), ["image: invalid type: sequence, expected a string"]);
        let wrong =
            json!({"reason": "VolumeAttachError", "volumeId": "v", "volumeType": "nfs", "error": "e"});
        let told = told(wrong);
        assert!(told[0].starts_with("volumeType: unknown variant"), "{told:?}");
        assert_eq!(told[1], "step: is missing");
        assert!(faulty(&json!({"reason": "ImagePullError", "image": "a", "error": "e"})).is_empty());
    }
}
