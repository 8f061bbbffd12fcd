//! `map` with the kernel's NBD client, in a guest whose kernel has it: the same bytes as krbd and librbd see, and
//! devices that outlive their processes and their cluster.

use std::time::Instant;

use crate::devices::{frozen, gone, partitions, repartitioned, resized, short_of_memory};
use crate::support::{Ceph, Guest, Machine, Options, run};
use crate::ublk;
use crate::{LONG_LEASE, full, sha256};

/// Ends what is left of the story before.
const CLEAR: &str = "cd /; umount -l /mnt 2> /dev/null
for device in $(rbd-nbd-rs list-mapped --all | grep -o '/dev/[a-z]*[0-9]*'); do
    rbd-nbd-rs unmap --force $device
done; rm -rf /tmp/*; true";

/// Whether a story is told in the ordinary run, too.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Always,
    Full,
}

/// Something that is tried in the guest.
type Story = fn(&Ceph, &Guest);

/// What is tried in the guest, one after the other: one boot is enough for all of it. `CEPH_NATIVE_STORY` names one.
const STORIES: &[(&str, When, Story)] = &[
    ("what a device and its process are like", When::Always, described),
    ("a file system whose bytes all clients see", When::Always, file_system),
    ("devices are left and taken over", When::Always, left_and_taken_over),
    ("processes die and devices live", When::Always, killed),
    ("a device is as large as its image", When::Always, resized),
    ("partitions are those of the image", When::Always, repartitioned),
    ("a frozen cluster goes on or is left", When::Always, frozen),
    ("a cluster that is gone is left, too", When::Always, gone),
    ("memory is short, and little is taken", When::Always, short_of_memory),
    ("an upgrade is a short pause", When::Always, upgraded),
    ("ublk: a device like the others", When::Always, ublk::served),
    ("ublk: processes die and devices live", When::Always, ublk::killed),
    ("ublk: a frozen cluster is left", When::Always, ublk::frozen),
    ("a network of its own, and ioctls", When::Always, by_ioctl),
    ("a slow network is slow and no more", When::Always, far_away),
    ("file systems are whole in snapshots", When::Always, quiesced),
    ("also those on what is built on a device", When::Always, quiesced_above),
    ("partitions and other file systems", When::Full, partitions),
    ("many at once and in a row", When::Full, many),
    ("programs go on while processes die", When::Full, programs),
];

/// The same with Debian 12's own kernel, 6.1.
const OLDER: &[(&str, When, Story)] = &[
    ("ioctls where netlink is not seen", When::Full, not_seen),
    ("what a device and its process are like", When::Full, described),
    ("devices are left and taken over", When::Full, left_and_taken_over),
    ("processes die and devices live", When::Full, killed),
    ("a device is as large as its image", When::Full, resized),
    ("a frozen cluster goes on or is left", When::Full, frozen),
    ("a cluster that is gone is left, too", When::Full, gone),
];

/// One test, and not one for each story: those that wait for the guest would keep others from running meanwhile.
#[test]
fn block_devices_of_the_kernel() {
    tell(STORIES, Machine::default());
}

#[test]
fn block_devices_of_an_older_kernel() {
    tell(OLDER, Machine { old: true, ..Machine::default() });
}

fn tell(stories: &[(&str, When, Story)], machine: Machine) {
    let named = std::env::var("CEPH_NATIVE_STORY").ok();
    let is_named = |name: &str| named.as_ref().is_some_and(|named| name.contains(named.as_str()));
    let known = STORIES.iter().chain(OLDER).any(|(name, ..)| is_named(name));
    assert!(named.is_none() || known, "no story is called {named:?}");
    let chosen = |(name, when, _): &&(&str, When, Story)| match &named {
        Some(_) => is_named(name),
        None => *when == When::Always || full(),
    };
    let chosen: Vec<_> = stories.iter().filter(chosen).collect();
    // Debian's kernel and QEMU's machine are those of a PC.
    if chosen.is_empty() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
    let guest = Guest::boot_on(machine, &ceph);
    for (name, _, story) in chosen {
        let (begun, before) = (Instant::now(), guest.console().len());
        guest.run(CLEAR);
        println!("guest: {name}");
        story(&ceph, &guest);
        let warned = guest.console().split_off(before);
        for word in ["BUG:", "hung", "Call Trace", "panic"] {
            assert!(!warned.contains(word), "{warned}");
        }
        println!("guest: {name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
}

/// What the kernel is told, what the process protects itself with, and options of which there is no other story.
fn described(ceph: &Ceph, guest: &Guest) {
    let features = "layering,exclusive-lock";
    ceph.rbd(&["create", "--size", "64M", "--image-feature", features, "described"]);
    ceph.rbd(&["snap", "create", "--no-progress", "described@snap"]);
    // As `rbd-nbd`, with its options. The device is named, blocks are those of LUKS.
    let device =
        guest.ok("rbd-nbd --device /dev/nbd5 map described --block-size 4096 --exclusive \
             --try-netlink --nbds_max 16 --max_part 15 --timeout 0 --cookie here
         cd /sys/block/nbd5/queue
         echo $(cat logical_block_size physical_block_size discard_granularity rotational)");
    assert_eq!(device, "/dev/nbd5\n4096 4096 4096 0\n");
    let process = guest.ok("PID=$(cat /sys/block/nbd5/pid); cat /proc/$PID/oom_score_adj
         # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets.
         echo $(($(sed 's/.*) //' /proc/$PID/stat | cut -d' ' -f7) & 0x180000))
         awk '/^Vm(Lck|RSS)/ { print $2 }' /proc/$PID/status");
    let process: Vec<i64> =
        process.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{process}"))).collect();
    let [score, flusher, locked, resident] = process[..] else { panic!("{process:?}") };
    assert_eq!((score, flusher), (-1000, 0x18_0000));
    assert!(locked > resident / 2, "{locked} KiB are locked, {resident} are in memory");
    // Whose lock it is, nobody else gets; a snapshot is by number what it is by name.
    let other = guest.run("rbd-nbd-rs map described --exclusive");
    assert!(other.code == 30 && other.to_string().contains("lock"), "{other}");
    let id =
        ceph.run("rbd", &["snap", "ls", "--format", "json", "described"]).json()[0]["id"].clone();
    let listed = guest.ok(&format!(
        "DEV=$(rbd-nbd map described --snap-id {id} --cookie snap)
         rbd-nbd list-mapped | awk -v device=$DEV '$6 == device || $5 == device'
         blockdev --getro $DEV; rbd-nbd unmap described --snap-id {id}"
    ));
    assert!(listed.contains(&format!("@{id}")) && listed.ends_with("\n1\n"), "{listed}");
    // A device is ended only when nobody has it open, and it is said who has. All failures are 1 by that name.
    let open = guest.run("exec 3< /dev/nbd5; rbd-nbd unmap /dev/nbd5");
    assert!(open.code == 1 && open.to_string().contains("open in process"), "{open}");
    guest.ok("rbd-nbd unmap described --cookie here; [ -z \"$(rbd-nbd list-mapped)\" ]");

    // Who reads a device at once, as udev does, is served while it is still being made.
    let made = guest.ok("while [ ! -e /tmp/made ]; do
             [ ! -e /sys/block/nbd0/pid ] || dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct || true
         done > /dev/null 2>&1 &
         for i in $(seq 5); do
             timeout 120 rbd-nbd-rs map described; rbd-nbd-rs unmap described --force
         done; : > /tmp/made; wait");
    // While it is open from the time before, another one is made.
    assert!(made.contains("/dev/nbd0\n"), "{made}");

    // A request may take so long, and no longer; and a device waits so long, and no longer.
    let osd = ceph.pid("osd.0").to_string();
    guest.ok("rbd-nbd-rs map described --io-timeout 2");
    run("kill", &["-STOP", &osd]).ok();
    let read = "timeout 60 dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null";
    let late = guest.run(read);
    run("kill", &["-CONT", &osd]).ok();
    assert_eq!(late.code, 1, "{late}");
    guest.ok(&format!(
        "for i in $(seq 100); do {read} && break; sleep 0.2; done; {read}
         rbd-nbd-rs unmap described"
    ));
    guest.ok("rbd-nbd-rs map described --reattach-timeout 3
         kill -9 $(rbd-nbd-rs list-mapped | awk '/described/ { print $1 }')");
    let alone = guest.run(read);
    assert_eq!(alone.code, 1, "{alone}");
    guest.ok(
        "rbd-nbd-rs unmap described; [ -z \"$(rbd-nbd-rs list-mapped --all)$(ls /run/rbd-nbd-rs)\" ]",
    );
}

/// As a host that boots: systemd itself, as the first process of a container with Debian in it. What the table names is
/// mapped and mounted, is served again when its process died, and is unmounted and unmapped at the end: also when
/// another image was not to be had for longer than systemd waits otherwise.
#[test]
fn systemd_maps_at_boot_and_serves_again() {
    if !full() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let ceph = Ceph::start(Options::default());
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "boots"]);
    let guest = Guest::boot_on(Machine { debian: true, ..Machine::default() }, &ceph);
    let deploy = |name: &str| {
        let path = format!("{}/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
        // All waits are a tenth of what they are.
        std::fs::read_to_string(path).unwrap().replace("=150\n", "=15\n")
    };
    for (name, to) in [
        ("rbdmap-rs.service", "lib/systemd/system/rbdmap-rs.service"),
        ("rbd-nbd-rs-attach.service", "lib/systemd/system/rbd-nbd-rs-attach.service"),
        ("rbdmap", "usr/lib/ceph-native/rbdmap"),
    ] {
        let to = format!("/debian/{to}");
        guest.ok(&format!(
            "mkdir -p $(dirname {to}); cat > {to} <<'END OF FILE'\n{}END OF FILE\nchmod +x {to}",
            deploy(name)
        ));
    }
    // The kernel's nodes are there without udev; the rest of a host is not needed.
    guest.ok("modprobe nbd; cp /brought/rbd-nbd-rs /debian/usr/bin/
         mkfs.ext4 -q $(rbd-nbd-rs map boots); rbd-nbd-rs unmap boots
         mkdir -p /debian/srv/data; echo rbd/boots > /debian/etc/ceph/rbdmap-rs
         echo rbd/away -m 10.0.2.77:3300 >> /debian/etc/ceph/rbdmap-rs
         echo '/dev/rbd-rs/rbd/boots /srv/data ext4 noauto,_netdev 0 0' > /debian/etc/fstab
         mount -t cgroup2 cgroup2 /sys/fs/cgroup; umount /debian/sys; mount --rbind /sys /debian/sys
         mount -t tmpfs tmpfs /debian/run; cd /debian/etc/systemd/system
         ln -sf /lib/systemd/system/multi-user.target default.target
         for unit in systemd-logind.service console-getty.service getty.target systemd-networkd.service; do
             ln -sf /dev/null $unit
         done
         mkdir -p remote-fs.target.wants multi-user.target.wants rbdmap-rs.service.d
         printf '%s\\n' '[Service]' Environment=RBD_NBD_RS_LIMIT=40 StandardError=file:/said \
             > rbdmap-rs.service.d/limit.conf
         ln -sf /lib/systemd/system/rbdmap-rs.service remote-fs.target.wants/
         ln -sf /lib/systemd/system/rbd-nbd-rs-attach.service multi-user.target.wants/
         cat > /tmp/boot <<'END'
mount -t proc proc /debian/proc
exec chroot /debian /usr/bin/env container=test /lib/systemd/systemd --system --log-target=console --show-status=no
END
         setsid unshare -p -f -m bash /tmp/boot > /dev/null 2>&1 < /dev/null &
         cat > /tmp/in <<'END'
export SYSTEMD_IGNORE_CHROOT=1 SYSTEMD_PAGER=
exec nsenter -t $(pidof systemd | tr ' ' '\n' | sort -n | head -n 1) -m -p chroot /debian \"$@\"
END
         for i in $(seq 120); do bash /tmp/in systemctl is-active multi-user.target && break; sleep 1; done");
    let booted = guest.run(
        "bash /tmp/in systemctl is-active rbdmap-rs srv-data.mount rbd-nbd-rs-attach
         bash /tmp/in findmnt -n -o SOURCE,FSTYPE /srv/data; echo there > /debian/there
         bash /tmp/in cp /there /srv/data/; bash /tmp/in sync",
    );
    let wanted = "active\nactive\nactive\n/dev/nbd0 ext4\n";
    let said = guest.ok("cat /debian/said");
    assert_eq!((booted.code, &*booted.out), (0, wanted.as_bytes()), "{booted}{said}");
    assert!(said.contains("rbd/away is not to be had within 40 s"), "{said}");
    let again = guest.ok("WAS=$(pidof rbd-nbd); kill -9 $WAS
         for i in $(seq 200); do
             IS=$(pidof rbd-nbd || true); [ -n \"$IS\" ] && [ \"$IS\" != $WAS ] && break; sleep 0.2
         done
         echo 3 > /proc/sys/vm/drop_caches; bash /tmp/in cat /srv/data/there
         # Nor does systemd take what it serves by for its own.
         bash /tmp/in systemctl restart rbd-nbd-rs-attach; sleep 6; [ \"$(pidof rbd-nbd)\" = \"$IS\" ]");
    assert_eq!(again, "there\n");
    let ended = guest.ok("bash /tmp/in systemctl stop rbdmap-rs
         bash /tmp/in findmnt /srv/data || echo unmounted; pidof rbd-nbd || echo unmapped
         [ ! -e /sys/block/nbd0/pid ]; ls -A /dev/rbd-rs/rbd");
    assert_eq!(ended, "unmounted\nunmapped\n");
    assert_eq!(ceph.rbd(&["status", "boots"]), "Watchers: none\n");
}

/// A network of its own for what is started by `/tmp/in`, which reaches the cluster as well.
fn network_of_its_own(guest: &Guest) {
    guest.ok("modprobe macvlan; unshare -n sleep infinity > /dev/null 2>&1 & echo $! > /tmp/pid
         PID=$(cat /tmp/pid)
         for i in $(seq 300); do
             [ $(readlink /proc/$PID/ns/net) = $(readlink /proc/self/ns/net) ] || break; sleep 0.1
         done
         [ $(readlink /proc/$PID/ns/net) != $(readlink /proc/self/ns/net) ]
         ip link add link eth0 name mv0 type macvlan; ip link set mv0 netns $PID
         echo \"nsenter -t $PID -n \\\"\\$@\\\"\" > /tmp/in; chmod +x /tmp/in
         cat > /tmp/net <<'END'
for conf in all mv0 lo; do echo 1 > /proc/sys/net/ipv4/conf/$conf/route_localnet; done
ip link set lo up; ip addr del 127.0.0.1/8 dev lo; ip addr add 127.0.0.1/32 dev lo
ip route del local 127.0.0.0/8 dev lo table local 2> /dev/null
ip addr add 10.0.2.16/24 dev mv0; ip link set mv0 up
ip route add 127.91.0.0/16 via 10.0.2.2 dev mv0 src 10.0.2.16
END
         bash /tmp/in bash /tmp/net");
}

/// As in a container before Linux 6.3: the module is there, its netlink is not, and nobody has to say so.
fn not_seen(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "unseen"]);
    network_of_its_own(guest);
    let chosen = "grep -o '\"device_type\": \"[a-z]*\"' /run/rbd-nbd-rs/*/mapping.json";
    for asked in ["", "--device-type nbd", "--device /dev/nbd0"] {
        let told = guest.ok(&format!(
            "bash /tmp/in rbd-nbd-rs map unseen {asked}; {chosen}
             dd if=/dev/urandom of=/tmp/data bs=64k count=16 2> /dev/null
             dd if=/tmp/data of=/dev/nbd0 bs=64k oflag=direct 2> /dev/null
             dd if=/dev/nbd0 bs=64k count=16 iflag=direct 2> /dev/null | cmp - /tmp/data
             bash /tmp/in rbd-nbd-rs unmap unseen 2> /dev/null; rbd-nbd-rs list-mapped --all"
        ));
        assert_eq!(told, "/dev/nbd0\n\"device_type\": \"ioctl\"\n", "{asked}");
    }
    // Where the host began, it is netlink; what was made by that is ended from elsewhere, too.
    let told = guest.ok(&format!(
        "rbd-nbd-rs map unseen --cookie c; {chosen}
         kill -9 $(rbd-nbd-rs list-mapped | awk '/unseen/ {{ print $1 }}')
         for i in $(seq 300); do [ -z \"$(rbd-nbd-rs list-mapped)\" ] && break; sleep 0.1; done
         bash /tmp/in rbd-nbd-rs unmap unseen; rbd-nbd-rs list-mapped --all; ls /run/rbd-nbd-rs
         kill $(cat /tmp/pid)"
    ));
    assert_eq!(told, "/dev/nbd0\n\"device_type\": \"nbd\"\n");
}

