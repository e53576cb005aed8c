//! From state to the commands of `nft -j`, and from its listing to what can be compared. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use nftables::batch::Batch;
use nftables::expr::{Expression, NamedExpression, Prefix};
use nftables::schema::{Chain, Element, NfListObject, Rule, Set, SetFlag, SetType, SetTypeValue, Table};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{FirewallState, TABLE};
use crate::host::net::INTERFACE_PREFIX;

/// Where clouds answer instances: all of them by link-local, Azure's platform by a public address, AWS its containers.
const METADATA: [&str; 3] = ["169.254.169.254", "168.63.129.16", "169.254.170.2"];
/// The same over IPv6. Replicas have no IPv6 at all; named here for the day they do.
const METADATA_V6: [&str; 1] = ["fd00:ec2::254"];
/// Set of (interface, source address).
const REPLICAS: &str = "replicas";
/// Set of the cluster's subnets.
const MESH: &str = "mesh";
/// Counts questions to the name server by source.
const DNS_METER: &str = "dns_sources";
/// The name server reads no more of one source (`QUESTIONS_PER_SECOND_MAX`). What is above ends here, before it takes room in the
/// queue that all sources share.
const DNS_PER_SECOND: u32 = 2000;
/// What one source may put there at once: a quarter of a second's worth.
const DNS_BURST: u32 = 500;

/// A base chain: name, type, hook, priority.
type BaseChain = (&'static str, NfChainType, NfHook, i32);

/// Priorities of netfilter: raw before conntrack, NAT after it, filter at 0.
const CHAINS: [BaseChain; 7] = [
    ("pin", NfChainType::Filter, NfHook::Prerouting, -300),
    ("answer", NfChainType::Filter, NfHook::Output, -300),
    ("host_ports", NfChainType::NAT, NfHook::Prerouting, -100),
    ("host_ports_local", NfChainType::NAT, NfHook::Output, -100),
    ("input", NfChainType::Filter, NfHook::Input, 0),
    ("forward", NfChainType::Filter, NfHook::Forward, 0),
    ("outwards", NfChainType::NAT, NfHook::Postrouting, 100),
];

/// The commands that make the kernel hold exactly `state`, in one transaction.
#[must_use]
pub fn render(state: &FirewallState) -> Value {
    let mut batch = Batch::new();
    batch.add(table());
    batch.delete(table());
    batch.add(table());
    batch.add(set(
        REPLICAS,
        SetTypeValue::Concatenated([SetType::Ifname, SetType::Ipv4Addr][..].into()),
        None,
        state
            .replicas
            .iter()
            .map(|(name, ip)| pinned(name, *ip))
            .collect(),
    ));
    batch.add(set(
        MESH,
        SetTypeValue::Single(SetType::Ipv4Addr),
        Some(HashSet::from([SetFlag::Interval])),
        mesh(state).into_iter().map(prefix).collect(),
    ));
    for (name, kind, hook, priority) in CHAINS {
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }
    for rule in rules(state) {
        batch.add(NfListObject::Rule(rule));
    }
    commands(batch)
}

/// The commands that remove the table, there or not.
pub(super) fn removal() -> Value {
    let mut batch = Batch::new();
    batch.add(table());
    batch.delete(table());
    commands(batch)
}

pub(super) fn differ_in_replicas_only(before: &FirewallState, after: &FirewallState) -> bool {
    let with_replicas_of_after = FirewallState {
        replicas: after.replicas.clone(),
        ..before.clone()
    };
    with_replicas_of_after == *after
}

/// The commands from one set of replicas to another.
pub(super) fn membership(before: &FirewallState, after: &FirewallState) -> Value {
    let members = |state: &FirewallState| -> BTreeSet<(String, Ipv4Addr)> {
        state
            .replicas
            .iter()
            .map(|(name, ip)| (name.clone(), *ip))
            .collect()
    };
    let (before, after) = (members(before), members(after));
    let element = |(name, ip): &(String, Ipv4Addr)| {
        NfListObject::Element(Element {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: REPLICAS.into(),
            elem: vec![pinned(name, *ip)].into(),
        })
    };
    let mut batch = Batch::new();
    for gone in before.difference(&after) {
        batch.delete(element(gone));
    }
    for new in after.difference(&before) {
        batch.add(element(new));
    }
    commands(batch)
}

/// What a full compare looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fingerprint {
    /// Per chain its type, hook and priority, and the comments of its rules in order.
    chains: BTreeMap<String, (String, Vec<String>)>,
    /// Per set its elements.
    sets: BTreeMap<String, BTreeSet<String>>,
}

