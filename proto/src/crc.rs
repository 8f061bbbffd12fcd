//! CRC-32C as Ceph uses it: any seed, no final inversion (`ceph_crc32c` in `src/include/crc32c.h`).

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`, continued from `seed`. Ceph seeds frames and maps with 0 or `!0` (each place says which),
/// and does not invert the result.
#[inline]
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // The usual seed is the one that costs least: nothing is copied for it.
    if seed == !0 {
        return !crc_fast::crc32_iscsi(bytes);
    }
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(seed));
    digest.update(bytes);
    // The digest's finish inverts all 32 bits, which Ceph does not.
    !(digest.finalize() as u32)
}

/// The CRC-32C of a few bytes from seed 0, as preambles have it.
#[inline]
pub fn crc32c_from_zero<const N: usize>(mut bytes: [u8; N]) -> u32 {
    // The seed is added to the first four bytes, so it may as well be in them.
    for byte in bytes.iter_mut().take(4) {
        *byte ^= 0xff;
    }
    crc32c(!0, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // Vectors of Ceph's src/test/common/test_crc32c.cc ("Small").
        assert_eq!(crc32c(0, b"foo bar baz"), 4_119_623_852);
        assert_eq!(crc32c(1234, b"foo bar baz"), 881_700_046);
        assert_eq!(crc32c(0, b"whiz bang boom"), 2_360_230_088);
        assert_eq!(crc32c(5678, b"whiz bang boom"), 3_743_019_208);
        assert_eq!(crc32c(!0, b""), !0);
    }

    #[test]
    fn from_zero_is_the_same_from_another_seed() {
        assert_eq!(crc32c_from_zero(*b"foo bar baz"), 4_119_623_852);
        assert_eq!(crc32c_from_zero(*b"whiz bang boom"), 2_360_230_088);
        assert_eq!(crc32c_from_zero([0; 28]), crc32c(0, &[0; 28]));
    }

    #[test]
    fn continues_at_every_split() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
        for at in 0..bytes.len() {
            assert_eq!(crc32c(crc32c(!0, &bytes[..at]), &bytes[at..]), crc32c(!0, &bytes));
        }
    }
}
