//! Bad input and what cannot run: one clear answer, what helps, and nothing changed.

use berth_api::explain::Explanation;
use berth_tests::oci_layout::Image;
use serde_json::{Value, json};

use super::dev::{Dev, container, text};

/// An image with the machine's disk in it.
fn hostile() -> Image {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Block);
    header.set_path("sda").unwrap();
    header.set_mode(0o666);
    header.set_size(0);
    header.set_device_major(8).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    Image {
        tars: vec![[&header.as_bytes()[..], &[0; 1024]].concat()],
        cmd: vec!["/sda".into()],
        ..Image::default()
    }
}

/// What was declared and cannot run says why and what would help.
#[test]
fn what_cannot_run_is_explained() {
    let Some(dev) = Dev::up(2) else { return };
    let with = |name: &str, member: &str, value: Value| {
        let mut declaration = container(&dev, name, 1);
        declaration[member] = value;
        declaration
    };
    let missing = format!("oci-layout:{}", dev.path("nothing").display());
    let gateway = dev.list()["gateway"].as_str().unwrap().to_owned();
    // Port 9 (discard) of the host: nobody listens.
    let unreachable = format!("{gateway}:9/app:1");
    let mut large = container(&dev, "large", 1);
    large["resources"]["cpu"] = json!({"min": "64", "desired": "64"});
    let [device, argument] = [
        hostile(),
        Image {
            cmd: vec!["/x".into(), "y".repeat(200_000)],
            ..Image::default()
        },
    ];
    let device_layout = dev.path("device");
    device.write_layout(&device_layout, "v1").unwrap();
    let argument_layout = dev.path("argument");
    argument.write_layout(&argument_layout, "v1").unwrap();
    dev.apply_at_once(&[
        with(
            "device",
            "image",
            json!(format!("oci-layout:{}", device_layout.display())),
        ),
        with(
            "argument",
            "image",
            json!(format!("oci-layout:{}", argument_layout.display())),
        ),
        with("noimage", "image", json!(missing)),
        with("noregistry", "image", json!(unreachable)),
        large,
        container(&dev, "fine", 1),
    ]);
    dev.until_ready("fine", 1);
    let helps = |explanation: &Explanation| -> String {
        assert!(!explanation.waits.is_empty(), "{explanation}");
        explanation.waits.iter().map(|wait| wait.helps.as_str()).collect()
    };

    let explanation = dev.until_explained("noimage", "there is no image");
    assert!(helps(&explanation).contains("correct the image"), "{explanation}");
    let explanation = dev.until_explained("device", "\"sda\" is the block device 8:0");
    assert!(helps(&explanation).contains("correct the image"), "{explanation}");
    let explanation = dev.until_explained("argument", "an argument of the command has 200000 bytes");
    assert!(helps(&explanation).contains("correct the image"), "{explanation}");
    let explanation = dev.until_explained("large", "larger than any machine");
    assert!(helps(&explanation).contains("at most 4 vCPU"), "{explanation}");
    assert_eq!(explanation.filters[0].filter, "cpu");
    assert_eq!(explanation.filters[0].machines, 2);
    let explanation = dev.until_explained("noregistry", &gateway);
    assert!(explanation.to_string().contains("pulling"), "{explanation}");
    // The cause must be said, not only that it is tried.
    let explanation = dev.until_explained("noregistry", "efused");
    assert!(!helps(&explanation).is_empty());
    dev.until_ready("fine", 1);
    for id in ["device", "argument", "noimage", "noregistry", "large"] {
        dev.delete(id);
    }
    dev.until_tidy();
    assert_eq!(dev.berth(&["explain", "nobody"]).status.code(), Some(3));
}

/// Every fault is listed at once with its path, and neither declarations nor replicas change.
#[test]
fn a_bad_stack_is_refused_whole() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    dev.until_rolled_out(&["web"]);
    let declared = || {
        let (status, mut reply) = dev.rest("GET", "/containers/web", None);
        // What is measured differs between two questions.
        for replica in reply["replicasInfo"].as_array_mut().unwrap() {
            replica.as_object_mut().unwrap().remove("metrics");
        }
        (status, reply)
    };
    let before = declared();
    let pids = dev.pids();

    let mut bad = container(&dev, "bad", 1);
    bad["resources"]["cpu"]["min"] = json!("500m");
    bad["resources"]["memory"]["min"] = json!("1Gi");
    bad["ports"] = json!([0]);
    bad["autoscaling"] = json!({"min": 1, "desired": 1, "max": 2});
    let mut good_change = container(&dev, "web", 3);
    good_change["env"] = json!({"NEW": "1"});
    let output = dev.declare(&[good_change, bad.clone()], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for fault in [
        "resources.cpu.min: \"500m\" is not vCPU; write 0.5",
        "resources.memory.min: 1Gi is above desired 64Mi",
        "ports[0]: 0 is out of range",
    ] {
        assert!(
            told.contains(&format!("containers[1].{fault}")),
            "{fault:?} is missing in:\n{told}"
        );
    }
    let stack = json!({
        "id": "s", "permissions": {"profiles": {}}, "resources": {"x": {
            "lifecycle": "live", "dependencies": [],
            "config": {
                "id": "x", "type": "container", "code": {"type": "image", "image": "x"}, "environment": {},
                "cpu": {"min": "500m", "desired": "1"}, "memory": {"min": "1Mi", "desired": "1Mi"},
                "ports": [{"port": 0}], "stateful": false, "replicas": 1, "links": [{"id": "ghost", "type": "container"}],
            },
        }},
    });
    let file = dev.path("stack.json");
    std::fs::write(&file, stack.to_string()).unwrap();
    let output = dev.berth(&["apply", "--yes", "-f", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for fault in [
        "resources.x.config.cpu.min: \"500m\"",
        "resources.x.config.ports[0].port",
        "ghost",
    ] {
        assert!(told.contains(fault), "{fault:?} is missing in:\n{told}");
    }

    let (status, reply) = dev.rest("POST", "/containers", Some(&bad));
    assert_eq!(status, 400, "{reply}");
    assert_eq!(reply["error"]["code"], "invalid_container");
    assert!(reply["faults"].as_array().unwrap().len() >= 4, "{reply}");
    let (status, _) = dev.rest("POST", "/containers", Some(&container(&dev, "web", 9)));
    assert_eq!(status, 409);

    assert_eq!(declared(), before, "the store is unchanged");
    assert_eq!(dev.rest("GET", "/containers/bad", None).0, 404);
    assert_eq!(dev.pids(), pids);
}
