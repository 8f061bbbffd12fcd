//! Stories of the guest ([`crate::guest`]) about what happens to a device from outside: its image gets another size or
//! other partitions, its cluster freezes or is gone, its host is
//! short of memory.

use std::time::{Duration, Instant};

use crate::support::{Ceph, Guest, Options, Store, run};
use crate::{LONG_LEASE, full};

pub(crate) fn resized(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "grows"]);
    guest.ok("DEV=$(rbd-nbd-rs map rbd/grows); mkfs.ext4 -q $DEV; mount $DEV /mnt
         [ $(blockdev --getsize64 $DEV) = $((64 << 20)) ]");
    let wait = |megabytes: u32| {
        guest.ok(&format!(
            "for i in $(seq 300); do [ $(blockdev --getsize64 /dev/nbd0) = $(({megabytes} << 20)) ] && exit
             sleep 0.1; done; cat /run/rbd-nbd-rs/*/log; exit 1"
        ))
    };
    ceph.rbd(&["resize", "--no-progress", "grows", "--size", "96M"]);
    wait(96);
    // A guest's root may grow what is mounted.
    guest.ok("rbd-nbd-rs resize rbd/grows --size 128M --grow-fs --no-progress
    [ $(df -m /mnt | awk 'END { print $2 }') -gt 100 ]; umount /mnt; e2fsck -f -n /dev/nbd0
    ! rbd-nbd-rs resize rbd/grows --size 256M --grow-fs --no-progress || exit 1");
    wait(128);
    ceph.rbd(&["resize", "--no-progress", "grows", "--size", "32M", "--allow-shrink"]);
    wait(32);
    guest.ok("rbd-nbd-rs unmap grows");
}

pub(crate) fn partitions(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "400M", "parts"]);
    guest.ok(
        "DEV=$(rbd-nbd-rs map rbd/parts); printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk $DEV > /dev/null
         for i in $(seq 100); do [ -b ${DEV}p1 ] && break; sleep 0.1; done; mkfs.ext4 -q ${DEV}p1; mount ${DEV}p1 /mnt
         ! rbd-nbd-rs unmap $DEV || exit 1
         # It grows under a partition that is in use.
         echo there > /mnt/file; rbd-nbd-rs resize rbd/parts --size 440M --no-progress
         for i in $(seq 300); do [ $(blockdev --getsz $DEV) = 901120 ] && break; sleep 0.1; done
         [ $(blockdev --getsz $DEV) = 901120 ]; echo 3 > /proc/sys/vm/drop_caches; grep there /mnt/file
         umount /mnt; [ -b ${DEV}p1 ]; rbd-nbd-rs unmap $DEV",
    );
    // As blktests' nbd/002, but without udev: they come and go with the device, when it is opened.
    guest.ok("for type in nbd ioctl nbd; do
             DEV=$(rbd-nbd-rs map rbd/parts --device-type $type); blockdev --getsize64 $DEV > /dev/null
             for i in $(seq 100); do [ -b ${DEV}p1 ] && break; sleep 0.1; done; [ -b ${DEV}p1 ]
             rbd-nbd-rs unmap $DEV
             for i in $(seq 100); do : < $DEV; [ -e /sys/block/nbd0/nbd0p1 ] || break; done
             [ ! -e /sys/block/nbd0/nbd0p1 ]
         done");
    if full() {
        for kind in ["xfs", "btrfs"] {
            guest.ok(&format!(
                "DEV=$(rbd-nbd-rs map rbd/parts); mkfs.{kind} -f -q $DEV; mount -t {kind} $DEV /mnt
                 dd if=/dev/urandom of=/mnt/file bs=1M count=16 2> /dev/null; sha256sum /mnt/file > /tmp/sum
                 umount /mnt
                 rbd-nbd-rs unmap rbd/parts; DEV=$(rbd-nbd-rs map rbd/parts); mount -t {kind} $DEV /mnt
                 ! rbd-nbd-rs unmap rbd/parts || exit 1
                 rbd-nbd-rs resize rbd/parts --size 600M --grow-fs --no-progress
                 [ $(df -m /mnt | awk 'END {{ print $2 }}') -gt 500 ]
                 sha256sum -c /tmp/sum; fstrim /mnt; umount /mnt; rbd-nbd-rs unmap rbd/parts"
            ));
            ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "400M", "parts"]);
        }
    }
}

/// The kernel looks for partitions when a device gets another size: at those that are there, and at those that somebody
/// else has made meanwhile. Nobody opens the device for that, as udev would.
pub(crate) fn repartitioned(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", "table"]);
    let resize = |size: &str| {
        ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", size, "table"])
    };
    // Partitions from 1 to 32, to 64 and to 96 MiB.
    // (fdisk fails because nothing reads the tables of files; what is in them is seen below.)
    guest.ok("modprobe loop; truncate -s 96M /tmp/two; cp /tmp/two /tmp/three
         TWO='n\\np\\n1\\n2048\\n65535\\nn\\np\\n2\\n65536\\n131071\\n'
         printf \"${TWO}w\\n\" | fdisk /tmp/two > /dev/null 2>&1 || true
         printf \"${TWO}n\\np\\n3\\n131072\\n196607\\nw\\n\" | fdisk /tmp/three > /dev/null 2>&1 || true");
    for (kind, name) in [("nbd", "nbd0"), ("ioctl", "nbd0"), ("fuse", "loop0")] {
        let are = |wanted: &str| {
            guest.ok(&format!(
                "look() {{ awk '$4 ~ /^{name}/ {{ printf \"%s %d \", $4, $3 / 1024 }}' /proc/partitions; }}
                 for i in $(seq 300); do [ \"$(look)\" = '{wanted}' ] && exit; sleep 0.1; done
                 look; cat /run/rbd-nbd-rs/*/log; exit 1"
            ))
        };
        guest.ok(&format!(
            "[ $(rbd-nbd-rs map table --device-type {kind}) = /dev/{name} ]
             dd if=/tmp/two of=/dev/{name} bs=512 count=1 conv=fsync 2> /dev/null
             blockdev --rereadpt /dev/{name}"
        ));
        let two = format!("{name} 64 {name}p1 31 {name}p2 32 ");
        are(&two);
        // What is behind the end is gone, and there again.
        resize("32M");
        are(&format!("{name} 32 {name}p1 31 "));
        resize("64M");
        are(&two);
        guest.ok("OTHER=$(rbd-nbd-rs map table --cookie other --device-type nbd)
             dd if=/tmp/three of=$OTHER bs=512 count=1 conv=fsync 2> /dev/null
             rbd-nbd-rs unmap --cookie other");
        are(&two);
        resize("96M");
        are(&format!("{name} 96 {name}p1 31 {name}p2 32 {name}p3 32 "));
        guest.ok("rbd-nbd-rs unmap table");
        resize("64M");
    }
}

