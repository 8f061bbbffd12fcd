//! The client against what real services answered (fixtures/openstack), and against servers that misbehave.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::answer::Answer;
use super::cinder::{Api, Cinder, Connector, NewVolume, Version};
use super::clouds::{Auth, Cloud, Interface};
use super::identity::{self, Token};
use super::session::Session;
use crate::config::Environment;
use crate::error::{Kind, Result};

/// Every exchange that was recorded: its file, and what it was.
fn exchanges() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/openstack/");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let list: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.extend(list.into_iter().map(|exchange| (name.clone(), exchange)));
    }
    all
}

/// What the client makes of an answer to that request: whether it understood it.
fn understand(method: &str, url: &str, answer: &Answer) -> Result<()> {
    use super::cinder::replay;

    let path = url.split_once("/v3").map_or("", |(_, path)| path);
    let path = path.split('?').next().unwrap_or_default().trim_matches('/');
    if path == "auth/tokens" && method == "POST" {
        let token = Token::read(answer, &cloud("http://127.0.0.1:5000/v3"))?;
        token.life()?;
        return Ok(());
    }
    let below = path.split_once('/').map_or("", |(_, below)| below);
    replay(method, below, answer)
}

#[test]
fn every_recorded_answer_is_understood() {
    let all = exchanges();
    assert_eq!(all.len(), 205);
    for (file, exchange) in &all {
        let label = format!("{file}: {}", exchange["label"]);
        let answer = answer(exchange);
        let (method, url) =
            (exchange["method"].as_str().unwrap(), exchange["url"].as_str().unwrap());
        match understand(method, url, &answer) {
            Ok(()) => assert!(answer.status < 400, "{label}"),
            Err(error) => {
                assert!(answer.status >= 300, "{label}: {error}");
                let text = error.to_string();
                // A list of versions is no refusal with a reason.
                let told = answer.status < 400 || !text.contains("without a word");
                assert!(told && !text.contains('\n'), "{label}: {text}");
                assert!(!text.contains("Traceback") && text.len() < 700, "{label}: {text}");
            }
        }
    }
}

#[test]
fn cut_and_garbled_answers_are_errors() {
    for (file, exchange) in exchanges() {
        let whole = answer(&exchange);
        let (method, url) =
            (exchange["method"].as_str().unwrap(), exchange["url"].as_str().unwrap());
        for at in (0..whole.body.len()).step_by(1 + whole.body.len() / 40) {
            let cut = Answer { body: whole.body[..at].to_vec(), ..whole.clone() };
            let understood = understand(method, url, &cut);
            // Of some calls only the status counts.
            assert!(
                understood.is_err() || !super::cinder::reads(method, url),
                "{file} {at}: {url}"
            );
            let mut garbled = whole.clone();
            garbled.body[at] ^= 0x55;
            let _ = understand(method, url, &garbled);
        }
        for body in ["null", "[]", "{}", "42", "\"x\"", "{\"volume\": []}", "{\"message\": {}}"] {
            let _ = understand(method, url, &Answer { body: body.into(), ..whole.clone() });
        }
    }
}

#[test]
fn what_is_sent_for_a_token_is_what_keystone_took() {
    let sent = |parsed: Value| identity::request(&Cloud::parse("c", &parsed).unwrap());
    let all = exchanges();
    let recorded = |label: &str| {
        let found = all.iter().find(|(_, exchange)| exchange["label"] == label);
        found.unwrap_or_else(|| panic!("{label}")).1["request"].clone()
    };
    let auth_url = "http://127.0.0.1:5000";
    assert_eq!(
        sent(json!({ "auth": {
            "auth_url": auth_url, "username": "alice", "user_domain_name": "Default",
            "password": "alicepw", "project_name": "alpha", "project_domain_name": "Default",
        }})),
        recorded("password, project scope")
    );
    let id =
        recorded("authenticate by id")["auth"]["identity"]["application_credential"]["id"].clone();
    assert_eq!(
        // The project is left out: with it, Keystone refuses.
        sent(json!({ "auth-type": "v3applicationcredential", "auth": {
            "auth-url": auth_url, "application-credential-id": id,
            "application-credential-secret": "appsecret", "project-name": "alpha",
        }})),
        recorded("authenticate by id")
    );
    assert_eq!(
        sent(json!({ "auth": {
            "auth_url": auth_url, "application_credential_name": "plugin", "username": "alice",
            "user_domain_name": "Default", "application_credential_secret": "appsecret",
        }})),
        recorded("authenticate by name + user")
    );
}

