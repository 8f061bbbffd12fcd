//! A Linux of its own, for what takes a kernel that this machine doesn't have: Debian's kernel with nbd and rbd under
//! QEMU's software emulation, and a RAM disk with a shell. See `tests/guest`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::ceph::Ceph;
use super::run::{Ran, run, run_in};
use super::serve::program;

/// Longer than a boot takes on a machine that is busy with everything else.
const BOOT: Duration = Duration::from_secs(240);

/// How often one is booted whose clock turns out to be wrong.
const BOOTS: u32 = 5;

/// No script takes longer, unless it says so itself.
const SCRIPT: Duration = Duration::from_secs(300);

/// The port of the guest's way in, on the address of the cluster.
const PORT: u16 = 7007;

/// The network of a guest that counts. It goes with QEMU.
const TAP: &str = "ceph-native-tap";

/// The machine that a guest runs on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    /// Another Debian than this host's, below `/debian`: that of Ceph 18, which `tests/install --full` installs.
    pub(crate) debian: bool,
    /// One processor whose every instruction takes 2 ns of the guest's time, however busy the host is. Its way to the
    /// cluster is a network card that cuts and checks segments itself, as real ones do: QEMU's user network doesn't,
    /// and that was a third of what sending took.
    pub(crate) counted: bool,
    /// The kernel of this Debian (12: Linux 6.1) in place of the one from backports.
    pub(crate) old: bool,
}

/// A running guest that reaches a cluster. It ends, as if its power was cut, when this is dropped.
pub(crate) struct Guest {
    address: String,
    console: PathBuf,
    qemu: Child,
    /// There is one guest that counts at a time, because there is one network for them: this is locked.
    _turn: Option<File>,
}

impl Guest {
    /// Boots one with our program and the cluster's configuration, and returns when it takes commands.
    pub(crate) fn boot(ceph: &Ceph) -> Self {
        Self::boot_on(Machine::default(), ceph)
    }

