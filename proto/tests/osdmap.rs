//! OSD maps of real clusters, replayed. What the files are and how they were made: `fixtures/README.md`.
//!
//! Each cluster's incrementals are applied from epoch 1 on. After each one the map is encoded as that cluster's
//! monitors encode it, and must have the checksum that they recorded: so decoding, applying and encoding are right to
//! the byte. And every placement group must be where `osdmaptool` of that release says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::LazyLock;

use proto::crc::crc32c;
use proto::denc::DecodeError;
use proto::osdmap::{ApplyError, Incremental, NO_OSD, OsdMap, map_flag, pool_flag};
use proto::types::{Epoch, OsdId, PgId, PoolId};

/// A cluster's history.
struct History {
    name: &'static str,
    /// The features that its monitors encode maps for.
    features: u64,
    incrementals: Vec<Vec<u8>>,
    /// For each epoch the checksum of what `osdmaptool` says.
    placements: Vec<u32>,
}

static HISTORIES: LazyLock<Vec<History>> = LazyLock::new(|| {
    [
        ("ceph-16.2.15", 0x3f01_cfbd_fffd_ffff),
        ("ceph-18.2.7", 0x3f01_cfbf_fffd_ffff),
        ("ceph-18.2.7-stretch", 0x3f01_cfbf_fffd_ffff),
        ("ceph-20.2.4", 0x3f07_ffff_fffd_ffff),
    ]
    .into_iter()
    .map(|(name, features)| {
        let text = String::from_utf8(fixture(&format!("{name}.placements"))).unwrap();
        let bytes = fixture(&format!("{name}.incrementals"));
        let mut rest = bytes.as_slice();
        let mut incrementals = Vec::new();
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (one, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            incrementals.push(one.to_vec());
            rest = tail;
        }
        let placements = text.lines().map(|crc| u32::from_str_radix(crc, 16).unwrap()).collect();
        History { name, features, incrementals, placements }
    })
    .collect()
});

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../fixtures/osdmap/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl History {
    /// The map of the last epoch.
    fn last(&self) -> OsdMap {
        self.at(self.incrementals.len())
    }

    /// The map of an epoch.
    fn at(&self, epoch: usize) -> OsdMap {
        let mut map = OsdMap::default();
        for incremental in &self.incrementals[..epoch] {
            map.apply(&Incremental::decode(incremental).unwrap()).unwrap();
        }
        map
    }
}

/// The lines of `osdmaptool MAP --test-map-pgs-dump-all` for placement groups.
fn placements(map: &OsdMap) -> String {
    let mut out = String::new();
    let list = |osds: &[OsdId]| {
        osds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",") // a hole is 2147483647
    };
    let number = |osd: Option<OsdId>| osd.map_or(-1, |osd| osd.0);
    for (id, pool) in &map.pools {
        for seed in 0..pool.pg_num {
            let pg = PgId { pool: *id, seed };
            let raw = map.raw_osds(pool, pg);
            let first = raw.iter().copied().find(|osd| *osd != NO_OSD);
            let placed = map.mapping(pg).unwrap();
            writeln!(
                out,
                "{pg} raw ([{}], p{}) up ([{}], p{}) acting ([{}], p{})",
                list(&raw),
                number(first),
                list(&placed.up),
                number(placed.up_primary),
                list(&placed.acting),
                number(placed.acting_primary),
            )
            .unwrap();
        }
    }
    out
}

#[test]
fn every_epoch_is_the_monitors_map_and_places_as_osdmaptool_does() {
    for history in &*HISTORIES {
        assert!(history.incrementals.len() > 40);
        assert_eq!(history.incrementals.len(), history.placements.len());
        // One map whose table of placements lives on, and is filled at every epoch.
        let mut map = OsdMap::default();
        let mut before = None;
        for (bytes, expected) in history.incrementals.iter().zip(&history.placements) {
            let inc = Incremental::decode(bytes).unwrap();
            map.apply(&inc).unwrap();
            let (name, epoch) = (history.name, inc.epoch);
            let full = map.encode(history.features);
            let checksum = full.last_chunk().copied().map(u32::from_le_bytes);
            assert_eq!(checksum, Some(inc.full_crc), "{name} epoch {epoch}: the full map");
            let decoded = OsdMap::decode(&full).unwrap();
            assert!(decoded == map, "{name} epoch {epoch}: read again");
            // Where nothing moved, a few epochs will do: placing is slow in a debug build.
            if before.replace(expected) == Some(expected) && epoch.0 % 8 != 0 {
                continue;
            }
            let fresh = placements(&decoded);
            assert_eq!(crc32c(!0, fresh.as_bytes()), *expected, "{name} epoch {epoch}:\n{fresh}");
            // What is left of the table is not stale.
            for (id, pool) in &map.pools {
                for seed in 0..pool.pg_num {
                    let pg = PgId { pool: *id, seed };
                    assert_eq!(map.mapping(pg), decoded.mapping(pg), "{name} epoch {epoch}: {pg}");
                }
            }
        }
    }
}