/// Variables and files that a test makes up.
#[derive(Default)]
struct Host {
    variables: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl Environment for Host {
    fn var(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|value| (*value).to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let found = self.files.get(path.to_str().unwrap());
        found.map(|text| text.as_bytes().to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hostname(&self) -> String {
        "docker1".to_owned()
    }

    fn pid(&self) -> u32 {
        1
    }
}

impl Host {
    fn cloud(&self, name: Option<&str>) -> Result<Cloud> {
        Cloud::find(self, name)
    }
}

const CLOUDS: &str = "
clouds:
  kolla:
    auth: {auth_url: 'https://k:5000', username: admin, project_name: 123, user_domain_name: Default}
    region_name: RegionOne
    interface: internal
    cacert: /etc/ssl/k.pem
  other:
    profile: vendor
    auth_type: v3applicationcredential
    auth:
      application_credential_id: abc
";

#[test]
fn clouds_are_found_where_openstack_looks() {
    let mut host = Host::default();
    let nothing = host.cloud(None).unwrap_err();
    assert_eq!(nothing.kind(), Kind::NotFound);
    assert!(nothing.to_string().contains("/etc/openstack/clouds.yaml"), "{nothing}");

    host.files.insert("/etc/openstack/clouds.yaml", CLOUDS);
    host.files.insert(
        "/home/u/.config/openstack/secure.yaml",
        "clouds:\n  kolla: {auth: {password: hidden}}\n  other: {auth: {application_credential_secret: s}}",
    );
    host.files.insert(
        "/etc/openstack/clouds-public.yaml",
        "public-clouds: {vendor: {auth: {auth_url: 'http://v/identity/v3/'}, api_timeout: 3}}",
    );
    host.variables.insert("HOME", "/home/u");
    let kolla = host.cloud(Some("kolla")).unwrap();
    assert_eq!(kolla.auth_url, "https://k:5000/v3");
    assert_eq!(kolla.project.as_ref().unwrap().name.as_deref(), Some("123"));
    assert_eq!(kolla.project.as_ref().unwrap().domain_id.as_deref(), Some("default"));
    assert_eq!((kolla.interface, kolla.verify), (Interface::Internal, true));
    assert!(matches!(&kolla.auth, Auth::Password(user, password)
        if user.domain_name.as_deref() == Some("Default") && password.reveal() == "hidden"));

    let other = host.cloud(Some("other")).unwrap();
    assert_eq!(other.auth_url, "http://v/identity/v3");
    assert_eq!(other.timeout, Duration::from_secs(3));
    assert!(matches!(other.auth, Auth::ApplicationCredential { id: Some(_), name: None, .. }));

    // Which is meant must be said, somewhere.
    assert!(host.cloud(None).unwrap_err().to_string().contains("kolla, other"));
    assert!(host.cloud(Some("third")).unwrap_err().to_string().contains("has kolla, other"));
    host.variables.insert("OS_CLOUD", "kolla");
    assert_eq!(host.cloud(None).unwrap(), kolla);
}

#[test]
fn variables_describe_a_cloud_and_a_table_does() {
    let mut host = Host::default();
    for (name, value) in [
        ("OS_AUTH_URL", "http://k/v3"),
        ("OS_USERNAME", "alice"),
        ("OS_PASSWORD", "pw"),
        ("OS_PROJECT_ID", "p1"),
        ("OS_INTERFACE", "publicURL"),
        ("OS_INSECURE", "true"),
    ] {
        host.variables.insert(name, value);
    }
    let cloud = host.cloud(None).unwrap();
    assert_eq!(cloud.project.as_ref().unwrap().id.as_deref(), Some("p1"));
    assert_eq!((cloud.interface, cloud.verify), (Interface::Public, false));

    let table = json!({ "auth": { "auth-url": "http://t", "token": "t" }, "region-name": "R" });
    let cloud = Cloud::parse("settings", &table).unwrap();
    assert_eq!((cloud.auth_url.as_str(), cloud.region.as_deref()), ("http://t/v3", Some("R")));
}

#[test]
fn mistakes_in_a_cloud_are_named_and_secrets_are_not() {
    for (cloud, words) in [
        (json!({ "auth": { "password": "hidden" } }), "auth_url is missing"),
        (json!({ "auth": { "auth_url": "k:5000" } }), "auth_url is no http"),
        (
            json!({ "auth": { "auth_url": "http://k", "password": "hidden" } }),
            "username is missing",
        ),
        (json!({ "auth": { "auth_url": "http://k", "username": "u" } }), "password is missing"),
        (json!({ "auth_type": "v3oidc", "auth": { "auth_url": "http://k" } }), "auth_type is"),
        (json!({ "interface": "x", "auth": { "auth_url": "http://k" } }), "interface is"),
        (json!({ "auth": "hidden" }), "auth_url is missing"),
        (json!(null), "auth_url is missing"),
    ] {
        let error = Cloud::parse("c", &cloud).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("hidden"), "{cloud}: {error}");
    }
    let mut host = Host::default();
    for text in ["clouds: {a: {password: 'hidden", "\thidden: [", "clouds: hidden", "&a [*a, *a"] {
        host.files.insert("./clouds.yaml", text);
        let error = host.cloud(Some("a")).unwrap_err().to_string();
        assert!(!error.contains("hidden"), "{error}");
    }
}

/// A request that a server got: its first line, its token, its body.
type Seen = Arc<Mutex<Vec<(String, String, String)>>>;

/// A server that answers requests in order, and what it saw. What is no answer of HTTP is sent as it is.
async fn server(answers: Vec<String>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let own = address.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read(&mut stream).await;
            let head = request.split_once("\r\n\r\n").map_or(request.as_str(), |(head, _)| head);
            let token = head.lines().find_map(|line| line.strip_prefix("x-auth-token: "));
            let body = request.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            log.lock().unwrap().push((
                head.lines().next().unwrap().to_owned(),
                token.unwrap_or_default().to_owned(),
                body.unwrap_or_default(),
            ));
            if answer == "silence" {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let _ = stream.write_all(answer.replace("SERVER", &own).as_bytes()).await;
        }
        // Nobody is asked any more.
        while let Ok((stream, _)) = listener.accept().await {
            log.lock().unwrap().push(("more".to_owned(), String::new(), String::new()));
            drop(stream);
        }
    });
    (address, seen)
}

