//! Goldens of the import: the vector-db stack of the demo, and one table of everything that can be wrong.

use super::*;
use serde_json::json;

fn context() -> StackContext {
    StackContext {
        platform: Platform::Local,
        volume_root: "/srv/berth".into(),
        default_group: GroupId::new("general").unwrap(),
    }
}

fn vector_db() -> Value {
    parse_json(include_bytes!("../../../demo/vector-db.json")).unwrap()
}

fn problems(document: Value) -> Vec<String> {
    match Stack::import(document, &context()) {
        Ok(_) => vec![],
        Err(faults) => faults.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn the_vector_db_stack_becomes_two_containers_and_a_storage() {
    let stack = Stack::import(vector_db(), &context()).unwrap();
    assert_eq!(stack.id, "vector-db");
    let [writer, reader] = stack.containers.as_slice() else {
        panic!("{:?}", stack.containers)
    };
    assert_eq!(
        crate::rest::container::create_request(writer),
        json!({
            "name": "writer", "capacityGroup": "general", "image": "berth.example/workload:demo",
            "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "128Mi", "desired": "256Mi"}},
            "replicas": 1, "stateful": true, "ports": [8080],
            "volumes": [{"ordinal": 0, "volume": {"type": "hostpath", "path": "/srv/berth/writer/0"}, "mountPath": "/wal"}],
            "env": {"INDEX_BINDING": "{\"type\":\"storage\",\"service\":\"local\",\"path\":\"/mnt/index\"}", "ROLE": "writer"},
            "healthCheck": {"path": "/health", "port": 8080, "method": "GET", "timeoutSeconds": 1, "failureThreshold": 3},
            "sharedMounts": [{"source": "/srv/berth/index", "mountPath": "/mnt/index"}],
            "links": ["index"]
        })
    );
    assert_eq!(
        crate::rest::container::create_request(reader),
        json!({
            "name": "reader", "capacityGroup": "general", "image": "berth.example/workload:demo",
            "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "128Mi", "desired": "256Mi"},
                "ephemeralStorage": "64Mi"},
            "autoscaling": {"min": 2, "desired": 4, "max": 20, "targetCpuPercent": 70.0, "targetMemoryPercent": 80.0},
            "stateful": false, "ports": [8080], "volumes": [],
            "env": {"INDEX_BINDING": "{\"type\":\"storage\",\"service\":\"local\",\"path\":\"/mnt/index\"}",
                "ROLE": "reader", "WRITER_HOST": "writer.svc", "WRITER_PORT": "8080"},
            "healthCheck": {"path": "/health", "port": 8080, "method": "GET", "timeoutSeconds": 1, "failureThreshold": 3},
            "sharedMounts": [{"source": "/srv/berth/index", "mountPath": "/mnt/index"}],
            "links": ["index", "writer"]
        })
    );
    assert_eq!(
        stack.storages,
        [Storage {
            id: "index".into(),
            path: Some("/srv/berth/index".into()),
            used_by: vec!["writer".into(), "reader".into()],
        }]
    );
    assert_eq!(
        stack.warnings,
        [
            "writer: persistentStorage is a directory on platform local; its size 20Gi is not enforced",
            "reader: public endpoints are not served on platform local",
        ]
    );
}

#[test]
fn what_is_imported_is_what_the_api_accepts() {
    let cluster = crate::rest::cluster::read_cluster(&json!({
        "clusterId": "c", "name": "c", "containerCidr": "10.0.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 3,
            "profile": {"cpu": 8, "memoryBytes": 17_179_869_184_u64, "ephemeralStorageBytes": 1}}]
    }))
    .unwrap();
    for spec in Stack::import(vector_db(), &context()).unwrap().containers {
        let request = crate::rest::container::create_request(&spec);
        assert_eq!(
            crate::rest::container::read_container(&request, &cluster).unwrap(),
            spec
        );
    }
}

#[test]
fn unknown_members_survive() {
    let mut document = vector_db();
    document["resources"]["reader"]["config"]["futureMember"] = json!({"a": 1});
    let stack = Stack::import(document.clone(), &context()).unwrap();
    assert_eq!(stack.document, document);
}