fn file_system(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "bytes"]);
    // Several at once, of which each finds that the module has to be loaded.
    guest.ok("[ ! -e /sys/module/nbd ] || modprobe -r nbd
         for i in $(seq 6); do rbd-nbd-rs map bytes --read-only --cookie $i > /tmp/$i & done; wait
         [ $(cat /tmp/[1-6] | sort -u | grep -c /dev/nbd) = 6 ]
         for i in $(seq 6); do rbd-nbd-rs unmap --cookie $i; done");
    let out = guest.ok("rbd-nbd-rs map bytes --show-cookie --cookie 'abc de' --num-connections 2");
    assert_eq!(out, "/dev/nbd0 abc de\n");
    let list = guest.ok("rbd-nbd-rs list-mapped --format json");
    let listed: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&listed[0]["pool"], &listed[0]["image"], &listed[0]["device"], &listed[0]["cookie"]),
        (&"rbd".into(), &"bytes".into(), &"/dev/nbd0".into(), &"abc de".into())
    );
    // Where Ceph's own `rbd` looks for them.
    let pid = guest.ok("cat /sys/block/nbd0/pid");
    assert_eq!(pid.trim(), listed[0]["id"].to_string());
    assert_eq!(
        guest.ok(&format!("cat /proc/{}/comm /sys/block/nbd0/backend", pid.trim())),
        "rbd-nbd\nabc de\n"
    );
    assert_eq!(
        guest.ok(&format!("tr '\\0' ' ' < /proc/{}/cmdline | head -c 22", pid.trim())),
        "rbd-nbd map rbd/bytes "
    );

    let queue = guest.ok(
        "cd /sys/block/nbd0/queue; echo $(cat logical_block_size rotational write_cache fua max_sectors_kb) \
         $(($(cat discard_max_bytes) > 0)) $(($(cat write_zeroes_max_bytes) > 0)) $(ls ../mq | wc -l)",
    );
    assert_eq!(queue, "512 0 write back 1 4096 1 1 2\n");
    // What is flushed on one connection is flushed on all.
    let flags = "mount -t debugfs none /sys/kernel/debug; cat /sys/kernel/debug/nbd/nbd0/flags";
    assert_eq!(guest.ok(&format!("{flags} | awk '/Hex/ {{ print $2 }}'")), "0x00000d6d\n");

    let verify = guest.ok(
        "mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt
         fio --name=v --directory=/mnt --size=4M --rw=randwrite --bsrange=512-64k --ioengine=libaio \
             --iodepth=16 --direct=1 \
             --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 --end_fsync=1 | grep err=
         fsfreeze --freeze /mnt; fsfreeze --unfreeze /mnt
         dd if=/dev/urandom of=/mnt/random bs=1M count=4 2>/dev/null; sync; rm /mnt/v.0.0; sync; fstrim /mnt",
    );
    assert!(verify.contains("err= 0"), "{verify}");
    let refused = guest.run("rbd-nbd-rs unmap bytes");
    assert_eq!(refused.code, 16, "{refused}");
    assert!(refused.to_string().contains("mounted on /mnt"));
    let sum =
        guest.ok("umount /mnt; sha256sum /dev/nbd0 | cut -d' ' -f1; rbd-nbd-rs unmap /dev/nbd0");
    assert_eq!(guest.ok("rbd-nbd-rs list-mapped; ls /run/rbd-nbd-rs"), "");
    assert_eq!(ceph.rbd(&["status", "bytes"]), "Watchers: none\n");

    let export = ceph.dir().join("export");
    ceph.rbd(&["export", "--no-progress", "bytes", export.to_str().unwrap()]);
    assert_eq!(sha256(&export), sum.trim(), "what librbd reads");
    let key = ceph
        .run("ceph-authtool", &["-p", "-n", "client.admin", ceph.keyring().to_str().unwrap()])
        .ok();
    let krbd = guest.ok(&format!(
        "modprobe rbd; echo '{} name=admin,secret={},ms_mode=prefer-crc rbd bytes -' > /sys/bus/rbd/add_single_major
         sha256sum /dev/rbd0 | cut -d' ' -f1; echo 0 > /sys/bus/rbd/remove_single_major",
        ceph.mon_addr(0),
        key.trim()
    ));
    assert_eq!(krbd, sum, "what krbd reads");

    // What is read-only takes no writes; without trim, nothing is discarded.
    let ran = guest.run(
        "DEV=$(rbd-nbd-rs map rbd/bytes --read-only); ! dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct || exit 1
         rbd-nbd-rs unmap $DEV; DEV=$(rbd-nbd-rs map rbd/bytes --notrim --num-connections 1)
         ! blkdiscard $DEV || exit 2
         ls /sys/block/nbd0/mq; rbd-nbd-rs unmap bytes",
    );
    assert_eq!(ran.code, 0, "{ran}");
}

