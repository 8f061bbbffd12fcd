//! A load that goes on while something happens, and that says whether anything was lost or stale.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;

use crate::fio_report;
use crate::support::{Ceph, Serve};

/// Bytes that each of four jobs writes in a second, and in a round.
const RATE: u32 = 1600 << 10;
const ROUND: u32 = 8 * RATE;

/// Runs `happening` while fio writes to an image through our export, round after round over all of it. What was written
/// is read again and verified all along: a block that is not what was written last, or any error, is a failure. In the
/// end librbd has to find the same. `options` are for `serve`. Returns all that it said.
#[track_caller]
pub(crate) fn under_load(ceph: &Ceph, options: &[&str], happening: impl FnOnce(&Serve)) -> String {
    let size = format!("{}B", 4 * ROUND);
    ceph.rbd(&["create", "--size", &size, "--image-feature", "layering", "loaded"]);
    let filter = Some("warn,ceph_native=debug");
    let mut serve = ceph.serve_telling(&[options, &["rbd/loaded"]].concat(), filter);
    let uri = serve.uri("rbd/loaded");
    let over = AtomicBool::new(false);
    scope(|scope| {
        let fio = scope.spawn(|| {
            for round in 1.. {
                fio(ceph, &uri, round);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        {
            let _over = Over(&over);
            happening(&serve);
        }
        fio.join().unwrap();
    });
    serve.assert_running();
    crate::data::assert_same_for_librbd_and_nbd(ceph, "loaded", &uri);
    serve.log()
}

/// Ends the load, also when what happens fails: whoever waits for its threads would wait for ever.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One round. Each writes something else, so that what an earlier one wrote is not taken for it.
#[track_caller]
fn fio(ceph: &Ceph, uri: &str, round: u32) {
    let (uri, seed) = (format!("--uri={uri}"), format!("--randseed={round}"));
    let (size, offset) = (format!("--size={ROUND}"), format!("--offset_increment={ROUND}"));
    let rate = format!("--rate={RATE},{RATE}");
    let args = [
        "--name=load",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bssplit=512/20:4k/30:16k/20:20k/10:64k/15:256k/5",
        "--iodepth=8",
        "--numjobs=4",
        &seed,
        &size,
        &offset,
        &rate,
        "--end_fsync=1",
        "--verify=crc32c",
        "--verify_backlog=128",
        "--verify_state_save=0",
        "--verify_fatal=1",
        "--do_verify=1",
        "--group_reporting=1",
        "--output-format=json",
    ];
    // A busy machine takes longer, and may.
    let ran = ceph.run_for("fio", &args, 300);
    if ran.code != 0 {
        eprintln!("{}", ceph.condition());
    }
    let message = ran.to_string();
    let report = fio_report(&ran.ok());
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{message}");
    let (written, read) = (&job["write"]["total_ios"], &job["read"]["total_ios"]);
    assert!(written.as_u64() > Some(0) && written == read, "not all was verified: {message}");
}