impl Fingerprint {
    pub(super) fn of(state: &FirewallState) -> Self {
        Self::read(&render(state))
    }

    /// Of a listing, or of the commands that would lead to it.
    pub(super) fn read(listing: &Value) -> Self {
        let mut found = Self::default();
        let objects = listing["nftables"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for object in objects {
            let object = object.get("add").unwrap_or(object);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if let Some(chain) = object.get("chain") {
                let base = format!("{} {} {}", chain["type"], chain["hook"], chain["prio"]);
                found.chains.insert(text(&chain["name"]), (base, Vec::new()));
            } else if let Some(rule) = object.get("rule") {
                let chain = found.chains.entry(text(&rule["chain"])).or_default();
                chain.1.push(text(&rule["comment"]));
            } else if let Some(set) = object.get("set").filter(|set| set["name"] != DNS_METER) {
                let elements = set.get("elem").and_then(Value::as_array);
                let elements = elements.into_iter().flatten().map(member).collect();
                found.sets.insert(text(&set["name"]), elements);
            }
        }
        found
    }
}

/// Mesh and host ports of a table as an earlier daemon left it in the kernel.
pub(super) fn standing(listing: &Value) -> (Vec<Ipv4Net>, BTreeMap<u16, SocketAddrV4>) {
    let mut mesh = Vec::new();
    let mut ports = BTreeMap::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        if let Some(set) = object.get("set").filter(|set| set["name"] == MESH) {
            let elements = set["elem"].as_array().into_iter().flatten().map(member);
            // A single address stands without its length.
            let net = |net: String| net.parse::<Ipv4Net>().or_else(|_| format!("{net}/32").parse());
            mesh.extend(elements.filter_map(|element| net(element).ok()));
        }
        let rule = object.get("rule").filter(|rule| rule["chain"] == "host_ports");
        let body = rule.and_then(|rule| rule["expr"].as_array());
        for statement in body.into_iter().flatten() {
            let targets = statement
                .pointer("/dnat/addr/map/data/set")
                .and_then(Value::as_array);
            ports.extend(targets.into_iter().flatten().filter_map(standing_port));
        }
    }
    (mesh, ports)
}

fn standing_port(element: &Value) -> Option<(u16, SocketAddrV4)> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let target = element.get(1)?.get("concat")?;
    let ip = target.get(0)?.as_str()?.parse().ok()?;
    Some((
        number(element.get(0)?)?,
        SocketAddrV4::new(ip, number(target.get(1)?)?),
    ))
}

/// One element of a set, in the same words however nft spells it.
fn member(element: &Value) -> String {
    if let Some(parts) = element.get("concat").and_then(Value::as_array) {
        let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
        parts.join(" . ")
    } else if let Some(prefix) = element.get("prefix") {
        format!(
            "{}/{}",
            prefix["addr"].as_str().unwrap_or_default(),
            prefix["len"]
        )
    } else {
        element
            .as_str()
            .map_or_else(|| element.to_string(), str::to_owned)
    }
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    })
}

fn set(
    name: &'static str,
    set_type: SetTypeValue<'static>,
    flags: Option<HashSet<SetFlag>>,
    elements: Vec<Expression<'static>>,
) -> NfListObject<'static> {
    NfListObject::Set(Box::new(Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        set_type,
        flags,
        // nft refuses an empty list.
        elem: (!elements.is_empty()).then(|| elements.into()),
        ..Set::default()
    }))
}

