//! Services behind TLS, and a catalogue with several regions and interfaces.

use std::fs;

use serde_json::{Value, json};

use crate::cloud::OpenStack;
use crate::host::Host;
use crate::openstack;
use crate::volumes::{ALICE, create, only, settings};

const ADMIN: [&str; 2] = ["admin", "admin"];

/// Endpoints of the catalogue that others of these tests must not see.
struct Endpoints<'a>(&'a OpenStack, Vec<String>);

impl Endpoints<'_> {
    fn add(&mut self, service: &str, interface: &str, url: &str) {
        let endpoint = json!({
            "service_id": service,
            "interface": interface,
            "region_id": "RegionTwo",
            "url": format!("{url}/%(project_id)s"),
        });
        let body = Some(json!({ "endpoint": endpoint }));
        let made = self.0.ask(ADMIN, "POST", "keystone/endpoints", body);
        self.1.push(made["endpoint"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned());
    }
}

impl Drop for Endpoints<'_> {
    fn drop(&mut self) {
        for id in &self.1 {
            self.0.ask(ADMIN, "DELETE", &format!("keystone/endpoints/{id}"), None);
        }
    }
}

#[test]
fn regions_interfaces_and_certificates_are_told_apart() {
    let Some((cloud, _turn)) = openstack() else { return };
    cloud.start_service("tls");
    let folder = cloud.ceph.dir().join("openstack");
    let services = cloud.ask(ADMIN, "GET", "keystone/services", None);
    let is_cinder = |one: &&Value| one["type"] == "block-storage";
    let service = services["services"].as_array().unwrap().iter().find(is_cinder).unwrap();
    let service = service["id"].as_str().unwrap();
    cloud.ask(ADMIN, "POST", "keystone/regions", Some(json!({ "region": { "id": "RegionTwo" } })));
    let mut endpoints = Endpoints(cloud, Vec::new());
    endpoints.add(service, "public", &cloud.tls_cinder);
    // Nobody is there.
    endpoints.add(service, "internal", "http://127.0.0.1:9/v3");

    let ca = |name: &str| format!("cacert: '{}'", folder.join(name).display());
    let (own, other) = (ca("ca.pem"), ca("other.pem"));
    let entries = [
        ("good", &cloud.tls, ["region_name: RegionTwo", &own]),
        ("plain", &cloud.keystone, ["region_name: RegionOne", ""]),
        ("careless", &cloud.tls, ["region_name: RegionTwo", "verify: false"]),
        ("which", &cloud.keystone, ["", ""]),
        ("nowhere", &cloud.keystone, ["region_name: RegionThree", ""]),
        ("inside", &cloud.tls, ["region_name: RegionTwo, interface: internal", &own]),
        ("admins", &cloud.tls, ["region_name: RegionTwo, interface: admin", &own]),
        ("stranger", &cloud.tls, ["region_name: RegionTwo", ""]),
        ("wrong", &cloud.tls, ["region_name: RegionTwo", &other]),
        ("missing", &cloud.tls, ["region_name: RegionTwo", "cacert: /nowhere.pem"]),
    ];
    let mut text = "clouds:\n".to_owned();
    for (name, auth_url, words) in &entries {
        let auth = format!(
            "auth: {{auth_url: '{auth_url}', username: alice, password: alicepw, project_id: {}}}",
            cloud.project("alpha")
        );
        let words: Vec<_> = words.iter().copied().filter(|word| !word.is_empty()).collect();
        let words = [&[auth.as_str()], &words[..]].concat().join(", ");
        text += &format!("  {name}: {{{words}}}\n");
    }
    let clouds = cloud.ceph.dir().join("places.yaml");
    fs::write(&clouds, text).unwrap();
    let mut host = Host::start(cloud.ceph, "places", &settings(cloud, ""));
    host.kill_plugin();
    host.env.insert("OS_CLIENT_CONFIG_FILE", clouds.display().to_string());
    host.start_plugin();

    // All the way through TLS, or not; by the region that was named.
    for name in ["good", "plain", "careless"] {
        host.called("VolumeDriver.Create", &create(name, &[("cloud", name)]));
        host.mount(name, "1");
        assert_eq!(only(cloud, ALICE, name)["status"], "in-use", "{name}");
        host.unmount(name, "1");
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
        assert!(cloud.volumes(ALICE, name).is_empty(), "{name}");
    }
    for (name, words) in [
        ("which", "there are internal in RegionOne, internal in RegionTwo, public in RegionOne"),
        ("nowhere", "no public address in region RegionThree"),
        ("inside", "Connection refused"),
        ("admins", "no admin address in region RegionTwo"),
        ("stranger", "certificate"),
        ("wrong", "certificate"),
        ("missing", "certificates /nowhere.pem"),
    ] {
        let error = host.refused("VolumeDriver.Create", &create("no", &[("cloud", name)]));
        assert!(error.contains(words), "{name}: {error}");
        assert!(cloud.volumes(ALICE, "no").is_empty(), "{name}");
    }
    cloud.kill_service("tls");
}
