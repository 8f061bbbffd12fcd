//! The simulator: a cluster, its network and its clients on one thread, in simulated time, everything from one seed.
//! `docs/simulator.md` says what is real in it, what goes wrong, and which planted bugs it finds.
//!
//! `SIM_SEED=17 cargo test --test sim replay -- --nocapture` tells the whole story of one seed.

mod bugs;
mod clients;
mod faults;
mod model;
mod network;
mod osds;
mod random;
mod trace;
mod wires;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::rbd::layout::Layout;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use bugs::Bug;
use clients::{Context, ORDER, Plan, SECTORS, live};
use model::{Model, SECTOR};
use random::Random;
use trace::Trace;
use world::World;

/// How long everything may take to be complete once nothing goes wrong any more: a dead peer is noticed after 30 s.
const PATIENCE: Duration = Duration::from_secs(150);

/// No simulation takes this long on any machine.
const STUCK: Duration = Duration::from_secs(120);

/// Who is who.
const MAKER: usize = 0;
const WRITER: usize = 1;
const READER: usize = 2;
const SUCCESSOR: usize = 3;
const VERIFIER: usize = 4;

/// What a simulation has come to.
#[derive(Debug)]
struct Story {
    hash: u64,
    /// What was not as it must be.
    wrong: Vec<String>,
}

/// One simulation. All that it does follows from its arguments.
fn simulate(seed: u64, bug: Option<Bug>, prints: bool) -> Story {
    let told = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, tell(seed, bug, prints))
    }));
    told.unwrap_or_else(|_| Story { hash: 0, wrong: vec!["it panicked".to_owned()] })
}

async fn tell(seed: u64, bug: Option<Bug>, prints: bool) -> Story {
    let mut random = Random::new(seed, 3);
    let world = Rc::new(RefCell::new(World::new(seed, bug, Trace::new(prints))));
    let network = Arc::clone(&world.borrow().network);
    let driver = tokio::task::spawn_local(world::drive(Rc::clone(&world)));
    let layout = Layout::plain(ORDER).unwrap();
    let model = Rc::new(RefCell::new(Model::new(layout, SECTORS * SECTOR)));
    let connected = Rc::default();
    let context = Context { seed, world: Rc::clone(&world), model: Rc::clone(&model), connected };
    context.create(MAKER).await;

    world.borrow_mut().model = Some(Rc::clone(&model));
    world.borrow_mut().break_things();
    let timeouts = random.one_in(8).then(|| Duration::from_millis(random.within(1000..30_000)));
    let writer = Plan {
        requests: random.within(30..150),
        depth: random.within(1..16) as usize,
        writes: true,
        timeout: timeouts,
    };
    let reader = Plan { requests: random.within(1..50), depth: 2, writes: false, timeout: None };
    let mut lives = vec![
        tokio::task::spawn_local(live(context.clone(), WRITER, writer)),
        tokio::task::spawn_local(live(context.clone(), READER, reader)),
    ];
    let lasts = random.within(20_000..70_000);
    if random.one_in(3) {
        let at = random.within(1000..lasts);
        sleep(Duration::from_millis(at)).await;
        if world.borrow_mut().fence(WRITER) {
            let successor = Plan { timeout: None, ..writer };
            lives.push(tokio::task::spawn_local(live(context.clone(), SUCCESSOR, successor)));
        }
        sleep(Duration::from_millis(lasts - at)).await;
    } else {
        sleep(Duration::from_millis(lasts)).await;
    }
    world.borrow_mut().calm();
    let all = async {
        for life in lives {
            life.await.unwrap();
        }
        context.verify(VERIFIER).await;
    };
    if timeout(PATIENCE, all).await.is_err() {
        let connected = context.connected.borrow();
        let waits: Vec<_> = (connected.iter())
            .map(|(client, cluster)| (client, cluster.slow_ops(Duration::ZERO)))
            .collect();
        model.borrow_mut().fail(format!("{PATIENCE:?} of calm are not enough: {waits:?}"));
    } else {
        // Whoever is gone has left nothing behind.
        sleep(Duration::from_secs(20)).await;
        let open = network.open();
        if open > 0 {
            model.borrow_mut().fail(format!("{open} connections are open in the end"));
        }
    }
    driver.abort();
    let hash = world.borrow().trace.hash();
    let wrong = model.borrow().wrong().to_vec();
    if prints {
        eprintln!("seed {seed}: {hash:016x} {wrong:#?}");
    }
    Story { hash, wrong }
}

