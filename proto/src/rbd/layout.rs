//! Striping: from byte ranges of an image to byte ranges of its objects and back (`doc/dev/file-striping.rst`,
//! `src/osdc/Striper.cc`).
//!
//! An image is cut into stripe units. Unit after unit goes to one object after the other, `stripe_count` of them, then
//! round again, until each of that set of objects is full; then comes the next set. With plain objects a unit is a
//! whole object, and a set is one object.
//!
//! What a contiguous range of an image takes of one object of a set is contiguous in the object, so a request is at
//! most one operation per object: [`Layout::extents`]. Where the bytes of such an operation are in the image is told by
//! [`Layout::pieces`]: one piece with plain objects, many with smaller units.
//!
//! Nothing here allocates.

use thiserror::Error;

/// The smallest and the largest object size, as powers of two (`librbd/image/CreateRequest.cc`).
pub const ORDERS: std::ops::RangeInclusive<u8> = 12..=25;
/// The smallest stripe unit, in bytes.
pub const STRIPE_UNIT_MIN: u64 = 512;

/// A layout that no image can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The object size is out of range.
    #[error("order must be in the range [12, 25], not {0}")]
    Order(u8),
    /// One of unit and count without the other.
    #[error("must specify both (or neither) of stripe-unit and stripe-count")]
    HalfStriped,
    /// Objects do not hold a whole number of units.
    #[error("stripe unit {0} is not a factor of the object size")]
    NotAFactor(u64),
    /// The unit is too small.
    #[error("stripe unit must be at least 512 bytes, not {0}")]
    SmallUnit(u64),
    /// A set of objects would not fit into 64-bit offsets.
    #[error("stripe count {0} is too large")]
    Count(u64),
}

/// How an image is laid out over objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    order: u8,
    /// The stripe unit is a factor of a power of two, so it is one itself.
    unit_bits: u8,
    count: u64,
}

/// Part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The object's number.
    pub object: u64,
    /// Where the part begins in it, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Where its first byte is in the image.
    pub image: u64,
}

/// Part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the image, in bytes.
    pub image: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
}

impl Layout {
    /// Objects of 2^`order` bytes, one after the other.
    pub fn plain(order: u8) -> Result<Self, LayoutError> {
        Self::new(order, 0, 0)
    }

    /// Objects of 2^`order` bytes, striped; `0, 0` means plain.
    pub fn new(order: u8, stripe_unit: u64, stripe_count: u64) -> Result<Self, LayoutError> {
        if !ORDERS.contains(&order) {
            return Err(LayoutError::Order(order));
        }
        let object_size = 1u64 << order;
        match (stripe_unit, stripe_count) {
            (0, 0) => Ok(Self { order, unit_bits: order, count: 1 }),
            (0, _) | (_, 0) => Err(LayoutError::HalfStriped),
            (unit, _) if !object_size.is_multiple_of(unit) => Err(LayoutError::NotAFactor(unit)),
            (unit, _) if unit < STRIPE_UNIT_MIN => Err(LayoutError::SmallUnit(unit)),
            (_, count) if count > u64::MAX >> order => Err(LayoutError::Count(count)),
            (unit, count) => Ok(Self { order, unit_bits: unit.trailing_zeros() as u8, count }),
        }
    }

    /// The object size as a power of two.
    pub fn order(&self) -> u8 {
        self.order
    }

    /// The object size in bytes.
    pub fn object_size(&self) -> u64 {
        1 << self.order
    }

    /// How many bytes go to an object before it is the next one's turn.
    pub fn stripe_unit(&self) -> u64 {
        1 << self.unit_bits
    }

    /// How many objects take turns.
    pub fn stripe_count(&self) -> u64 {
        self.count
    }

    /// Whether neighbouring bytes of an object may be apart in the image. One object that takes all the turns is filled
    /// unit by unit, which makes it a plain one.
    pub fn is_striped(&self) -> bool {
        self.count > 1
    }

    /// How many objects an image of `size` bytes can have.
    pub fn objects(&self, size: u64) -> u64 {
        let Some(last) = size.checked_sub(1) else { return 0 };
        let set = last / self.set_size();
        // Objects of the last set are begun one after the other.
        let units = ((last % self.set_size()) >> self.unit_bits) + 1;
        set * self.count + units.min(self.count)
    }

