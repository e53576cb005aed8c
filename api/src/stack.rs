//! Import of stack JSON: resources of types `container` and `storage` become declarations, with every fault at once.
//!
//! The document is kept as it came, so members that Berth does not know survive when it is written back.
//!
//! On platform `local` a container's `persistentStorage` becomes one host path per ordinal,
//! `<volume_root>/<container>/<ordinal>`; a linked `storage` becomes a shared directory `<volume_root>/<storage>`, seen
//! at `/mnt/<storage>` and announced in the environment variable `<STORAGE>_BINDING`. A linked container is announced
//! in `<CONTAINER>_HOST` and `<CONTAINER>_PORT`.

mod graph;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;

use crate::cluster::Platform;
use crate::container::{ContainerSpec, Resources};
use crate::id::{ContainerName, GroupId};
use crate::placement::placement;
use crate::rest::container::contradictions;
use crate::rest::declaration::{
    command, cpu_range, disruption_budget, drain_seconds, environment, gpu_request, image, memory_range,
    mount_path, port, ports, scale, size,
};
use crate::rest::probes::{health_check, probes};
use crate::units::Bytes;
use crate::validate::{Cursor, Faults, parse_json, read, shown_text};
use crate::volume::{OrdinalVolume, SharedMount, VolumeTarget};

/// Where a stack is imported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackContext {
    pub platform: Platform,
    /// Directory of host path volumes and shared directories, without a slash at its end.
    pub volume_root: String,
    /// For containers that name no pool.
    pub default_group: GroupId,
}

/// A storage resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    pub id: String,
    /// Its directory on platform `local`.
    pub path: Option<String>,
    /// Names of the containers linked to it.
    pub used_by: Vec<String>,
}

/// What a stack declares.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    pub id: String,
    /// In the order of the document.
    pub containers: Vec<ContainerSpec>,
    pub storages: Vec<Storage>,
    /// What is accepted and has no effect here.
    pub warnings: Vec<String>,
    /// The document as it came, unknown members included.
    pub document: Value,
}

impl Stack {
    /// Reads the text of a stack.
    ///
    /// # Errors
    /// With every fault of the stack, each with its path.
    pub fn parse(text: &[u8], context: &StackContext) -> Result<Self, Faults> {
        Self::import(parse_json(text)?, context)
    }

    /// Reads a stack.
    ///
    /// # Errors
    /// With every fault of the stack, each with its path.
    pub fn import(document: Value, context: &StackContext) -> Result<Self, Faults> {
        let (id, containers, storages, warnings) = read(&document, |cursor| stack(cursor, context))?;
        Ok(Self {
            id,
            containers,
            storages,
            warnings,
            document,
        })
    }
}

/// Resource types that are imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Storage,
}

impl Kind {
    const WORDS: [(&str, Self); 2] = [("container", Self::Container), ("storage", Self::Storage)];

    fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Storage => "storage",
        }
    }
}

/// A resource whose envelope is valid.
struct Resource<'a> {
    id: &'a str,
    kind: Kind,
    config: Cursor<'a>,
    links: Vec<Link<'a>>,
    dependencies: Vec<Link<'a>>,
}

/// `{id, type}` of another resource.
struct Link<'a> {
    id: &'a str,
    kind: &'a str,
    at: Cursor<'a>,
}

type Read = (String, Vec<ContainerSpec>, Vec<Storage>, Vec<String>);