fn pinned(interface: &str, ip: Ipv4Addr) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(vec![
        Expression::String(interface.to_owned().into()),
        Expression::String(ip.to_string().into()),
    ]))
}

/// An interval set refuses overlaps, so neighbours and duplicates are joined first.
fn mesh(state: &FirewallState) -> Vec<Ipv4Net> {
    let mut nets = state.mesh.clone();
    nets.push(state.cidr);
    Ipv4Net::aggregate(&nets)
}

fn prefix(net: Ipv4Net) -> Expression<'static> {
    let addr = Expression::String(net.network().to_string().into());
    if net.prefix_len() == 32 {
        return addr;
    }
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(addr),
        len: net.prefix_len().into(),
    }))
}

/// A rule by the words of libnftables-json(5).
fn rule(chain: &'static str, name: &str, body: Value) -> Rule<'static> {
    let hash = Sha256::digest(body.to_string());
    let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let statements: Vec<Statement<'static>> = serde_json::from_value(untyped_to_typed(body))
        .expect("the rules of this file follow the schema, which the golden test reads");
    Rule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.into(),
        expr: statements.into(),
        comment: Some(format!("{name} {hash}").into()),
        ..Rule::default()
    }
}

/// The crate has `notrack` as a bare word, nft as an object; see [`commands`] for the way back.
fn untyped_to_typed(mut body: Value) -> Value {
    for statement in body.as_array_mut().into_iter().flatten() {
        if statement.get("notrack").is_some() {
            *statement = Value::from("notrack");
        }
    }
    body
}

fn commands(batch: Batch<'static>) -> Value {
    let mut script = serde_json::to_value(batch.to_nftables()).expect("the schema has text keys");
    for object in script["nftables"].as_array_mut().into_iter().flatten() {
        let body = object.pointer_mut("/add/rule/expr").and_then(Value::as_array_mut);
        for statement in body.into_iter().flatten() {
            if statement == "notrack" {
                *statement = json!({"notrack": null});
            }
        }
    }
    script
}

fn is(left: Value, right: impl Into<Value>) -> Value {
    compare("==", left, right)
}

fn is_not(left: Value, right: impl Into<Value>) -> Value {
    compare("!=", left, right)
}

fn has(left: Value, right: impl Into<Value>) -> Value {
    compare("in", left, right)
}

fn compare(operator: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right.into()}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn conntrack(key: &str) -> Value {
    json!({"ct": {"key": key}})
}

fn subnet(net: Ipv4Net) -> Value {
    json!({"prefix": {"addr": net.network().to_string(), "len": net.prefix_len()}})
}

fn reject() -> Value {
    json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
}

fn rules(state: &FirewallState) -> Vec<Rule<'static>> {
    let mut rules = pin_rules(state);
    rules.extend(host_port_rules(state));
    rules.extend(input_rules(state));
    rules.extend(forward_rules());
    rules.extend(outward_rules(state));
    rules
}

fn replica_interfaces() -> String {
    format!("{INTERFACE_PREFIX}*")
}

fn from_replica() -> Value {
    is(meta("iifname"), replica_interfaces())
}

