//! A key is in its keyring and nowhere else.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::host::Host;
use crate::one_osd;

/// Every file below a folder that holds one of some texts.
fn holding(folder: &Path, secrets: &[&str], found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            holding(&path, secrets, found);
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap_or_default();
            let holds =
                |secret: &&str| content.windows(secret.len()).any(|at| at == secret.as_bytes());
            if secrets.iter().any(holds) {
                found.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn no_key_is_in_the_journal_in_logs_in_mappings_or_in_the_list_of_processes() {
    let ceph = one_osd();
    let caps = ["mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd"];
    let added = [&["auth", "get-or-create", "client.secret"], &caps[..]].concat();
    ceph.ceph(&added);
    let key = ceph.ceph(&["auth", "get-key", "client.secret"]).trim().to_owned();
    let keyring = ceph.dir().join("secret.keyring");
    ceph.ceph(&["auth", "get", "client.secret", "-o", keyring.to_str().unwrap()]);
    let mut host = Host::bare(ceph, "secret", "");
    let settings = host.dir.join("settings.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let with =
        |line: &str| fs::write(&settings, format!("{text}id = \"secret\"\n{line}\n")).unwrap();
    // In the settings it would be passed on in arguments.
    with(&format!("key = {key:?}"));
    let refused = host.ours(&["plugin"]).refused();
    assert!(refused.contains("key would be seen in the list of processes"), "{refused}");
    assert!(!refused.contains(&key), "{refused}");
    with(&format!("keyring = {keyring:?}"));
    // Everything that can be said is.
    host.env.insert("RUST_LOG", "trace".to_owned());
    host.start_plugin();
    let create = json!({ "Name": "secret", "Opts": { "size": "64M" } });
    host.called("VolumeDriver.Create", &create);
    host.mount("secret", "x");
    host.refused("VolumeDriver.Create", &json!({ "Name": "no", "Opts": { "pool": "nowhere" } }));
    let told = host.called("VolumeDriver.Get", &create).to_string() + &host.http(&[], "metrics");

    // The key, and that without its header, which would be as good.
    let secrets = [key.as_str(), &key[24..38]];
    assert!(!secrets.iter().any(|secret| told.contains(secret)), "{told}");
    let mut processes = Vec::new();
    for pid in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let text = fs::read(pid.path().join(file)).unwrap_or_default();
            if secrets.iter().any(|secret| String::from_utf8_lossy(&text).contains(secret)) {
                processes.push(pid.path().join(file));
            }
        }
    }
    assert!(processes.is_empty(), "{processes:?}");
    assert!(host.log().len() > 1000 && !host.mappings().is_empty());
    let mut found = Vec::new();
    holding(&host.dir, &secrets, &mut found);
    assert!(found.is_empty(), "{found:?}");
    // What is remembered is root's alone.
    for file in ["state/known.json", "state/attached/secret.json", "m"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(host.dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}: {mode:o}");
    }
    host.unmount("secret", "x");
    host.called("VolumeDriver.Remove", &create);
}
