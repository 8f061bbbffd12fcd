//! The protocol itself, call by call: no dockerd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{Host, eventually, program};
use crate::one_osd;
use crate::support::run;

#[test]
fn nonsense_is_answered_so_that_a_person_understands() {
    let host = Host::start(one_osd(), "p2", "");
    let refused = |args: &[&str], path: &str| {
        let text = host.http(args, path);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        answer["Err"].as_str().expect("Err").to_owned()
    };
    let post = |body: &str| refused(&["-X", "POST", "-d", body], "VolumeDriver.Create");
    assert!(post("{\"Name\":").contains("cannot be understood: EOF"));
    assert!(post("[1]").contains("cannot be understood"));
    assert!(post("{}").contains("names no volume"));
    assert!(post("{\"Name\":\"\"}").contains("names no volume"));
    assert!(post("{\"Name\":7}").contains("expected a string"));
    assert!(post(&format!("{{\"Name\":\"{}\"}}", "x".repeat(300))).contains("too long"));
    assert!(post(&"x".repeat(100_000)).contains("larger than"));
    assert!(refused(&["-X", "GET"], "VolumeDriver.List").contains("made by POST"));
    let unknown = refused(&["-X", "POST"], "VolumeDriver.Fly");
    assert!(unknown.contains("there is no call /VolumeDriver.Fly (known are /Plugin.Activate"));
    let status = host.http(&["-o", "/dev/null", "-w", "%{http_code}", "-X", "POST"], "X.Y");
    assert_eq!(status, "404", "Docker takes it for not implemented");

    let option = |name: &str, value: &str| {
        let request = json!({ "Name": "nonsense", "Opts": { name: value } });
        host.refused("VolumeDriver.Create", &request)
    };
    assert_eq!(option("sise", "1"), "there is no option sise (did you mean size?)");
    assert_eq!(option("encryption", "luks2"), "option encryption is not built yet");
    assert!(option("size", "big").contains("expected a size such as 10 (GiB)"));
    assert!(option("pool", "nowhere").contains("there is no pool nowhere"));
    assert!(option("namespace", "nowhere").contains("there is no namespace nowhere"));
    assert!(option("image", "nothing").contains("there is no image rbd/nothing"));
    assert!(option("mkfs-options", "--nonsense").contains("mkfs.ext4"));
    // What could not be formatted is not there.
    let named = json!({ "Name": "nonsense" });
    assert_eq!(host.refused("VolumeDriver.Get", &named), "there is no volume nonsense");
    let rbd = one_osd().rbd(&["ls"]);
    assert!(!rbd.lines().any(|image| image == "nonsense"), "{rbd}");

    // Half a request is not waited for by others.
    let socket = crate::host::socket(&host.dir);
    let mut half = UnixStream::connect(socket).unwrap();
    half.write_all(b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Le").unwrap();
    host.called("VolumeDriver.Capabilities", &json!({}));
}

#[test]
fn check_says_what_is_wrong() {
    let host = Host::start(one_osd(), "p3", "");
    let fine = host.ours(&["check"]).ok();
    assert!(fine.contains("ok     cluster: ") && !fine.contains("WRONG"), "{fine}");

    let settings = host.dir.join("wrong.toml");
    let check = |text: &str| {
        fs::write(&settings, text).unwrap();
        let ran = run(&program(), &["--settings", settings.to_str().unwrap(), "check"]);
        assert_ne!(ran.code, 0, "{ran}");
        format!("{}{}", String::from_utf8_lossy(&ran.out), ran.err)
    };
    let conf = one_osd().conf();
    let ceph = format!("[ceph]\nconf = {conf:?}\n");
    let wrong = check(&format!("mapper = [\"/nowhere/map\"]\n{ceph}id = \"nobody\"\n"));
    assert!(wrong.contains("WRONG  mapper: /nowhere/map is not installed"), "{wrong}");
    assert!(wrong.contains("WRONG  cluster: "), "{wrong}");
    let wrong = check(&format!("{ceph}[volumes]\npool = \"nowhere\"\n"));
    assert!(wrong.contains("WRONG  pool: there is no pool nowhere"), "{wrong}");
    assert!(check("[volumes]\nfstype = \"zfs\"").contains("expected ext4, xfs or btrfs"));
}

/// What makes a plugin of a socket that comes as standard input, as systemd does.
fn activated(settings: &Path, socket: OwnedFd) -> Child {
    assert!(socket.as_raw_fd() > 2);
    let line = format!(
        "exec 3<&0; export LISTEN_FDS=1 LISTEN_PID=$$; exec {} --settings {} plugin",
        program(),
        settings.display()
    );
    let child = Command::new("bash").args(["-c", &line]).stdin(socket).spawn().unwrap();
    one_osd().reap(child.id());
    child
}

/// One call on a connection of its own; the answer, nothing if there is none.
fn call_at(socket: &Path, call: &str, body: &str) -> String {
    let mut answer = String::new();
    let mut stream = UnixStream::connect(socket).expect("systemd listens");
    let head = format!("POST /{call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(request.as_bytes());
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Docker would wait for 1, 2, 4 and 8 seconds after a connection that fails, and then give up.
#[test]
fn a_plugin_that_is_restarted_costs_docker_a_pause_and_no_error() {
    let host = Host::bare(one_osd(), "paused", "");
    let socket = host.dir.join("paused.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let settings = host.dir.join("settings.toml");
    let start = || activated(&settings, listener.try_clone().unwrap().into());
    let mut plugin = start();
    let named = r#"{"Name": "paused", "ID": "x", "Opts": {"size": "64M"}}"#;
    eventually("it has found the cluster", || {
        call_at(&socket, "VolumeDriver.Create", named).contains(r#""Err":"""#)
    });
    let (over, calls) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let callers = ["List", "Get", "Mount", "Path"].map(|call| {
            let (socket, over, calls) = (&socket, &over, &calls);
            scope.spawn(move || {
                let mut longest = Duration::ZERO;
                while !over.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    let answer = call_at(socket, &format!("VolumeDriver.{call}"), named);
                    longest = longest.max(begun.elapsed());
                    calls.fetch_add(1, Ordering::SeqCst);
                    // One that has not found the cluster yet may mount late, but it does.
                    assert!(answer.contains(r#""Err":"""#), "{call}: {answer:?}");
                    std::thread::sleep(Duration::from_millis(5));
                }
                longest
            })
        });
        for _ in 0..3 {
            let before = calls.load(Ordering::SeqCst);
            eventually("they call", || calls.load(Ordering::SeqCst) > before + 40);
            crate::host::signal("TERM", plugin.id());
            eventually("it ends", || plugin.try_wait().unwrap().is_some());
            plugin = start();
        }
        let before = calls.load(Ordering::SeqCst);
        eventually("they call", || calls.load(Ordering::SeqCst) > before + 40);
        over.store(true, Ordering::SeqCst);
        let longest = callers.map(|caller| caller.join().unwrap());
        let longest = longest.into_iter().max().expect("some");
        println!("the longest of {} calls took {longest:.2?}", calls.load(Ordering::SeqCst));
        let limit = Duration::from_secs(if crate::full() { 3 } else { 10 });
        assert!(longest < limit, "{longest:?}");
    });
    for call in ["Unmount", "Remove"] {
        let answer = call_at(&socket, &format!("VolumeDriver.{call}"), named);
        assert!(answer.contains(r#""Err":"""#), "{answer}");
    }
    crate::host::signal("TERM", plugin.id());
    eventually("it ends", || plugin.try_wait().unwrap().is_some());
}

#[test]
fn a_socket_can_be_handed_over_by_systemd() {
    let host = Host::start(one_osd(), "p4", "");
    let socket = host.dir.join("handed-over.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // A call that comes before the plugin waits for it: that is what a restart costs.
    let mut early = UnixStream::connect(&socket).unwrap();
    let request = "POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    early.write_all(request.as_bytes()).unwrap();

    let settings = host.dir.join("handed-over.toml");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "listen = [\"/nowhere/s\", \"tcp://{free}\"]\nstate = {:?}\n[ceph]\nconf = {:?}\n",
        host.dir.join("s4"),
        one_osd().conf()
    );
    fs::write(&settings, text).unwrap();
    let start = |socket: OwnedFd| activated(&settings, socket);
    // Others could reach one of another kind.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut refused = start(tcp.into());
    eventually("it is refused", || refused.try_wait().unwrap().is_some_and(|code| !code.success()));
    let mut child = start(listener.try_clone().unwrap().into());
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("VolumeDriver"), "{answer}");
    // Who comes by TCP is heard as well.
    let mut by_tcp = TcpStream::connect(free).unwrap();
    by_tcp.write_all(request.as_bytes()).unwrap();
    answer.clear();
    by_tcp.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("VolumeDriver"), "{answer}");
    crate::host::signal("TERM", child.id());
    eventually("it ends", || child.try_wait().unwrap().is_some());
    assert!(socket.exists(), "the socket is systemd's, and stays");
}
