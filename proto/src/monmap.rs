//! The monitor map: who the monitors are and where (`src/mon/MonMap.h`).

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::types::{EntityAddrs, Epoch, Fsid, UTime};

/// The monitors of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonMap {
    /// Grows with each change.
    pub epoch: Epoch,
    /// The cluster.
    pub fsid: Fsid,
    /// When this epoch was made.
    pub last_changed: UTime,
    /// When the cluster was.
    pub created: UTime,
    /// What all monitors must know, as bits: one for each release since Kraken, and a few more.
    pub persistent_features: u64,
    /// What an administrator has switched on.
    pub optional_features: u64,
    /// The monitors; a monitor's place is its rank.
    pub mons: Vec<Mon>,
    /// The oldest release of a monitor: 16 is Pacific.
    pub min_release: u8,
    /// Which key types count; `None` before 19.2.6 and 20.2.4, which know only one.
    pub auth: Option<AuthPolicy>,
}

/// One monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mon {
    /// Its name.
    pub name: String,
    /// Its addresses; one of type msgr2 if we can talk to it.
    pub addrs: EntityAddrs,
    /// Clients try the monitors of the lowest value first.
    pub priority: u16,
    /// How many clients of that priority it wants, in relation to the others; 0 everywhere is the default.
    pub weight: u16,
}

/// The cluster's rules for key types, as numbers of [`crate::cephx::KeyType::from_code`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthPolicy {
    /// When it grows, all service tickets are worthless.
    pub epoch: Epoch,
    /// The type of services' rotating secrets.
    pub service_cipher: u32,
    /// The types that entities' keys may have.
    pub allowed_ciphers: Vec<u32>,
    /// The type of new keys.
    pub preferred_cipher: u32,
}

impl MonMap {
    /// The monitor with this name.
    pub fn mon(&self, name: &str) -> Option<&Mon> {
        self.mons.iter().find(|mon| mon.name == name)
    }
}

impl Decode for MonMap {
    /// Any map of Ceph 14 or later for a client that has the feature bits of Nautilus.
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("MonMap", 10, |version, r| {
            if version < 6 {
                return Err(DecodeError::Invalid { what: "MonMap version", value: version.into() });
            }
            let (fsid, epoch) = (r.get()?, r.get()?);
            let (last_changed, created) = (r.get()?, r.get()?);
            let (persistent_features, optional_features) = (features(r)?, features(r)?);
            // The name under which it stands counts; Ceph writes it again beside its addresses.
            let mut by_name: BTreeMap<String, Mon> = r.map(10, |r| {
                let name = r.string()?;
                Ok((name.clone(), Mon { name, ..r.get()? }))
            })?;
            let mons = r.list(4, |r| {
                let missing = DecodeError::Invalid { what: "MonMap rank", value: 0 };
                by_name.remove(&r.string()?).ok_or(missing)
            })?;
            let min_release = if version >= 7 { r.u8()? } else { 0 };
            if version >= 9 {
                r.list(4, Reader::u32)?; // removed ranks
                r.skip(1)?; // the election strategy
                r.list(4, Reader::string)?; // monitors that must not lead
                r.skip(1)?; // whether in stretch mode
                r.string()?; // its tiebreaker
                r.list(4, Reader::string)?; // monitors marked down in it
            }
            let auth = if version >= 10 { Some(r.get()?) } else { None };
            Ok(Self {
                epoch,
                fsid,
                last_changed,
                created,
                persistent_features,
                optional_features,
                mons,
                min_release,
                auth,
            })
        })
    }
}

fn features(r: &mut Reader<'_>) -> Result<u64> {
    r.envelope("mon_feature_t", 1, |_, r| r.u64())
}

impl Decode for Mon {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("mon_info_t", 6, |version, r| {
            Ok(Self {
                name: r.string()?,
                addrs: r.get()?,
                priority: if version >= 2 { r.u16()? } else { 0 },
                weight: if version >= 4 { r.u16()? } else { 0 },
            })
        })
    }
}

impl Decode for AuthPolicy {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            epoch: r.get()?,
            service_cipher: r.u32()?,
            allowed_ciphers: r.list(4, Reader::u32)?,
            preferred_cipher: r.u32()?,
        })
    }
}

impl Encode for MonMap {
    /// As Ceph 16 does, which has no [`MonMap::auth`].
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(9, 6, |w| {
            w.put_value(&self.fsid);
            w.put_value(&self.epoch);
            w.put_value(&self.last_changed);
            w.put_value(&self.created);
            w.put_envelope(1, 1, |w| w.put_u64_le(self.persistent_features));
            w.put_envelope(1, 1, |w| w.put_u64_le(self.optional_features));
            let by_name: BTreeMap<&str, &Mon> =
                self.mons.iter().map(|mon| (mon.name.as_str(), mon)).collect();
            w.put_count(by_name.len());
            for (name, mon) in by_name {
                w.put_str(name);
                w.put_value(mon);
            }
            w.put_count(self.mons.len());
            for mon in &self.mons {
                w.put_str(&mon.name);
            }
            w.put_u8(self.min_release);
            w.put_count(0); // removed ranks
            w.put_u8(1); // the classic election strategy
            w.put_count(0); // nobody is forbidden to lead
            w.put_bool(false); // no stretch mode,
            w.put_str(""); // so no tiebreaker
            w.put_count(0); // and nobody marked down
        });
    }
}