    /// How many bytes of an object belong to an image of `size` bytes.
    pub fn object_len(&self, object: u64, size: u64) -> u64 {
        let (set, position) = (object / self.count, object % self.count);
        match set.checked_mul(self.set_size()).and_then(|start| size.checked_sub(start)) {
            None => 0,
            Some(within) => self.offset_in_object(within.min(self.set_size()), position),
        }
    }

    /// What a range of the image takes of each object, in the order of the extents' first bytes within each set of
    /// objects.
    #[inline]
    pub fn extents(&self, offset: u64, len: u64) -> Extents {
        let end = offset.saturating_add(len);
        Extents { layout: *self, offset, end, taken: 0 }
    }

    /// Where a range of an object is in the image, in order. An object's end is not passed.
    #[inline]
    pub fn pieces(&self, object: u64, offset: u64, len: u64) -> Pieces {
        let end = offset.saturating_add(len).min(self.object_size());
        Pieces { layout: *self, object, offset, end }
    }

    /// Bytes of the image in one set of objects.
    #[inline]
    fn set_size(&self) -> u64 {
        self.count << self.order
    }

    /// How many bytes the object at `position` of a set holds of the set's first `within` bytes. That is also the
    /// offset in it of the first byte that is at `within` or after it.
    #[inline]
    fn offset_in_object(&self, within: u64, position: u64) -> u64 {
        let unit = within >> self.unit_bits;
        let (stripe, at) = (unit / self.count, unit % self.count);
        let start = stripe << self.unit_bits;
        if position < at {
            start + (1 << self.unit_bits)
        } else if position == at {
            start + (within & self.unit_mask())
        } else {
            start
        }
    }

    #[inline]
    fn image_offset(&self, set: u64, position: u64, offset: u64) -> u64 {
        let unit = (offset >> self.unit_bits) * self.count + position;
        set * self.set_size() + (unit << self.unit_bits) + (offset & self.unit_mask())
    }

    #[inline]
    fn unit_mask(&self) -> u64 {
        (1 << self.unit_bits) - 1
    }
}

/// See [`Layout::extents`].
#[derive(Clone, Debug)]
pub struct Extents {
    layout: Layout,
    /// What is left of the range begins here, with the set that holds this.
    offset: u64,
    end: u64,
    /// Objects of this set that are done.
    taken: u64,
}

impl Iterator for Extents {
    type Item = Extent;

    #[inline]
    fn next(&mut self) -> Option<Extent> {
        if self.offset >= self.end {
            return None;
        }
        let layout = self.layout;
        if !layout.is_striped() {
            let offset = self.offset & (layout.object_size() - 1);
            let len = (layout.object_size() - offset).min(self.end - self.offset);
            let object = self.offset >> layout.order;
            let extent = Extent { object, offset, len, image: self.offset };
            self.offset += len;
            return Some(extent);
        }
        let set_size = layout.set_size();
        let set = self.offset / set_size;
        let first = self.offset % set_size;
        let last = (self.end - set * set_size).min(set_size);
        let unit = first >> layout.unit_bits;
        let units = ((last - 1) >> layout.unit_bits) - unit + 1;

        let position = (unit + self.taken) % layout.count;
        let offset = layout.offset_in_object(first, position);
        let len = layout.offset_in_object(last, position) - offset;
        let image = layout.image_offset(set, position, offset);
        self.taken += 1;
        if self.taken == units.min(layout.count) {
            self.offset = set * set_size + last;
            self.taken = 0;
        }
        Some(Extent { object: set * layout.count + position, offset, len, image })
    }
}

/// See [`Layout::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces {
    layout: Layout,
    object: u64,
    offset: u64,
    end: u64,
}