/// What a device by ioctl does and does not. That it is chosen by itself is [`not_seen`].
fn by_ioctl(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "elsewhere"]);
    // It loads what it needs, and says what is missing.
    let unload = "for i in $(seq 50); do modprobe -r nbd && break; sleep 0.1; done; [ ! -e /sys/module/nbd ]";
    let map = "rbd-nbd-rs map elsewhere --device-type ioctl";
    guest.ok(&format!("{unload}; [ $({map}) = /dev/nbd0 ]; rbd-nbd-rs unmap /dev/nbd0"));
    let none = guest.run(&format!("set -e; {unload}; modprobe nbd nbds_max=0; {map}"));
    guest.ok(&format!("{unload}; modprobe nbd"));
    assert!(none.code != 0 && none.to_string().contains("has no /dev/nbdN"), "{none}");
    network_of_its_own(guest);
    // This kernel has it there, too.
    let netlink = guest.ok("bash /tmp/in rbd-nbd-rs map elsewhere --cookie n
         cat /sys/block/nbd0/backend; bash /tmp/in rbd-nbd-rs unmap elsewhere 2> /dev/null");
    assert_eq!(netlink, "/dev/nbd0\nn\n");
    let map = "bash /tmp/in rbd-nbd-rs map elsewhere --device-type ioctl --try-netlink --cookie c";
    assert_eq!(guest.ok(map), "/dev/nbd0\n");
    let here = guest.ok("ls /sys/block/nbd0/backend 2> /dev/null || echo none
         blockdev --getsize64 /dev/nbd0; cat /sys/block/nbd0/queue/write_cache
         tr '\\0' ' ' < /proc/$(cat /sys/block/nbd0/pid)/cmdline | head -c 26");
    assert_eq!(here, "none\n67108864\nwrite back\nrbd-nbd map rbd/elsewhere ");
    // More next to it, also of several connections, and all at once.
    let more = guest.ok("for i in $(seq 6); do
             rbd-nbd-rs map elsewhere --cookie $i --read-only --device-type ioctl --num-connections 2 > /tmp/$i &
         done; wait; cat /tmp/[1-6] | sort | tr '\\n' ' '
         ! dd if=/dev/zero of=/dev/nbd1 bs=4k count=1 oflag=direct 2> /dev/null || exit 1
         for i in $(seq 6); do rbd-nbd-rs unmap $(cat /tmp/$i) 2> /dev/null; done
         ls /sys/block/nbd[1-6]/pid 2> /dev/null || true");
    assert_eq!(more, "/dev/nbd1 /dev/nbd2 /dev/nbd3 /dev/nbd4 /dev/nbd5 /dev/nbd6 ");
    let verify = guest.ok(
        "mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt
         fio --name=v --directory=/mnt --size=4M --rw=randwrite --bsrange=512-64k --ioengine=libaio \
             --iodepth=16 --direct=1 \
             --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 --end_fsync=1 | grep err=",
    );
    assert!(verify.contains("err= 0"), "{verify}");
    // Nobody can take it over, and it says so, and stays.
    for verb in ["detach elsewhere", "upgrade elsewhere", "attach --cookie c"] {
        let refused = guest.run(&format!("bash /tmp/in rbd-nbd-rs {verb}"));
        assert_ne!(refused.code, 0, "{refused}");
    }
    let busy = guest.run("bash /tmp/in rbd-nbd-rs unmap elsewhere");
    assert!(busy.code == 16 && busy.to_string().contains("mounted on /mnt"), "{busy}");
    // Signals don't end it while it is in use.
    guest.ok("for i in $(seq 20); do kill $(rbd-nbd-rs list-mapped | awk '/elsewhere/ { print $1 }'); done
         sleep 1; sync; ls /mnt/lost+found");
    run(
        "rbd",
        &[
            "resize",
            "--no-progress",
            "-c",
            ceph.conf().to_str().unwrap(),
            "--size",
            "96M",
            "elsewhere",
        ],
    )
    .ok();
    guest.ok("for i in $(seq 100); do [ $(blockdev --getsize64 /dev/nbd0) = 100663296 ] && break; sleep 0.2; done
         [ $(blockdev --getsize64 /dev/nbd0) = 100663296 ]; resize2fs /dev/nbd0 2> /dev/null");
    let sum = guest.ok(
        "umount /mnt; sha256sum /dev/nbd0 | cut -d' ' -f1
         bash /tmp/in rbd-nbd-rs unmap /dev/nbd0 2> /dev/null; rbd-nbd-rs list-mapped --all; ls /run/rbd-nbd-rs",
    );
    let export = ceph.dir().join("elsewhere");
    ceph.rbd(&["export", "--no-progress", "elsewhere", export.to_str().unwrap()]);
    assert_eq!(sha256(&export), sum.trim(), "what librbd reads");

    // Its process dies: what is asked of it fails, at once and for good, until it is mapped again.
    let dead = guest.ok("DEV=$(rbd-nbd-rs map elsewhere --device-type ioctl); mount $DEV /mnt
         kill -9 $(rbd-nbd-rs list-mapped | awk '/elsewhere/ { print $1 }'); sleep 1
         CODE=0; timeout 20 dd if=$DEV of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null || CODE=$?
         [ $CODE != 0 ]; [ $CODE != 124 ]
         rbd-nbd-rs attach --all; umount -l /mnt; bash /tmp/in rbd-nbd-rs unmap elsewhere 2> /dev/null
         DEV=$(bash /tmp/in rbd-nbd-rs map elsewhere --device-type ioctl); mount $DEV /mnt
         ls /mnt | head -n 1; umount /mnt
         bash /tmp/in rbd-nbd-rs unmap --force elsewhere; rbd-nbd-rs list-mapped --all; ls /run/rbd-nbd-rs
         kill $(cat /tmp/pid)");
    assert_eq!(dead, "lost+found\n");

    // Whose device it is now is told from whose it was.
    let other = guest.ok("rbd-nbd-rs map elsewhere --read-only --device-type ioctl --cookie was
         kill -9 $(rbd-nbd-rs list-mapped | awk '/was/ { print $1 }')
         for i in $(seq 100); do [ -e /sys/block/nbd0/pid ] || break; sleep 0.1; done
         rbd-nbd-rs map elsewhere --read-only --device-type ioctl --cookie is
         rbd-nbd-rs list-mapped --all | grep -c nbd0
         rbd-nbd-rs unmap --force --cookie was; ls /run/rbd-nbd-rs
         dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null
         # One that has named the device its own, for as long as it is about to end.
         rbd-nbd-rs map elsewhere --read-only --device-type ioctl --cookie ends
         sed -i s,/dev/nbd1,/dev/nbd0, /run/rbd-nbd-rs/ends/mapping.json
         rbd-nbd-rs unmap /dev/nbd0 2> /dev/null; ls /run/rbd-nbd-rs; rbd-nbd-rs unmap --cookie ends");
    assert_eq!(other, "/dev/nbd0\n/dev/nbd0\n1\nis\n/dev/nbd1\nends\n");
}

/// The host's kernel cannot hold packets back; the guest's can.
fn far_away(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "16M", "--image-feature", "layering", "far"]);
    let size = if full() { 8 } else { 1 };
    let said = guest.ok(&format!(
        "modprobe sch_netem; tc qdisc add dev eth0 root netem delay 200ms
         trap 'tc qdisc del dev eth0 root' EXIT
         DEV=$(rbd-nbd-rs map rbd/far)
         fio --name=v --filename=$DEV --size={size}M --rw=randwrite --bs=32k --ioengine=libaio --iodepth=16 \
             --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 --end_fsync=1 \
             --output-format=json --output=/tmp/fio
         cat /run/rbd-nbd-rs/*/log; rbd-nbd-rs unmap $DEV; echo; cat /tmp/fio"
    ));
    // Nobody was taken for dead.
    let log = said.split('{').next().unwrap_or_default();
    for word in ["lost", "no answer", "WARN"] {
        assert!(!log.contains(word), "{said}");
    }
    let job = &crate::fio_report(&said)["jobs"][0];
    assert_eq!(job["error"], 0, "{said}");
    for kind in ["read", "write"] {
        assert_eq!(job[kind]["total_ios"], size * 32, "{said}");
        // Each request was held back, or this proves nothing.
        assert!(job[kind]["clat_ns"]["min"].as_u64() > Some(200_000_000), "{said}");
    }
}

/// The process that serves a device is killed, again and again, while fio writes and verifies.
fn killed(ceph: &Ceph, guest: &Guest) {
    killed_of(ceph, guest, "nbd");
}

/// Of a device of that type.
pub(crate) fn killed_of(ceph: &Ceph, guest: &Guest, device_type: &str) {
    // With a lock and without: with one, the dead owner is in the way; without, its last writes could be.
    for (image, features) in
        [("locked", "layering,exclusive-lock,object-map,fast-diff"), ("plain", "layering")]
    {
        let image = &format!("{image}-{device_type}");
        ceph.rbd(&["create", "--size", "64M", "--image-feature", features, image]);
        let kills = if full() { 20 } else { 2 };
        let out = guest.run(&format!(
            "set -e
             DEV=$(rbd-nbd-rs map rbd/{image} --device-type {device_type} --reattach-timeout 120)
             mkfs.ext4 -q $DEV; mount $DEV /mnt
             fio --name=v --directory=/mnt --size=2M --loops={loops} --rw=randwrite --bsrange=512-64k \
                 --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
                 --do_verify=1 > /tmp/fio 2>&1 &
             FIO=$!
             for i in $(seq {kills}); do
                 sleep 1
                 PID=$(rbd-nbd-rs list-mapped | awk '$1 + 0 {{ print $1 }}')
                 dd if=/dev/urandom of=/mnt/$i bs=1M count=1 2>/dev/null; sync /mnt/$i || sync
                 sha256sum /mnt/$i >> /tmp/sums
                 kill -9 $PID; sleep 1
                 [ -z \"$(rbd-nbd-rs list-mapped)\" ]
                 rbd-nbd-rs list-mapped --all | grep -q $DEV
                 rbd-nbd-rs attach --all
             done
             wait $FIO || {{ cat /tmp/fio; exit 9; }}
             echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sums | grep -c OK
             umount /mnt; e2fsck -f -n $DEV; rbd-nbd-rs unmap rbd/{image}; rm /tmp/sums",
            loops = if full() { 40 } else { 2 },
        ));
        assert_eq!(out.code, 0, "{out}\n{}", guest.console());
    }
}

fn left_and_taken_over(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "left"]);
    let out = guest.run(
        "set -ex
         read DEV COOKIE <<< \"$(rbd-nbd-rs map rbd/left --show-cookie)\"
         mkfs.ext4 -q $DEV; mount $DEV /mnt; echo hello > /mnt/file; sync
         rbd-nbd-rs detach rbd/left; [ -z \"$(rbd-nbd-rs list-mapped)\" ]
         grep '\"client\": null' /run/rbd-nbd-rs/*/mapping.json
         ! rbd-nbd-rs attach rbd/left --device $DEV || exit 1
         ! rbd-nbd-rs attach rbd/left --device $DEV --cookie other || exit 1
         [ \"$(rbd-nbd-rs attach rbd/left --device $DEV --cookie $COOKIE)\" = $DEV ]
         ! rbd-nbd-rs attach rbd/left --device $DEV --cookie $COOKIE || exit 1
         grep -q hello /mnt/file
         dd if=/dev/zero of=/mnt/zeros bs=64k count=100 conv=fsync & DD=$!
         BEFORE=$(rbd-nbd-rs list-mapped | awk '/nbd/ { print $1 }'); rbd-nbd-rs upgrade $DEV
         [ $BEFORE != $(rbd-nbd-rs list-mapped | awk '/nbd/ { print $1 }') ]
         wait $DD; umount /mnt; e2fsck -f -n $DEV
         kill $(rbd-nbd-rs list-mapped | awk '/nbd/ { print $1 }')
         for i in $(seq 300); do [ -e /sys/block/nbd0/pid ] || break; sleep 0.1; done
         [ ! -e /sys/block/nbd0/pid ]; [ -z \"$(rbd-nbd-rs list-mapped --all)\" ]",
    );
    assert_eq!(out.code, 0, "{out}");
    // Who only reads needs nobody fenced off, and a key that may not is enough.
    let key = ["auth", "get-or-create", "client.reads", "mon", "allow r", "osd", "allow rwx"];
    let keyring = ceph.run("ceph", &key).ok();
    guest.ok(&format!(
        "cat > /tmp/keyring <<< '{keyring}'
         DEV=$(rbd-nbd-rs map rbd/left --read-only --id reads --keyring /tmp/keyring --cookie r)
         kill -9 $(rbd-nbd-rs list-mapped | awk '/nbd/ {{ print $1 }}'); sleep 1
         rbd-nbd-rs attach --all; dd if=$DEV of=/dev/null bs=4k count=1 iflag=direct; rbd-nbd-rs unmap $DEV"
    ));
}

fn many(ceph: &Ceph, guest: &Guest) {
    for i in 0..10 {
        ceph.rbd(&["create", "--size", "8M", &format!("many{i}")]);
    }
    let (rounds, row) = if full() { (5, 200) } else { (1, 5) };
    let out = guest.run(&format!(
        "set -e
         for round in $(seq {rounds}); do
             rm -f /tmp/dev.*; for i in $(seq 0 9); do rbd-nbd-rs map rbd/many$i > /tmp/dev.$i & done; wait
             [ $(cat /tmp/dev.* | sort -u | grep -c /dev/nbd) = 10 ]
             for i in $(seq 0 9); do rbd-nbd-rs unmap rbd/many$i & done; wait
             [ -z \"$(rbd-nbd-rs list-mapped --all)\" ]; [ -z \"$(ls /sys/block/nbd*/pid 2>/dev/null)\" ]
             ! pidof rbd-nbd || exit 1
         done
         for i in $(seq {row}); do DEV=$(rbd-nbd-rs map rbd/many1); [ $DEV = /dev/nbd0 ]; rbd-nbd-rs unmap $DEV; done
         ! pidof rbd-nbd"
    ));
    assert_eq!(out.code, 0, "{out}");
    for i in 0..10 {
        assert_eq!(ceph.rbd(&["status", &format!("many{i}")]), "Watchers: none\n");
    }
}

/// What people do on a file system: git, tar and sqlite, while the process that serves it is killed again and again.
/// Whatever was written and synced before a kill is there at the end, and after the image was mapped anew.
fn programs(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "512M", "work"]);
    guest.ok("DEV=$(rbd-nbd-rs map rbd/work --reattach-timeout 300); mkfs.ext4 -q $DEV; mount $DEV /mnt
        cat > /tmp/git <<'END'
        set -e; g() { git -c user.name=a -c user.email=a@b -c init.defaultBranch=main \"$@\"; }
        g init -q /mnt/origin; cp -r /etc /lib/modules /mnt/origin/; cd /mnt/origin; g add .; g commit -q -m first
        for i in $(seq 1000); do
            [ -e /tmp/stop ] && break
            rm -rf /mnt/clone; g clone -q --no-local --upload-pack 'git upload-pack' /mnt/origin /mnt/clone
            g -C /mnt/clone fsck --full; echo $i >> /mnt/origin/count; g add count; g commit -q -m $i
            sync; echo $i > /tmp/git.done
        done
END
        cat > /tmp/tar <<'END'
        set -e; mkdir /mnt/tar
        for i in $(seq 1000); do
            [ -e /tmp/stop ] && break
            tar -c -C / lib/modules etc > /mnt/tar/$i.tar; sync /mnt/tar/$i.tar
            (cd /mnt/tar; sha256sum $i.tar) >> /tmp/tar.done; rm -f /mnt/tar/$((i - 3)).tar
            sed -i \"/ $((i - 3)).tar/d\" /tmp/tar.done
        done
END
        cat > /tmp/sqlite <<'END'
        set -e; sqlite3 /mnt/db 'create table t (n integer primary key)' 
        for i in $(seq 100000); do
            [ -e /tmp/stop ] && break
            sqlite3 /mnt/db \"pragma synchronous=full; insert into t values ($i)\"; echo $i > /tmp/sqlite.done
        done
END
        for name in git tar sqlite; do
            (bash /tmp/$name > /tmp/$name.log 2>&1; echo $? > /tmp/$name.exit) > /dev/null 2>&1 &
        done");
    for _ in 0..20 {
        guest.ok("sleep 4; kill -9 $(rbd-nbd-rs list-mapped | awk '/nbd/ { print $1 }'); sleep 1
            rbd-nbd-rs attach --all");
    }
    let out = guest.run(
        "set -e; touch /tmp/stop
         for i in $(seq 1200); do
             [ -e /tmp/git.exit ] && [ -e /tmp/tar.exit ] && [ -e /tmp/sqlite.exit ] && break; sleep 0.2
         done
         cat /tmp/git.log /tmp/tar.log /tmp/sqlite.log; cat /tmp/git.exit /tmp/tar.exit /tmp/sqlite.exit
         [ \"$(cat /tmp/git.exit /tmp/tar.exit /tmp/sqlite.exit | tr -d '\n')\" = 000 ]
         umount /mnt; e2fsck -f -n /dev/nbd0; rbd-nbd-rs unmap /dev/nbd0; mount $(rbd-nbd-rs map rbd/work) /mnt
         (cd /mnt/tar; sha256sum -c /tmp/tar.done)
         git -C /mnt/origin -c safe.directory='*' fsck --full
         [ $(tail -n 1 /mnt/origin/count) -ge $(cat /tmp/git.done) ]
         [ $(sqlite3 /mnt/db 'pragma integrity_check') = ok ]
         [ $(sqlite3 /mnt/db 'select count(*) from t') -ge $(cat /tmp/sqlite.done) ]
         cat /tmp/git.done /tmp/sqlite.done; umount /mnt; rbd-nbd-rs unmap rbd/work",
    );
    println!("{out}");
    assert_eq!(out.code, 0, "{out}");
}

/// It is a second on a machine that does nothing else.
fn upgraded(ceph: &Ceph, guest: &Guest) {
    upgraded_within(5.0, ceph, guest);
}

/// In a guest whose time goes by what it does, whatever else the host does: but for the cluster's answers.
#[test]
fn an_upgrade_is_a_pause_of_less_than_a_second() {
    if !full() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
    let guest = Guest::boot_on(Machine { counted: true, ..Machine::default() }, &ceph);
    guest.ok("modprobe nbd");
    upgraded_within(1.0, &ceph, &guest);
}

/// The longest that a request takes while the process that serves the device is replaced, again and again.
fn upgraded_within(limit: f64, ceph: &Ceph, guest: &Guest) {
    for (image, features) in
        [("new-locked", "layering,exclusive-lock,object-map,fast-diff"), ("new-plain", "layering")]
    {
        ceph.rbd(&["create", "--size", "64M", "--image-feature", features, image]);
        let upgrades = if full() { 6 } else { 2 };
        let out = guest.ok(&format!(
            "DEV=$(rbd-nbd-rs map rbd/{image} --num-connections 3)
             fio --name=v --filename=$DEV --size=32M --rw=randrw --bsrange=512-64k --ioengine=libaio --iodepth=16 \
                 --direct=1 --time_based --runtime=240 --trigger-file=/tmp/enough --verify=crc32c --verify_backlog=64 \
                 --verify_fatal=1 --verify_state_save=0 --output-format=json --output=/tmp/fio & FIO=$!
             sleep 1
             for i in $(seq {upgrades}); do
                 BEFORE=$(rbd-nbd-rs list-mapped | awk '/nbd/ {{ print $1 }}')
                 [ $(rbd-nbd-rs upgrade $DEV 2> /tmp/said) = $DEV ]; cat /tmp/said >&2
                 if grep -q moment /tmp/said; then exit 1; fi
                 [ $BEFORE != $(rbd-nbd-rs list-mapped | awk '/nbd/ {{ print $1 }}') ]
                 for i in $(seq 300); do [ -d /proc/$BEFORE ] || break; sleep 0.1; done; [ ! -d /proc/$BEFORE ]
                 sleep 1
             done
             kill -0 $FIO; touch /tmp/enough; wait $FIO
             cat /run/rbd-nbd-rs/*/log >&2
             rbd-nbd-rs unmap rbd/{image} >&2; cat /tmp/fio"
        ));
        let report = crate::fio_report(&out);
        let longest = ["read", "write"].map(|kind| {
            report["jobs"][0][kind]["clat_ns"]["max"].as_f64().unwrap_or_else(|| panic!("{out}"))
                / 1e9
        });
        println!("{image}: upgraded under load, longest read and write: {longest:.3?} s");
        assert!(longest.iter().all(|seconds| *seconds < limit), "{longest:?}");
    }
    // Who keeps the lock has to end before another can have it; a process in the foreground goes to the background.
    ceph.rbd(&["create", "--size", "16M", "new-exclusive"]);
    guest.ok("(rbd-nbd-rs map rbd/new-exclusive --exclusive -f > /tmp/device 2>&1 &)
         for i in $(seq 300); do grep -q /dev/nbd /tmp/device && break; sleep 0.1; done; DEV=$(cat /tmp/device)
         dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct 2> /dev/null
         [ $(rbd-nbd-rs upgrade $DEV) = $DEV ]; dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct
         rbd-nbd-rs unmap $DEV");
}

fn quiesced(ceph: &Ceph, guest: &Guest) {
    for (image, features) in
        [("still", "layering,exclusive-lock,object-map,fast-diff"), ("still-plain", "layering")]
    {
        ceph.rbd(&["create", "--size", "64M", "--image-feature", features, image]);
        guest.ok(&format!(
            "DEV=$(rbd-nbd-rs map rbd/{image} --quiesce); mkfs.ext4 -q $DEV; mount $DEV /mnt
             (while [ -e /mnt/lost+found ]; do dd if=/dev/urandom of=/mnt/file bs=64k count=16 2> /dev/null; done) \
                 > /dev/null 2>&1 &"
        ));
        ceph.rbd(&["snap", "create", "--no-progress", &format!("{image}@theirs")]);
        guest.ok(&format!("rbd-nbd-rs snap create rbd/{image}@ours"));
        ceph.rbd(&["snap", "create", "--skip-quiesce", &format!("{image}@torn")]);
        // A file system that was frozen needs no journal; one that was just written to does.
        let checked = |snap: &str| {
            guest.ok(&format!(
                "DEV=$(rbd-nbd-rs map rbd/{image}@{snap}); e2fsck -f -n $DEV 2>&1 || true; rbd-nbd-rs unmap $DEV"
            ))
        };
        for snap in ["theirs", "ours"] {
            let said = checked(snap);
            assert!(
                said.contains("Pass 5") && !said.contains("recovery"),
                "{image}@{snap}: {said}"
            );
        }
        let torn = checked("torn");
        assert!(torn.contains("recovery"), "what is not frozen is whole, too: {torn}");
        guest
            .ok("echo more > /mnt/more; sync; umount -l /mnt; sleep 1; rbd-nbd-rs unmap /dev/nbd0");
    }

    // A hook that is not there, that works, that fails, and that takes longer than a notification.
    let hook = |text: &str| guest.ok(&format!("printf '{text}' > /tmp/hook; chmod +x /tmp/hook"));
    let snap = |name: &str| {
        ceph.run("rbd", &["snap", "create", "--no-progress", &format!("still@{name}")])
    };
    guest.ok("rbd-nbd-rs map rbd/still --quiesce --quiesce-hook /tmp/hook
        dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 2>&1");
    assert_ne!(snap("absent").code, 0);
    hook("#/bin/sh\\necho $1 > /tmp/$2");
    snap("works").ok();
    assert_eq!(guest.ok("cat /tmp/quiesce /tmp/unquiesce"), "/dev/nbd0\n/dev/nbd0\n");
    hook("#!/bin/sh\\nexit 22");
    assert_ne!(snap("fails").code, 0);
    assert_ne!(guest.run("rbd-nbd-rs snap create rbd/still@fails").code, 0);
    guest.ok("rbd-nbd-rs snap create --ignore-quiesce-error rbd/still@fails");
    if full() {
        hook("#!/bin/sh\\n[ $2 = unquiesce ] || sleep 12");
        snap("slow").ok();
    }
    guest.ok(
        "dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>&1; rbd-nbd-rs unmap rbd/still",
    );

    // The process that has frozen a file system dies while another device keeps the snapshot waiting.
    let out = guest.run(
        "set -ex
         DEV=$(rbd-nbd-rs map rbd/still-plain --quiesce --reattach-timeout 120); mount $DEV /mnt
         printf '#!/bin/sh\\n[ $2 = unquiesce ] || while [ ! -e /tmp/enough ]; do sleep 0.1; done' > /tmp/hook
         OTHER=$(rbd-nbd-rs map rbd/still-plain --quiesce --quiesce-hook /tmp/hook --cookie other)
         rbd-nbd-rs snap create rbd/still-plain@waits & SNAP=$!
         for i in $(seq 100); do touch /mnt/waits & TOUCH=$!; sleep 1; ! kill -0 $TOUCH || break; done
         kill -0 $TOUCH
         kill -9 $(rbd-nbd-rs list-mapped | awk '/still-plain/ && !/other/ { print $1 }'); sleep 1
         kill -0 $SNAP; rbd-nbd-rs attach --all
         wait $TOUCH; touch /tmp/enough; wait $SNAP || true
         rbd-nbd-rs unmap --cookie other; umount /mnt; rbd-nbd-rs unmap $DEV",
    );
    assert_eq!(out.code, 0, "{out}");
}

/// What LVM makes is a linear mapping, and what cryptsetup opens one of dm-crypt.
fn quiesced_above(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "above"]);
    let build = |device: &str, name: &str| {
        format!(
            "export DM_DISABLE_UDEV=1; SECTORS=$(blockdev --getsz {device})
             echo \"0 $SECTORS linear {device} 0\" | dmsetup create {name}-volume
             echo \"0 $SECTORS crypt aes-xts-plain64 $(cat /tmp/key) 0 /dev/mapper/{name}-volume 0\" \
                 | dmsetup create {name}"
        )
    };
    guest.ok(&format!(
        "modprobe dm_mod; modprobe dm_crypt; head -c 64 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' > /tmp/key
         rbd-nbd-rs map rbd/above --quiesce; {}
         mkfs.ext4 -q /dev/mapper/live; mount /dev/mapper/live /mnt
         (while [ -e /mnt/lost+found ]; do dd if=/dev/urandom of=/mnt/file bs=64k count=16 2> /dev/null; done) \
             > /dev/null 2>&1 &",
        build("/dev/nbd0", "live")
    ));
    let busy = guest.run("rbd-nbd-rs unmap rbd/above");
    assert!(busy.code == 16 && busy.to_string().contains("part of dm-"), "{busy}");
    ceph.rbd(&["snap", "create", "--no-progress", "above@still"]);
    ceph.rbd(&["snap", "create", "--no-progress", "--skip-quiesce", "above@torn"]);
    guest.ok("umount -l /mnt; sleep 1; dmsetup remove --retry live; dmsetup remove live-volume
         rbd-nbd-rs unmap rbd/above");
    for (snap, is_still) in [("still", true), ("torn", false)] {
        let said = guest.ok(&format!(
            "rbd-nbd-rs map rbd/above@{snap}; {}
             e2fsck -f -n /dev/mapper/back 2>&1 || true
             dmsetup remove back; dmsetup remove back-volume; rbd-nbd-rs unmap rbd/above@{snap}",
            build("/dev/nbd0", "back").replace("dmsetup create", "dmsetup create -r")
        ));
        assert!(said.contains("Pass 5") && said.contains("recovery") != is_still, "{snap}: {said}");
    }
}