#[test]
fn the_last_epoch_in_full() {
    for history in &*HISTORIES {
        let expected = fixture(&format!("{}.last", history.name));
        assert_eq!(placements(&history.last()), String::from_utf8(expected).unwrap());
    }
}

#[test]
fn incrementals_encode_to_the_bytes_they_were_read_from() {
    for history in &*HISTORIES {
        for bytes in &history.incrementals {
            let inc = Incremental::decode(bytes).unwrap();
            assert!(inc.encode(history.features) == bytes, "{} {}", history.name, inc.epoch);
        }
    }
}

/// `ceph osd map POOL OBJECT NAMESPACE` of live clusters: pool, namespace, object, hash, placement group, primary.
#[test]
fn objects_are_where_the_monitor_says() {
    for history in HISTORIES.iter().filter(|history| !history.name.contains("stretch")) {
        let text = String::from_utf8(fixture(&format!("{}.objects", history.name))).unwrap();
        let (epoch, lines) = text.split_once('\n').unwrap();
        let map = history.at(epoch.parse().unwrap());
        assert!(lines.lines().count() > 1000);
        for line in lines.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [pool, namespace, name, raw, pg, primary] = fields[..] else { panic!("{line}") };
            let pool = PoolId(pool.parse().unwrap());
            let target = map.target(pool, namespace.as_bytes(), name.as_bytes()).unwrap();
            assert_eq!(PgId { pool, seed: target.hash }.to_string(), raw, "{line}");
            assert_eq!(target.spg.pg.to_string(), pg, "{line}");
            assert_eq!(target.primary.map_or(-1, |osd| osd.0).to_string(), primary, "{line}");
        }
    }
}

#[test]
fn shards_of_erasure_coded_groups_are_positions_in_the_acting_set() {
    let mut seen = BTreeMap::new();
    for history in &*HISTORIES {
        let map = history.last();
        for (id, pool) in &map.pools {
            for seed in 0..pool.pg_num {
                let placed = map.mapping(PgId { pool: *id, seed }).unwrap();
                let shard = placed.primary_shard;
                // A stand-in primary may be outside the acting set.
                let primary = placed.acting_primary.filter(|osd| placed.acting.contains(osd));
                if !pool.is_erasure() || primary.is_none() {
                    assert_eq!(shard, -1);
                    continue;
                }
                assert_eq!(placed.acting.get(shard as usize).copied(), placed.acting_primary);
                *seen.entry(shard).or_insert(0) += 1;
            }
        }
    }
    assert!(seen.len() > 1, "not only shard 0: {seen:?}");
}

