//! Stories of the guest ([`crate::guest`]) about devices of Linux' ublk driver.

use std::time::Instant;

use crate::guest::killed_of;
use crate::sha256;
use crate::support::{Ceph, Guest, run};

/// What it looks like, what is on it for others, that it is left alone and taken over, and that nothing is left of it.
pub(crate) fn served(ceph: &Ceph, guest: &Guest) {
    let features = "layering,exclusive-lock,object-map,fast-diff";
    ceph.rbd(&["create", "--size", "96M", "--image-feature", features, "ublk"]);
    let looks = guest.ok("rbd-nbd-rs map rbd/ublk --device-type ublk --cookie here
         cd /sys/block/ublkb0/queue
         echo $(cat logical_block_size physical_block_size discard_granularity rotational max_sectors_kb write_cache)
         PID=$(rbd-nbd-rs list-mapped | awk '/ublkb0/ { print $1 }'); tr '\\0' ' ' < /proc/$PID/cmdline
         rbd-nbd-rs list-mapped --format json");
    let lines: Vec<_> = looks.lines().collect();
    let expected = ["/dev/ublkb0", "512 4096 65536 0 4096 write back"];
    assert_eq!(lines[..2], expected, "{looks}");
    assert!(looks.contains("rbd-nbd map rbd/ublk ") && looks.contains(r#""device":"/dev/ublkb0""#));

    // Whoever is answered at once, as by an image with nothing in it, does not have the process for itself.
    let busy = guest.run(
        "fio --name=r --filename=/dev/ublkb0 --rw=randread --bs=4k --iodepth=64 --numjobs=2 --ioengine=libaio \
             --direct=1 --norandommap --time_based --runtime=6 > /dev/null 2>&1 & sleep 2
         timeout 10 rbd-nbd-rs unmap rbd/ublk; CODE=$?; wait; exit $CODE",
    );
    assert!(busy.code == 16 && busy.to_string().contains("open in process"), "{busy}");

    // A file system, which is not ended while it is mounted, and whose freed space the cluster gets back.
    let used = || {
        ceph.run("rbd", &["du", "--format", "json", "ublk"]).json()["images"][0]["used_size"]
            .as_u64()
            .unwrap()
    };
    guest.ok("mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 /mnt
         fio --name=v --directory=/mnt --size=24M --rw=randwrite --bsrange=512-256k --ioengine=libaio --iodepth=16 \
             --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 > /tmp/fio 2>&1
         dd if=/dev/urandom of=/mnt/random bs=1M count=24 conv=fsync 2> /dev/null");
    let (busy, before) = (guest.run("rbd-nbd-rs unmap rbd/ublk"), used());
    assert!(busy.code == 16 && busy.to_string().contains("mounted on /mnt"), "{busy}");
    guest.ok("rm /mnt/v*; sync; fstrim /mnt");
    assert!(used() + (12 << 20) < before, "{} of {before} bytes are still used", used());

    // Left and taken over by who knows the cookie, and upgraded, while it is written to.
    let out = guest.run("set -ex
         rbd-nbd-rs detach rbd/ublk; [ -z \"$(rbd-nbd-rs list-mapped)\" ]; rbd-nbd-rs list-mapped --all | grep ublkb0
         ! rbd-nbd-rs attach rbd/ublk --device /dev/ublkb0 --cookie other || exit 1
         [ \"$(rbd-nbd-rs attach rbd/ublk --device /dev/ublkb0 --cookie here)\" = /dev/ublkb0 ]
         fio --name=w --directory=/mnt --size=16M --rw=randrw --bsrange=512-64k --ioengine=libaio --iodepth=16 \
             --direct=1 --time_based --runtime=240 --trigger-file=/tmp/enough --verify=crc32c --verify_backlog=64 \
             --verify_fatal=1 --verify_state_save=0 --output-format=json --output=/tmp/fio & FIO=$!
         sleep 1; BEFORE=$(rbd-nbd-rs list-mapped | awk '/ublkb0/ { print $1 }')
         [ $(rbd-nbd-rs upgrade /dev/ublkb0) = /dev/ublkb0 ]
         [ $BEFORE != $(rbd-nbd-rs list-mapped | awk '/ublkb0/ { print $1 }') ]
         sleep 1; kill -0 $FIO; touch /tmp/enough; wait $FIO; umount /mnt; e2fsck -f -n /dev/ublkb0");
    assert_eq!(out.code, 0, "{out}");

    // What is written by one of them is read by the other; what is read-only stays as it is.
    let ours = guest.ok("sha256sum < /dev/ublkb0; rbd-nbd-rs unmap --cookie here");
    let file = ceph.dir().join("ublk");
    let export = |image: &str| {
        let _ = std::fs::remove_file(&file);
        ceph.rbd(&["export", "--no-progress", image, file.to_str().unwrap()]);
        sha256(&file)
    };
    assert_eq!(ours.split_whitespace().next().unwrap(), export("ublk"));
    ceph.rbd(&["bench", "--io-type", "write", "--io-total", "16M", "--io-pattern", "rand", "ublk"]);
    ceph.rbd(&["snap", "create", "--no-progress", "ublk@snap"]);
    let theirs = guest.ok("DEV=$(rbd-nbd-rs map rbd/ublk@snap --device /dev/ublkb7); [ $DEV = /dev/ublkb7 ]
         [ $(blockdev --getro $DEV) = 1 ]; ! dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct 2> /dev/null || exit 1
         sha256sum < $DEV");
    assert_eq!(theirs.split_whitespace().next().unwrap(), export("ublk@snap"));
    let taken = guest.run("rbd-nbd-rs map rbd/ublk --device /dev/ublkb7");
    assert!(taken.code == 16 && taken.to_string().contains("/dev/ublkb7 is in use"), "{taken}");
    guest.ok("rbd-nbd-rs unmap /dev/ublkb7; [ -z \"$(rbd-nbd-rs list-mapped --all)$(ls /dev | grep ublk[bc])\" ]
         ! pidof rbd-nbd || exit 1");
    assert_eq!(ceph.rbd(&["status", "ublk"]), "Watchers: none\n");

    // Of which nothing is known any more: it is not taken over without fencing, and can be ended.
    let unknown = guest.run(
        "set -ex; rbd-nbd-rs map rbd/ublk --device-type ublk --cookie lost
         ! rbd-nbd-rs resize rbd/ublk --size 128M --grow-fs --no-progress || exit 1
         kill -9 $(pidof rbd-nbd); sleep 1; rm -r /run/rbd-nbd-rs/lost
         ! rbd-nbd-rs attach rbd/ublk --device /dev/ublkb0 --cookie lost 2> /tmp/said || exit 1
         grep 'not known who has served' /tmp/said; [ ! -e /run/rbd-nbd-rs/lost ]
         rbd-nbd-rs unmap /dev/ublkb0; [ -z \"$(ls /dev | grep ublk[bc])\" ]",
    );
    assert_eq!(unknown.code, 0, "{unknown}");
    ceph.rbd(&["snap", "rm", "--no-progress", "ublk@snap"]);
}

pub(crate) fn killed(ceph: &Ceph, guest: &Guest) {
    killed_of(ceph, guest, "ublk");
}

/// Every daemon is frozen, and something was not written yet: the device goes on when they do, or is ended at once;
/// also when whoever served it is gone, and what waits for it would wait for ever.
pub(crate) fn frozen(ceph: &Ceph, guest: &Guest) {
    ceph.rbd(&["create", "--size", "64M", "ublk-frozen"]);
    let daemons: Vec<_> =
        ["mon.a", "osd.0"].iter().map(|name| ceph.pid(name).to_string()).collect();
    let signal = |signal: &str| {
        for daemon in &daemons {
            run("kill", &[signal, daemon]).ok();
        }
    };
    for end in ["goes on", "is forced", "is killed and forced"] {
        guest.ok("DEV=$(rbd-nbd-rs map rbd/ublk-frozen --device-type ublk); mkfs.ext4 -q $DEV; mount $DEV /mnt; sync
         dd if=/dev/urandom of=/mnt/file bs=1M count=8 2> /dev/null");
        signal("-STOP");
        // More requests than the driver has tags for.
        guest.ok(
            "(sync > /dev/null 2>&1 &)
             (fio --name=w --filename=/mnt/file --rw=randwrite --bs=4k --size=8M --iodepth=256 --direct=1 \
                 --ioengine=libaio --time_based --runtime=20 > /dev/null 2>&1 &); sleep 1",
        );
        if end == "goes on" {
            signal("-CONT");
            guest.ok("kill $(pidof fio); sleep 1; sync; umount /mnt; e2fsck -f -n /dev/ublkb0
                 rbd-nbd-rs unmap /dev/ublkb0");
            continue;
        }
        if end == "is killed and forced" {
            guest.ok("kill -9 $(pidof rbd-nbd); sleep 1");
        }
        let begun = Instant::now();
        let out =
            guest.run("set -ex; rbd-nbd-rs unmap --force /dev/ublkb0; [ ! -e /sys/block/ublkb0 ]");
        let took = begun.elapsed().as_secs_f64();
        assert!(out.code == 0 && took < 10.0, "{end}: {took} s\n{out}");
        let stuck = guest.ok("umount -l /mnt; for i in $(seq 100); do
                 grep -l '^State:.D' /proc/[0-9]*/status > /tmp/stuck 2> /dev/null || break; sleep 0.1
             done; cat /tmp/stuck; ls /dev | grep 'ublk[bc]' || true; pidof rbd-nbd || true");
        signal("-CONT");
        assert_eq!(stuck, "", "{end}");
        println!("ublk: {end}: {took:.1} s");
    }
}
