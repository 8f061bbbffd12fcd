//! The words everything else is written in: ids, epochs, addresses, times.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Add;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $put:ident, $read:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Decode for $name {
            #[inline]
            fn decode(r: &mut Reader<'_>) -> Result<Self> {
                r.$read().map(Self)
            }
        }

        impl Encode for $name {
            #[inline]
            fn encode(&self, w: &mut BytesMut) {
                w.$put(self.0);
            }
        }
    };
}

id!(
    /// An OSD's number.
    OsdId(i32), put_i32_le, i32
);
id!(
    /// A pool's number. Never reused.
    PoolId(i64), put_i64_le, i64
);
id!(
    /// A version of a map: each change of the cluster makes the next one.
    Epoch(u32), put_u32_le, u32
);
id!(
    /// A request's number within one client instance.
    Tid(u64), put_u64_le, u64
);
id!(
    /// A snapshot's number within a pool; see [`SnapId::HEAD`].
    SnapId(u64), put_u64_le, u64
);

impl SnapId {
    /// The writable present of an object (`CEPH_NOSNAP`).
    pub const HEAD: Self = Self(u64::MAX - 1);
    /// All clones of an object (`CEPH_SNAPDIR`), for listing its snapshots.
    pub const DIR: Self = Self(u64::MAX);
}

/// A cluster's identity.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fsid(pub [u8; 16]);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Decode for Fsid {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.array().map(Self)
    }
}

impl Encode for Fsid {
    fn encode(&self, w: &mut BytesMut) {
        w.put_slice(&self.0);
    }
}

/// What kind of entity speaks (`CEPH_ENTITY_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityType(pub u8);

impl EntityType {
    /// A monitor.
    pub const MON: Self = Self(0x01);
    /// A metadata server.
    pub const MDS: Self = Self(0x02);
    /// An object storage daemon.
    pub const OSD: Self = Self(0x04);
    /// A client.
    pub const CLIENT: Self = Self(0x08);
    /// A manager.
    pub const MGR: Self = Self(0x10);
    /// The authentication service itself, in tickets.
    pub const AUTH: Self = Self(0x20);

    /// The name that stands before the dot in `client.admin`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MON => "mon",
            Self::MDS => "mds",
            Self::OSD => "osd",
            Self::CLIENT => "client",
            Self::MGR => "mgr",
            Self::AUTH => "auth",
            _ => "unknown",
        }
    }
}

/// An instance of an entity: a type and a number (`entity_name_t`): `osd.3`, `client.4711`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityName {
    /// What it is.
    pub kind: EntityType,
    /// Its number; for a client its global id, -1 while it has none.
    pub num: i64,
}

impl fmt::Display for EntityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.name(), self.num)
    }
}

impl Decode for EntityName {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { kind: EntityType(r.u8()?), num: r.i64()? })
    }
}

impl Encode for EntityName {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(self.kind.0);
        w.put_i64_le(self.num);
    }
}

/// Which protocol an address speaks (`entity_addr_t::TYPE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrType(pub u32);

impl AddrType {
    /// No address.
    pub const NONE: Self = Self(0);
    /// Messenger v1, which is not spoken here.
    pub const LEGACY: Self = Self(1);
    /// Messenger v2.
    pub const MSGR2: Self = Self(2);
    /// Any protocol (blocklists).
    pub const ANY: Self = Self(3);
    /// A range of addresses (range blocklists); the nonce holds the prefix length.
    pub const CIDR: Self = Self(4);
}

/// An address of one instance of an entity (`entity_addr_t`): socket address, protocol, and a nonce that tells
/// instances on the same socket address apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityAddr {
    /// The protocol.
    pub kind: AddrType,
    /// The instance.
    pub nonce: u32,
    /// Where; `None` is the blank address.
    pub addr: Option<SocketAddr>,
}

impl EntityAddr {
    /// A messenger v2 address.
    pub fn msgr2(addr: SocketAddr, nonce: u32) -> Self {
        Self { kind: AddrType::MSGR2, nonce, addr: Some(addr) }
    }
}

impl EntityAddr {
    /// Without its kind, as `ceph osd blocklist` takes it: the command of Ceph 18 takes no `any:`.
    pub fn bare(&self) -> String {
        self.addr.map_or_else(|| "-".to_owned(), |socket| format!("{socket}/{}", self.nonce))
    }
}

