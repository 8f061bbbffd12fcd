//! What a server offers: devices by name.

use std::sync::Arc;

use crate::device::{Device, Geometry};
use crate::limits;
use crate::wire::transmission as flag;

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// The name clients ask for.
    pub name: String,
    /// A few words for people; may be empty.
    pub description: String,
    /// The device.
    pub device: Arc<dyn Device>,
}

impl Export {
    /// A device under a name, without a description.
    pub fn new(name: impl Into<String>, device: impl Device) -> Self {
        Self { name: name.into(), description: String::new(), device: Arc::new(device) }
    }
}

/// Why exports cannot be offered together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExportsError {
    /// Nothing to offer.
    #[error("there is nothing to export")]
    None,
    /// Two have the same name.
    #[error("two exports have the name {0:?}")]
    Duplicate(String),
    /// A name or description that the protocol has no room for.
    #[error("the name or description of export {0:?} has a NUL or more than {max} bytes", max = limits::STRING_BYTES)]
    BadString(String),
    /// A device with block sizes that NBD does not allow; see [`Geometry`].
    #[error("export {0:?} has block sizes that NBD does not allow")]
    BadBlocks(String),
}

/// All exports of a server, in the order they are listed.
#[derive(Clone)]
pub struct Exports(Arc<[Export]>);

impl Exports {
    /// Checks that every name can be asked for. The first export is also the default one.
    ///
    /// # Errors
    /// If there are none, names clash, or something does not fit the protocol.
    pub fn new(exports: Vec<Export>) -> Result<Self, ExportsError> {
        if exports.is_empty() {
            return Err(ExportsError::None);
        }
        for (i, export) in exports.iter().enumerate() {
            let strings = [&export.name, &export.description];
            if strings.iter().any(|s| crate::wire::string(s.as_bytes()).is_none()) {
                return Err(ExportsError::BadString(export.name.clone()));
            }
            if !has_valid_blocks(&export.device.geometry()) {
                return Err(ExportsError::BadBlocks(export.name.clone()));
            }
            if exports.iter().skip(i + 1).any(|other| other.name == export.name) {
                return Err(ExportsError::Duplicate(export.name.clone()));
            }
        }
        Ok(Self(exports.into()))
    }

    /// The export of a name. The empty name means the first one, unless there is one that is called so.
    pub(crate) fn find(&self, name: &str) -> Option<&Export> {
        let found = self.0.iter().find(|export| export.name == name);
        found.or_else(|| self.0.first().filter(|_| name.is_empty()))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter()
    }
}

/// What the protocol document demands of block sizes ("Size constraints").
fn has_valid_blocks(geometry: &Geometry) -> bool {
    let Geometry { minimum_block: minimum, preferred_block: preferred, .. } = *geometry;
    let longest = geometry.maximum_transfer.min(limits::TRANSFER_BYTES);
    minimum.is_power_of_two()
        && minimum <= 65536
        && preferred.is_power_of_two()
        && (minimum.max(512)..=longest).contains(&preferred)
}

/// The transmission flags that say what a device can do.
pub(crate) fn transmission_flags(geometry: &Geometry, structured: bool) -> u16 {
    let writable = !geometry.read_only;
    let flags = [
        (true, flag::HAS_FLAGS | flag::SEND_CACHE),
        (geometry.read_only, flag::READ_ONLY),
        (geometry.can_flush, flag::SEND_FLUSH),
        (geometry.can_be_durable, flag::SEND_FUA),
        (geometry.rotational, flag::ROTATIONAL),
        (writable && geometry.can_discard, flag::SEND_TRIM),
        (writable && geometry.can_write_zeroes, flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO),
        (structured, flag::SEND_DF),
        (geometry.coherent_queues, flag::CAN_MULTI_CONN),
    ];
    flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDevice;

    fn export(name: &str) -> Export {
        Export::new(name, MemoryDevice::new(Geometry::new(4096)))
    }

    #[test]
    fn the_empty_name_is_the_first_unless_one_is_called_so() {
        let exports = Exports::new(vec![export("a"), export("b")]).unwrap();
        assert_eq!(exports.find("").unwrap().name, "a");
        assert_eq!(exports.find("b").unwrap().name, "b");
        assert!(exports.find("c").is_none());
        let exports = Exports::new(vec![export("a"), export("")]).unwrap();
        assert_eq!(exports.find("").unwrap().name, "");
    }

    #[test]
    fn exports_that_cannot_be_asked_for_are_refused() {
        let error = |exports| Exports::new(exports).err().unwrap();
        assert_eq!(error(vec![]), ExportsError::None);
        let twice = vec![export("a"), export("b"), export("a")];
        assert_eq!(error(twice), ExportsError::Duplicate("a".into()));
        assert_eq!(error(vec![export("a\0")]), ExportsError::BadString("a\0".into()));
        assert!(matches!(error(vec![export(&"a".repeat(4097))]), ExportsError::BadString(_)));
    }

    #[test]
    fn block_sizes_are_checked() {
        let blocks = |minimum_block, preferred_block, maximum_transfer| {
            let new = Geometry::new(4096);
            let geometry = Geometry { minimum_block, preferred_block, maximum_transfer, ..new };
            Exports::new(vec![Export::new("a", MemoryDevice::new(geometry))]).err()
        };
        let bad = Some(ExportsError::BadBlocks("a".into()));
        assert_eq!(blocks(65536, 65536, 65536), None);
        assert_eq!(blocks(1, 512, u32::MAX), None);
        assert_eq!(blocks(0, 4096, 1 << 20), bad);
        assert_eq!(blocks(3, 4096, 1 << 20), bad);
        assert_eq!(blocks(1 << 17, 1 << 17, 1 << 20), bad);
        assert_eq!(blocks(1, 256, 1 << 20), bad);
        assert_eq!(blocks(4096, 512, 1 << 20), bad);
        assert_eq!(blocks(1, 1 << 21, 1 << 20), bad);
    }

    #[test]
    fn flags_tell_the_truth() {
        let mut geometry = Geometry::new(4096);
        assert_eq!(transmission_flags(&geometry, true), 0b1101_1110_1101);
        assert_eq!(transmission_flags(&geometry, false), 0b1101_0110_1101);
        geometry.read_only = true;
        assert_eq!(transmission_flags(&geometry, false), 0b0101_0000_1111);
        geometry.coherent_queues = false;
        geometry.can_flush = false;
        geometry.can_be_durable = false;
        geometry.rotational = true;
        assert_eq!(transmission_flags(&geometry, false), 0b0100_0001_0011);
    }
}
