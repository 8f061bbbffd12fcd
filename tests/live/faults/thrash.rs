//! Everything at once, at random: what Ceph's own qa calls thrashing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::export;
use crate::load::Over;
use crate::support::{Ceph, Ledger, Options, Release, Serve, Store};
use crate::{fio_report, full, run};

const OSDS: u32 = 3;
const MONS: u32 = 3;

#[test]
fn nothing_is_lost_while_the_cluster_is_thrashed() {
    if full() {
        for (release, size, min_size) in
            [(Release::Pacific, "2", "1"), (Release::Reef, "3", "2"), (Release::Tentacle, "2", "1")]
        {
            thrash(release, size, min_size, Duration::from_secs(600));
        }
    } else {
        thrash(Release::Pacific, "2", "1", Duration::from_secs(40));
    }
}

fn thrash(release: Release, size: &str, min_size: &str, time: Duration) {
    let ceph = Ceph::start(Options {
        release,
        osds: OSDS,
        mons: MONS,
        store: Store::Bluestore,
        conf: "ms inject socket failures = 500\n",
        ..Options::default()
    });
    ceph.ceph(&["osd", "pool", "set", "rbd", "size", size]);
    ceph.ceph(&["osd", "pool", "set", "rbd", "min_size", min_size]);
    for image in ["image", "other"] {
        ceph.rbd(&["create", "--size", "32M", "--image-feature", "layering", image]);
    }
    let mut serve = ceph.serve(&["rbd/image", "rbd/other"]);
    let over = AtomicBool::new(false);
    let mut ledger = Ledger::new(32 << 20);
    let mut thrasher = Thrasher::new(&ceph);
    let worked = scope(|scope| {
        let end = Over(&over);
        let worker = scope
            .spawn(|| ledger.work(&serve.socket, "rbd/image", || over.load(Ordering::Relaxed)));
        let verifier = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                fio(&ceph, &serve);
                rounds += 1;
            }
            rounds
        });
        let begun = Instant::now();
        while begun.elapsed() < time && !worker.is_finished() && !verifier.is_finished() {
            thrasher.step();
        }
        thrasher.restore();
        drop(end);
        let rounds = verifier.join().unwrap();
        let worked = worker.join().unwrap();
        eprintln!(
            "thrashed {release} for {} s with {:?}: {} requests, {rounds} rounds of fio, longest pause {:.1} s",
            begun.elapsed().as_secs(),
            thrasher.done,
            worked.done,
            worked.longest_pause.as_secs_f64()
        );
        worked
    });
    serve.assert_running();
    assert!(worked.end.is_none() && worked.errors.is_empty(), "{:?}", worked.errors.first());
    assert!(worked.done > 500, "only {} requests", worked.done);
    ledger.check(&mut export(&ceph, "image").as_slice());
    let ours = ceph.dir().join("image.nbd");
    run("nbdcopy", &[&serve.uri("rbd/image"), ours.to_str().unwrap()]).ok();
    ledger.check(&mut std::fs::File::open(ours).unwrap());
}

/// One round of writing and verifying.
#[track_caller]
fn fio(ceph: &Ceph, serve: &Serve) {
    let uri = format!("--uri={}", serve.uri("rbd/other"));
    let load = ["--name=v", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k,16k,64k"];
    let size = ["--iodepth=8", "--size=8M", "--rate=2M", "--verify=crc32c", "--do_verify=1"];
    let rest = ["--verify_state_save=0", "--verify_fatal=1", "--output-format=json"];
    // Pauses add up, where one fault follows the other.
    let ran = ceph.run_for("fio", &[&load[..], &size, &rest].concat(), 600);
    let message = ran.to_string();
    let report = fio_report(&ran.ok());
    assert_eq!(report["jobs"][0]["error"], 0, "{message}");
}

/// Does things to a cluster, and knows how to undo them.
struct Thrasher<'a> {
    ceph: &'a Ceph,
    random: u64,
    osds_down: Vec<u32>,
    mon_down: Option<u32>,
    paused: bool,
    pgs: u32,
    /// How often what was done.
    done: std::collections::BTreeMap<&'static str, u32>,
}