fn pin_rules(state: &FirewallState) -> Vec<Rule<'static>> {
    let gateway = state.gateway.to_string();
    let source = json!({"concat": [meta("iifname"), field("ip", "saddr")]});
    let mut rules = vec![
        rule(
            "pin",
            "ipv4-only",
            json!([from_replica(), is(meta("nfproto"), "ipv6"), {"drop": null}]),
        ),
        rule(
            "pin",
            "own-source",
            json!([from_replica(), is_not(source, "@replicas"), {"drop": null}]),
        ),
        rule(
            "pin",
            "source-from-outside",
            json!([
                is_not(meta("iifname"), replica_interfaces()),
                is_not(meta("iifname"), "lo"),
                is(field("ip", "saddr"), subnet(state.cidr)),
                {"drop": null}
            ]),
        ),
    ];
    rules.push(rule(
        "pin",
        "dns-flood",
        json!([
            from_replica(),
            is(field("ip", "daddr"), gateway.clone()),
            is(field("udp", "dport"), 53),
            {"meter": {
                "name": DNS_METER,
                "key": field("ip", "saddr"),
                "stmt": {"limit": {"rate": DNS_PER_SECOND, "per": "second", "burst": DNS_BURST, "inv": true}}
            }},
            {"drop": null}
        ]),
    ));
    for protocol in ["udp", "tcp"] {
        rules.push(rule(
            "pin",
            &format!("dns-{protocol}"),
            json!([
                from_replica(),
                is(field("ip", "daddr"), gateway.clone()),
                is(field(protocol, "dport"), 53),
                {"notrack": null}
            ]),
        ));
        rules.push(rule(
            "answer",
            &format!("dns-{protocol}"),
            json!([
                is(meta("oifname"), replica_interfaces()),
                is(field("ip", "saddr"), gateway.clone()),
                is(field(protocol, "sport"), 53),
                {"notrack": null}
            ]),
        ));
    }
    rules
}

/// An anonymous map in the rule: nft 1.0.6 crashes on a named one with two values given as JSON.
fn host_port_rules(state: &FirewallState) -> Vec<Rule<'static>> {
    if state.host_ports.is_empty() {
        return Vec::new();
    }
    let targets: Vec<Value> = state
        .host_ports
        .iter()
        .map(|(port, target)| json!([port, {"concat": [target.ip().to_string(), target.port()]}]))
        .collect();
    let to_own_address = is(json!({"fib": {"result": "type", "flags": ["daddr"]}}), "local");
    let forward = json!({"dnat": {
        "family": "ip",
        "addr": {"map": {"key": field("tcp", "dport"), "data": {"set": targets}}}
    }});
    let not_loopback = is_not(
        field("ip", "daddr"),
        json!({"prefix": {"addr": "127.0.0.0", "len": 8}}),
    );
    vec![
        rule("host_ports", "forwarded", json!([to_own_address, forward])),
        rule(
            "host_ports_local",
            "forwarded",
            json!([not_loopback, to_own_address, forward]),
        ),
    ]
}

fn input_rules(state: &FirewallState) -> Vec<Rule<'static>> {
    let gateway = state.gateway.to_string();
    let mut rules = vec![rule(
        "input",
        "machine",
        json!([is_not(meta("iifname"), replica_interfaces()), {"accept": null}]),
    )];
    for protocol in ["udp", "tcp"] {
        rules.push(rule(
            "input",
            &format!("dns-{protocol}"),
            json!([is(field("ip", "daddr"), gateway.clone()), is(field(protocol, "dport"), 53), {"accept": null}]),
        ));
    }
    rules.extend([
        rule(
            "input",
            "replies",
            json!([has(conntrack("state"), json!(["established", "related"])), {"accept": null}]),
        ),
        rule(
            "input",
            "icmp",
            json!([is(meta("l4proto"), "icmp"), {"accept": null}]),
        ),
        rule("input", "closed", json!([reject()])),
    ]);
    rules
}