/// What the histories were made for is in them.
#[test]
fn the_histories_hold_every_kind_of_thing() {
    let mut seen = BTreeSet::new();
    for history in &*HISTORIES {
        let mut map = OsdMap::default();
        for bytes in &history.incrementals {
            let before = map.clone();
            map.apply(&Incremental::decode(bytes).unwrap()).unwrap();
            let mut see = |what: &'static str, is_seen: bool| {
                if is_seen {
                    seen.insert(what);
                }
            };
            see("pg_temp", !map.pg_temp.is_empty());
            see("primary_temp", !map.primary_temp.is_empty());
            see("pg_upmap", !map.pg_upmap.is_empty());
            see("pg_upmap_items", !map.pg_upmap_items.is_empty());
            see("pg_upmap_primaries", !map.pg_upmap_primaries.is_empty());
            see("affinity", !map.osd_primary_affinity.is_empty());
            see("reweight", map.osd_weight.iter().any(|w| (1..0x10000).contains(w)));
            see("blocklist", !map.blocklist.is_empty());
            see("range_blocklist", !map.range_blocklist.is_empty());
            see("paused", map.has_flag(map_flag::PAUSERD | map_flag::PAUSEWR));
            see("choose_args", !map.crush.choose_args.is_empty());
            see("removed snapshots", !map.new_removed_snaps.is_empty());
            see("purged snapshots", !map.new_purged_snaps.is_empty());
            see("stretch mode", map.stretch.is_some());
            see("MSR", map.crush.rules.iter().flatten().any(|rule| rule.kind.is_msr()));
            see("node flags", !map.crush_node_flags.is_empty());
            see("fewer OSDs", map.osds.len() < before.osds.len());
            see("max_osd shrinks", map.max_osd() < before.max_osd());
            for (id, pool) in &map.pools {
                see("erasure", pool.is_erasure());
                see("no hashpspool", !pool.has(pool_flag::HASHPSPOOL));
                see("FastEC", pool.has(pool_flag::EC_OPTIMIZATIONS) && pool.nonprimary_shards != 0);
                see("pool snapshots", !pool.snaps.is_empty());
                see("tier", pool.read_tier.is_some() && pool.write_tier.is_some());
                see("quota", pool.quota_max_bytes > 0 && pool.quota_max_objects > 0);
                see("stretch pool", pool.stretch.is_some());
                see("not a power of two", !pool.pg_num.is_power_of_two());
                see("pgp_num behind", pool.pgp_num < pool.pg_num);
                see("resend", pool.last_force_op_resend > Epoch(0));
                let Some(before) = before.pool(*id) else { continue };
                see("split", pool.pg_num > before.pg_num);
                see("merge", pool.pg_num < before.pg_num);
            }
            see("pool gone", before.pools.keys().any(|id| map.pool(*id).is_none()));
        }
    }
    assert_eq!(seen.len(), 31, "{seen:?}");
}

#[test]
fn a_gap_or_another_cluster_is_refused_and_changes_nothing() {
    let history = &HISTORIES[0];
    let before = history.last();
    let mut map = before.clone();
    let gap = Incremental { epoch: Epoch(map.epoch.0 + 2), ..Incremental::after(&map) };
    assert!(matches!(map.apply(&gap), Err(ApplyError::Gap { .. })));
    let other = Incremental { fsid: Default::default(), ..Incremental::after(&map) };
    assert!(matches!(map.apply(&other), Err(ApplyError::WrongCluster { .. })));
    let mut beyond = Incremental::after(&map);
    beyond.weight.insert(OsdId(map.max_osd() as i32), 0);
    beyond.flags = Some(0);
    assert!(matches!(map.apply(&beyond), Err(ApplyError::NoSuchOsd { .. })));
    let mut negative = Incremental::after(&map);
    negative.state.insert(OsdId(-1), 1);
    assert!(matches!(map.apply(&negative), Err(ApplyError::NoSuchOsd { .. })));
    let huge = Incremental { max_osd: Some(i32::MAX as u32), ..Incremental::after(&map) };
    assert!(matches!(map.apply(&huge), Err(ApplyError::Decode(_))));
    let garbled = Incremental { crush: vec![1, 2, 3].into(), ..Incremental::after(&map) };
    assert!(matches!(map.apply(&garbled), Err(ApplyError::Decode(_))));
    assert_eq!(map, before);
}

#[test]
fn every_bit_is_under_the_checksum() {
    let history = &HISTORIES[0];
    let full = history.last().encode(history.features);
    let incremental = history.incrementals.last().unwrap();
    for at in 0..full.len() {
        let mut bytes = full.to_vec();
        bytes[at] ^= 1;
        assert!(OsdMap::decode(&bytes).is_err(), "byte {at}");
    }
    for at in 0..incremental.len() {
        let mut bytes = incremental.clone();
        bytes[at] ^= 1;
        assert!(Incremental::decode(&bytes).is_err(), "byte {at}");
    }
    let mut bytes = full.to_vec();
    bytes[100] ^= 1;
    assert!(matches!(OsdMap::decode(&bytes), Err(DecodeError::Checksum { .. })));
}

#[test]
fn truncation_anywhere_is_an_error() {
    for history in &*HISTORIES {
        let full = history.last().encode(history.features);
        for len in 0..full.len() {
            assert!(OsdMap::decode(&full[..len]).is_err(), "{len} bytes were enough");
        }
        let incremental = history.incrementals.iter().max_by_key(|bytes| bytes.len()).unwrap();
        for len in 0..incremental.len() {
            assert!(Incremental::decode(&incremental[..len]).is_err(), "{len} bytes were enough");
        }
    }
}

