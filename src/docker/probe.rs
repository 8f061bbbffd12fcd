//! What is on an image: a file system, something else, or nothing. Nothing is ever formatted that is not nothing.

use super::options::FsType;

/// What the first bytes of an image are looked at for.
pub(crate) const HEAD: u64 = 128 << 10;

/// And the last.
pub(crate) const TAIL: u64 = 64 << 10;

/// What of them tells how large an ext4 is.
pub(crate) const EXT4_HEAD: u64 = 2 << 10;

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeros, in all places where something would begin or end.
    Blank,
    /// A file system that volumes can have.
    FileSystem(FsType),
    /// Something else that has a name.
    Other(&'static str),
    /// Bytes that mean nothing to us, but perhaps to others.
    Data,
}

/// Signatures: where in the head, which bytes, what it is.
const SIGNATURES: &[(usize, &[u8], Content)] = &[
    (1080, b"\x53\xef", Content::FileSystem(FsType::Ext4)),
    (0, b"XFSB", Content::FileSystem(FsType::Xfs)),
    (65600, b"_BHRfS_M", Content::FileSystem(FsType::Btrfs)),
    (0, b"LUKS\xba\xbe", Content::Other("LUKS")),
    (512, b"EFI PART", Content::Other("a partition table (GPT)")),
    (4096, b"EFI PART", Content::Other("a partition table (GPT)")),
    (512, b"LABELONE", Content::Other("an LVM volume")),
    (0, b"LABELONE", Content::Other("an LVM volume")),
    (4086, b"SWAPSPACE2", Content::Other("swap")),
    (4096, b"\xfc\x4e\x2b\xa9", Content::Other("a RAID member")),
    (0, b"\xfc\x4e\x2b\xa9", Content::Other("a RAID member")),
    (0, b"hsqs", Content::Other("squashfs")),
    (3, b"NTFS    ", Content::Other("NTFS")),
    (3, b"EXFAT   ", Content::Other("exFAT")),
    (1024, b"\x10\x20\xf5\xf2", Content::Other("F2FS")),
    (1024, b"\xe2\xe1\xf5\xe0", Content::Other("EROFS")),
    (32769, b"CD001", Content::Other("ISO 9660")),
    (65536, b"R\xe9I\xe4s\xe5Er2Fs", Content::Other("ReiserFS")),
    (510, b"\x55\xaa", Content::Other("a partition table (DOS)")),
];

/// How large an ext4 is that has these first bytes.
pub(crate) fn ext4_size(head: &[u8]) -> Option<u64> {
    let word = |at: usize| {
        let bytes = head.get(1024 + at..)?.first_chunk()?;
        Some(u64::from(u32::from_le_bytes(*bytes)))
    };
    let has_64_bits = word(0x60)? & 0x80 != 0;
    let high = if has_64_bits { word(0x150)? } else { 0 };
    let shift = u32::try_from(word(0x18)?).ok()?.checked_add(10)?;
    (high << 32 | word(0x4)?).checked_mul(1_u64.checked_shl(shift)?)
}

/// Looks at the first and the last bytes of an image.
pub(crate) fn probe(head: &[u8], tail: &[u8]) -> Content {
    let there = |(at, bytes, _): &&(usize, &[u8], Content)| {
        head.get(*at..).is_some_and(|rest| rest.starts_with(bytes))
    };
    if let Some((_, _, content)) = SIGNATURES.iter().find(there) {
        return *content;
    }
    // The backup of a GPT is in the last sector.
    if tail.len() >= 512 && tail[tail.len() - 512..].starts_with(b"EFI PART") {
        return Content::Other("a partition table (GPT)");
    }
    match head.iter().chain(tail).all(|byte| *byte == 0) {
        true => Content::Blank,
        false => Content::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_seen_and_zeros_are_nothing() {
        let blank = vec![0; HEAD as usize];
        let tail = vec![0; TAIL as usize];
        assert_eq!(probe(&blank, &tail), Content::Blank);
        for (at, bytes, content) in SIGNATURES {
            let mut head = blank.clone();
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(probe(&head, &tail), *content);
        }
        let mut other = tail;
        *other.last_mut().unwrap() = 1;
        assert_eq!(probe(&blank, &other), Content::Data);
        let at = other.len() - 512;
        other[at..at + 8].copy_from_slice(b"EFI PART");
        assert_eq!(probe(&blank, &other), Content::Other("a partition table (GPT)"));
        assert_eq!(probe(&[], &[]), Content::Blank);
    }

    #[test]
    fn an_ext4_says_how_large_it_is() {
        let mut head = vec![0; EXT4_HEAD as usize];
        head[1024 + 4..][..4].copy_from_slice(&[0, 0, 2, 0]);
        head[1024 + 0x18] = 2;
        head[1024 + 0x150] = 1;
        assert_eq!(ext4_size(&head), Some(512 << 20));
        head[1024 + 0x60] = 0x80;
        assert_eq!(ext4_size(&head), Some((512 << 20) + (1 << 44)));
        head[1024 + 0x18] = 0xff;
        assert_eq!(ext4_size(&head), None);
        assert_eq!(ext4_size(&[]), None);
    }
}