impl<'a> Thrasher<'a> {
    fn new(ceph: &'a Ceph) -> Self {
        let seed = std::process::id();
        eprintln!("thrashing with seed {seed}");
        Self {
            ceph,
            random: seed.into(),
            osds_down: Vec::new(),
            mon_down: None,
            paused: false,
            pgs: 32,
            done: Default::default(),
        }
    }

    fn random(&mut self, below: u32) -> u32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) as u32 % below
    }

    /// A command that may fail, for instance because the monitors look for a leader.
    fn try_ceph(&self, args: &[&str]) {
        let _ = self.ceph.run_for("ceph", args, 30);
    }

    fn step(&mut self) {
        if self.paused {
            self.paused = false;
            self.try_ceph(&["osd", "unset", "pause"]);
        }
        let osd = self.random(OSDS);
        let name = osd.to_string();
        let what = match self.random(13) {
            0..=2 if self.osds_down.len() < 2 && !self.osds_down.contains(&osd) => {
                self.ceph.kill_osd(osd);
                self.osds_down.push(osd);
                "OSDs killed"
            }
            0..=4 if !self.osds_down.is_empty() => {
                self.ceph.start_osd(self.osds_down.remove(0));
                "OSDs started"
            }
            5 => match self.mon_down.take() {
                Some(mon) => {
                    self.ceph.start_mon(mon);
                    "monitors started"
                }
                None => {
                    let mon = self.random(MONS);
                    self.ceph.kill_mon(mon);
                    self.mon_down = Some(mon);
                    "monitors killed"
                }
            },
            6 => {
                let which = if self.random(2) == 0 { "out" } else { "in" };
                self.try_ceph(&["osd", which, &name]);
                "out or in"
            }
            7 => {
                let weight = format!("0.{}", 3 + self.random(7));
                self.try_ceph(&["osd", "reweight", &name, &weight]);
                "reweighted"
            }
            8 => {
                let affinity = format!("0.{}", self.random(10));
                self.try_ceph(&["osd", "primary-affinity", &name, &affinity]);
                "affinities"
            }
            9 => {
                let pg = format!("1.{:x}", self.random(32));
                let to = ((osd + 1) % OSDS).to_string();
                self.try_ceph(&["osd", "pg-upmap-items", &pg, &name, &to]);
                "upmaps"
            }
            // What a manager would do one by one.
            10 => {
                self.pgs += 8;
                let pgs = self.pgs.to_string();
                for number in ["pg_num", "pg_num_actual", "pgp_num", "pgp_num_actual"] {
                    self.try_ceph(&["osd", "pool", "set", "rbd", number, &pgs]);
                }
                "splits"
            }
            // As far as it gets: groups merge only when their OSDs are ready for it.
            11 if self.pgs > 32 => {
                self.pgs -= 1;
                let pgs = self.pgs.to_string();
                for number in ["pg_num", "pgp_num", "pgp_num_actual", "pg_num_actual"] {
                    self.try_ceph(&["osd", "pool", "set", "rbd", number, &pgs]);
                }
                "merges"
            }
            12 => {
                self.try_ceph(&["osd", "set", "pause"]);
                self.paused = true;
                "pauses"
            }
            _ => return,
        };
        *self.done.entry(what).or_default() += 1;
        let rest = 300 + self.random(1500);
        sleep(Duration::from_millis(rest.into()));
    }

    /// Whatever is down comes up, and nothing is held back any more.
    fn restore(&mut self) {
        for osd in self.osds_down.drain(..) {
            self.ceph.start_osd(osd);
        }
        if let Some(mon) = self.mon_down.take() {
            self.ceph.start_mon(mon);
        }
        for osd in 0..OSDS {
            self.ceph.ceph(&["osd", "in", &osd.to_string()]);
            self.ceph.ceph(&["osd", "reweight", &osd.to_string(), "1.0"]);
        }
        self.ceph.ceph(&["osd", "unset", "pause"]);
    }
}