impl Encode for Mon {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(5, 1, |w| {
            w.put_str(&self.name);
            w.put_value(&self.addrs);
            w.put_u16_le(self.priority);
            w.put_u16_le(self.weight);
            w.put_count(0); // its place in the CRUSH hierarchy
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denc::decode;

    const ONE_16: &[u8] = include_bytes!("../../fixtures/monmap/ceph-16.2.15-one.bin");
    const MADE_16: &[u8] = include_bytes!("../../fixtures/monmap/monmaptool-16.2.15.bin");
    const THREE_18: &[u8] = include_bytes!("../../fixtures/monmap/ceph-18.2.7-three.bin");
    const THREE_20: &[u8] = include_bytes!("../../fixtures/monmap/ceph-20.2.4-three.bin");
    const MADE_20: &[u8] = include_bytes!("../../fixtures/monmap/monmaptool-20.2.4.bin");

    fn read(bytes: &[u8]) -> MonMap {
        decode(bytes, "MonMap").unwrap()
    }

    fn shown(map: &MonMap) -> Vec<String> {
        map.mons.iter().map(|mon| format!("{} {}", mon.name, mon.addrs)).collect()
    }

    #[test]
    fn maps_of_each_release_are_read() {
        let map = read(ONE_16);
        assert_eq!(map.fsid.to_string(), "509ba66c-669a-4f77-8777-d7356b66b070");
        assert_eq!((map.epoch, map.min_release, &map.auth), (Epoch(1), 16, &None));
        assert_eq!(shown(&map), ["a [v2:127.0.0.1:21000/0]"]);

        let map = read(THREE_18);
        assert_eq!((map.epoch, map.min_release, &map.auth), (Epoch(1), 18, &None));
        let three =
            ["a [v2:127.0.0.1:21200/0]", "b [v2:127.0.0.1:21201/0]", "c [v2:127.0.0.1:21202/0]"];
        assert_eq!(shown(&map), three);

        // `ceph mon dump` says: auth_epoch 5, auth_service_cipher aes256k, auth_allowed_ciphers aes, aes256k.
        let map = read(THREE_20);
        assert_eq!((map.epoch, map.min_release), (Epoch(3), 20));
        assert_eq!(shown(&map), three);
        let auth = AuthPolicy {
            epoch: Epoch(5),
            service_cipher: 2,
            allowed_ciphers: vec![1, 2],
            preferred_cipher: 2,
        };
        assert_eq!(map.auth, Some(auth));
    }

    #[test]
    fn maps_of_monmaptool_are_read() {
        let map = read(MADE_16);
        assert_eq!(map.fsid.to_string(), "11111111-2222-3333-4444-555555555555");
        assert_eq!(
            shown(&map),
            [
                "a [v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]",
                "c [v1:10.0.0.3:6789/0]",
                "b [v2:[fd00::2]:3300/0]"
            ]
        );
        assert_eq!(map.mon("b").unwrap().addrs.msgr2().unwrap().to_string(), "v2:[fd00::2]:3300/0");
        assert_eq!(map.mon("c").unwrap().addrs.msgr2(), None);

        let auth = read(MADE_20).auth.unwrap();
        assert_eq!((auth.service_cipher, auth.preferred_cipher), (1, 2));
        assert_eq!(auth.allowed_ciphers, [1, 2]);
    }

    #[test]
    fn what_ceph_16_wrote_is_written_the_same() {
        for bytes in [ONE_16, MADE_16] {
            assert_eq!(read(bytes).to_bytes(), bytes);
        }
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        for bytes in [ONE_16, MADE_16, THREE_18, THREE_20, MADE_20] {
            for len in 0..bytes.len() {
                assert!(decode::<MonMap>(&bytes[..len], "MonMap").is_err(), "{len} bytes");
            }
        }
    }

    #[test]
    fn a_newer_releases_tail_is_skipped() {
        let mut bytes = THREE_20.to_vec();
        bytes[0] = 11;
        let len = u32::from_le_bytes(bytes[2..6].try_into().unwrap()) + 9;
        bytes[2..6].copy_from_slice(&len.to_le_bytes());
        bytes.extend(b"something");
        assert_eq!(read(&bytes), read(THREE_20));
    }

    #[test]
    fn a_rank_without_a_monitor_is_an_error() {
        let mut bytes = ONE_16.to_vec();
        let rank = bytes.iter().rposition(|byte| *byte == b'a').unwrap();
        bytes[rank] = b'x';
        assert!(decode::<MonMap>(&bytes, "MonMap").is_err());
    }
}