/// Simulates seeds, in this order, on all processors, until one is found or the time is over. Returns how many there
/// were, and the smallest that was found.
fn search(
    seeds: impl Iterator<Item = u64> + Send + 'static,
    limit: Duration,
    bug: Option<Bug>,
) -> (u64, Option<(u64, Story)>) {
    let seeds = Arc::new(Mutex::new(seeds));
    let over = Arc::new(AtomicBool::new(false));
    let under_way = Arc::new(Mutex::new(BTreeSet::new()));
    let begun = Instant::now();
    let (sender, stories) = mpsc::channel();
    for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
        let (seeds, over, sender) = (Arc::clone(&seeds), Arc::clone(&over), sender.clone());
        let under_way = Arc::clone(&under_way);
        std::thread::spawn(move || {
            while begun.elapsed() < limit && !over.load(Ordering::Relaxed) {
                let Some(seed) = seeds.lock().unwrap().next() else { break };
                under_way.lock().unwrap().insert(seed);
                let story = simulate(seed, bug, false);
                under_way.lock().unwrap().remove(&seed);
                if sender.send((seed, story)).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let (mut count, mut found): (u64, Option<(u64, Story)>) = (0, None);
    loop {
        match stories.recv_timeout(STUCK) {
            Ok((seed, story)) => {
                count += 1;
                if !story.wrong.is_empty() && found.as_ref().is_none_or(|(first, _)| seed < *first)
                {
                    found = Some((seed, story));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return (count, found),
            Err(RecvTimeoutError::Timeout) => {
                let seeds = under_way.lock().unwrap();
                panic!(
                    "of the seeds {seeds:?} one takes more than {STUCK:?}: it goes round and round"
                )
            }
        }
        // The other threads finish what they have begun, which may be a smaller seed.
        over.store(found.is_some(), Ordering::Relaxed);
    }
}

/// As many seeds as the ordinary run has time for; with `--full`, as many as there is time for in ten minutes.
#[test]
fn seeds() {
    let full = std::env::var_os("CEPH_NATIVE_FULL").is_some();
    let count = std::env::var("SIM_SEEDS").ok().and_then(|count| count.parse().ok());
    let (count, limit) = match full {
        false => (count.unwrap_or(2000), Duration::from_secs(3600)),
        true => (u64::from(u32::MAX), Duration::from_secs(600)),
    };
    let begun = Instant::now();
    let (count, failed) = search(0..count, limit, None);
    println!("{count} seeds in {:?}", begun.elapsed());
    if let Some((seed, story)) = failed {
        panic!(
            "seed {seed}: {:#?}\nSIM_SEED={seed} cargo test --test sim replay -- --nocapture",
            story.wrong
        );
    }
}

/// Tells the whole story of `SIM_SEED`, with the bug `SIM_BUG` if there is one, and the client's log.
#[test]
fn replay() {
    let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) else {
        return;
    };
    let filter = std::env::var("RUST_LOG").unwrap_or_default().parse::<Targets>();
    let lines = tracing_subscriber::fmt::layer().without_time().with_ansi(false);
    let lines = lines.with_filter(filter.unwrap_or_default());
    let _ = tracing_subscriber::registry().with(lines).try_init();
    let name = std::env::var("SIM_BUG").unwrap_or_default();
    let bug = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    let story = simulate(seed, bug, true);
    assert!(story.wrong.is_empty(), "seed {seed}: {:#?}", story.wrong);
}

/// Seeds that have shown a bug once.
#[test]
fn old_bugs_stay_away() {
    for line in include_str!("../../fixtures/sim/seeds").lines() {
        let (seed, bug) = line.split_once(' ').unwrap();
        let story = simulate(seed.parse().unwrap(), None, false);
        assert!(
            story.wrong.is_empty(),
            "seed {seed}, which once showed: {bug}: {:#?}",
            story.wrong
        );
    }
}

#[test]
fn the_same_seed_takes_the_same_course() {
    for seed in 0..20 {
        let (once, again) = (simulate(seed, None, false), simulate(seed, None, false));
        assert_eq!(once.hash, again.hash, "seed {seed}");
        assert_ne!(once.hash, simulate(seed + 1000, None, false).hash, "another one does not");
    }
}

/// Each planted bug is found, within so many seeds.
#[test]
fn planted_bugs_are_found() {
    const WITHIN: u64 = 300;

    for bug in Bug::ALL {
        let (_, found) = search(0..WITHIN, STUCK, Some(bug));
        let Some((seed, story)) = found else { panic!("{bug:?} is not found in {WITHIN} seeds") };
        println!("{bug:?}: seed {seed}: {}", story.wrong[0]);
    }
}
