//! Reading of what a container is asked: the wire's health check and Berth's three probes.

use super::declaration::{command, port};
use crate::container::{HealthCheck, ProbeKind, ProbeMethod};
use crate::probe::{
    DELAY_SECONDS_MAX, FAILURES_MAX, PERIOD_SECONDS_MAX, Probe, Probes, SUCCESSES_MAX, TIMEOUT_SECONDS_MAX,
};
use crate::validate::Cursor;

/// `first_port` is the default port.
pub(crate) fn health_check(cursor: &Cursor<'_>, first_port: Option<u16>) -> Option<HealthCheck> {
    cursor.object()?;
    let path = probe_path(cursor);
    let port = probe_port(cursor, first_port);
    let method = probe_method(cursor);
    let timeout_seconds = cursor
        .member("timeoutSeconds")
        .or(1, |timeout| timeout.count(1..=5));
    let failure_threshold = cursor
        .member("failureThreshold")
        .or(3, |threshold| threshold.count(1..=10));
    let (kind, command) = probe_kind(cursor)?;
    Some(HealthCheck {
        kind,
        command,
        path: path?,
        port: port?,
        method: method?,
        timeout_seconds: timeout_seconds?,
        failure_threshold: failure_threshold?,
    })
}

/// What a probe that says nothing of them has: seconds between probes, and failures that make it fail.
#[derive(Clone, Copy)]
struct Defaults {
    period_seconds: u32,
    failure_threshold: u32,
}

/// As in Kubernetes.
const USUAL: Defaults = Defaults {
    period_seconds: 10,
    failure_threshold: 3,
};
/// 30 s as in Kubernetes, and noticed within a second.
const STARTUP: Defaults = Defaults {
    period_seconds: 1,
    failure_threshold: 30,
};

/// `{startup?, readiness?, liveness?}`, at least one of them.
pub(crate) fn probes(cursor: &Cursor<'_>, first_port: Option<u16>) -> Option<Probes> {
    cursor.object()?;
    let read = |name: &str, successes_max: u32, defaults: Defaults| {
        cursor
            .member(name)
            .optional(|member| probe(member, first_port, successes_max, defaults))
    };
    let startup = read("startup", 1, STARTUP);
    let readiness = read("readiness", SUCCESSES_MAX, USUAL);
    let liveness = read("liveness", 1, USUAL);
    let probes = Probes {
        startup: startup?,
        readiness: readiness?,
        liveness: liveness?,
    };
    if probes.is_empty() {
        return cursor.refuse("has no probe; write at least one of startup, readiness, liveness");
    }
    Some(probes)
}

fn probe(
    cursor: &Cursor<'_>,
    first_port: Option<u16>,
    successes_max: u32,
    defaults: Defaults,
) -> Option<Probe> {
    cursor.object()?;
    let path = probe_path(cursor);
    let port = probe_port(cursor, first_port);
    let method = probe_method(cursor);
    let count = |name: &str, default: u32, range: std::ops::RangeInclusive<u32>| {
        cursor.member(name).or(default, |member| member.count(range))
    };
    let initial_delay_seconds = count("initialDelaySeconds", 0, 0..=DELAY_SECONDS_MAX);
    let period_seconds = count("periodSeconds", defaults.period_seconds, 1..=PERIOD_SECONDS_MAX);
    let timeout_seconds = count("timeoutSeconds", 1, 1..=TIMEOUT_SECONDS_MAX);
    let success_threshold = count("successThreshold", 1, 1..=SUCCESSES_MAX);
    let success_threshold = success_threshold.and_then(|successes| {
        if successes <= successes_max {
            return Some(successes);
        }
        let problem =
            format!("is {successes}; one success is enough for this probe: write 1 or leave it out");
        cursor.member("successThreshold").refuse(problem)
    });
    let failure_threshold = count("failureThreshold", defaults.failure_threshold, 1..=FAILURES_MAX);
    let (kind, command) = probe_kind(cursor)?;
    Some(Probe {
        kind,
        command,
        path: path?,
        port: port?,
        method: method?,
        initial_delay_seconds: initial_delay_seconds?,
        period_seconds: period_seconds?,
        timeout_seconds: timeout_seconds?,
        success_threshold: success_threshold?,
        failure_threshold: failure_threshold?,
    })
}

