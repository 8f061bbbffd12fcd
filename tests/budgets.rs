//! What must not become expensive: the largest OSD map that there may be, by CPU time of this thread. The figures that
//! count are those of `cargo bench` (docs/performance.md); these bounds are for a debug build on a slow machine, and
//! only what is slower by an order fails: a loop over all groups, say, where there should be one over a few.

#[path = "../benches/support/maps.rs"]
mod maps;

use std::time::Duration;

use proto::crush::Scratch;
use proto::osdmap::{OsdMap, WEIGHT_ONE};
use rustix::time::{ClockId, clock_gettime};

/// How much longer an unoptimised build may take than the budget.
const SLACK: u32 = if cfg!(debug_assertions) { 20 } else { 5 };

/// Runs `work` so many times, each of which may take `budget`.
fn within(what: &str, budget: Duration, times: u32, mut work: impl FnMut(u32)) {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let begun = cpu();
    (0..times).for_each(&mut work);
    let each = (cpu() - begun) / times;
    println!("{what}: {each:?}, budget {budget:?}");
    assert!(each < budget * SLACK, "{what}: {each:?}, which is far above {budget:?}");
}

#[test]
fn the_largest_map_is_no_burden() {
    let mut map = maps::huge();
    assert_eq!(map.max_osd(), 10_000);
    assert_eq!((map.pools.len(), map.pg_upmap_items.len()), (100, 100_000));
    let bytes = map.encode(proto::msgr::features::SUPPORTED);
    within("decode", Duration::from_millis(60), 1, |_| {
        assert!(OsdMap::decode(&bytes).unwrap() == map);
    });
    let names = maps::Names::default();
    // Few groups are known of the many that there are: nothing may look at all of them to know one.
    within("object to OSD, group unknown", Duration::from_micros(20), 2000, |object| {
        assert!(names.look_up(&map, object as usize).primary.is_some());
    });
    within("object to OSD, group known", Duration::from_nanos(500), 20_000, |object| {
        names.look_up(&map, object as usize % 2000);
    });
    within("apply an epoch", Duration::from_millis(3), 20, |number| {
        let change = maps::change(&map, number);
        map.apply(&change).unwrap();
    });
}

#[test]
fn a_mapping_in_a_large_hierarchy_is_no_burden() {
    for (map, budget) in [(maps::small(), 2), (maps::large(), 8)] {
        let weights = vec![WEIGHT_ONE; map.max_devices as usize];
        let mut scratch = Scratch::default();
        within("three copies", Duration::from_micros(budget), 1000, |x| {
            assert_eq!(map.do_rule(0, x, 3, &weights, None, &mut scratch).len(), 3);
        });
    }
}
