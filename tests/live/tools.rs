//! NBD's own clients against an export of an image: libnbd, QEMU, and one that breaks the rules.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use crate::{one_osd, run};

#[test]
fn nbdinfo_and_qemu_see_what_an_image_can_do() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "1000M", "--image-feature", "layering", "described"]);
    let serve = ceph.serve(&["rbd/described"]);
    let info = run("nbdinfo", &["--json", &serve.uri("rbd/described")]).json();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    for (name, value) in [
        ("is_read_only", false),
        ("can_cache", true),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[name], value, "{name} in {info}");
    }
    assert_eq!(export["export-size"], 1000 << 20);
    assert!(export["contexts"].to_string().contains("base:allocation"), "{info}");
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert!([1, 512].contains(&export["block_size_minimum"].as_u64().unwrap()), "{info}");

    let list = run("qemu-nbd", &["--list", "-k", serve.socket.to_str().unwrap()]).ok();
    assert!(
        list.contains("exports available: 1") && list.contains("export: 'rbd/described'"),
        "{list}"
    );
    assert!(list.contains("size:  1048576000") && list.contains("base:allocation"), "{list}");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "qemu"]);
    let serve = ceph.serve(&["rbd/qemu"]);
    let uri = serve.uri("rbd/qemu");
    let ops = [
        "write -P 0xa5 3M 6M", // across objects
        "write -f -P 0x5a 4M 512",
        "read -P 0xa5 3M 1M",
        "read -P 0x5a 4M 512",
        "read -P 0 16M 1M",
        "write -z -u 5M 2M",
        "read -P 0 5M 2M",
        "discard 8M 1M",
        "read -P 0 8M 1M",
        "aio_write -P 1 20M 1M",
        "aio_write -P 2 30M 1M",
        "aio_flush",
        "read -P 1 20M 1M",
        "read -P 2 30M 1M",
        "flush",
    ];
    let ops: Vec<_> = ops.iter().flat_map(|op| ["-c", *op]).collect();
    let out = run("qemu-io", &[&["-f", "raw", "-d", "unmap", &uri], &ops[..]].concat()).ok();
    assert!(!out.contains("verification failed") && !out.contains("error"), "{out}");
}

#[test]
fn illegal_requests_get_errors_and_the_next_one_works() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "illegal"]);
    let mut serve = ceph.serve(&["rbd/illegal"]);
    let script = r#"
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
size = h.get_size()
def refused(what, codes, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum in codes, (what, e)
    else:
        raise AssertionError(what)
invalid = (errno.EINVAL,)
refused("read past the end", invalid, lambda: h.pread(4096, size - 512))
refused("write past the end", (errno.ENOSPC, errno.EINVAL), lambda: h.pwrite(bytes(4096), size - 512))
refused("read far past the end", invalid, lambda: h.pread(512, 1 << 62))
refused("zero far past the end", (errno.ENOSPC, errno.EINVAL), lambda: h.zero(512, (1 << 63) - 512))
refused("trim past the end", invalid, lambda: h.trim(4096, size))
refused("unknown flag", invalid, lambda: h.pread(512, 0, 1 << 15))
refused("too large", (errno.EINVAL, errno.EOVERFLOW), lambda: h.pread(48 << 20, 0))
h.pwrite(b"x" * 4096, 0)
assert h.pread(4096, 0) == b"x" * 4096
h.shutdown()
"#;
    run("/usr/bin/python3", &["-c", script, &serve.uri("rbd/illegal")]).ok();
    serve.assert_running();
}

#[test]
fn garbage_harms_only_its_own_connection() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "garbage"]);
    let mut serve = ceph.serve(&["rbd/garbage"]);
    let uri = serve.uri("rbd/garbage");
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], &[0; 65536], b"IHAVEOPT"] {
        let mut stream = UnixStream::connect(&serve.socket).unwrap();
        // The server may close at any moment: what counts is what becomes of everybody else.
        let _ = stream.write_all(garbage);
        run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 7 0 4k", "-c", "read -P 7 0 4k"]).ok();
    }
    serve.assert_running();
}

#[test]
fn a_read_only_export_says_so_and_takes_no_writes() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "read-only"]);
    let serve = ceph.serve(&["--read-only", "rbd/read-only"]);
    let uri = serve.uri("rbd/read-only");
    assert_eq!(run("nbdinfo", &["--json", &uri]).json()["exports"][0]["is_read_only"], true);
    let script = r#"
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == errno.EPERM, e
    else:
        raise AssertionError("written")
assert h.pread(512, 0) == bytes(512)
"#;
    run("/usr/bin/python3", &["-c", script, &uri]).ok();
}

#[test]
fn it_listens_on_tcp_as_well() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "tcp"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let serve = ceph.serve(&["--listen", &listen, "rbd/tcp"]);
    let tcp = format!("nbd://{listen}/rbd/tcp");
    run("qemu-io", &["-f", "raw", &tcp, "-c", "write -P 9 1M 4k", "-c", "flush"]).ok();
    run("qemu-io", &["-f", "raw", &serve.uri("rbd/tcp"), "-c", "read -P 9 1M 4k"]).ok();
}
