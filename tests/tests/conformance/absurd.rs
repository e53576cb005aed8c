//! Requests that no client sends on purpose: bodies of the wrong kind and encoding for every write, paths that try to leave their
//! place, bytes that are no HTTP. Each gets one refusal in JSON, and the log of the cluster does not grow.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::{CLUSTER, Stage, container_body};

const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";

/// Sends bytes as they are; gives the status and the body.
async fn raw(stage: &Stage, request: &[u8]) -> anyhow::Result<(u16, Value)> {
    let mut stream = tokio::net::TcpStream::connect(stage.running.rest_addr).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).unwrap_or_default().parse()?;
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

async fn raw_path(stage: &Stage, method: &str, path: &str, token: &str) -> anyhow::Result<(u16, Value)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    raw(stage, request.as_bytes()).await
}

/// Every operation with a body, and the token it takes.
async fn writes(stage: &Stage) -> anyhow::Result<Vec<(&'static str, String, String)>> {
    let created = stage.create_cluster().await?;
    let (platform, machine) = (stage.platform.clone(), created.machine_token);
    let body = container_body("there");
    stage
        .request("POST", &format!("{BASE}/containers"), &platform, Some(body))
        .await?;
    let mut writes = vec![("POST", "/batch/heartbeat".to_owned(), platform.clone())];
    for path in ["/register", "/heartbeat", "/events"] {
        writes.push(("POST", path.to_owned(), machine.clone()));
    }
    writes.push(("POST", "/clusters".to_owned(), platform.clone()));
    writes.push(("PATCH", BASE.to_owned(), platform.clone()));
    for rest in ["tokens/rotate", "tokens/revoke", "containers"] {
        writes.push(("POST", format!("{BASE}/{rest}"), platform.clone()));
    }
    writes.push(("PATCH", format!("{BASE}/containers/there"), platform));
    Ok(writes)
}

/// The log's length, once the declared container has had its decision.
async fn settled(stage: &Stage) -> anyhow::Result<u64> {
    super::harness::until("the container to have no place", || async {
        let cluster = stage.running.scheduler().cluster(&CLUSTER.parse()?)?;
        let is_settled = cluster
            .world()
            .containers()
            .values()
            .all(|container| container.unplaced > 0)
            && cluster.world().events().newest_first().count() > 2;
        Ok(is_settled.then(|| stage.log_len()))
    })
    .await
}

#[tokio::test]
async fn a_body_of_the_wrong_kind_is_refused_by_every_write() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let writes = writes(&stage).await?;
    let before = settled(&stage).await?;
    let deep = "[".repeat(100_000);
    let bodies: [&[u8]; 14] = [
        b"",
        b"null",
        b"true",
        b"0",
        b"\"text\"",
        b"[]",
        b"{",
        b"{}}",
        b"{\"a\":1,\"a\":2}",
        b"{\"clusterId\":\"\xff\xfe\"}",
        b"\xef\xbb\xbf{}",
        b"{\"clusterId\":\"\\ud800\"}",
        b"{\"clusterId\":1e999}",
        deep.as_bytes(),
    ];
    for (method, path, token) in &writes {
        for body in bodies {
            let mut request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            )
            .into_bytes();
            request.extend_from_slice(body);
            let (status, reply) = raw(&stage, &request).await?;
            let told = String::from_utf8_lossy(body.get(..40).unwrap_or(body)).into_owned();
            assert_eq!(status, 400, "{method} {path} {told}: {reply}");
            assert!(
                reply["faults"][0]["problem"].is_string(),
                "{method} {path} {told}: {reply}"
            );
        }
    }
    assert_eq!(stage.log_len(), before);
    stage.stop().await;
    Ok(())
}