fn stack(cursor: &Cursor<'_>, context: &StackContext) -> Option<Read> {
    cursor.object()?;
    let id = cursor.member("id").text_sized(1..=255);
    let profiles = cursor
        .member("permissions")
        .optional(|permissions| permissions.member("profiles").optional(|p| p.object()));
    let entries = cursor.member("resources").entries();
    let read: Vec<Option<Resource<'_>>> = entries?
        .iter()
        .map(|(name, entry)| resource(name, entry))
        .collect();
    // Faults of one resource must not hide those of the others, nor dangling links between the readable ones.
    let readable: Vec<&Resource<'_>> = read.iter().flatten().collect();
    let names = |profile: &Cursor<'_>| -> Option<()> {
        let name = profile.text()?;
        match profiles.flatten().flatten() {
            Some(known) if known.contains_key(name) => Some(()),
            _ => profile.refuse(format!(
                "{} is no profile of this stack; add it to permissions.profiles",
                shown_text(name)
            )),
        }
    };
    let all_known = graph::check(&readable, read.len() == readable.len());
    let mut warnings = Vec::new();
    let mut containers = Vec::new();
    for resource in &readable {
        if resource.kind == Kind::Container {
            let profile = resource.config.member("permissions").optional(names);
            let spec = container(resource, &readable, context, &mut warnings);
            containers.push(profile.and(spec));
        }
    }
    let storages = readable
        .iter()
        .filter(|resource| resource.kind == Kind::Storage)
        .map(|resource| storage(resource, &readable, context))
        .collect();
    all_known?;
    if read.iter().any(Option::is_none) {
        return None;
    }
    let containers: Option<Vec<ContainerSpec>> = containers.into_iter().collect();
    Some((id?.to_owned(), containers?, storages, warnings))
}

fn resource<'a>(name: &'a str, entry: &Cursor<'a>) -> Option<Resource<'a>> {
    entry.object()?;
    let config = entry.member("config");
    config.object()?;
    let id = config.member("id");
    let valid = id.parse("the name of the resource", ContainerName::new);
    let text = id.raw().and_then(Value::as_str);
    if let Some(text) = text
        && text != name
    {
        id.fault(format!(
            "{} is not the name of the resource, {name}; every resource stands under its own id, once",
            shown_text(text)
        ));
    }
    let kind = kind(&config);
    let lifecycle = entry.member("lifecycle");
    if let Some(word) = lifecycle.or("live", |word| {
        word.word(&[("frozen", "frozen"), ("live", "live")])
    }) && word == "frozen"
        && kind == Some(Kind::Container)
    {
        lifecycle.fault("frozen does not fit a container; write live");
    }
    let links = config.member("links").or(Vec::new(), |links| links.list(link));
    let dependencies = entry
        .member("dependencies")
        .or(Vec::new(), |links| links.list(link));
    valid?;
    Some(Resource {
        id: text?,
        kind: kind?,
        config,
        links: links?,
        dependencies: dependencies?,
    })
}

fn kind(config: &Cursor<'_>) -> Option<Kind> {
    let member = config.member("type");
    let text = member.text_of("container or storage")?;
    match Kind::WORDS.iter().find(|(word, _)| *word == text) {
        Some((_, kind)) => Some(*kind),
        None => member.refuse(format!(
            "{} resources are not supported; Berth runs container and storage",
            shown_text(text)
        )),
    }
}

fn link<'a>(cursor: &Cursor<'a>) -> Option<Link<'a>> {
    cursor.object()?;
    let id = cursor.member("id").text_sized(1..=63);
    let kind = cursor.member("type").text_of("the type of the resource");
    Some(Link {
        id: id?,
        kind: kind?,
        at: cursor.clone(),
    })
}

