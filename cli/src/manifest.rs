//! Reading of the file given to `berth apply`: stack JSON, or a plain list of container declarations. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use berth_api::cluster::ClusterSpec;
use berth_api::rest::cluster::GetClusterReply;
use berth_api::rest::container::{create_request, read_container};
use berth_api::stack::{Stack, StackContext};
use berth_api::validate::Faults;
use serde_json::{Value, json};

/// What the file asks for: request bodies by container name, in the file's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Manifest {
    pub(crate) containers: Vec<(String, Value)>,
    /// Directories that must exist on the host, on platform `local`.
    pub(crate) directories: Vec<String>,
    /// What is accepted and has no effect.
    pub(crate) warnings: Vec<String>,
}

/// Where volumes of a stack go when the context names no directory.
pub(crate) const VOLUME_ROOT: &str = "/var/lib/berth/volumes";

/// The cluster as its own declaration.
fn declaration(cluster: &GetClusterReply) -> ClusterSpec {
    ClusterSpec {
        cluster_id: cluster.cluster_id.clone(),
        name: cluster.name.clone(),
        container_cidr: cluster.container_cidr,
        platform: cluster.platform,
        capacity_groups: cluster.capacity_groups.clone(),
        workspace_id: None,
        project_id: None,
        deployment_group_id: None,
    }
}

/// Reads the file's text against the cluster it is meant for.
///
/// # Errors
/// Every fault of the file, one a line, each with its path.
pub(crate) fn read(
    text: &str,
    cluster: &GetClusterReply,
    volumes: Option<&Path>,
    images: &[(String, String)],
) -> Result<Manifest, String> {
    let mut document: Value =
        serde_json::from_str(text).map_err(|error| format!("the file is no JSON: {error}"))?;
    let mut unused: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    let manifest = if document.get("resources").is_some() {
        set_stack_images(&mut document, images, &mut unused);
        read_stack(document, cluster, volumes)?
    } else {
        let mut list = match document {
            Value::Array(list) => list,
            Value::Object(ref mut members) => match members.shift_remove("containers") {
                Some(Value::Array(list)) => list,
                _ => {
                    return Err(
                        "the file is neither a stack (with resources) nor a list of containers".into(),
                    );
                }
            },
            _ => return Err("the file is neither a stack (with resources) nor a list of containers".into()),
        };
        set_list_images(&mut list, images, &mut unused);
        read_list(&list, cluster)?
    };
    if unused.is_empty() {
        Ok(manifest)
    } else {
        Err(format!(
            "--set-image names what the file does not have: {}",
            unused.join(", ")
        ))
    }
}

fn set_stack_images(document: &mut Value, images: &[(String, String)], unused: &mut Vec<&str>) {
    let Some(resources) = document.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, resource) in resources {
        let Some(config) = resource.get_mut("config").and_then(Value::as_object_mut) else {
            continue;
        };
        let id = config
            .get("id")
            .and_then(Value::as_str)
            .unwrap_or(name)
            .to_owned();
        if let Some((_, image)) = images.iter().find(|(wanted, _)| *wanted == id) {
            config.insert("code".into(), json!({"type": "image", "image": image}));
            unused.retain(|wanted| *wanted != id);
        }
    }
}

fn set_list_images(list: &mut [Value], images: &[(String, String)], unused: &mut Vec<&str>) {
    for container in list {
        let Some(members) = container.as_object_mut() else {
            continue;
        };
        let name = members
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if let Some((_, image)) = images.iter().find(|(wanted, _)| *wanted == name) {
            members.insert("image".into(), json!(image));
            unused.retain(|wanted| *wanted != name);
        }
    }
}

fn read_stack(
    document: Value,
    cluster: &GetClusterReply,
    volumes: Option<&Path>,
) -> Result<Manifest, String> {
    let group = cluster
        .capacity_groups
        .first()
        .ok_or("the cluster has no capacity group yet")?;
    let root = volumes.map_or_else(|| VOLUME_ROOT.to_owned(), |path| path.display().to_string());
    let context = StackContext {
        platform: cluster.platform,
        volume_root: root.trim_end_matches('/').to_owned(),
        default_group: group.group_id.clone(),
    };
    let stack = Stack::import(document, &context).map_err(|faults| faults.to_string())?;
    Ok(Manifest {
        containers: stack
            .containers
            .iter()
            .map(|spec| (spec.name.to_string(), create_request(spec)))
            .collect(),
        directories: stack
            .storages
            .iter()
            .filter_map(|storage| storage.path.clone())
            .collect(),
        warnings: stack.warnings,
    })
}