fn probe_path(cursor: &Cursor<'_>) -> Option<String> {
    cursor.member("path").or("/health".to_owned(), |path| {
        path.matching("a path that starts with '/' and has no white space", |path| {
            path.starts_with('/') && !path.chars().any(|c| c.is_whitespace() || c.is_control())
        })
    })
}

fn probe_port(cursor: &Cursor<'_>, first_port: Option<u16>) -> Option<u16> {
    let member = cursor.member("port");
    if member.is_absent() {
        // Without ports the list of ports has its own fault; 0 never leaves this reader then.
        return Some(first_port.unwrap_or_default());
    }
    port(&member)
}

fn probe_method(cursor: &Cursor<'_>) -> Option<ProbeMethod> {
    cursor.member("method").or(ProbeMethod::Get, |method| {
        method.word(&[
            ("GET", ProbeMethod::Get),
            ("POST", ProbeMethod::Post),
            ("HEAD", ProbeMethod::Head),
        ])
    })
}

/// What a check does, and with which command. Members of other kinds change nothing: an answer names all of them, and may be sent back.
fn probe_kind(cursor: &Cursor<'_>) -> Option<(ProbeKind, Vec<String>)> {
    let kind = cursor.member("kind").or(ProbeKind::Http, |kind| {
        kind.word(&[
            ("http", ProbeKind::Http),
            ("tcp", ProbeKind::Tcp),
            ("exec", ProbeKind::Exec),
        ])
    })?;
    let member = cursor.member("command");
    let words = member.optional(command)?.flatten();
    match (kind, words) {
        (ProbeKind::Exec, Some(words)) => Some((kind, words)),
        (ProbeKind::Exec, None) => {
            member.refuse("a check of kind exec needs a command with at least one word")
        }
        (ProbeKind::Http | ProbeKind::Tcp, None) => Some((kind, vec![])),
        (ProbeKind::Http | ProbeKind::Tcp, Some(_)) => member
            .refuse("only a check of kind exec runs a command; leave it out, or write \"kind\": \"exec\""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::cluster::ClusterSpec;
    use crate::container::{ContainerSpec, ProbeKind, ProbeMethod};
    use crate::rest::cluster::read_cluster;
    use crate::rest::container::{ContainerUpdate, create_request, read_container};
    use crate::validate::Faults;

    fn cluster() -> ClusterSpec {
        read_cluster(&json!({
            "clusterId": "c", "name": "C", "containerCidr": "10.244.0.0/16", "platform": "local",
            "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 3,
                "profile": {"cpu": 8, "memoryBytes": 17_179_869_184_u64, "ephemeralStorageBytes": 1}}]
        }))
        .unwrap()
    }

    fn declared(probes: &Value) -> Value {
        json!({
            "name": "web", "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [8080], "probes": probes,
            "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "1Gi", "desired": "2Gi"}}
        })
    }

    fn read(probes: &Value) -> Result<ContainerSpec, Faults> {
        read_container(&declared(probes), &cluster())
    }

    #[test]
    fn defaults_are_filled_in_and_an_answer_may_be_sent_back() {
        let spec = read(&json!({
            "startup": {}, "readiness": {"kind": "tcp", "port": 9090, "successThreshold": 2, "initialDelaySeconds": 5},
            "liveness": {"kind": "exec", "command": ["alive"], "periodSeconds": 60, "timeoutSeconds": 30}
        }))
        .unwrap();
        let probes = spec.probes.clone().unwrap();
        let (startup, readiness, liveness) = (
            probes.startup.unwrap(),
            probes.readiness.unwrap(),
            probes.liveness.unwrap(),
        );
        assert_eq!(
            (startup.kind, startup.path.as_str(), startup.port, startup.method),
            (ProbeKind::Http, "/health", 8080, ProbeMethod::Get)
        );
        let times = |probe: &crate::probe::Probe| {
            [
                probe.initial_delay_seconds,
                probe.period_seconds,
                probe.timeout_seconds,
                probe.success_threshold,
                probe.failure_threshold,
            ]
        };
        assert_eq!(times(&startup), [0, 1, 1, 1, 30]);
        assert_eq!(times(&readiness), [5, 10, 1, 2, 3]);
        assert_eq!(times(&liveness), [0, 60, 30, 1, 3]);
        assert_eq!((readiness.kind, readiness.port), (ProbeKind::Tcp, 9090));
        assert_eq!(
            (liveness.kind, liveness.command),
            (ProbeKind::Exec, vec!["alive".into()])
        );
        assert_eq!(read_container(&create_request(&spec), &cluster()).unwrap(), spec);
        let bare = read(&Value::Null).unwrap();
        assert_eq!(create_request(&bare).get("probes"), None);
    }

    #[test]
    fn every_bound_is_kept() {
        for (member, good, bad) in [
            ("initialDelaySeconds", vec![0, 3600], vec![-1, 3601]),
            ("periodSeconds", vec![1, 3600], vec![0, 3601]),
            ("timeoutSeconds", vec![1, 60], vec![0, 61]),
            ("failureThreshold", vec![1, 1000], vec![0, 1001]),
            ("successThreshold", vec![1, 100], vec![0, 101]),
            ("port", vec![1, 65_535], vec![0, 65_536]),
        ] {
            for value in good {
                assert!(
                    read(&json!({"readiness": {member: value}})).is_ok(),
                    "{member}: {value}"
                );
            }
            for value in bad {
                let faults = read(&json!({"readiness": {member: value}})).unwrap_err();
                assert_eq!(faults.list().len(), 1, "{faults}");
                assert_eq!(faults.list()[0].path, format!("probes.readiness.{member}"));
            }
        }
    }

    #[test]
    fn every_fault_is_told_at_once_with_the_way_out() {
        let faults = read(&json!({
            "startup": {"path": "started", "successThreshold": 2},
            "readiness": {"kind": "exec", "periodSeconds": 0},
            "liveness": {"kind": "grpc", "timeoutSeconds": 61, "method": "PUT"}
        }))
        .unwrap_err();
        assert_eq!(
            faults.to_string().lines().collect::<Vec<_>>(),
            [
                "probes.startup.path: \"started\" is not valid; write a path that starts with '/' and has no white space",
                "probes.startup.successThreshold: is 2; one success is enough for this probe: write 1 or leave it out",
                "probes.readiness.periodSeconds: 0 is out of range; write a whole number from 1 to 3600",
                "probes.readiness.command: a check of kind exec needs a command with at least one word",
                "probes.liveness.method: \"PUT\" is unknown; write one of GET, POST, HEAD",
                "probes.liveness.timeoutSeconds: 61 is out of range; write a whole number from 1 to 60",
                "probes.liveness.kind: \"grpc\" is unknown; write one of http, tcp, exec",
            ]
        );
        for nothing in [json!({}), json!({"readyness": {}}), json!({"liveness": null})] {
            let faults = read(&nothing).unwrap_err();
            assert_eq!(
                faults.to_string(),
                "probes: has no probe; write at least one of startup, readiness, liveness"
            );
        }
    }

    #[test]
    fn they_exclude_a_health_check_and_may_take_its_place() {
        let mut both = declared(&json!({"liveness": {}}));
        both["healthCheck"] = json!({});
        let faults = read_container(&both, &cluster()).unwrap_err();
        assert_eq!(faults.list()[0].path, "probes");
        assert!(faults.to_string().contains("keep one of the two"), "{faults}");
        both["probes"] = Value::Null;
        let checked = read_container(&both, &cluster()).unwrap();
        let after = |spec: &ContainerSpec, change: Value| {
            let update = ContainerUpdate::read(&change, spec).unwrap();
            update.apply(spec, &cluster())
        };
        let faults = after(&checked, json!({"probes": {"readiness": {}}})).unwrap_err();
        assert!(faults.to_string().contains("healthCheck"), "{faults}");
        let probed = after(
            &checked,
            json!({"probes": {"readiness": {}}, "healthCheck": null}),
        )
        .unwrap();
        assert_eq!(
            (probed.health_check.as_ref(), probed.probes.is_some()),
            (None, true)
        );
        assert_eq!(after(&probed, json!({})).unwrap(), probed);
        assert_eq!(after(&probed, json!({"probes": null})).unwrap().probes, None);
    }
}
