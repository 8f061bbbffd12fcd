//! The names of the objects that make up an image, and of those that a pool keeps for all its images
//! (`src/include/rbd_types.h`).

use std::fmt::Write;

use crate::types::{PoolId, SnapId};

/// Image names and ids of a pool (or of a namespace of it).
pub const DIRECTORY: &str = "rbd_directory";
/// What is known about the pool itself.
pub const INFO: &str = "rbd_info";
/// Names of the pool's namespaces.
pub const NAMESPACES: &str = "rbd_namespace";
/// Which images are clones of which snapshots, for clones of the first version.
pub const CHILDREN: &str = "rbd_children";
/// Images that were moved to the trash.
pub const TRASH: &str = "rbd_trash";
/// Whether and how images are mirrored.
pub const MIRRORING: &str = "rbd_mirroring";
/// Groups of images.
pub const GROUPS: &str = "rbd_group_directory";

/// The object that leads from an image's name to its id.
pub fn id_object(image_name: &str) -> String {
    format!("rbd_id.{image_name}")
}

/// The object that describes an image.
pub fn header(image_id: &str) -> String {
    format!("rbd_header.{image_id}")
}

/// The header of an image of the first format, which is not read here: only to tell that there is one.
pub fn old_header(image_name: &str) -> String {
    format!("{image_name}.rbd")
}

/// The object that describes a group of images.
pub fn group_header(group_id: &str) -> String {
    format!("rbd_group_header.{group_id}")
}

/// The bitmap of an image's objects, or of a snapshot's.
pub fn object_map(image_id: &str, snap: SnapId) -> String {
    match snap {
        SnapId::HEAD => format!("rbd_object_map.{image_id}"),
        SnapId(snap) => format!("rbd_object_map.{image_id}.{snap:016x}"),
    }
}

/// The object that describes an image's journal.
pub fn journal(image_id: &str) -> String {
    format!("journal.{image_id}")
}

/// An object of the journal of an image whose header is in this pool.
pub fn journal_object(header_pool: PoolId, image_id: &str, object: u64) -> String {
    format!("journal_data.{header_pool}.{image_id}.{object}")
}

/// What the names of a new image's data objects begin with. With a data pool the pool of the header is part of it,
/// because images of several pools may share one data pool.
pub fn data_prefix(image_id: &str, header_pool_if_data_is_elsewhere: Option<PoolId>) -> String {
    match header_pool_if_data_is_elsewhere {
        Some(pool) => format!("rbd_data.{pool}.{image_id}"),
        None => format!("rbd_data.{image_id}"),
    }
}

/// The names of an image's data objects.
#[derive(Clone, Debug)]
pub struct DataNames {
    prefix: String,
}

const DIGITS: usize = 16;

impl DataNames {
    /// For the `object_prefix` of an image's header.
    pub fn new(object_prefix: &str) -> Self {
        Self { prefix: format!("{object_prefix}.") }
    }

    /// The name of an object: the prefix, a dot, and its number in 16 hexadecimal digits.
    #[inline]
    pub fn of(&self, object: u64) -> String {
        let mut name = String::with_capacity(self.prefix.len() + DIGITS);
        name.push_str(&self.prefix);
        let digits: [u8; DIGITS] = std::array::from_fn(|i| {
            let digit = (object >> (4 * (DIGITS - 1 - i))) as u8 & 0xf;
            if digit < 10 { b'0' + digit } else { b'a' - 10 + digit }
        });
        // They are ASCII. All at once: this is done for each request.
        name.push_str(std::str::from_utf8(&digits).unwrap_or_default());
        name
    }

    /// The number of an object, if it is one of the image's.
    pub fn number(&self, name: &[u8]) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix.as_bytes())?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| {
            digits.len() == DIGITS && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        })?;
        u64::from_str_radix(digits, 16).ok()
    }
}

/// An id for a new image: the client's global id and 32 random bits, in hexadecimal
/// (`librbd::util::generate_image_id`).
pub fn image_id(global_id: u64, random: u32) -> String {
    /// `RBD_MAX_BLOCK_NAME_SIZE` leaves the end of a longer id for nothing.
    const LONGEST: usize = 14;

    let mut id = String::with_capacity(24);
    // Writing to a string does not fail.
    let _ = write!(id, "{global_id:x}{random:x}");
    id.split_off(id.len().saturating_sub(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_ceph_names_them() {
        assert_eq!(id_object("a"), "rbd_id.a");
        assert_eq!(header("101dff57a0a5"), "rbd_header.101dff57a0a5");
        assert_eq!(object_map("101dff57a0a5", SnapId::HEAD), "rbd_object_map.101dff57a0a5");
        assert_eq!(object_map("10", SnapId(0x4f)), "rbd_object_map.10.000000000000004f");
        assert_eq!(journal("101dff57a0a5"), "journal.101dff57a0a5");
        assert_eq!(journal_object(PoolId(7), "10", 11), "journal_data.7.10.11");
        assert_eq!(data_prefix("10", None), "rbd_data.10");
        assert_eq!(data_prefix("10", Some(PoolId(7))), "rbd_data.7.10");
    }

    #[test]
    fn data_objects() {
        let names = DataNames::new("rbd_data.7.10");
        assert_eq!(names.of(0), "rbd_data.7.10.0000000000000000");
        assert_eq!(names.of(0xfedc_ba98_7654_3210), "rbd_data.7.10.fedcba9876543210");
        assert_eq!(names.of(255), "rbd_data.7.10.00000000000000ff");
        assert_eq!(names.number(b"rbd_data.7.10.00000000000000ff"), Some(255));
        for other in [
            &b"rbd_data.7.10.00000000000000fF"[..],
            b"rbd_data.7.10.00000000000000f",
            b"rbd_data.7.10.+0000000000000ff",
            b"rbd_data.7.100.0000000000000000",
            b"rbd_data.7.10.",
            b"",
        ] {
            assert_eq!(names.number(other), None);
        }
    }

    #[test]
    fn ids_are_14_digits_at_most() {
        assert_eq!(image_id(0x101d, 0xff57_a0a5), "101dff57a0a5");
        assert_eq!(image_id(0x1_2345_6789, 0xff57_a0a5), "456789ff57a0a5");
        assert_eq!(image_id(0x101d, 7), "101d7");
    }
}
