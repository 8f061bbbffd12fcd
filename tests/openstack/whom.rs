//! How the plugin is told which cloud is meant, and who it is there.

use std::fs;

use serde_json::json;

use crate::host::Host;
use crate::openstack;
use crate::volumes::ALICE;

#[test]
fn variables_files_and_settings_say_which_cloud_is_meant() {
    let Some((cloud, _turn)) = openstack() else { return };
    let settings = "answer-ms = 10000\n[volumes]\nbackend = \"cinder\"\n";
    let mut host = Host::bare(cloud.ceph, "whom", settings);
    let folder = host.dir.join(".config/openstack");
    // What `check` says of the cloud, with these variables.
    let mut told = |variables: &[(&'static str, &str)]| {
        let home = ("HOME", host.dir.display().to_string());
        let given = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        host.env = [home].into_iter().chain(given).collect();
        let said = host.ours(&["check"]);
        let said = format!("{}{}", String::from_utf8_lossy(&said.out), said.err);
        for secret in ["alicepw", "bobpw", "wrongpw", "notforlogs"] {
            assert!(!said.contains(secret), "{said}");
        }
        let line = said.lines().find(|line| line.contains(" cloud: "));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let (alpha, beta) = (cloud.project("alpha"), cloud.project("beta"));
    let is = |name: &str, id: &str| format!("ok     cloud: project {name} ({id}), Cinder 3.54; ");
    let at = ("OS_AUTH_URL", cloud.keystone.as_str());

    // Nothing at all.
    let said = told(&[]);
    assert!(said.starts_with("WRONG") && said.contains(".config/openstack/clouds.yaml"), "{said}");

    // By names, and by ids.
    let (domain, own) = (("OS_USER_DOMAIN_NAME", "Default"), ("OS_PROJECT_DOMAIN_NAME", "Default"));
    let password = ("OS_PASSWORD", "alicepw");
    let names = [at, ("OS_USERNAME", "alice"), password, ("OS_PROJECT_NAME", "alpha"), domain, own];
    assert!(told(&names).starts_with(&is("alpha", alpha)), "{}", told(&names));
    let id = cloud.ids["users"]["alice"].as_str().unwrap();
    let ids = [at, ("OS_USER_ID", id), password, ("OS_PROJECT_ID", alpha)];
    assert!(told(&ids).starts_with(&is("alpha", alpha)), "{}", told(&ids));
    // A user's own project, where none is said.
    assert!(told(&ids[..3]).starts_with(&is("alpha", alpha)), "{}", told(&ids[..3]));
    for (wrong, by) in [
        (("OS_PASSWORD", "wrongpw"), 2),
        (("OS_USERNAME", "nobody"), 1),
        (("OS_PROJECT_NAME", "beta"), 3),
        (("OS_USER_DOMAIN_NAME", "Elsewhere"), 4),
        (("OS_PROJECT_DOMAIN_NAME", "Elsewhere"), 5),
    ] {
        let mut names = names;
        names[by] = wrong;
        let said = told(&names);
        let words = "user, password, project or their domains are wrong, or no role there";
        assert!(said.starts_with("WRONG") && said.contains(words), "{wrong:?}: {said}");
    }

    // A token that somebody else got; an application credential, by its id and by its name.
    let token = cloud.token("alice", "alpha");
    let by_token = [at, ("OS_AUTH_TYPE", "token"), ("OS_TOKEN", &token), ("OS_PROJECT_ID", alpha)];
    assert!(told(&by_token).starts_with(&is("alpha", alpha)), "{}", told(&by_token));
    let path = format!("keystone/users/{id}/application_credentials");
    let body = json!({ "application_credential": { "name": "whom", "secret": "notforlogs" } });
    let made = cloud.ask(ALICE, "POST", &path, Some(body))["application_credential"].clone();
    let credential = made["id"].as_str().unwrap();
    let kind = ("OS_AUTH_TYPE", "v3applicationcredential");
    let secret = ("OS_APPLICATION_CREDENTIAL_SECRET", "notforlogs");
    let by_id = [at, kind, ("OS_APPLICATION_CREDENTIAL_ID", credential), secret];
    assert!(told(&by_id).starts_with(&is("alpha", alpha)), "{}", told(&by_id));
    let name = ("OS_APPLICATION_CREDENTIAL_NAME", "whom");
    let by_name = [at, kind, name, ("OS_USERNAME", "alice"), domain, secret];
    assert!(told(&by_name).starts_with(&is("alpha", alpha)), "{}", told(&by_name));
    let wrong = [at, kind, name, ("OS_USERNAME", "alice"), domain, (secret.0, "wrongpw")];
    let said = told(&wrong);
    assert!(said.contains("the application credential's secret is wrong"), "{said}");
    cloud.ask(ALICE, "DELETE", &format!("{path}/{credential}"), None);

    // Files: the secrets in one of their own, a cloud that is named, or the only one.
    let clouds = format!(
        "clouds:\n  of-bob:\n    auth: {{auth_url: '{}', username: bob, project_name: beta, \
         user_domain_name: Default, project_domain_name: Default}}\n    region_name: RegionOne\n",
        cloud.keystone
    );
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("clouds.yaml"), &clouds).unwrap();
    let said = told(&[]);
    assert!(said.contains("password is missing"), "{said}");
    let secure = "clouds:\n  of-bob: {auth: {password: bobpw}}\n";
    fs::write(folder.join("secure.yaml"), secure).unwrap();
    assert!(told(&[]).starts_with(&is("beta", beta)), "{}", told(&[]));
    let two = clouds + "  other: {auth: {auth_url: 'http://127.0.0.1:9'}}\n";
    fs::write(folder.join("clouds.yaml"), two).unwrap();
    let said = told(&[]);
    assert!(said.contains("of-bob, other"), "{said}");
    let named = [("OS_CLOUD", "of-bob")];
    assert!(told(&named).starts_with(&is("beta", beta)), "{}", told(&named));
    // Variables say it all only where none is named.
    let both = [&names[..], &named].concat();
    assert!(told(&both).starts_with(&is("beta", beta)), "{}", told(&both));
    assert!(told(&names).starts_with(&is("alpha", alpha)), "{}", told(&names));
}