fn container(
    resource: &Resource<'_>,
    all: &[&Resource<'_>],
    context: &StackContext,
    warnings: &mut Vec<String>,
) -> Option<ContainerSpec> {
    let config = &resource.config;
    let name = ContainerName::new(resource.id).ok();
    let image = code(&config.member("code"));
    let resources = resources(config);
    let scale = scale(config);
    let stateful = config.member("stateful").or(false, Cursor::boolean);
    let ports = ports(&config.member("ports"), |entry| {
        entry.object()?;
        port(&entry.member("port"))
    });
    endpoints(resource, ports.as_deref(), context, warnings);
    let env = config.member("environment").or(BTreeMap::new(), environment);
    let command = command(&config.member("command"));
    let first_port = ports.as_ref().and_then(|ports| ports.first().copied());
    let health_check = config
        .member("healthCheck")
        .optional(|check| health_check(check, first_port));
    let probes = config
        .member("probes")
        .optional(|member| probes(member, first_port));
    let capacity_group = config.member("pool").or(context.default_group.clone(), |pool| {
        pool.parse("a capacity group id", GroupId::new)
    });
    let persistent = config.member("persistentStorage").optional(persistent);
    let budget = config.member("disruptionBudget").optional(disruption_budget);
    let placement = config.member("placement").optional(placement);
    let drain_seconds = config.member("drainSeconds").optional(drain_seconds);
    let mut spec = ContainerSpec {
        name: name?,
        capacity_group: capacity_group?,
        image: image?,
        resources: resources?,
        scale: scale?,
        stateful: stateful?,
        ports: ports?,
        volumes: Vec::new(),
        env: env?,
        command: command?,
        health_check: health_check?,
        probes: probes?,
        load_balancer_target: None,
        service_account: None,
        shared_mounts: Vec::new(),
        links: resource.links.iter().map(|link| link.id.to_owned()).collect(),
        disruption_budget: budget?,
        placement: placement?,
        rollback: None,
        drain_seconds: drain_seconds?,
    };
    if let Some(persistent) = persistent? {
        volumes(&mut spec, &persistent, context, config, warnings)?;
    }
    bind(&mut spec, resource, all, context, warnings);
    agree(&spec, config, context.platform)?;
    Some(spec)
}

fn resources(config: &Cursor<'_>) -> Option<Resources> {
    let cpu = cpu_range(&config.member("cpu"));
    let memory = memory_range(&config.member("memory"));
    let ephemeral_storage = config.member("ephemeralStorage").optional(size);
    let gpu = config.member("gpu").optional(gpu_request);
    Some(Resources {
        cpu: cpu?,
        memory: memory?,
        ephemeral_storage: ephemeral_storage?,
        gpu: gpu?,
    })
}

fn code(cursor: &Cursor<'_>) -> Option<String> {
    cursor.object()?;
    let kind = cursor.member("type");
    match kind.text_of("image")? {
        "image" => image(&cursor.member("image")),
        other => kind.refuse(format!(
            "{} code is built before it reaches Berth; write {{\"type\": \"image\", \"image\": \"registry.example/app:1\"}}",
            shown_text(other)
        )),
    }
}

/// Endpoints that are open to the public: accepted and kept; nothing serves them on platform `local`.
fn endpoints(
    resource: &Resource<'_>,
    ports: Option<&[u16]>,
    context: &StackContext,
    warnings: &mut Vec<String>,
) {
    let member = resource.config.member("publicEndpoints");
    if member.is_absent() {
        return;
    }
    let read = member.list(|endpoint| {
        endpoint.object()?;
        let protocol = endpoint
            .member("protocol")
            .optional(|word| word.word(&[("http", ()), ("tcp", ())]));
        let wanted = endpoint.member("port").optional(port);
        if let (Some(Some(wanted)), Some(ports)) = (wanted, ports)
            && !ports.contains(&wanted)
        {
            endpoint
                .member("port")
                .fault(format!("{wanted} is no port of the container; add it to ports"));
        }
        protocol.and(wanted)
    });
    if read.is_some_and(|read| !read.is_empty()) && context.platform == Platform::Local {
        warnings.push(format!(
            "{}: public endpoints are not served on platform local",
            resource.id
        ));
    }
}

struct Persistent {
    size: Bytes,
    mount_path: Option<String>,
}

fn persistent(cursor: &Cursor<'_>) -> Option<Persistent> {
    cursor.object()?;
    let size = size(&cursor.member("size"));
    let mount_path = cursor.member("mountPath").optional(mount_path);
    Some(Persistent {
        size: size?,
        mount_path: mount_path?,
    })
}

fn volumes(
    spec: &mut ContainerSpec,
    persistent: &Persistent,
    context: &StackContext,
    config: &Cursor<'_>,
    warnings: &mut Vec<String>,
) -> Option<()> {
    let member = config.member("persistentStorage");
    if !spec.stateful {
        return member.refuse("is only for stateful containers; set stateful to true or leave it out");
    }
    if context.platform != Platform::Local {
        return member.refuse(format!(
            "on platform {} needs disks that exist; create the container through the API with its volumes",
            context.platform
        ));
    }
    let (root, name) = (&context.volume_root, &spec.name);
    spec.volumes = (0..spec.scale.initial())
        .map(|ordinal| OrdinalVolume {
            ordinal,
            volume: VolumeTarget::Hostpath {
                path: format!("{root}/{name}/{ordinal}"),
            },
            mount_path: persistent.mount_path.clone(),
        })
        .collect();
    warnings.push(format!(
        "{name}: persistentStorage is a directory on platform local; its size {} is not enforced",
        persistent.size
    ));
    Some(())
}

/// `vector-index` names its variables `VECTOR_INDEX_...`.
fn variable(id: &str, suffix: &str) -> String {
    format!("{}_{suffix}", id.to_ascii_uppercase().replace('-', "_"))
}

fn shared_directory(id: &str, context: &StackContext) -> Option<String> {
    (context.platform == Platform::Local).then(|| format!("{}/{id}", context.volume_root))
}

/// Gives a container what its links promise. What the user set stays.
fn bind(
    spec: &mut ContainerSpec,
    resource: &Resource<'_>,
    all: &[&Resource<'_>],
    context: &StackContext,
    warnings: &mut Vec<String>,
) {
    for link in &resource.links {
        let Some(target) = all.iter().find(|target| target.id == link.id) else {
            continue;
        };
        let variables = match target.kind {
            Kind::Storage => storage_binding(spec, target.id, context, warnings),
            Kind::Container => container_binding(target),
        };
        for (name, value) in variables {
            match spec.env.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(entry) => warnings.push(format!(
                    "{}: environment sets {} itself; the link to {} does not change it",
                    spec.name,
                    entry.key(),
                    target.id
                )),
            }
        }
    }
}

fn storage_binding(
    spec: &mut ContainerSpec,
    id: &str,
    context: &StackContext,
    warnings: &mut Vec<String>,
) -> Vec<(String, String)> {
    let Some(source) = shared_directory(id, context) else {
        warnings.push(format!(
            "{}: the binding of storage {id} comes from outside on platform {}",
            spec.name, context.platform
        ));
        return Vec::new();
    };
    let mount_path = format!("/mnt/{id}");
    let binding = serde_json::json!({"type": "storage", "service": "local", "path": mount_path});
    spec.shared_mounts.push(SharedMount { source, mount_path });
    vec![(variable(id, "BINDING"), binding.to_string())]
}

fn container_binding(target: &Resource<'_>) -> Vec<(String, String)> {
    let mut variables = vec![(variable(target.id, "HOST"), format!("{}.svc", target.id))];
    let first = target
        .config
        .member("ports")
        .raw()
        .and_then(|ports| ports.get(0)?.get("port")?.as_u64());
    if let Some(port) = first {
        variables.push((variable(target.id, "PORT"), port.to_string()));
    }
    variables
}

fn storage(resource: &Resource<'_>, all: &[&Resource<'_>], context: &StackContext) -> Storage {
    Storage {
        id: resource.id.to_owned(),
        path: shared_directory(resource.id, context),
        used_by: all
            .iter()
            .filter(|user| user.kind == Kind::Container)
            .filter(|user| user.links.iter().any(|link| link.id == resource.id))
            .map(|user| user.id.to_owned())
            .collect(),
    }
}

/// Contradictions between members, told in the words of the stack.
fn agree(spec: &ContainerSpec, config: &Cursor<'_>, platform: Platform) -> Option<()> {
    let faults = contradictions(spec, platform);
    for fault in &faults {
        let path = match fault.path.split(['.', '[']).next() {
            Some("volumes") => "persistentStorage.mountPath",
            Some("sharedMounts") => "links",
            Some("resources") => "ephemeralStorage",
            _ => &fault.path,
        };
        // A link to itself is told by the graph of links.
        if path != "links" || fault.path != "links" {
            config.take(Faults::one(path, fault.problem.clone()));
        }
    }
    faults.is_empty().then_some(())
}

#[cfg(test)]
mod tests;