impl Iterator for Pieces {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.offset >= self.end {
            return None;
        }
        let layout = self.layout;
        let left = self.end - self.offset;
        let len = match layout.is_striped() {
            true => (layout.stripe_unit() - (self.offset & layout.unit_mask())).min(left),
            false => left,
        };
        let (set, position) = (self.object / layout.count, self.object % layout.count);
        let image = layout.image_offset(set, position, self.offset);
        self.offset += len;
        Some(Piece { image, len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of striping, byte by byte: where byte `x` of the image is.
    fn place(x: u64, object_size: u64, unit: u64, count: u64) -> (u64, u64) {
        let block = x / unit;
        let (stripe, position) = (block / count, block % count);
        let stripes_per_object = object_size / unit;
        let set = stripe / stripes_per_object;
        (set * count + position, stripe % stripes_per_object * unit + x % unit)
    }

    /// Layouts small enough to go through byte by byte.
    fn layouts() -> impl Strategy<Value = (Layout, u64, u64)> {
        (12u8..=13, 9u8..=13, 1u64..=5).prop_map(|(order, unit_bits, count)| {
            let unit = 1u64 << unit_bits.min(order);
            (Layout::new(order, unit, count).unwrap(), unit, count)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn extents_are_where_each_byte_is(
            (layout, unit, count) in layouts(),
            offset in 0u64..200_000,
            len in 0u64..70_000,
        ) {
            let size = layout.object_size();
            let mut expected: Vec<_> =
                (offset..offset + len).map(|x| (place(x, size, unit, count), x)).collect();
            let mut got = Vec::new();
            let mut seen = Vec::new();
            for extent in layout.extents(offset, len) {
                prop_assert!(extent.len > 0);
                prop_assert!(!seen.contains(&extent.object), "one extent per object");
                seen.push(extent.object);
                prop_assert_eq!(place(extent.image, size, unit, count), (extent.object, extent.offset));
                let mut at = extent.offset;
                for piece in layout.pieces(extent.object, extent.offset, extent.len) {
                    for i in 0..piece.len {
                        got.push(((extent.object, at + i), piece.image + i));
                    }
                    at += piece.len;
                }
                prop_assert_eq!(at, extent.offset + extent.len);
            }
            expected.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn objects_and_their_lengths_count_each_byte(
            (layout, unit, count) in layouts(),
            size in 0u64..150_000,
        ) {
            let mut lens = std::collections::BTreeMap::new();
            for x in 0..size {
                *lens.entry(place(x, layout.object_size(), unit, count).0).or_insert(0) += 1;
            }
            let objects = layout.objects(size);
            prop_assert_eq!(objects, lens.last_key_value().map_or(0, |(last, _)| last + 1));
            for object in 0..objects + count {
                let len = lens.get(&object).copied().unwrap_or(0);
                prop_assert_eq!(layout.object_len(object, size), len);
            }
        }
    }

    #[test]
    fn ends_of_the_number_range() {
        for (unit, count) in [(0, 0), (4096, 3), (4 << 20, 1 << 30)] {
            let layout = Layout::new(22, unit, count).unwrap();
            let last = layout.extents(u64::MAX - 1, u64::MAX).last().unwrap();
            assert_eq!(last.len, 1);
            assert!(layout.objects(u64::MAX) > 0);
            assert_eq!(layout.object_len(u64::MAX, u64::MAX), 0);
            assert_eq!(layout.extents(5, 0).next(), None);
            assert_eq!(layout.pieces(1, layout.object_size(), 1).next(), None);
        }
    }

    #[test]
    fn what_librbd_refuses() {
        assert_eq!(Layout::plain(11), Err(LayoutError::Order(11)));
        assert_eq!(Layout::plain(26), Err(LayoutError::Order(26)));
        assert_eq!(Layout::new(22, 4096, 0), Err(LayoutError::HalfStriped));
        assert_eq!(Layout::new(22, 0, 2), Err(LayoutError::HalfStriped));
        assert_eq!(Layout::new(22, 8 << 20, 2), Err(LayoutError::NotAFactor(8 << 20)));
        assert_eq!(Layout::new(22, 3000, 2), Err(LayoutError::NotAFactor(3000)));
        assert_eq!(Layout::new(22, 256, 2), Err(LayoutError::SmallUnit(256)));
        assert_eq!(Layout::new(22, 4096, u64::MAX), Err(LayoutError::Count(u64::MAX)));
        assert!(Layout::new(25, 512, 1000).is_ok());
    }

    /// `rbd info` of Ceph 16.2.15 for images made with these options.
    #[test]
    fn objects_as_rbd_counts_them() {
        let objects =
            |order, unit, count, size| Layout::new(order, unit, count).unwrap().objects(size);
        assert_eq!(objects(22, 0, 0, 1 << 30), 256);
        assert_eq!(objects(22, 0, 0, (1 << 30) + 1), 257);
        assert_eq!(objects(22, 65536, 4, 10 << 20), 4);
        assert_eq!(objects(22, 65536, 4, 17 << 20), 8);
        assert_eq!(objects(22, 65536, 8, 100 << 10), 2);
        assert_eq!(objects(22, 0, 0, 0), 0);
    }
}