fn read_list(list: &[Value], cluster: &GetClusterReply) -> Result<Manifest, String> {
    let cluster = declaration(cluster);
    let mut faults = Vec::new();
    let mut manifest = Manifest::default();
    let mut seen = BTreeMap::new();
    for (index, value) in list.iter().enumerate() {
        match read_container(value, &cluster) {
            Ok(spec) => {
                if let Some(first) = seen.insert(spec.name.clone(), index) {
                    faults.push(format!(
                        "containers[{index}].name: {} is already the name of containers[{first}]",
                        spec.name
                    ));
                }
                manifest
                    .containers
                    .push((spec.name.to_string(), create_request(&spec)));
            }
            Err(found) => faults.extend(prefixed(index, &found)),
        }
    }
    if faults.is_empty() {
        Ok(manifest)
    } else {
        Err(faults.join("\n"))
    }
}

fn prefixed(index: usize, faults: &Faults) -> Vec<String> {
    faults
        .list()
        .iter()
        .map(|fault| match fault.path.is_empty() {
            true => format!("containers[{index}]: {}", fault.problem),
            false => format!("containers[{index}].{}: {}", fault.path, fault.problem),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> GetClusterReply {
        serde_json::from_value(
            json!({"clusterId": "dev", "name": "dev", "containerCidr": "10.244.0.0/16",
            "platform": "local", "machineCount": 0, "containerCount": 0, "createdAt": "2026-01-01T00:00:00Z",
            "capacityGroups": [{"groupId": "general", "minSize": 1, "maxSize": 1,
                "profile": {"cpu": 8, "memoryBytes": 1u64 << 34, "ephemeralStorageBytes": 1u64 << 40}}],
            "capacity": {"cpu": {"total": 0, "available": 0}, "memory": {"total": 0, "available": 0},
                "ephemeralStorage": {"total": 0, "available": 0}}}),
        )
        .unwrap()
    }

    fn container(name: &str) -> Value {
        json!({"name": name, "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [80],
            "resources": {"cpu": {"min": "0.1", "desired": "0.1"}, "memory": {"min": "64Mi", "desired": "64Mi"}}})
    }

    #[test]
    fn a_plain_list_gives_request_bodies_with_defaults_filled_in() {
        let text = json!([container("a"), container("b")]).to_string();
        let images = [("b".to_owned(), "app:9".to_owned())];
        let manifest = read(&text, &cluster(), None, &images).unwrap();
        assert_eq!(manifest.containers.len(), 2);
        assert_eq!(manifest.containers[0].1["replicas"], 1);
        assert_eq!(manifest.containers[1].1["image"], "app:9");
    }

    #[test]
    fn every_fault_of_a_list_is_told_with_its_place() {
        let mut bad = container("c");
        bad["ports"] = json!([0]);
        let text = json!({"containers": [container("a"), container("a"), bad]}).to_string();
        let faults = read(&text, &cluster(), None, &[]).unwrap_err();
        assert_eq!(faults.lines().count(), 2, "{faults}");
        assert!(
            faults.contains("containers[1].name: a is already the name of containers[0]"),
            "{faults}"
        );
        assert!(faults.contains("containers[2].ports[0]: "), "{faults}");
    }

    #[test]
    fn a_stack_is_imported_and_its_images_can_be_set() {
        let text = json!({"id": "s", "resources": {"web": {"lifecycle": "live", "dependencies": [], "config": {
            "id": "web", "type": "container", "code": {"type": "source", "path": "."}, "ports": [{"port": 80}],
            "cpu": {"min": "0.1", "desired": "0.1"}, "memory": {"min": "64Mi", "desired": "64Mi"}}}}})
        .to_string();
        let images = [("web".to_owned(), "app:2".to_owned())];
        let manifest = read(&text, &cluster(), None, &images).unwrap();
        assert_eq!(manifest.containers[0].1["image"], "app:2");
        assert_eq!(manifest.containers[0].1["capacityGroup"], "general");
        let other = [("db".to_owned(), "x".to_owned())];
        assert!(read(&text, &cluster(), None, &other).is_err());
    }
}
