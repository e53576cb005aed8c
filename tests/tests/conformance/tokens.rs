//! Every operation under every token that must not do it: none, unknown, forged, expired, early, foreign, revoked, of another kind,
//! of another cluster. Each gets one refusal, the log does not grow, and the tokens that are valid go on being so.

use std::time::Duration;

use berth_api::time::Timestamp;
use berth_scheduler::config::RestLimits;
use berth_scheduler::identity::Identity;
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, cluster_body, container_body};
use super::writes::BASE;

/// What a token is, and the token.
type Bad = (&'static str, String);

/// Nobody is known by these: 401.
async fn strangers(stage: &Stage) -> anyhow::Result<Vec<Bad>> {
    let identity = stage.running.scheduler().identity();
    let now = Timestamp::now();
    let hour = Duration::from_secs(3600);
    let long_ago = Timestamp::from_millis(now.millis() - 7_200_000);
    let stranger = tempfile::tempdir()?;
    let forged = |token: &str| {
        let (head, signature) = token.rsplit_once('.').unwrap_or_default();
        let flipped: String = signature
            .chars()
            .map(|c| if c == 'A' { 'B' } else { 'A' })
            .collect();
        format!("{head}.{flipped}")
    };
    let created = stage.create_cluster().await?;
    let mut revoked = Vec::new();
    for (kind, token) in [
        ("management", created.management_token),
        ("machine", created.machine_token),
    ] {
        let body = Some(json!({ "tokenType": kind }));
        let (status, reply, _) = stage
            .request("POST", &format!("{BASE}/tokens/rotate"), &stage.platform, body)
            .await?;
        anyhow::ensure!(status == 200, "{reply}");
        revoked.push(token);
    }
    let machine = revoked.pop().unwrap_or_default();
    let management = revoked.pop().unwrap_or_default();
    let last_changed = |token: &str| {
        let last = if token.ends_with('0') { '1' } else { '0' };
        let mut changed = token.to_owned();
        changed.pop();
        changed.push(last);
        changed
    };
    Ok(vec![
        ("no token", String::new()),
        ("no form at all", "nobody".to_owned()),
        ("an unknown management token", format!("hm_{}", "a".repeat(43))),
        ("an unknown machine token", format!("hj_{}", "a".repeat(43))),
        ("a management token, one character off", last_changed(&management)),
        ("a machine token, one character off", last_changed(&machine)),
        ("a revoked management token", management),
        ("a revoked machine token", machine),
        (
            "an expired platform token",
            identity.platform_token_for("p", hour, long_ago)?,
        ),
        (
            "a platform token that is not valid yet",
            identity.platform_token_for("p", hour, now.plus(hour))?,
        ),
        ("a forged platform token", forged(&stage.platform)),
        (
            "another scheduler's platform token",
            Identity::open(stranger.path())?.platform_token(now)?,
        ),
        ("a platform token without a signature", unsigned(&stage.platform)),
    ])
}

/// `alg: none`.
fn unsigned(token: &str) -> String {
    let claims = token.split('.').nth(1).unwrap_or_default();
    // {"alg":"none","typ":"JWT"}
    format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")
}

struct Operation {
    method: String,
    path: String,
    /// Kinds of tokens that it takes.
    kinds: Vec<String>,
    has_cluster: bool,
}

async fn operations(stage: &Stage) -> anyhow::Result<Vec<Operation>> {
    let (_, document, _) = stage.request("GET", "/openapi.json", "", None).await?;
    let mut operations = Vec::new();
    for (template, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let kinds: Vec<String> = operation["security"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|entry| entry.as_object().into_iter().flatten())
                .map(|(kind, _)| kind.clone())
                .collect();
            if kinds.is_empty() {
                continue;
            }
            let path = template
                .replace("/clusters/{cluster}", BASE)
                .replace("{subject}", "container")
                .replace(['{', '}'], "");
            operations.push(Operation {
                method: method.to_uppercase(),
                path,
                kinds,
                has_cluster: template.contains("{cluster}"),
            });
        }
    }
    anyhow::ensure!(operations.len() > 30, "{} operations", operations.len());
    Ok(operations)
}

async fn refused(
    stage: &Stage,
    operation: &Operation,
    (what, token): &Bad,
    status: u16,
) -> anyhow::Result<()> {
    // Enough of a body to say which cluster it is about; whoever is refused learns nothing of it.
    let body = (operation.method != "GET").then(|| json!({"clusterId": CLUSTER}));
    let (found, reply, _) = stage
        .request(&operation.method, &operation.path, token, body)
        .await?;
    let told = format!("{} {} with {what}: {reply}", operation.method, operation.path);
    assert_eq!(found, status, "{told}");
    let code = if status == 401 {
        "unauthenticated"
    } else {
        "forbidden"
    };
    assert_eq!(reply["error"]["code"], code, "{told}");
    assert_eq!(reply["faults"], Value::Null, "{told}");
    Ok(())
}

#[tokio::test]
async fn no_operation_is_done_for_a_token_that_is_not_its_own() -> anyhow::Result<()> {
    let stage = Stage::start_with(|config| {
        config.rest = RestLimits {
            failures_per_second: 1_000_000,
            ..RestLimits::default()
        };
    })
    .await?;
    let strangers = strangers(&stage).await?;
    let valid = stage.create_cluster().await?;
    let mut other_body = cluster_body();
    other_body["clusterId"] = json!("acme/other");
    let (_, other, _) = stage
        .request("POST", "/clusters", &stage.platform, Some(other_body))
        .await?;
    let token = |name: &str| other[name].as_str().unwrap_or_default().to_owned();
    let of_another = [
        (
            "management",
            ("another cluster's management token", token("managementToken")),
        ),
        (
            "machine",
            ("another cluster's machine token", token("machineToken")),
        ),
    ];
    let own: [(&str, Bad); 3] = [
        ("platform", ("a platform token", stage.platform.clone())),
        (
            "management",
            ("a management token", valid.management_token.clone()),
        ),
        ("machine", ("a machine token", valid.machine_token.clone())),
    ];
    let before = stage.log_len();
    let mut checked = 0;
    for operation in operations(&stage).await? {
        for stranger in &strangers {
            refused(&stage, &operation, stranger, 401).await?;
            checked += 1;
        }
        for (kind, bad) in &of_another {
            let takes_kind = operation.kinds.iter().any(|known| known == kind);
            // A machine's operations name the cluster in the body.
            if operation.has_cluster || !takes_kind || *kind == "machine" {
                refused(&stage, &operation, bad, 403).await?;
                checked += 1;
            }
        }
        for (kind, bad) in &own {
            if !operation.kinds.iter().any(|known| known == kind) {
                refused(&stage, &operation, bad, 403).await?;
                checked += 1;
            }
        }
    }
    assert!(checked > 400, "{checked}");
    assert_eq!(stage.log_len(), before);
    assert_eq!(stage.running.scheduler().clusters().len(), 2);
    for (token, path) in [(&stage.platform, "/clusters"), (&valid.management_token, BASE)] {
        let (status, reply, _) = stage.request("GET", path, token, None).await?;
        assert_eq!(status, 200, "{reply}");
    }
    let create = format!("{BASE}/containers");
    let body = Some(container_body("reader"));
    let (status, ..) = stage
        .request("POST", &create, &valid.management_token, body)
        .await?;
    assert_eq!(status, 200);
    stage.stop().await;
    Ok(())
}
