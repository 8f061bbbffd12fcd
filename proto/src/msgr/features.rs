//! The features of Ceph's data structures that we tell a peer (`src/include/ceph_features.h`).
//!
//! A peer encodes what it sends for what the receiver says it can read, so each bit here is a promise that a decoder
//! keeps. Bits that only file systems, managers or OSDs among themselves need are left out. Bits have been reused: the
//! second life of one counts only beside [`JEWEL`], the third only beside [`MIMIC`] as well.

/// `SERVER_JEWEL`: marks reused bits as being in their second life.
const JEWEL: u64 = 1 << 57;
/// `SERVER_MIMIC`: marks reused bits as being in their third life.
const MIMIC: u64 = 1 << 28 | JEWEL;

/// Messenger v2 addresses; no messenger v2 without it.
pub const MSG_ADDR2: u64 = 1 << 59;
/// Luminous: upmap, backoffs, choose_args, `resend on split`.
pub const SERVER_LUMINOUS: u64 = 1 << 21 | JEWEL;
/// Nautilus: addresses with a type.
pub const SERVER_NAUTILUS: u64 = 1 << 2 | MIMIC;
/// Octopus.
pub const SERVER_OCTOPUS: u64 = 1 << 16 | MIMIC;
/// Reef: `pg_upmap_primaries` in OSD maps.
pub const SERVER_REEF: u64 = 1 << 31 | MIMIC;
/// Squid.
pub const SERVER_SQUID: u64 = 1 << 49 | JEWEL;
/// Tentacle: `pg_pool_t` version 32.
pub const SERVER_TENTACLE: u64 = 1 << 50 | JEWEL;
/// CRUSH rules that retry over multiple steps (MSR).
pub const CRUSH_MSR: u64 = 1 << 38 | JEWEL;

/// All that we can do, each with what it stands for.
const TABLE: &[(u64, &str)] = &[
    (1 << 0, "UID: required by every Ceph server"),
    (1 << 1, "NOSRCADDR: addresses are told in the handshake, not in messages"),
    (SERVER_NAUTILUS, "SERVER_NAUTILUS: entity_addr_t with its type"),
    (1 << 4, "SUBSCRIBE2: subscriptions with start and flags"),
    (1 << 5, "MONNAMES: monitors have names in monitor maps"),
    (1 << 6, "RECONNECT_SEQ: required by every Ceph server"),
    (1 << 8, "OBJECTLOCATOR: object locators with key and namespace"),
    (1 << 9, "PGID64: pg_t with 64-bit pools"),
    (1 << 10, "INCSUBOSDMAP: incremental OSD maps by subscription"),
    (1 << 11, "PGPOOL3: versioned pg_pool_t"),
    (1 << 12, "OSDREPLYMUX: replies are matched by transaction id"),
    (1 << 13, "OSDENC: versioned OSD structures"),
    (1 << 14 | JEWEL, "SERVER_KRAKEN"),
    (1 << 15, "MONENC: versioned monitor structures"),
    (SERVER_OCTOPUS, "SERVER_OCTOPUS"),
    (1 << 18, "CRUSH_TUNABLES"),
    (1 << 20 | MIMIC, "SERVER_PACIFIC"),
    (SERVER_LUMINOUS, "SERVER_LUMINOUS: upmap, backoffs, choose_args, resend on split"),
    (1 << 23, "MSG_AUTH: required by every Ceph server"),
    (1 << 25, "CRUSH_TUNABLES2"),
    (1 << 26, "CREATEPOOLID: pool creation tells the new id"),
    (MIMIC, "SERVER_MIMIC: third life of reused bits"),
    (1 << 30, "OSDHASHPSPOOL: pools do not share placement seeds"),
    (SERVER_REEF, "SERVER_REEF: pg_upmap_primaries"),
    (1 << 32 | MIMIC, "STRETCH_MODE: stretch fields of maps and pools"),
    (1 << 33 | MIMIC, "SERVER_QUINCY"),
    (1 << 34 | MIMIC, "RANGE_BLOCKLIST: blocklisted networks"),
    (1 << 35, "OSD_CACHEPOOL: cache tiers and redirected replies"),
    (1 << 36, "CRUSH_V2: set_* steps, the current indep algorithm"),
    (CRUSH_MSR, "CRUSH_MSR"),
    (1 << 39, "OSDMAP_ENC: OSD maps in sections, with a checksum"),
    (1 << 41, "CRUSH_TUNABLES3 and primary affinity"),
    (1 << 42, "MSGR_KEEPALIVE2"),
    (1 << 43, "OSD_POOLRESEND: forced resends by pool"),
    (1 << 46, "OSD_FADVISE_FLAGS: hints in ops"),
    (1 << 48, "CRUSH_V4: straw2 buckets"),
    (SERVER_SQUID, "SERVER_SQUID"),
    (SERVER_TENTACLE, "SERVER_TENTACLE: pg_pool_t version 32"),
    (1 << 56, "NEW_OSDOP_ENCODING: MOSDOp and pg_pool_t of Luminous"),
    (JEWEL, "SERVER_JEWEL: stateful subscriptions; second life of reused bits"),
    (1 << 58, "CRUSH_TUNABLES5 and MOSDOpReply of Jewel"),
    (MSG_ADDR2, "MSG_ADDR2: entity_addrvec_t"),
    (1 << 60, "OSD_RECOVERY_DELETES: a flag of OSD maps"),
    (1 << 61, "CEPHX_V2: authorizers with a challenge"),
];

/// What we tell peers that we can do.
pub const SUPPORTED: u64 = supported();

/// What we require of peers: they know messenger v2 addresses, as Ceph requires it too.
pub const REQUIRED: u64 = MSG_ADDR2;

const fn supported() -> u64 {
    let (mut bits, mut table) = (0, TABLE);
    while let [(bit, _), rest @ ..] = table {
        bits |= *bit;
        table = rest;
    }
    bits
}

/// Whether `features` has all bits of `feature`, those that mark its life included.
pub fn has(features: u64, feature: u64) -> bool {
    features & feature == feature
}

/// Names what is in `features`, for error messages.
pub(super) fn names(features: u64) -> String {
    let named = |bit: u64| {
        // A reused bit is named by its own bit, not by those that mark its life.
        let own = |mask: u64| if mask & !MIMIC == 0 { mask } else { mask & !MIMIC };
        match TABLE.iter().find(|(mask, _)| own(*mask) & bit != 0) {
            Some((_, reason)) => reason.split(':').next().unwrap_or(reason).to_owned(),
            None => format!("bit {}", bit.trailing_zeros()),
        }
    };
    let bits = (0..64).map(|shift| 1u64 << shift).filter(|bit| features & bit != 0);
    bits.map(named).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word() {
        // Nothing that Tentacle 20.2 does not advertise (seen on the wire), no reserved bits.
        assert_eq!(
            SUPPORTED & !0x3f07_ffff_fffd_ffff,
            0,
            "{:#x}",
            SUPPORTED & !0x3f07_ffff_fffd_ffff
        );
        // What a Pacific 16.2 monitor requires in its SERVER_IDENT (seen on the wire).
        assert!(has(SUPPORTED, 0x0c01_0200_4204_0000));
        assert_eq!(SUPPORTED >> 62, 0);
    }

    #[test]
    fn bits_have_names() {
        assert_eq!(names(1 << 38 | 1 << 50 | 1 << 52), "CRUSH_MSR, SERVER_TENTACLE, bit 52");
    }
}