    /// The same on another machine.
    pub(crate) fn boot_on(machine: Machine, ceph: &Ceph) -> Self {
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/build");
        let built = run_in(build, &[], &[], 600).ok();
        let built = Path::new(built.trim());
        let address = ceph.mon_addr(0).replace(":3300", &format!(":{PORT}"));
        let console = ceph.dir().join("console");
        let initrd = ceph.dir().join("initrd");
        bring(ceph, built, &initrd);
        let forward = format!("user,id=net,hostfwd=tcp:{address}-:7");
        let serial = format!("file:{}", console.display());
        let turn = machine.counted.then(|| {
            let turn = File::create("/var/cache/ceph-native/guest/turn").unwrap();
            turn.lock().unwrap();
            turn
        });
        let mut command = Command::new("qemu-system-x86_64");
        let processor = match machine.counted {
            // Without fast string instructions: of these every byte is counted as an instruction, which made copying
            // and clearing of memory, in the kernel, more than half of all that there was at 128 KiB.
            true => {
                command.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=1"]);
                "max,erms=off,fsrm=off"
            }
            false => {
                command.args(["-accel", "tcg,thread=multi", "-smp", "2"]);
                "max"
            }
        };
        if machine.debian {
            let drive = format!("file={},if=virtio,format=raw,snapshot=on", disk(ceph).display());
            command.args(["-drive", &drive]);
        }
        command
            .args(["-machine", "q35", "-cpu", processor, "-m", "1024"])
            .args(["-display", "none", "-no-reboot", "-nodefaults"])
            .args(["-serial", &serial, "-device", "virtio-rng-pci"])
            .args(["-netdev", &forward, "-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-kernel")
            .arg(built.join(if machine.old { "vmlinuz-old" } else { "vmlinuz" }))
            .arg("-initrd")
            .arg(&initrd)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable nokaslr net.ifnames=0",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if machine.counted {
            // Behind the one that the guest's first process knows.
            let tap = format!("tap,id=fast,ifname={TAP},script=no,downscript=no,vnet_hdr=on");
            command.args(["-netdev", &tap, "-device", "virtio-net-pci,netdev=fast,romfile="]);
        }
        let mut start = || {
            let qemu = command.spawn().expect("qemu-system-x86_64: tests/install installs it");
            ceph.reap(qemu.id());
            qemu
        };
        let mut guest = Self { address, console, qemu: start(), _turn: turn };
        if machine.counted {
            connect_tap();
        }
        let mut boots = 1;
        // That of one that counts goes by what it does.
        while !guest.comes_up() && !machine.counted {
            assert!(boots < BOOTS, "the guest's clock is fast\n{}", guest.console());
            boots += 1;
            guest.end();
            guest.qemu = start();
        }
        if machine.debian {
            guest.ok("modprobe virtio_blk; mkdir -p /debian; mount -t ext4 /dev/vda /debian
                 for folder in dev proc sys; do mount --rbind /$folder /debian/$folder; done
                 mkdir -p /debian/etc/ceph /debian/brought; cp /brought/* /debian/brought/
                 cp /etc/ceph/ceph.conf /debian/etc/ceph/");
        }
        guest
    }

    /// Waits until it takes commands. False if its clock is wrong.
    fn comes_up(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            let console = self.console();
            if let Some(right) = is_clock_right(&console, begun.elapsed()) {
                return right;
            }
            let ended = self.qemu.try_wait().unwrap();
            assert!(ended.is_none(), "the guest ended: {ended:?}\n{console}");
            assert!(begun.elapsed() < BOOT, "the guest does not come up\n{console}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn end(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        // The next one's is not to be taken for this one's.
        let _ = fs::remove_file(&self.console);
    }

    /// All that the kernel said so far.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Runs a script to its end. Its two outputs are one.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Ran {
        let answer = self.post(script).unwrap_or_else(|error| {
            panic!("the guest does not answer: {error}\n{script}\n--- console\n{}", self.console())
        });
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let (out, code) = body.rsplit_once("\nexit ").unwrap_or((body, "255"));
        Ran {
            command: format!("guest: {script}"),
            code: code.trim().parse().unwrap_or(255),
            out: out.as_bytes().to_vec(),
            err: String::new(),
        }
    }

    /// The output of a script whose commands must all succeed.
    #[track_caller]
    pub(crate) fn ok(&self, script: &str) -> String {
        self.run(&format!("set -euo pipefail\n{script}")).ok()
    }

    fn post(&self, script: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(SCRIPT))?;
        let head =
            format!("POST /cgi-bin/run HTTP/1.0\r\nContent-Length: {}\r\n\r\n", script.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(script.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("--- the guest's console\n{}", self.console());
        }
    }
}

/// Whether a guest that came up so long after its start has a clock that can be right; nothing if it has not come up
/// yet. Where the host is busy while the kernel finds out how fast its clock is, that may be fast by far: seconds of a
/// frozen cluster then are minutes, after which the kernel complains of tasks that hang.
fn is_clock_right(console: &str, since: Duration) -> Option<bool> {
    let (_, ready) = console.split_once("GUEST-READY ")?;
    let (uptime, _) = ready.split_once(' ')?;
    Some(uptime.parse().is_ok_and(|uptime: f64| uptime <= since.as_secs_f64()))
}

/// Gives the host's end of the guest's fast network an address, on which the clusters' own are reached.
fn connect_tap() {
    let begun = Instant::now();
    while !Path::new("/sys/class/net").join(TAP).exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "QEMU has made no {TAP}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let conf = format!("/proc/sys/net/ipv4/conf/{TAP}");
    fs::write(format!("{conf}/route_localnet"), "1").unwrap();
    fs::write(format!("{conf}/rp_filter"), "0").unwrap();
    run("ip", &["addr", "add", "198.18.91.1/30", "dev", TAP]).ok();
    run("ip", &["link", "set", TAP, "up"]).ok();
}

/// What the guest does with its end.
const START: &str = "#!/bin/sh
[ -e /sys/class/net/eth1 ] || exit 0
ip addr add 198.18.91.2/30 dev eth1
echo 1 > /proc/sys/net/ipv4/conf/eth1/route_localnet
echo 0 > /proc/sys/net/ipv4/conf/eth1/rp_filter
ip link set eth1 up
ip route replace 127.91.0.0/16 via 198.18.91.1 dev eth1 src 198.18.91.2
";

/// A disk with the Debian that has Ceph 18. It is made anew each time, which takes a quarter of a minute.
fn disk(ceph: &Ceph) -> PathBuf {
    let root = "/var/cache/ceph-native/18";
    assert!(Path::new(root).is_dir(), "{root}: tests/install --full installs it");
    let disk = ceph.dir().join("debian");
    let made =
        ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, disk.to_str().unwrap(), "2G"];
    run("mke2fs", &made).ok();
    disk
}

/// Puts what is ours behind the RAM disk: our program, under its own name and as `rbd-nbd`, and a configuration.
fn bring(ceph: &Ceph, built: &Path, initrd: &Path) {
    let root = ceph.dir().join("brought-root");
    let brought = root.join("brought");
    fs::create_dir_all(&brought).unwrap();
    let ours = brought.join("rbd-nbd-rs");
    // Without what is for debuggers it is a fifth of the size.
    run("strip", &["-o", ours.to_str().unwrap(), &program()]).ok();
    std::os::unix::fs::symlink("rbd-nbd-rs", brought.join("rbd-nbd")).unwrap();
    let start = brought.join("start");
    fs::write(&start, START).unwrap();
    fs::set_permissions(start, PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy(ceph.keyring(), brought.join("keyring")).unwrap();
    let conf = fs::read_to_string(ceph.conf()).unwrap();
    let folder = ceph.dir().to_str().unwrap();
    fs::create_dir_all(root.join("etc/ceph")).unwrap();
    // What is emulated takes its time.
    let conf = conf.replacen("[global]", "[global]\nclient mount timeout = 120", 1);
    fs::write(root.join("etc/ceph/ceph.conf"), conf.replace(folder, "/brought")).unwrap();
    fs::copy(built.join("initrd"), initrd).unwrap();
    let archive = run_in(
        "sh",
        &["-c", "cd \"$0\" && find . | busybox cpio -o -H newc", root.to_str().unwrap()],
        &[],
        60,
    );
    assert_eq!(archive.code, 0, "{}", archive.err);
    File::options().append(true).open(initrd).unwrap().write_all(&archive.out).unwrap();
    fs::remove_dir_all(root).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both are from consoles; the second guest came up in less than 20 s.
    #[test]
    fn a_clock_that_is_fast_is_seen() {
        let since = Duration::from_secs(20);
        assert_eq!(is_clock_right("GUEST-READY 2.58 1.37\n", since), Some(true));
        assert_eq!(is_clock_right("...\nGUEST-READY 81.60 27.19\n", since), Some(false));
        assert_eq!(is_clock_right("GUEST-RE", since), None);
    }
}
