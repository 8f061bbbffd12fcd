//! Docker calls the plugin over TCP: with certificates of both sides, or not at all.

use std::fs;

use serde_json::json;

use crate::host::Host;
use crate::one_osd;
use crate::support::run;

/// Authorities, and certificates for one of 127.0.0.1 and its callers.
const CERTIFICATES: &str = r#"
cd "$1"
for ca in ca other; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$ca" \
        -keyout $ca.key -out $ca.pem
done
sign() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout $1.key -out $1.csr
    openssl x509 -req -in $1.csr -days 2 -CA $2.pem -CAkey $2.key -CAcreateserial -out $1.pem -extfile "$1.ext"
}
echo subjectAltName=IP:127.0.0.1 | tee renewed.ext > plugin.ext
echo extendedKeyUsage=clientAuth | tee docker.ext > stranger.ext
sign plugin ca && sign docker ca && sign stranger other && sign renewed ca
"#;

#[test]
fn over_tcp_only_who_has_a_certificate_is_heard() {
    let mut host = Host::bare(one_osd(), "tls", "");
    let folder = host.dir.join("tls");
    fs::create_dir_all(&folder).unwrap();
    run("bash", &["-ec", CERTIFICATES, "-", folder.to_str().unwrap()]).ok();
    let file = |name: &str| folder.join(name).display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    // An address that other hosts can reach is not listened on without certificates.
    let settings = host.dir.join("settings.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let text = text.replace("listen = [", &format!("listen = [\"tcp://0.0.0.0:{port}\", "));
    fs::write(&settings, &text).unwrap();
    let refused = host.ours(&["plugin"]).refused();
    assert!(refused.contains("other hosts could reach it"), "{refused}");
    let tls = |key: &str| {
        let files = [("cert", "plugin.pem"), ("key", key), ("client-ca", "ca.pem")];
        let lines = files.map(|(name, path)| format!("{name} = {:?}\n", file(path)));
        fs::write(&settings, format!("{text}\n[tls]\n{}", lines.concat())).unwrap();
    };
    tls("docker.key");
    let refused = host.ours(&["plugin"]).refused();
    assert!(refused.contains("plugin.pem"), "a key of another certificate: {refused}");
    tls("plugin.key");
    host.start_plugin();

    // Docker is told by a file, in which the driver has a name of its own: the other is found by its Unix socket.
    let spec = json!({
        "Name": "ceph-tls",
        "Addr": format!("https://127.0.0.1:{port}"),
        "TLSConfig": {
            "InsecureSkipVerify": false,
            "CAFile": file("ca.pem"),
            "CertFile": file("docker.pem"),
            "KeyFile": file("docker.key"),
        },
    });
    fs::create_dir_all(host.dir.join("specs")).unwrap();
    fs::write(host.dir.join("specs/ceph-tls.json"), spec.to_string()).unwrap();
    let specs = host.dir.join("specs").display().to_string();
    host.shell(&format!("mkdir -p /etc/docker/plugins; mount --bind {specs} /etc/docker/plugins"))
        .ok();
    host.start_dockerd(&[]);
    host.docker(&["volume", "create", "--driver", "ceph-tls", "-o", "size=128M", "by-tls"]);
    let mount = "type=volume,src=by-tls,dst=/v,volume-driver=ceph-tls";
    let run_in = ["run", "--rm", "--network=none", "--mount", mount, "bb", "sh", "-c"];
    let told = host.docker(&[&run_in[..], &["echo there > /v/f; cat /v/f"]].concat());
    assert_eq!(told, "there");
    host.docker(&["volume", "rm", "by-tls"]);

    let call = |who: Option<&str>, scheme: &str| {
        let url = format!("{scheme}://127.0.0.1:{port}/Plugin.Activate");
        let (cert, key) = (
            file(&format!("{}.pem", who.unwrap_or(""))),
            file(&format!("{}.key", who.unwrap_or(""))),
        );
        let ca = file("ca.pem");
        let mut args = vec!["-sS", "-m", "60", "--cacert", &ca, "-X", "POST"];
        if who.is_some() {
            args.extend(["--cert", &cert, "--key", &key]);
        }
        run("curl", &[&args[..], &[&url]].concat())
    };
    assert!(call(Some("docker"), "https").ok().contains("VolumeDriver"));
    for (who, scheme) in [(Some("stranger"), "https"), (None, "https"), (None, "http")] {
        let ran = call(who, scheme);
        assert!(ran.code != 0 && ran.out.is_empty(), "{who:?} {scheme}: {ran}");
    }
    assert!(host.log().contains("TLS: refused"), "{}", host.log());
    // Certificates that are renewed are taken at once; half of them are not.
    let serial = || {
        let line = format!(
            "openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        );
        run("bash", &["-c", &line]).ok()
    };
    let before = serial();
    assert!(before.starts_with("serial="), "{before}");
    fs::copy(file("renewed.key"), file("plugin.key")).unwrap();
    assert_eq!(serial(), before);
    assert!(host.log().contains("certificates have changed, and are not taken"), "{}", host.log());
    fs::rename(file("renewed.pem"), file("plugin.pem")).unwrap();
    assert_ne!(serial(), before);
    assert!(call(Some("docker"), "https").ok().contains("VolumeDriver"));
    // Whoever says nothing keeps nobody else waiting.
    let _silent = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert!(call(Some("docker"), "https").ok().contains("VolumeDriver"));
    // Not even if there are more of them than are served at a time: at the Unix socket, nobody waits for those.
    let connect = |_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _crowd: Vec<_> = (0..300).map(connect).collect();
    for _ in 0..3 {
        let told = host.http(&["-m", "20", "-X", "POST"], "Plugin.Activate");
        assert!(told.contains("VolumeDriver"), "{told}");
    }
}