impl fmt::Display for EntityAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(addr) = self.addr else { return f.write_str("-") };
        match self.kind {
            AddrType::LEGACY => f.write_str("v1:")?,
            AddrType::MSGR2 => f.write_str("v2:")?,
            AddrType::ANY => f.write_str("any:")?,
            AddrType::CIDR => return write!(f, "cidr:{}/{}", addr.ip(), self.nonce),
            _ => f.write_str("none:")?,
        }
        write!(f, "{addr}/{}", self.nonce)
    }
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Reads what follows `ss_family` in a Linux `sockaddr`: port and address are in network order.
fn decode_sockaddr(family: u16, r: &mut Reader<'_>) -> Result<Option<SocketAddr>> {
    match family {
        0 => Ok(None),
        AF_INET => {
            let port = r.array::<2>().map(u16::from_be_bytes)?;
            Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(r.array::<4>()?)), port)))
        }
        AF_INET6 => {
            let port = r.array::<2>().map(u16::from_be_bytes)?;
            let flow = r.array::<4>().map(u32::from_be_bytes)?;
            let ip = Ipv6Addr::from(r.array::<16>()?);
            Ok(Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, r.u32()?))))
        }
        family => Err(DecodeError::Invalid { what: "address family", value: family.into() }),
    }
}

impl Decode for EntityAddr {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        match r.u8()? {
            // Before Nautilus: a 32-bit zero, the nonce, and a whole sockaddr_storage with a big-endian family.
            0 => {
                r.skip(3)?;
                let nonce = r.u32()?;
                let mut storage = r.sub(128, "sockaddr_storage")?;
                let family = storage.array::<2>().map(u16::from_be_bytes)?;
                let addr = decode_sockaddr(family, &mut storage)?;
                let kind = if addr.is_some() { AddrType::LEGACY } else { AddrType::NONE };
                Ok(Self { kind, nonce, addr })
            }
            1 => r.envelope("entity_addr_t", 1, |_, r| {
                let kind = AddrType(r.u32()?);
                let nonce = r.u32()?;
                let len = r.u32()? as usize;
                let mut sockaddr = r.sub(len, "sockaddr")?;
                let addr = match len {
                    0 => None,
                    _ => decode_sockaddr(sockaddr.u16()?, &mut sockaddr)?,
                };
                Ok(Self { kind, nonce, addr })
            }),
            marker => Err(DecodeError::Invalid { what: "address marker", value: marker.into() }),
        }
    }
}

impl Encode for EntityAddr {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_envelope(1, 1, |w| {
            w.put_u32_le(self.kind.0);
            w.put_u32_le(self.nonce);
            match self.addr {
                None => w.put_u32_le(0),
                Some(SocketAddr::V4(addr)) => {
                    w.put_u32_le(16);
                    w.put_u16_le(AF_INET);
                    w.put_slice(&addr.port().to_be_bytes());
                    w.put_slice(&addr.ip().octets());
                    w.put_bytes(0, 8);
                }
                Some(SocketAddr::V6(addr)) => {
                    w.put_u32_le(28);
                    w.put_u16_le(AF_INET6);
                    w.put_slice(&addr.port().to_be_bytes());
                    w.put_slice(&addr.flowinfo().to_be_bytes());
                    w.put_slice(&addr.ip().octets());
                    w.put_u32_le(addr.scope_id());
                }
            }
        });
    }
}

/// All addresses of one entity (`entity_addrvec_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityAddrs(pub Vec<EntityAddr>);

impl EntityAddrs {
    /// The messenger v2 address, if it has one.
    pub fn msgr2(&self) -> Option<EntityAddr> {
        self.0.iter().copied().find(|addr| addr.kind == AddrType::MSGR2 && addr.addr.is_some())
    }
}

impl fmt::Display for EntityAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, addr) in self.0.iter().enumerate() {
            write!(f, "{}{addr}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

impl Decode for EntityAddrs {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        // 0 and 1 are a single address, of either form.
        match r.peek().first() {
            Some(2) => {
                r.skip(1)?;
                r.list(1, EntityAddr::decode).map(Self)
            }
            _ => EntityAddr::decode(r).map(|addr| Self(vec![addr])),
        }
    }
}

impl Encode for EntityAddrs {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(2);
        w.put_count(self.0.len());
        for addr in &self.0 {
            w.put_value(addr);
        }
    }
}

