//! Monitors that only DNS knows, told by a name server of our own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use crate::one_osd;
use crate::support::{program, run_in};

/// Answers for `example.test` on the port of DNS, as long as this process is there. A question for `_ceph-mon` is
/// answered over TCP only.
fn serve(ip: Ipv4Addr) {
    let udp = UdpSocket::bind((ip, 53)).unwrap();
    let tcp = TcpListener::bind((ip, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut question) {
            let (mut answer, name) = answer(&question[..length], ip);
            if name.starts_with("_ceph-mon.") {
                answer.truncate(length);
                answer[2] |= 2;
                answer[6..8].fill(0);
            }
            udp.send_to(&answer, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let (answer, _) = answer(&question, ip);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
}

/// An answer, and the name that was asked for.
fn answer(question: &[u8], ip: Ipv4Addr) -> (Vec<u8>, String) {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    let name = labels.join(".");
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let (host, port) =
        ("mon-a.example.test", if name.starts_with("_old") { 6789u16 } else { 3300 });
    let data = match (name.as_str(), kind) {
        (
            "_ceph-mon._tcp.example.test" | "_other._tcp.example.test" | "_old._tcp.example.test",
            33,
        ) => {
            let target =
                host.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            [&[0, 10, 0, 20][..], &port.to_be_bytes(), &target.collect::<Vec<_>>(), &[0]].concat()
        }
        ("mon-a.example.test", 1) => ip.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut answer = question[..at + 5].to_vec();
    let code = if data.is_empty() && name != host { 3 } else { 0 };
    answer[2..12].copy_from_slice(&[
        0x81,
        0x80 | code,
        0,
        1,
        0,
        u8::from(!data.is_empty()),
        0,
        0,
        0,
        0,
    ]);
    if !data.is_empty() {
        answer.extend([&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60]].concat());
        answer.extend([&(data.len() as u16).to_be_bytes()[..], &data].concat());
    }
    (answer, name)
}

#[test]
fn monitors_are_found_by_dns() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "1M", "found-by-dns"]);
    let Ok(IpAddr::V4(ip)) = ceph.mon_addr(0).split_once(':').unwrap().0.parse() else { panic!() };
    serve(ip);
    let path = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
    let (conf, resolv) = (path("dns.conf"), path("resolv.conf"));
    let text = fs::read_to_string(ceph.conf()).unwrap();
    let others = text.lines().filter(|line| !line.starts_with("mon host"));
    fs::write(&conf, others.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    // In a mount namespace of its own, so that this host's resolver stays as it is.
    let ours = |search: &str, options: &[&str]| {
        fs::write(&resolv, format!("nameserver {ip}\n{search}\n")).unwrap();
        let script = "mount --make-rprivate / && mount --bind $0 /etc/resolv.conf && exec \"$@\"";
        let program = program();
        let command =
            ["-m", "sh", "-c", script, &resolv, &program, "-c", &conf, "info", "rbd/found-by-dns"];
        run_in("unshare", &[&command[..], options].concat(), &[], 120)
    };
    let search = "search nowhere.test example.test";
    assert!(ours(search, &[]).ok().contains("found-by-dns"));
    assert!(ours(search, &["--mon-dns-srv-name", "other"]).ok().contains("found-by-dns"));
    let named = ["--mon-dns-srv-name", "other_example.test"];
    assert!(ours("", &named).ok().contains("found-by-dns"));

    let said = ours("", &[]).refused();
    assert!(said.contains("_ceph-mon._tcp") && said.contains("dns.conf"), "{said}");
    let said = ours(search, &["--mon-dns-srv-name", "old"]).refused();
    assert!(said.contains("messenger v1") && said.contains("_old._tcp"), "{said}");
}
