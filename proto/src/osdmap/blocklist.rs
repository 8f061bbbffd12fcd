//! Who is fenced: `OSDMap::is_blocklisted`.

use std::net::{IpAddr, SocketAddr};

use super::Contents;
use crate::types::{AddrType, EntityAddr, EntityAddrs};

impl Contents {
    /// Whether any of a client's addresses is blocklisted: that instance of it, everything on its host, or the range
    /// of addresses that the host is in.
    pub fn is_blocklisted(&self, addrs: &EntityAddrs) -> bool {
        if self.blocklist.is_empty() && self.range_blocklist.is_empty() {
            return false;
        }
        addrs.0.iter().any(|addr| self.is_addr_blocklisted(addr))
    }

    fn is_addr_blocklisted(&self, addr: &EntityAddr) -> bool {
        // Entries name no protocol, so that they fence a client whichever it speaks.
        let instance = EntityAddr { kind: AddrType::ANY, ..*addr };
        if self.blocklist.contains_key(&instance) {
            return true;
        }
        let Some(socket) = addr.addr else { return false };
        let mut host = socket;
        host.set_port(0);
        let host = EntityAddr { kind: AddrType::ANY, nonce: 0, addr: Some(host) };
        self.blocklist.contains_key(&host)
            || self.range_blocklist.keys().any(|range| covers(range, socket))
    }
}

/// Whether a range, whose nonce is the length of its prefix, covers an address.
fn covers(range: &EntityAddr, addr: SocketAddr) -> bool {
    let Some(base) = range.addr else { return false };
    let (base, addr, bits) = match (base.ip(), addr.ip()) {
        (IpAddr::V4(base), IpAddr::V4(addr)) => {
            (u128::from(base.to_bits()), u128::from(addr.to_bits()), 32)
        }
        (IpAddr::V6(base), IpAddr::V6(addr)) => (base.to_bits(), addr.to_bits(), 128u32),
        _ => return false,
    };
    let free = bits.saturating_sub(range.nonce);
    (base ^ addr).checked_shr(free).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UTime;

    fn addr(text: &str, nonce: u32) -> EntityAddr {
        EntityAddr::msgr2(text.parse().unwrap(), nonce)
    }

    fn entry(text: &str, nonce: u32) -> (EntityAddr, UTime) {
        (EntityAddr { kind: AddrType::ANY, ..addr(text, nonce) }, UTime::default())
    }

    #[test]
    fn an_instance_a_host_and_a_range() {
        let map = Contents {
            blocklist: [entry("10.0.0.1:0", 77), entry("10.0.0.2:0", 0)].into(),
            range_blocklist: [entry("10.1.2.0:0", 23), entry("[2001:db8:1::]:0", 47)].into(),
            ..Contents::default()
        };
        let hit = |text: &str, nonce| map.is_blocklisted(&EntityAddrs(vec![addr(text, nonce)]));
        assert!(hit("10.0.0.1:0", 77));
        assert!(!hit("10.0.0.1:0", 78));
        assert!(hit("10.0.0.2:6800", 5), "everything on that host");
        assert!(hit("10.1.3.255:0", 5), "the other half of the /23");
        assert!(!hit("10.1.4.0:0", 5));
        assert!(hit("[2001:db8:0::5]:0", 5), "the first half of the /47");
        assert!(!hit("[2001:db8:2::5]:0", 5));
        let both = EntityAddrs(vec![addr("10.9.9.9:0", 1), addr("10.0.0.1:0", 77)]);
        assert!(map.is_blocklisted(&both), "any of its addresses");
        assert!(!map.is_blocklisted(&EntityAddrs::default()));
    }

    #[test]
    fn odd_prefixes() {
        let hit =
            |base: &str, bits, addr: &str| covers(&entry(base, bits).0, addr.parse().unwrap());
        assert!(hit("10.0.0.1:0", 0, "192.168.0.1:5"), "a /0 covers all");
        assert!(!hit("10.0.0.1:0", 0, "[::1]:5"), "of its family");
        assert!(hit("10.0.0.1:0", 32, "10.0.0.1:5"));
        assert!(!hit("10.0.0.1:0", 32, "10.0.0.2:5"));
        assert!(!hit("10.0.0.1:0", u32::MAX, "10.0.0.2:5"), "no overflow");
        assert!(hit("[::1]:0", 128, "[::1]:5"));
        assert!(hit("[::1]:0", 0, "[2001::1]:5"));
    }
}