/// A placement group (`pg_t`): a pool and a number below its `pg_num`, or, before folding, any 32-bit hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgId {
    /// The pool.
    pub pool: PoolId,
    /// The placement seed.
    pub seed: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool, self.seed)
    }
}

impl Decode for PgId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = r.u8()?;
        if version != 1 {
            return Err(DecodeError::Invalid { what: "pg_t version", value: version.into() });
        }
        let pg = Self { pool: PoolId(r.u64()? as i64), seed: r.u32()? };
        r.skip(4)?; // the preferred OSD, unused since Nautilus
        Ok(pg)
    }
}

impl Encode for PgId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_u64_le(self.pool.0 as u64);
        w.put_u32_le(self.seed);
        w.put_i32_le(-1);
    }
}

/// A wall-clock time as Ceph encodes it (`utime_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UTime {
    /// Seconds since 1970.
    pub sec: u32,
    /// Nanoseconds of the second.
    pub nsec: u32,
}

impl From<Duration> for UTime {
    /// From the time since 1970. What is later than the last second that there is counts as that.
    fn from(since_1970: Duration) -> Self {
        let sec = u32::try_from(since_1970.as_secs()).unwrap_or(u32::MAX);
        Self { sec, nsec: since_1970.subsec_nanos() }
    }
}

impl From<UTime> for Duration {
    fn from(time: UTime) -> Self {
        Self::new(time.sec.into(), 0) + Self::from_nanos(time.nsec.into())
    }
}

impl Decode for UTime {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { sec: r.u32()?, nsec: r.u32()? })
    }
}

impl Encode for UTime {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(self.sec);
        w.put_u32_le(self.nsec);
    }
}

/// A position in the log of a placement group (`eversion_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EVersion {
    /// The map under which it was written.
    pub epoch: Epoch,
    /// The entry.
    pub version: u64,
}

impl Decode for EVersion {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = r.u64()?;
        Ok(Self { epoch: r.get()?, version })
    }
}

impl Encode for EVersion {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.version);
        w.put_value(&self.epoch);
    }
}

/// A monotonic time: how long after an origin that whoever drives the state machines chose once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub Duration);

impl Instant {
    /// How much later this is than `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// Where random bytes come from: the operating system, or a seed in tests and simulations.
pub trait Entropy: Send {
    /// Fills the whole buffer.
    fn fill(&mut self, bytes: &mut [u8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denc::decode;

    #[test]
    fn no_time_is_later_than_the_last() {
        let last = UTime { sec: u32::MAX, nsec: 1 };
        assert_eq!(UTime::from(Duration::new(u64::from(u32::MAX), 1)), last);
        assert_eq!(UTime::from(Duration::new(1 << 32, 1)), last);
    }

    #[test]
    fn addresses_round_trip() {
        let addrs = EntityAddrs(vec![
            EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], 3300)), 7),
            EntityAddr::msgr2("[2001:db8::1]:6789".parse().unwrap(), u32::MAX),
            EntityAddr::default(),
        ]);
        assert_eq!(decode::<EntityAddrs>(&addrs.to_bytes(), "addrs"), Ok(addrs.clone()));
        assert_eq!(addrs.to_string(), "[v2:127.0.0.1:3300/7,v2:[2001:db8::1]:6789/4294967295,-]");
    }

    #[test]
    fn a_single_address_is_a_vector_of_one() {
        let addr = EntityAddr::msgr2(SocketAddr::from(([10, 0, 0, 1], 1)), 2);
        assert_eq!(decode::<EntityAddrs>(&addr.to_bytes(), "addrs"), Ok(EntityAddrs(vec![addr])));
    }

    #[test]
    fn fsid_prints_as_a_uuid() {
        let fsid = Fsid(*b"\x45\x7e\xb6\x76\0\0\x40\0\x80\0\0\0\0\0\0\x01");
        assert_eq!(fsid.to_string(), "457eb676-0000-4000-8000-000000000001");
    }
}
