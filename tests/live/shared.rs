//! One image with an exclusive lock, written by us and by librbd at the same time: the lock goes back and forth, and
//! nothing that was acknowledged is lost.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use ceph_native::pool::WatchEvent;
use proto::rbd::notify::Notice;

use crate::data::assert_same_for_librbd_and_nbd;
use crate::support::{Ceph, Options, Store};
use crate::watch::{io, wait_for};
use crate::{fio_report, full, on_new_clusters, releases, run, with_client};

/// fio that writes and verifies its own 32 MiB of an image, again and again.
fn fio_on_its_part(ceph: &Ceph, seconds: u64, part: u32, target: &[&str]) {
    let offset = format!("--offset={}M", 32 * part);
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        rounds += 1;
        let seed = format!("--randseed={}", rounds * 2 + part);
        let args = ["--name=part", "--rw=randwrite", "--bssplit=4k/60:64k/30:1M/10", "--iodepth=8"];
        let more = ["--size=32M", &offset, &seed, "--verify=crc32c", "--verify_state_save=0"];
        let last = ["--verify_fatal=1", "--do_verify=1", "--output-format=json"];
        let ran = ceph.run("fio", &[&args[..], &more, &last, target].concat());
        let message = ran.to_string();
        let report = fio_report(&ran.ok());
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{message}");
        assert_eq!(job["write"]["total_ios"], job["read"]["total_ios"], "{message}");
    }
    assert!(rounds > 1, "one round took {:?}", begun.elapsed());
}

/// How often the lock of an image is taken until `over`.
fn count_owners(ceph: &Ceph, header: &str, over: &AtomicBool) -> usize {
    with_client(ceph, async |cluster| {
        let pool = cluster.pool("rbd").await.unwrap();
        let mut watch = pool.watch(header).await.unwrap();
        let (mut count, mut last) = (0, None);
        while !over.load(Ordering::SeqCst) {
            let next = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
            let Ok(WatchEvent::Notify(notification)) = next else { continue };
            if let Ok(Notice::AcquiredLock(owner)) = Notice::decode(&notification.payload) {
                count += usize::from(last != Some(owner));
                last = Some(owner);
            }
            watch.acknowledge(notification.id, bytes::Bytes::new()).await.unwrap();
        }
        watch.close().await.unwrap();
        count
    })
}

fn header_of(ceph: &Ceph, image: &str) -> String {
    let id = ceph.run("rbd", &["info", "--format", "json", image]).json()["id"].clone();
    format!("rbd_header.{}", id.as_str().unwrap())
}

#[test]
fn the_lock_goes_back_and_forth_under_load() {
    on_new_clusters(|ceph| {
        ceph.rbd(&["create", "--size", "96M", "--object-size", "1M", "shared"]);
        let header = header_of(ceph, "shared");
        let mut serve = ceph.serve(&["rbd/shared"]);
        let uri = serve.uri("rbd/shared");
        let seconds = if full() { 300 } else { 20 };
        let over = AtomicBool::new(false);
        scope(|scope| {
            let ours = scope.spawn(|| {
                let uri = format!("--uri={uri}");
                fio_on_its_part(ceph, seconds, 0, &["--ioengine=nbd", &uri]);
            });
            let theirs = scope.spawn(|| {
                let target =
                    ["--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=shared"];
                fio_on_its_part(ceph, seconds, 1, &target);
            });
            let owners = scope.spawn(|| count_owners(ceph, &header, &over));
            let ended = [ours.join(), theirs.join()];
            over.store(true, Ordering::SeqCst);
            let owners = owners.join().unwrap();
            assert!(ended.iter().all(Result::is_ok), "{}", serve.log());
            eprintln!("the lock changed hands {owners} times");
            assert!(owners > seconds as usize / 2, "the lock changed hands {owners} times");
        });
        serve.assert_running();
        assert_same_for_librbd_and_nbd(ceph, "shared", &uri);
        serve.terminate();
        ceph.check_object_map("shared");
    });
}

/// The owner of the lock is frozen with writes under way, another takes over, and the frozen one comes back to life:
/// nothing of its is written any more.
#[test]
fn an_owner_that_was_frozen_writes_nothing_more() {
    let rounds = if full() { 34 } else { 1 };
    for release in releases() {
        let ceph = Ceph::start(Options {
            release: *release,
            store: Store::Bluestore,
            ..Options::default()
        });
        for round in 0..rounds {
            // Three at a time: they wait for the end of a watch.
            scope(|scope| {
                for i in 0..3u32 {
                    let ceph = &ceph;
                    scope.spawn(move || freeze(ceph, &format!("frozen{round}-{i}"), round * 3 + i));
                }
            });
        }
    }
}

fn freeze(ceph: &Ceph, image: &str, number: u32) {
    let spec = format!("rbd/{image}");
    ceph.rbd(&["create", "--size", "32M", image]);
    let frozen = ceph.serve(&[&spec]);
    let uri = frozen.uri(&spec);
    let mut load = Command::new("fio")
        .args(["--name=load", "--ioengine=nbd", &format!("--uri={uri}"), "--rw=randwrite"])
        .args(["--bs=16k", "--iodepth=32", "--size=32M", "--time_based", "--runtime=600"])
        .current_dir(ceph.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    ceph.reap(load.id());
    wait_for("the lock", 60, || ceph.lock_owner(image).is_some());
    // At another point each time.
    sleep(Duration::from_millis(u64::from(number) * 37 % 400));
    run("kill", &["-STOP", &frozen.pid().to_string()]).ok();
    // An heir, by turns one of ours and librbd, writes all of it when the watch of the frozen one is over.
    let heir = ceph.serve(&[&spec]);
    let heir_uri = heir.uri(&spec);
    match number % 2 {
        0 => assert!(io(&heir_uri, &["write -P 200 0 32M"]), "{}", heir.log()),
        _ => {
            let file = ceph.dir().join(format!("{image}.bytes"));
            std::fs::write(&file, vec![200; 32 << 20]).unwrap();
            let target = format!("rbd:rbd/{image}:conf={}", ceph.conf().display());
            let args = ["convert", "-n", "-f", "raw", "-O", "raw", file.to_str().unwrap(), &target];
            ceph.run("qemu-img", &args).ok();
        }
    }
    let fenced = ceph.ceph(&["osd", "blocklist", "ls"]);
    assert!(!fenced.is_empty(), "taken over without fencing");
    run("kill", &["-CONT", &frozen.pid().to_string()]).ok();
    // What it had under way, and all that is tried now, fails.
    wait_for("it notices", 60, || frozen.log().contains("no longer be written to"));
    assert!(!io(&uri, &["write -P 9 0 64k"]), "{}", frozen.log());
    let _ = load.kill();
    let _ = load.wait();
    sleep(Duration::from_millis(500));
    assert!(io(&heir_uri, &["read -P 200 0 32M"]), "{image}: something of the frozen one's landed");
    assert_same_for_librbd_and_nbd(ceph, image, &heir_uri);
    heir.terminate();
    drop(frozen);
    ceph.check_object_map(image);
    ceph.rbd(&["rm", "--no-progress", image]);
}