pub(crate) fn frozen(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "frozen"]);
    let daemons = ["mon.a", "osd.0"].map(|name| ceph.pid(name).to_string());
    let signal =
        |signal: &str| daemons.iter().for_each(|pid| drop(run("kill", &[signal, pid]).ok()));
    // Thawed, everything goes on.
    guest.ok("DEV=$(rbd-nbd-rs map rbd/frozen); mkfs.ext4 -q $DEV; mount $DEV /mnt
    dd if=/dev/urandom of=/mnt/dirty bs=1M count=4 2>/dev/null");
    signal("-STOP");
    guest.ok("(sha256sum /mnt/dirty; sync; echo synced) > /tmp/synced 2>&1 & sleep 2; ! grep -q synced /tmp/synced");
    signal("-CONT");
    guest.ok(
        "for i in $(seq 600); do grep -q synced /tmp/synced && break; sleep 0.1; done; umount /mnt
         mount /dev/nbd0 /mnt
         sha256sum -c <(head -n 1 /tmp/synced)",
    );
    // Whoever serves it next does not wait until it is known that the image is closed.
    guest.ok("DEV=$(rbd-nbd-rs map rbd/frozen --cookie left)
         dd if=$DEV of=$DEV bs=4k count=1 iflag=direct oflag=direct 2> /dev/null");
    signal("-STOP");
    let began = Instant::now();
    guest.ok("rbd-nbd-rs detach rbd/frozen --cookie left");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    signal("-CONT");
    // But it fences off who may have died with the image's lock, which nobody would get for half a minute.
    let client =
        "grep -o '\"client\": \"[^\"]*' /run/rbd-nbd-rs/left/mapping.json | cut -d'\"' -f4";
    let client = guest.ok(client);
    guest.ok("rbd-nbd-rs attach --cookie left; rbd-nbd-rs unmap rbd/frozen --cookie left");
    let fenced = ceph.ceph(&["osd", "blocklist", "ls"]);
    assert!(fenced.contains(client.trim()), "{client} of {fenced}");
    // Forced, what is in flight fails and nothing is stuck.
    ceph.rbd(&["create", "--size", "64M", "frozen-ioctl"]);
    let other = "DEV=$(rbd-nbd-rs map rbd/frozen-ioctl --device-type ioctl); mkfs.ext4 -q $DEV; mount $DEV /mnt; ";
    for (image, made) in [("frozen", ""), ("frozen-ioctl", other)] {
        guest.ok(&format!("{made}dd if=/dev/urandom of=/mnt/more bs=1M count=4 2>/dev/null"));
        signal("-STOP");
        guest.ok("sync > /dev/null 2>&1 & sleep 1; true");
        let began = Instant::now();
        guest.ok(&format!("rbd-nbd-rs unmap --force rbd/{image}"));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        guest.ok("for i in $(seq 100); do ps -o stat,comm | grep '^D' || break; sleep 0.1; done
             ! ps -o stat,comm | grep '^D' || exit 1
             umount -l /mnt; [ -z \"$(rbd-nbd-rs list-mapped --all)\" ]; ! pidof rbd-nbd sync");
        signal("-CONT");
    }
}

/// Not only silent: no daemon of its cluster is there. What was synced before is there when that is started again.
pub(crate) fn gone(_: &Ceph, guest: &Guest) {
    let conf = LONG_LEASE;
    let ceph = Ceph::start(Options { store: Store::Bluestore, conf, ..Options::default() });
    let conf = std::fs::read_to_string(ceph.conf()).unwrap();
    let conf = conf.replacen("[global]", "[global]\nclient mount timeout = 120", 1);
    let conf = conf.replace(ceph.dir().to_str().unwrap(), "/tmp/other");
    let keyring = std::fs::read_to_string(ceph.keyring()).unwrap();
    guest.ok(&format!(
        "mkdir -p /tmp/other /tmp/mnt; echo '{conf}' > /tmp/other/ceph.conf; echo '{keyring}' > /tmp/other/keyring"
    ));
    let map = "rbd-nbd-rs map -c /tmp/other/ceph.conf";
    let both = [("nbd", "nbd0", "/mnt"), ("ioctl", "nbd1", "/tmp/mnt")];
    for (kind, name, folder) in both {
        ceph.rbd(&["create", "--size", "64M", "--image-feature", "layering", kind]);
        guest.ok(&format!(
            "DEV=$({map} rbd/{kind} --device-type {kind}); [ $DEV = /dev/{name} ]; mkfs.ext4 -q $DEV
             mount $DEV {folder}; dd if=/dev/urandom of={folder}/synced bs=1M count=4 2> /dev/null; sync
             sha256sum {folder}/synced > /tmp/{kind}.sum
             dd if=/dev/urandom of={folder}/dirty bs=1M count=4 2> /dev/null"
        ));
    }
    ceph.kill_mon(0);
    ceph.kill_osd(0);
    guest.ok("sync > /dev/null 2>&1 & sleep 1; pidof sync > /dev/null");
    for (kind, ..) in both {
        let began = Instant::now();
        guest.ok(&format!("rbd-nbd-rs unmap --force rbd/{kind}"));
        assert!(began.elapsed() < Duration::from_secs(10), "{kind}: {:?}", began.elapsed());
    }
    guest.ok("for i in $(seq 100); do ps -o stat,comm | grep '^D' || break; sleep 0.1; done
         ! ps -o stat,comm | grep '^D' || exit 1
         umount -l /mnt; umount -l /tmp/mnt; [ -z \"$(rbd-nbd-rs list-mapped --all)\" ]
         ! pidof rbd-nbd sync || exit 1");
    ceph.start_mon(0);
    ceph.start_osd(0);
    for (kind, name, folder) in both {
        guest.ok(&format!(
            "[ $({map} rbd/{kind} --device-type {kind} --device /dev/{name}) = /dev/{name} ]
             mount /dev/{name} {folder}; sha256sum -c /tmp/{kind}.sum; echo more > {folder}/more; umount {folder}
             e2fsck -f -n /dev/{name}; rbd-nbd-rs unmap rbd/{kind}"
        ));
    }
}

/// A device takes what its host has to write out for want of memory. Whoever serves it waits for none of that itself:
/// neither for its own program to be read again, nor for a file. And it takes little memory.
pub(crate) fn short_of_memory(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "128M", "short"]);
    // What is on the RAM disk stays in memory; a program on a file system need not.
    guest.ok(
        "modprobe loop; truncate -s 256M /tmp/disk; mkfs.ext4 -q /tmp/disk; mkdir -p /tmp/programs /tmp/all
         mount -o loop /tmp/disk /tmp/programs; cp /brought/rbd-nbd-rs /tmp/programs/; sync
         mount -t tmpfs -o size=100% none /tmp/all
         [ -e /sys/fs/cgroup/memory.reclaim ] || mount -t cgroup2 none /sys/fs/cgroup
         /tmp/programs/rbd-nbd-rs map rbd/short",
    );
    // As benches/map has it.
    let most = guest.ok("for load in 'randrw 4k 16' 'rw 128k 4'; do
             set -- $load
             fio --name=x --filename=/dev/nbd0 --size=128M --direct=1 --ioengine=libaio --rw=$1 --bs=$2 \
                 --iodepth=$3 --time_based --runtime=2 > /dev/null
             awk '/^VmRSS/ { print $2 }' /proc/$(cat /sys/block/nbd0/pid)/status
         done");
    println!("a mapping takes these KiB: {most:?}");
    // A debug build is twice as large.
    if std::env::var_os("RBD_NBD_RS").is_some() {
        assert!(most.lines().all(|kib| kib.parse().is_ok_and(|kib: u64| kib < 16 << 10)), "{most}");
    }
    let changed = guest.ok(
        "mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt; PID=$(cat /sys/block/nbd0/pid)
         # Pages that it waited for, bytes that were read and written for it, and what it has open.
         look() {
             echo majflt $(awk '{ print $12 }' /proc/$PID/stat); grep -E '^(read|write)_bytes' /proc/$PID/io
             for FILE in /proc/$PID/fd/*; do [ ! -f $FILE ] || readlink $FILE; done
         }
         look > /tmp/before
         FREE=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
         dd if=/dev/zero of=/tmp/all/memory bs=1M count=$((FREE - 128)) 2> /dev/null
         (while [ ! -e /tmp/enough ]; do
             echo 3 > /proc/sys/vm/drop_caches; echo 256M > /sys/fs/cgroup/memory.reclaim || true; sleep 1
         done) > /dev/null 2>&1 & RECLAIM=$!
         for i in 1 2 3; do
             dd if=/dev/urandom bs=1M count=8 2> /dev/null | tee /mnt/$i | sha256sum > /tmp/$i.sum
         done; sync
         for i in 1 2 3; do sha256sum < /mnt/$i | cmp - /tmp/$i.sum; done
         touch /tmp/enough; wait $RECLAIM; look > /tmp/after; rm /tmp/all/memory
         grep -q '^/run/rbd-nbd-rs/.*/log$' /tmp/after; ! grep -v '/run/rbd-nbd-rs' /tmp/after | grep ^/ || exit 1
         diff /tmp/before /tmp/after || true",
    );
    assert_eq!(changed, "");
    guest
        .ok("umount /mnt; /tmp/programs/rbd-nbd-rs unmap rbd/short; umount /tmp/all /tmp/programs");
}
