//! How near devices are to a place in the hierarchy (`CrushWrapper::get_common_ancestor_distance`).

use std::collections::BTreeMap;

use super::CrushMap;
use crate::limits;

impl CrushMap {
    /// For each device, the lowest type of bucket that has both it and the place; `i32::MAX` where there is none. A
    /// place is named by types and names of buckets, such as `rack` and `r3`: any of them counts.
    pub fn distances(&self, place: &[(String, String)]) -> Vec<i32> {
        let mut parents = BTreeMap::new();
        for bucket in self.buckets.iter().flatten() {
            // Shadow buckets, which have the devices of a class only, are nobody's place.
            if !self.item_classes.contains_key(&bucket.id) {
                for item in &bucket.items {
                    parents.entry(*item).or_insert(bucket.id);
                }
            }
        }
        let devices = usize::try_from(self.max_devices).unwrap_or(0).min(limits::OSDS);
        (0..devices as i32).map(|device| self.distance(device, place, &parents)).collect()
    }

    fn distance(
        &self,
        device: i32,
        place: &[(String, String)],
        parents: &BTreeMap<i32, i32>,
    ) -> i32 {
        let mut item = device;
        // A malformed hierarchy may have cycles.
        for _ in 0..limits::CRUSH_DEPTH {
            let kind = self.bucket(item).map_or(0, |bucket| i32::from(bucket.kind));
            let names = (self.type_names.get(&kind), self.item_names.get(&item));
            if let (Some(kind_name), Some(name)) = names
                && place.iter().any(|(kind, item)| kind == kind_name && item == name)
            {
                return kind;
            }
            match parents.get(&item) {
                Some(parent) => item = *parent,
                None => break,
            }
        }
        i32::MAX
    }
}
