//! The protocol itself, call by call: no dockerd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

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
    let line = format!(
        "exec 3<&{}; export LISTEN_FDS=1 LISTEN_PID=$$; exec {} --settings {} plugin",
        0,
        program(),
        settings.display()
    );
    let start = |socket: OwnedFd| {
        assert!(socket.as_raw_fd() > 2);
        let child = Command::new("bash").args(["-c", &line]).stdin(socket).spawn().unwrap();
        one_osd().reap(child.id());
        child
    };
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