/// All that is missing is told at once, and so is all that is of the wrong type.
#[tokio::test]
async fn missing_and_wrong_members_are_listed_whole() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let writes = writes(&stage).await?;
    let before = settled(&stage).await?;
    let (_, document, _) = stage.request("GET", "/openapi.json", "", None).await?;
    let mut checked = 0;
    for (method, path, token) in &writes {
        let template = path
            .replace(BASE, "/clusters/{cluster}")
            .replace("/there", "/{container}");
        let schema = &document["paths"][&template][method.to_lowercase()]["requestBody"]["content"]["application/json"]
            ["schema"];
        let name = schema["$ref"]
            .as_str()
            .and_then(|name| name.rsplit('/').next())
            .unwrap_or_default();
        let required = required(&document, name);
        let (status, reply, _) = stage.send(method, path, token, Some("{}".into())).await?;
        if required.is_empty() {
            assert_eq!(status, 200, "an update of nothing: {reply}");
            continue;
        }
        assert_eq!(status, 400, "{method} {path}: {reply}");
        for member in &required {
            assert!(
                is_told(&reply, member),
                "{method} {path} does not tell {member}: {reply}"
            );
        }
        let wrong: serde_json::Map<String, Value> = required
            .iter()
            .map(|member| (member.clone(), json!({"": [1.5]})))
            .collect();
        let (status, reply, _) = stage.request(method, path, token, Some(wrong.into())).await?;
        assert_eq!(status, 400, "{method} {path}: {reply}");
        for member in &required {
            assert!(
                is_told(&reply, member),
                "{method} {path} does not tell {member}: {reply}"
            );
        }
        checked += required.len();
    }
    assert!(checked > 20, "{checked}");
    assert_eq!(stage.log_len(), before);
    stage.stop().await;
    Ok(())
}

/// Required members of a schema, those of its parts included.
fn required(document: &Value, name: &str) -> Vec<String> {
    let schema = &document["components"]["schemas"][name];
    let parts = schema["allOf"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    for part in parts.iter().chain(std::iter::once(schema)) {
        if let Some(target) = part["$ref"].as_str().and_then(|target| target.rsplit('/').next()) {
            names.extend(required(document, target));
        }
        let listed = part["required"].as_array().into_iter().flatten();
        names.extend(listed.filter_map(Value::as_str).map(str::to_owned));
    }
    names
}

fn is_told(reply: &Value, member: &str) -> bool {
    let faults = reply["faults"].as_array().into_iter().flatten();
    faults
        .filter_map(|fault| fault["path"].as_str())
        .any(|path| path.split(['.', '[']).next() == Some(member))
}

#[tokio::test]
async fn paths_lead_nowhere_but_where_they_say() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    writes(&stage).await?;
    let before = settled(&stage).await?;
    let token = stage.platform.clone();
    let long = "a".repeat(600);
    let tricks = [
        "..",
        "%2e%2e",
        "..%2f..%2f",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        ".",
        "%00",
        "a%00b",
        "%0a",
        "a%0d%0ab",
        "%ff",
        "%c0%af",
        "%",
        "%zz",
        "%252e%252e",
        "a;b",
        "a%20b",
        "*",
        "~",
        "%F0%9F%92%A9",
        "there%2f..%2fthere",
        "-there",
        long.as_str(),
    ];
    for trick in tricks {
        for (method, path) in [
            ("GET", format!("/clusters/{trick}")),
            ("DELETE", format!("/clusters/{trick}")),
            ("GET", format!("/clusters/{trick}/containers")),
            ("GET", format!("{BASE}/containers/{trick}")),
            ("DELETE", format!("{BASE}/containers/{trick}")),
            ("POST", format!("{BASE}/containers/{trick}/stop")),
            ("POST", format!("{BASE}/machines/{trick}/drain")),
            ("DELETE", format!("{BASE}/machines/{trick}")),
            ("GET", format!("{BASE}/explain/container/{trick}")),
            ("GET", format!("{BASE}/explain/{trick}/there")),
            ("GET", format!("{BASE}/logs/{trick}")),
            ("GET", format!("/aggregate/containers/{trick}/x")),
        ] {
            let (status, reply) = raw_path(&stage, method, &path, &token).await?;
            assert!([400, 404].contains(&status), "{method} {path}: {status} {reply}");
            assert!(
                reply["error"]["message"].is_string() || reply.is_null(),
                "{method} {path}: {reply}"
            );
        }
        // Events outlive their objects: whatever is no id has none.
        let path = format!("{BASE}/replicas/{trick}/events");
        let (status, reply) = raw_path(&stage, "GET", &path, &token).await?;
        assert!([200, 400, 404].contains(&status), "{path}: {status} {reply}");
    }
    assert_eq!(stage.log_len(), before);
    assert_eq!(stage.running.scheduler().clusters().len(), 1);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused_and_the_next_is_served() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /clusters HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /clusters HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ] {
        let mut stream = tokio::net::TcpStream::connect(stage.running.rest_addr).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        // A connection that is reset is an answer too.
        if stream.read_to_end(&mut answer).await.is_ok() && !answer.is_empty() {
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        }
    }
    let (status, ..) = stage.request("GET", "/healthz", "", None).await?;
    assert_eq!(status, 200);
    stage.stop().await;
    Ok(())
}
