//! The role for clusters that kolla-ansible has deployed: looked over by Ansible's own tools, and run against a scratch
//! root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ceph_native::docker::Settings;
use ceph_native::docker::options::Backend;

use crate::support::run_in;

#[test]
fn the_role_puts_what_kolla_has_where_the_plugin_looks() {
    if std::env::var_os("CEPH_NATIVE_FULL").is_none() {
        return;
    }
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ansible");
    let playbook = deploy.join("ceph-native.yml").display().to_string();
    let dir = std::env::temp_dir().join(format!("kolla-{}", std::process::id()));
    let (root, kolla) = (dir.join("root"), dir.join("kolla"));
    fs::create_dir_all(kolla.join("cinder/cinder-volume")).unwrap();
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(kolla.join("cinder/ceph.conf"), "[global]\nmon host = 10.0.0.1\n").unwrap();
    let inventory = dir.join("inventory").display().to_string();
    fs::write(&inventory, "[ceph-native]\nlocalhost ansible_connection=local\n").unwrap();
    for program in ["ceph-native", "rbd-nbd-rs"] {
        fs::write(dir.join("bin").join(program), program).unwrap();
    }
    let play = |more: &[&str]| {
        let variables = [
            format!("node_custom_config={}", kolla.display()),
            format!("ceph_native_root={}", root.display()),
            format!("ceph_native_programs={}", dir.join("bin").display()),
            "ceph_native_manage_units=false".to_owned(),
            "ansible_become=false".to_owned(),
        ];
        let mut args = vec!["-i", &inventory];
        args.extend(variables.iter().flat_map(|variable| ["-e", variable]));
        args.extend(more);
        args.push(&playbook);
        run_in("ansible-playbook", &args, &[("HOME", &dir), ("ANSIBLE_LOCAL_TEMP", &dir)], 600)
    };
    play(&["--syntax-check"]).ok();
    let lint = ["--offline", "--profile", "production", &playbook];
    run_in("ansible-lint", &lint, &[("HOME", &dir)], 600).ok();

    // Without a keyring, it says where it looked, and does nothing.
    let refused = play(&[]);
    let said = String::from_utf8_lossy(&refused.out).into_owned();
    assert!(
        refused.code != 0 && said.contains("cinder-volume/ceph.client.cinder.keyring"),
        "{refused}"
    );
    assert!(!root.exists());

    let keyring = "[client.cinder]\n\tkey = notforlogs\n";
    fs::write(kolla.join("cinder/cinder-volume/ceph.client.cinder.keyring"), keyring).unwrap();
    let credential = [
        "-e",
        "ceph_native_application_credential_id=abc",
        "-e",
        "ceph_native_application_credential_secret=notforlogs",
        "-e",
        "kolla_internal_fqdn=kolla.example",
    ];
    let out = play(&credential).ok();
    assert!(!out.contains("notforlogs"), "{out}");
    let file = root.join("etc/ceph-native/ceph-native.toml");
    let settings = Settings::load(Some(&file)).unwrap();
    assert_eq!(settings.ceph.name.as_deref(), Some("client.cinder"));
    assert_eq!(settings.volumes.backend, Some(Backend::Cinder));
    assert_eq!(settings.own_cloud.unwrap().auth_url, "http://kolla.example:5000/v3");
    for (name, mode) in [
        ("etc/ceph-native/ceph-native.toml", 0o600),
        ("etc/ceph-native/ceph.client.cinder.keyring", 0o600),
        ("etc/ceph-native/ceph.conf", 0o640),
        ("usr/bin/ceph-native", 0o755),
        ("usr/bin/rbd-nbd-rs", 0o755),
        ("etc/systemd/system/ceph-native.socket", 0o644),
        ("etc/systemd/system/ceph-native.service", 0o644),
    ] {
        let has = fs::metadata(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(has.permissions().mode() & 0o777, mode, "{name}");
    }
    // Again, and nothing changes.
    let again = play(&credential).ok();
    assert!(again.contains("changed=0"), "{again}");
    play(&["-e", "kolla_action=destroy"]).ok();
    assert!(
        !root.join("usr/bin/ceph-native").exists() && root.join("var/lib/ceph-native").exists()
    );
    fs::remove_dir_all(dir).unwrap();
}