async fn read(stream: &mut TcpStream) -> String {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        request += std::str::from_utf8(&buffer[..n]).unwrap();
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if n == 0 || body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return request;
        }
    }
}

fn reply(status: u16, headers: &str, body: &str) -> String {
    // The connection's end says where the body ends: the address in it has no fixed length.
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}\r\n{body}")
}

/// Keystone's answer: a token of an hour, and Cinder at this very server.
fn granted(token: &str, seconds: u32) -> String {
    let endpoint = json!({ "interface": "public", "region_id": "R", "url": "SERVER/v3/p1" });
    let body = json!({ "token": {
        "issued_at": "2026-11-23T14:00:00.000000Z",
        "expires_at": format!("2026-11-23T14:{:02}:{:02}.000000Z", seconds / 60, seconds % 60),
        "user": { "id": "u1", "name": "alice" },
        "project": { "id": "p1", "name": "alpha" },
        "catalog": [{ "type": "volumev3", "endpoints": [endpoint] }],
    }});
    reply(201, &format!("X-Subject-Token: {token}\r\n"), &body.to_string())
}

fn versions(newest: &str) -> String {
    let one = json!({ "id": "v3.0", "version": newest, "min_version": "3.0" });
    reply(200, "", &json!({ "versions": [one] }).to_string())
}

fn cloud(url: &str) -> Cloud {
    let auth = json!({ "auth_url": url, "username": "alice", "password": "hidden", "project_name": "alpha" });
    Cloud::parse("test", &json!({ "auth": auth, "api_timeout": 5 })).unwrap()
}

async fn cinder(answers: Vec<String>) -> (Cinder, Seen) {
    let (url, seen) = server(answers).await;
    (Cinder::new(Session::new(cloud(&url), None).unwrap()), seen)
}

fn lines(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    seen.iter()
        .map(|(line, token, _)| {
            format!("{} {token}", line.replace(" HTTP/1.1", "")).trim().to_owned()
        })
        .collect()
}