#[test]
fn every_fault_of_a_stack_is_listed_at_once() {
    let document = json!({
        "permissions": {"profiles": {"serve": {}}},
        "resources": {
            "db": {"config": {"id": "db", "type": "postgres"}, "lifecycle": "frozen"},
            "reader": {"lifecycle": "frozen", "config": {
                "id": "reader", "type": "container", "code": {"type": "source", "src": "."},
                "cpu": {"min": "500m", "desired": "1"}, "memory": {"min": "1Gi", "desired": "2"},
                "ports": [{"port": 0}], "replicas": 2, "autoscaling": {"min": 2, "desired": 2, "max": 20},
                "persistentStorage": {"size": "lots"}, "permissions": "admin", "pool": "General"}},
            "writer": {"config": {"id": "reader", "type": "container"}},
        }
    });
    assert_eq!(
        problems(document),
        [
            "id: is missing; write a text of 1 to 255 characters",
            "resources.db.config.type: \"postgres\" resources are not supported; Berth runs container and storage",
            "resources.reader.lifecycle: frozen does not fit a container; write live",
            "resources.writer.config.id: \"reader\" is not the name of the resource, writer; every resource stands under its own id, once",
            "resources.reader.config.permissions: \"admin\" is no profile of this stack; add it to permissions.profiles",
            "resources.reader.config.code.type: \"source\" code is built before it reaches Berth; write {\"type\": \"image\", \"image\": \"registry.example/app:1\"}",
            "resources.reader.config.cpu.min: \"500m\" is not vCPU; write 0.5",
            "resources.reader.config.memory.desired: \"2\" has no unit; write it with Ki, Mi, Gi or Ti, for example \"2Mi\"",
            "resources.reader.config.autoscaling: cannot stand beside replicas; keep one of the two",
            "resources.reader.config.ports[0].port: 0 is out of range; write a whole number from 1 to 65535",
            "resources.reader.config.pool: \"General\" is not a valid capacity group id: 1 to 63 of a-z, 0-9 and '-', starting with a letter",
            "resources.reader.config.persistentStorage.size: \"lots\" is not a number of bytes; write a number such as \"4Gi\"",
            "resources.writer.config.code: is missing; write an object",
            "resources.writer.config.cpu: is missing; write an object",
            "resources.writer.config.memory: is missing; write an object",
            "resources.writer.config.ports: is missing; write a list",
        ]
    );
}

#[test]
fn volumes_on_a_stateless_container_and_scaling_of_a_stateful_one_are_refused() {
    let mut document = vector_db();
    document["resources"]["writer"]["config"]["stateful"] = json!(false);
    document["resources"]["reader"]["config"]["stateful"] = json!(true);
    assert_eq!(
        problems(document),
        [
            "resources.writer.config.persistentStorage: is only for stateful containers; set stateful to true or leave it out",
            "resources.reader.config.autoscaling: is only for stateless containers; write replicas instead",
        ]
    );
}

#[test]
fn dangling_self_and_cyclic_links_are_named() {
    let mut document = vector_db();
    document["resources"]["writer"]["config"]["links"] = json!([
        {"id": "reader", "type": "container"}, {"id": "cache", "type": "container"},
        {"id": "writer", "type": "container"}, {"id": "index", "type": "container"}]);
    assert_eq!(
        problems(document),
        [
            "resources.writer.config.links[1]: no resource is named cache; add it or write one of index, reader",
            "resources.writer.config.links[2]: writer refers to itself; remove it",
            "resources.writer.config.links[3].type: \"container\" is not the type of index; write storage",
            "resources.writer.config.links[0]: closes the cycle reader -> writer -> reader; remove one of these links",
        ]
    );
}

#[test]
fn a_resource_that_is_there_twice_is_named() {
    let text = br#"{"id": "s", "resources": {"a": {"config": {}}, "a": {"config": {}}}}"#;
    let faults = Stack::parse(text, &context()).unwrap_err();
    assert_eq!(faults.to_string(), "resources.a: is there twice; keep one");
}

#[test]
fn a_mount_under_a_taken_path_is_told_in_words_of_the_stack() {
    let mut document = vector_db();
    document["resources"]["writer"]["config"]["persistentStorage"]["mountPath"] = json!("/mnt/index");
    assert_eq!(
        problems(document),
        [
            "resources.writer.config.persistentStorage.mountPath: /mnt/index is taken by another mount; write another path"
        ]
    );
}
