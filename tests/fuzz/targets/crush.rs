//! CRUSH maps: read, written, and walked by every rule.

use proto::crush::{CrushMap, Scratch};
use proto::denc::Encode;

/// Hashes of one mapping: enough for what real maps need, and soon spent.
const WORK: u64 = 1 << 14;

pub(super) fn run(input: &[u8]) {
    let Ok(map) = CrushMap::from_bytes(input) else { return };
    let bytes = map.to_bytes();
    let again = CrushMap::from_bytes(&bytes).expect("what was written can be read");
    assert_eq!(again.to_bytes(), bytes);
    let mut scratch = Scratch::bounded(WORK);
    let weights = [0x1_0000, 0, 0x8000, 0x1_0000, 0x1_0000, 1];
    for rule in (0..map.rules.len() as u32).take(8) {
        for (x, size) in [(0, 1), (7, 3), (u32::MAX, 8)] {
            for choose_args in [None, map.choose_args_for_pool(0)] {
                let found = map.do_rule(rule, x, size, &weights, choose_args, &mut scratch);
                assert!(found.len() <= size);
            }
        }
    }
}
