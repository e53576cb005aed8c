//! Just enough HTTP/1.1: one request and one answer per connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::query_members;

/// Longest request head that is read, and longest answer that [`get`] takes.
const BYTES_MAX: u64 = 1 << 20;

pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn member(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        self.member(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    }
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn ok(body: impl Into<String>) -> Self {
        Self {
            status: 200,
            body: body.into(),
        }
    }

    pub(crate) fn failed(body: impl Into<String>) -> Self {
        Self {
            status: 500,
            body: body.into(),
        }
    }
}

/// Reads a request from `stream` and writes what `respond` says. A peer that breaks off is not our fault.
pub(crate) fn answer(stream: TcpStream, respond: impl FnOnce(&Request) -> Response) {
    let Some(request) = read_request(&stream) else {
        return;
    };
    let Response { status, body } = respond(&request);
    let reason = if status < 400 { "OK" } else { "Error" };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    if stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .is_err()
    {
        crate::work::say("the client went away before the answer");
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream.take(BYTES_MAX));
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let target = line.split_whitespace().nth(1)?.to_owned();
    let mut header = String::new();
    while reader.read_line(&mut header).ok()? > 2 {
        header.clear();
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request {
        path: path.to_owned(),
        query: query_members(query),
    })
}

/// The body that `http://host:port/path` answers with a 2xx, else why not.
pub(crate) fn get(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken here")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
    let addresses = crate::dns::resolve(host)?;
    let address = addresses
        .first()
        .ok_or_else(|| format!("{host} has no address"))?;
    let wait = Duration::from_secs(3);
    let failed = |error: std::io::Error| format!("{host} ({address}): {error}");
    let mut stream = TcpStream::connect_timeout(&(*address, port).into(), wait).map_err(failed)?;
    stream.set_read_timeout(Some(wait)).map_err(failed)?;
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream
        .take(BYTES_MAX)
        .read_to_string(&mut answer)
        .map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no head")?;
    match head.split_whitespace().nth(1) {
        Some(status) if status.starts_with('2') => Ok(body.to_owned()),
        status => Err(format!("{url} answered {}: {body}", status.unwrap_or("nothing"))),
    }
}
