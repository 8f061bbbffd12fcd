//! The name of whoever authenticates: `client.admin`.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::types::EntityType;

/// Who authenticates (Ceph's `EntityName`): a kind and a name of its own choosing. Not [`crate::types::EntityName`],
/// which is a number that the cluster gives to one instance of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entity {
    /// What it is.
    pub kind: EntityType,
    /// What stands after the dot.
    pub id: String,
}

impl Entity {
    /// The client `client.ID`.
    pub fn client(id: impl Into<String>) -> Self {
        Self { kind: EntityType::CLIENT, id: id.into() }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.name(), self.id)
    }
}

/// A name that is not of the form `client.admin`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a Ceph entity: a kind, a dot and a name, like client.admin")]
pub struct BadEntity(String);

impl FromStr for Entity {
    type Err = BadEntity;

    fn from_str(name: &str) -> std::result::Result<Self, BadEntity> {
        let (kind, id) = name.split_once('.').ok_or_else(|| BadEntity(name.to_owned()))?;
        let kind = KINDS
            .into_iter()
            .find(|known| known.name() == kind)
            .ok_or_else(|| BadEntity(name.to_owned()))?;
        Ok(Self { kind, id: id.to_owned() })
    }
}

const KINDS: [EntityType; 6] = [
    EntityType::MON,
    EntityType::MDS,
    EntityType::OSD,
    EntityType::CLIENT,
    EntityType::MGR,
    EntityType::AUTH,
];

impl Decode for Entity {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let kind = r.u32()?;
        let kind = u8::try_from(kind)
            .map_err(|_| DecodeError::Invalid { what: "entity type", value: kind.into() })?;
        Ok(Self { kind: EntityType(kind), id: r.string()? })
    }
}

impl Encode for Entity {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(self.kind.0.into());
        w.put_str(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        assert_eq!("client.admin".parse(), Ok(Entity::client("admin")));
        assert_eq!("client.a.b".parse(), Ok(Entity::client("a.b")));
        assert_eq!("mon.".parse(), Ok(Entity { kind: EntityType::MON, id: String::new() }));
        for bad in ["admin", "", "user.x", ".x"] {
            assert!(bad.parse::<Entity>().is_err(), "{bad} was taken");
        }
    }
}