fn forward_rules() -> Vec<Rule<'static>> {
    let to_replica_from_outside = [
        is(meta("oifname"), replica_interfaces()),
        is_not(meta("iifname"), replica_interfaces()),
    ];
    let [to_replica, from_outside] = to_replica_from_outside;
    vec![
        rule(
            "forward",
            "clamp-mss",
            json!([
                has(field("tcp", "flags"), "syn"),
                {"mangle": {
                    "key": {"tcp option": {"name": "maxseg", "field": "size"}},
                    "value": {"rt": {"key": "mtu"}}
                }}
            ]),
        ),
        rule(
            "forward",
            "metadata",
            json!([
                from_replica(),
                is(field("ip", "daddr"), json!({"set": METADATA})),
                reject()
            ]),
        ),
        rule(
            "forward",
            "metadata-v6",
            json!([
                from_replica(),
                is(field("ip6", "daddr"), json!({"set": METADATA_V6})),
                reject()
            ]),
        ),
        rule(
            "forward",
            "replies",
            json!([has(conntrack("state"), json!(["established", "related"])), {"accept": null}]),
        ),
        rule(
            "forward",
            "host-ports",
            json!([to_replica, from_outside, has(conntrack("status"), "dnat"), {"accept": null}]),
        ),
        rule(
            "forward",
            "cluster",
            json!([to_replica, from_outside, is(field("ip", "saddr"), "@mesh"), {"accept": null}]),
        ),
        rule(
            "forward",
            "closed",
            json!([to_replica, from_outside, {"drop": null}]),
        ),
    ]
}

fn outward_rules(state: &FirewallState) -> Vec<Rule<'static>> {
    let from_own = is(field("ip", "saddr"), subnet(state.cidr));
    vec![
        // A replica that uses a host port of its own machine: the answer must come back through the machine.
        rule(
            "outwards",
            "hairpin",
            json!([from_own, has(conntrack("status"), "dnat"), {"masquerade": null}]),
        ),
        rule(
            "outwards",
            "masquerade",
            json!([
                from_own,
                is_not(meta("oifname"), replica_interfaces()),
                is_not(field("ip", "daddr"), "@mesh"),
                {"masquerade": null}
            ]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> FirewallState {
        FirewallState {
            cidr: "10.244.1.0/24".parse().unwrap(),
            gateway: "10.244.1.1".parse().unwrap(),
            mesh: vec![
                "10.244.0.0/16".parse().unwrap(),
                "10.244.2.0/24".parse().unwrap(),
                "10.99.0.0/16".parse().unwrap(),
            ],
            replicas: BTreeMap::from([
                ("bth000000000001".into(), "10.244.1.2".parse().unwrap()),
                ("bth000000000002".into(), "10.244.1.3".parse().unwrap()),
            ]),
            host_ports: BTreeMap::from([(8001, "10.244.1.2:80".parse().unwrap())]),
        }
    }

    #[test]
    fn renders_the_golden_table() {
        let rendered = serde_json::to_string_pretty(&render(&state())).unwrap() + "\n";
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/host/firewall/golden.json");
        if std::env::var_os("BERTH_WRITE_GOLDEN").is_some() {
            std::fs::write(golden, &rendered).unwrap();
        }
        assert_eq!(rendered, std::fs::read_to_string(golden).unwrap());
    }

    #[test]
    fn equal_states_render_equally_and_overlapping_subnets_are_joined() {
        assert_eq!(render(&state()), render(&state()));
        assert_eq!(
            Fingerprint::of(&state()).sets[MESH],
            BTreeSet::from(["10.244.0.0/16".to_owned(), "10.99.0.0/16".to_owned()])
        );
    }

    #[test]
    fn a_changed_body_changes_the_fingerprint() {
        let other_port = FirewallState {
            host_ports: BTreeMap::from([(8001, "10.244.1.3:80".parse().unwrap())]),
            ..state()
        };
        assert_ne!(Fingerprint::of(&state()), Fingerprint::of(&other_port));
    }

    #[test]
    fn replicas_change_by_element() {
        let mut after = state();
        after.replicas.remove("bth000000000001");
        after
            .replicas
            .insert("bth000000000003".into(), "10.244.1.4".parse().unwrap());
        assert!(differ_in_replicas_only(&state(), &after));
        let script = membership(&state(), &after).to_string();
        assert!(script.contains(r#"{"delete":{"element""#), "{script}");
        assert!(script.contains("10.244.1.4"), "{script}");
        assert!(!script.contains("10.244.1.3"), "{script}");
        after.host_ports.clear();
        assert!(!differ_in_replicas_only(&state(), &after));
    }
}
