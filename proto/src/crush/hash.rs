//! The hashes that decide where data lives: Robert Jenkins' 32-bit mix over integers (`src/crush/hash.c`), and the two
//! string hashes that place an object's name (`src/common/ceph_hash.cc`).

/// Starts every integer hash.
const SEED: u32 = 1_315_423_911;
/// Fills the mix where there are not enough inputs.
const X: u32 = 231_232;
/// Likewise.
const Y: u32 = 1_232;

/// Jenkins' evahash mix (public domain), in place.
#[inline(always)]
fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 13);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 8);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 13);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 12);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 16);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 5);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 3);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 10);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 15);
}

/// The hash of one number.
#[inline]
pub fn hash32(a: u32) -> u32 {
    let (mut a, mut b, mut x, mut y) = (a, a, X, Y);
    let mut hash = SEED ^ a;
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    hash
}

/// The hash of two numbers: whether a reweighted OSD takes an input, and how a pool spreads its PGs.
#[inline]
pub fn hash32_2(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut x, mut y) = (a, b, X, Y);
    let mut hash = SEED ^ a ^ b;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut x, &mut a, &mut hash);
    mix(&mut b, &mut y, &mut hash);
    hash
}

/// The hash of three numbers: a draw in a uniform, straw or straw2 bucket.
#[inline(always)]
pub fn hash32_3(a: u32, b: u32, c: u32) -> u32 {
    let (mut a, mut b, mut c, mut x, mut y) = (a, b, c, X, Y);
    let mut hash = SEED ^ a ^ b ^ c;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    hash
}

/// The hash of four numbers: a draw in a list or tree bucket.
#[inline]
pub fn hash32_4(a: u32, b: u32, c: u32, d: u32) -> u32 {
    let (mut a, mut b, mut c, mut d, mut x, mut y) = (a, b, c, d, X, Y);
    let mut hash = SEED ^ a ^ b ^ c ^ d;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut a, &mut x, &mut hash);
    mix(&mut y, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut d, &mut hash);
    hash
}

/// The hash of five numbers.
#[inline]
pub fn hash32_5(a: u32, b: u32, c: u32, d: u32, e: u32) -> u32 {
    let (mut a, mut b, mut c, mut d, mut e, mut x, mut y) = (a, b, c, d, e, X, Y);
    let mut hash = SEED ^ a ^ b ^ c ^ d ^ e;
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut e, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    mix(&mut d, &mut x, &mut hash);
    mix(&mut y, &mut e, &mut hash);
    hash
}

/// The object hash `rjenkins` (`CEPH_STR_HASH_RJENKINS`, 2), every pool's default.
pub fn str_hash_rjenkins(name: &[u8]) -> u32 {
    let word =
        |bytes: &[u8]| bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let (mut a, mut b, mut c) = (0x9e37_79b9u32, 0x9e37_79b9u32, 0u32);
    let mut blocks = name.chunks_exact(12);
    for block in blocks.by_ref() {
        let (first, rest) = block.split_at(4);
        let (second, third) = rest.split_at(4);
        a = a.wrapping_add(word(first));
        b = b.wrapping_add(word(second));
        c = c.wrapping_add(word(third));
        mix(&mut a, &mut b, &mut c);
    }
    let tail = blocks.remainder();
    let part = |from: usize, to: usize| {
        word(tail.get(from.min(tail.len())..to.min(tail.len())).unwrap_or_default())
    };
    // The lowest byte of the last word is kept for the length.
    c = c.wrapping_add(name.len() as u32).wrapping_add(part(8, 11) << 8);
    b = b.wrapping_add(part(4, 8));
    a = a.wrapping_add(part(0, 4));
    mix(&mut a, &mut b, &mut c);
    c
}

/// The object hash `linux` (`CEPH_STR_HASH_LINUX`, 1): the kernel's old directory cache hash.
pub fn str_hash_linux(name: &[u8]) -> u32 {
    name.iter().fold(0u32, |hash, byte| {
        let byte = u32::from(*byte);
        hash.wrapping_add(byte << 4).wrapping_add(byte >> 4).wrapping_mul(11)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // What crush_hash32_* and ceph_str_hash_* of Ceph 16.2.15's libceph-common answer.

    #[test]
    fn integers() {
        assert_eq!(hash32(0xdead_beef), 0x711d_6883);
        assert_eq!(hash32_2(0xdead_beef, 1), 0x7ae5_746d);
        assert_eq!(hash32_3(0xdead_beef, 1, 0xffff_fffe), 0x6a66_3327);
        assert_eq!(hash32_4(0xdead_beef, 1, 0xffff_fffe, 1_234_567), 0xc54f_81c8);
        assert_eq!(hash32_5(0xdead_beef, 1, 0xffff_fffe, 1_234_567, 42), 0x1863_c700);
        assert_eq!(hash32_5(0, 0, 0, 0, 0), 0xa45e_5003);
    }

    #[test]
    fn strings() {
        let high_bytes: Vec<u8> = (200..240).collect();
        let answers: [(&[u8], u32, u32); 6] = [
            (b"", 0xbd49_d10d, 0),
            (b"a", 0x29ee_c818, 0x42f2),
            (b"foo", 0x7fc1_f406, 0x0024_db2a),
            (b"12 bytes lon", 0x9a54_b067, 0x88c9_9c0b),
            (b"rbd_data.1024ab3c4d5e.0000000000000007", 0x7f79_d041, 0xf0bd_8cd4),
            (&high_bytes, 0x9e17_8dc3, 0x8452_b860),
        ];
        for (name, rjenkins, linux) in answers {
            assert_eq!(str_hash_rjenkins(name), rjenkins, "{name:?}");
            assert_eq!(str_hash_linux(name), linux, "{name:?}");
        }
    }
}