const REFUSED: &str = r#"{"error": {"code": 401, "message": "requires authentication."}}"#;
const VOLUME: &str = r#"{"volume": {"id": "v1", "status": "available", "size": 1}}"#;

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once() {
    let (client, seen) = cinder(vec![
        granted("t1", 3599),
        versions("3.71"),
        reply(401, "", REFUSED),
        granted("t2", 3599),
        reply(200, "", VOLUME),
        reply(401, "", REFUSED),
        granted("t3", 3599),
        reply(401, "", REFUSED),
    ])
    .await;
    assert_eq!(client.volume("v1").await.unwrap().status, "available");
    // And no more than once.
    let error = client.volume("v1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert_eq!(
        lines(&seen),
        [
            "POST /v3/auth/tokens",
            "GET /v3/ t1",
            "GET /v3/p1/volumes/v1 t1",
            "POST /v3/auth/tokens",
            "GET /v3/p1/volumes/v1 t2",
            "GET /v3/p1/volumes/v1 t2",
            "POST /v3/auth/tokens",
            "GET /v3/p1/volumes/v1 t3",
        ]
    );
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (client, seen) = cinder(vec![
        granted("t1", 0),
        granted("t2", 3599),
        versions("3.0"),
        reply(200, "", VOLUME),
        reply(200, "", VOLUME),
    ])
    .await;
    let _ = client.session().project().await.unwrap();
    assert_eq!(client.version().await.unwrap(), Version(3, 0));
    client.volume("v1").await.unwrap();
    client.volume("v1").await.unwrap();
    assert_eq!(lines(&seen).iter().filter(|line| line.starts_with("POST")).count(), 2);
}

#[tokio::test]
async fn the_newest_version_that_both_know_is_spoken() {
    for (says, spoken) in [("3.71", Version(3, 54)), ("3.50", Version(3, 50)), ("", Version(3, 0))]
    {
        let (client, _) = cinder(vec![granted("t", 3599), versions(says)]).await;
        assert_eq!(client.version().await.unwrap(), spoken);
    }
    let old = reply(300, "", r#"{"versions": [{"id": "v2.0"}]}"#);
    let (client, _) = cinder(vec![granted("t", 3599), old]).await;
    assert_eq!(client.version().await.unwrap_err().kind(), Kind::Unsupported);
}

#[tokio::test]
async fn servers_that_misbehave_give_errors_in_time() {
    let huge = format!("{{\"volume\": {{\"id\": \"{}\"}}}}", "x".repeat(17 << 20));
    for (answer, kind, words) in [
        ("silence".to_owned(), Kind::TimedOut, "no answer within"),
        ("nonsense\r\n\r\n".to_owned(), Kind::Closed, "Cinder"),
        (String::new(), Kind::Closed, "Cinder"),
        ("HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{".to_owned(), Kind::Closed, "Cinder"),
        (reply(200, "", "<html>hidden</html>"), Kind::Corrupt, "makes no sense"),
        (reply(200, "", &huge), Kind::Corrupt, "more than"),
        // Nobody is sent elsewhere with our token.
        (reply(302, "Location: http://127.0.0.1:1/\r\n", ""), Kind::Corrupt, "302"),
    ] {
        let silent = answer == "silence";
        let (url, seen) = server(vec![granted("t", 3599), versions("3.71"), answer]).await;
        let timeout = Duration::from_secs(if silent { 1 } else { 60 });
        let cloud = Cloud { timeout, ..cloud(&url) };
        let client = Cinder::new(Session::new(cloud, None).unwrap());
        let error = client.volume("v1").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("hidden"), "{text}");
        // What may have had an effect is not sent again.
        assert_eq!(lines(&seen).len(), 3, "{text}");
    }
    let nobody = Session::new(cloud("http://127.0.0.1:1"), None).unwrap();
    let error = nobody.project().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().starts_with("Keystone, cloud test"), "{error}");
    // What it says is kept where the plugin would say that the cluster does not answer.
    let said = error.or_hint(|| "the cluster".to_owned()).to_string();
    assert!(said.ends_with("(OpenStack does not answer, or not in time)"), "{said}");
}