/// Puts the right checksum where the wrapper of a map says it is.
fn reseal(bytes: &mut [u8], tail: usize) {
    let at = bytes.len() - tail - 4;
    let computed = crc32c(crc32c(!0, &bytes[..at]), &bytes[at + 4..]);
    bytes[at..at + 4].copy_from_slice(&computed.to_le_bytes());
}

/// How many OSDs there are is no reason to take memory for them, if the map says nothing of each.
#[test]
fn more_osds_than_the_map_tells_of_are_refused() {
    let history = &HISTORIES[0];
    let map = history.last();
    let mut bytes = map.encode(history.features).to_vec();
    // It stands before the list of states, whose length it is.
    let count = (map.max_osd() as u32).to_le_bytes();
    let at = bytes.windows(8).position(|window| window == [count, count].concat()).unwrap();
    bytes[at..at + 4].copy_from_slice(&(1u32 << 20).to_le_bytes());
    reseal(&mut bytes, 0);
    let refused = OsdMap::decode(&bytes);
    assert!(matches!(refused, Err(DecodeError::Invalid { what: "max_osd", .. })), "{refused:?}");
}

/// Bytes that are wrong but well sealed, and sections cut short: an error, or a map that can be asked anything.
#[test]
fn hostile_maps_do_no_harm() {
    for (n, history) in HISTORIES.iter().enumerate() {
        let full = history.last().encode(history.features);
        let mut survivors = 0;
        // Different bytes of each.
        for at in (6 + n..full.len() - 4).step_by(7) {
            let mut bytes = full.to_vec();
            bytes[at] = match survivors % 4 {
                0 => 0xff,
                1 => 0,
                2 => full[at] ^ 0x80,
                _ => full[at].wrapping_add(1),
            };
            reseal(&mut bytes, 0);
            let Ok(map) = OsdMap::decode(&bytes) else { continue };
            survivors += 1;
            if survivors % 8 != 0 {
                continue; // placing is slow in a debug build
            }
            for (id, pool) in &map.pools {
                for seed in (0..pool.pg_num).take(4) {
                    assert!(map.mapping(PgId { pool: *id, seed }).is_some());
                }
                let _ = map.target(*id, b"", b"name");
            }
            let _ = map.encode(history.features);
        }
        assert!(survivors > 300, "{survivors}");
    }
}

#[test]
fn hostile_incrementals_do_no_harm() {
    for history in &*HISTORIES {
        let mut map = OsdMap::default();
        for (n, good) in history.incrementals.iter().enumerate() {
            // A few bytes of each epoch, others in each.
            for at in (6 + n % 97..good.len() - 8).step_by(97) {
                let mut bytes = good.clone();
                bytes[at] = if n % 2 == 0 { 0xff } else { good[at] ^ 0x10 };
                reseal(&mut bytes, 4);
                if let Ok(inc) = Incremental::decode(&bytes) {
                    let mut other = map.clone();
                    if other.apply(&inc).is_ok() {
                        for id in other.pools.keys() {
                            let _ = other.target(*id, b"", b"name");
                        }
                    }
                }
            }
            map.apply(&Incremental::decode(good).unwrap()).unwrap();
        }
    }
}

#[test]
fn what_a_later_release_appends_is_skipped() {
    let map = HISTORIES[0].last();
    // In the newest form known here; then the client section grows by 5 bytes, and so does its version. The wrapper's
    // header takes 6 bytes, then comes the section's.
    let mut bytes = map.encode(u64::MAX).to_vec();
    let grow = |bytes: &mut Vec<u8>, at: usize, by: u32| {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) + by;
        bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        len as usize
    };
    bytes[6] = 99;
    let client_end = 12 + grow(&mut bytes, 8, 5);
    bytes.splice(client_end - 5..client_end - 5, *b"later");
    grow(&mut bytes, 2, 5);
    reseal(&mut bytes, 0);
    assert!(OsdMap::decode(&bytes).unwrap() == map);
}

#[test]
fn maps_of_before_nautilus_are_refused_in_words() {
    let classic = [6, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let error = OsdMap::decode(&classic).unwrap_err();
    assert!(error.to_string().contains("older than Nautilus"), "{error}");
}