#[tokio::test]
async fn pages_are_followed_on_the_same_address_only() {
    let page = |ids: &[&str], next: Option<&str>| {
        let volumes: Vec<_> = ids.iter().map(|id| json!({ "id": id, "name": "n" })).collect();
        let links = next.map(|href| json!({ "rel": "next", "href": href }));
        reply(
            200,
            "",
            &json!({ "volumes": volumes, "volumes_links": links.into_iter().collect::<Vec<_>>() })
                .to_string(),
        )
    };
    let (client, seen) = cinder(vec![
        granted("t", 3599),
        versions("3.71"),
        // Cinder may know itself by another name.
        page(&["a", "b"], Some("https://cinder.inside/v3/p1/volumes/detail?name=n&marker=b")),
        page(&["c"], None),
        page(&["a"], Some("SERVER/v3/p2/volumes/detail?marker=a")),
    ])
    .await;
    let found = client.find("n").await.unwrap();
    assert_eq!(found.iter().map(|volume| volume.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(lines(&seen)[3], "GET /v3/p1/volumes/detail?name=n&marker=b t");
    assert_eq!(client.find("n").await.unwrap_err().kind(), Kind::Corrupt);
}

#[tokio::test]
async fn quotas_and_failures_are_told_with_numbers_and_reasons() {
    let over = r#"{"overLimit": {"code": 413, "message": "VolumeLimitExceeded: (10) exceeded"}}"#;
    let limits = r#"{"limits": {"absolute": {"maxTotalVolumes": 10, "totalVolumesUsed": 10,
        "maxTotalVolumeGigabytes": -1, "totalGigabytesUsed": 7}}}"#;
    let failed = r#"{"volume": {"id": "v1", "status": "error"}}"#;
    let messages = r#"{"messages": [{"user_message": "old", "created_at": "1"},
        {"user_message": "Could not find any available weighted backend.", "created_at": "2"}]}"#;
    let back = r#"{"volume": {"id": "v1", "status": "available"}}"#;
    let (client, _) = cinder(vec![
        granted("t", 3599),
        versions("3.71"),
        reply(413, "Retry-After: 0\r\n", over),
        reply(200, "", limits),
        reply(200, "", failed),
        reply(200, "", messages),
        reply(200, "", back),
    ])
    .await;
    let error = client.create(&NewVolume::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.to_string().contains("10 of 10 volumes, 7 of any number GiB"), "{error}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let error = client.until("v1", &["available"], deadline).await.unwrap_err().to_string();
    assert!(error.contains("any available weighted backend"), "{error}");
    let error = client.until_gone("v1", deadline).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
}

#[tokio::test]
async fn what_another_had_for_a_moment_is_asked_for_again() {
    let refused = r#"{"badRequest": {"code": 400, "message": "the current status is attaching."}}"#;
    let connection =
        json!({ "driver_volume_type": "rbd", "name": "p/i", "hosts": ["h"], "ports": ["1"] });
    let made = json!({ "attachment": { "id": "a1", "connection_info": connection } }).to_string();
    let taken = r#"{"volume": {"id": "v1", "status": "attaching"}}"#;
    let (client, _) = cinder(vec![
        granted("t", 3599),
        versions("3.71"),
        reply(400, "", refused),
        reply(200, "", VOLUME),
        reply(200, "", &made),
        reply(400, "", refused),
        reply(200, "", taken),
    ])
    .await;
    let by = Connector::default();
    let (id, connection) = client.attach(Api::Attachments, "v1", &by).await.unwrap();
    assert_eq!((id.as_deref(), connection.image.as_str()), (Some("a1"), "i"));
    // Who has it still is told.
    let error = client.attach(Api::Attachments, "v1", &by).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
}

#[tokio::test]
async fn secrets_are_not_shown() {
    let (client, _) = cinder(vec![granted("topsecrettoken", 3599), versions("3.71")]).await;
    client.version().await.unwrap();
    let shown = format!("{client:?}");
    assert!(shown.contains("alice"), "{shown}");
    assert!(!shown.contains("hidden") && !shown.contains("topsecrettoken"), "{shown}");
}

fn answer(exchange: &Value) -> Answer {
    let body = match &exchange["response"] {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        body => body.to_string().into_bytes(),
    };
    Answer {
        what: exchange["label"].as_str().unwrap().to_owned(),
        status: exchange["status"].as_u64().unwrap() as u16,
        token: None,
        body,
    }
}
