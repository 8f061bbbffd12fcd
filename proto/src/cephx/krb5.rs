//! `aes256-cts-hmac-sha384-192`, the Kerberos encryption type that `aes256k` keys use (RFC 8009).

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};
use hmac::{Hmac, Mac};
use sha2::Sha384;

const BLOCK: usize = 16;
const TAG: usize = 24;

/// The ciphertext of confounder and `plain`, and its tag: 40 bytes more than `plain`.
pub(super) fn encrypt(
    secret: &[u8; 32],
    usage: u32,
    confounder: &[u8; BLOCK],
    plain: &[u8],
) -> Vec<u8> {
    let (encryption, integrity) = derive(secret, usage);
    let mut bytes = Vec::with_capacity(BLOCK + plain.len() + TAG);
    bytes.extend_from_slice(confounder);
    bytes.extend_from_slice(plain);
    cts_encrypt(&encryption, &mut bytes);
    let tag = tag(&integrity, &bytes);
    bytes.extend_from_slice(&tag);
    bytes
}

/// What was encrypted, or `None` if the key is another one or a byte has changed.
pub(super) fn decrypt(secret: &[u8; 32], usage: u32, sealed: &[u8]) -> Option<Vec<u8>> {
    let (encryption, integrity) = derive(secret, usage);
    let (encrypted, claimed) = sealed.split_last_chunk::<TAG>()?;
    if encrypted.len() < BLOCK {
        return None;
    }
    // Every byte is compared, wherever the first difference is: time must not tell how good a forgery was.
    let differences =
        tag(&integrity, encrypted).iter().zip(claimed).fold(0, |d, (a, b)| d | (a ^ b));
    if differences != 0 {
        return None;
    }
    let mut bytes = encrypted.to_vec();
    cts_decrypt(&encryption, &mut bytes);
    bytes.drain(..BLOCK);
    Some(bytes)
}

/// The keys for encryption (Ke) and integrity (Ki) of one usage.
fn derive(secret: &[u8; 32], usage: u32) -> ([u8; 32], [u8; TAG]) {
    let [a, b, c, d] = usage.to_be_bytes();
    let encryption = kdf(secret, &[a, b, c, d, 0xaa], 256);
    let integrity = kdf(secret, &[a, b, c, d, 0x55], 192);
    (truncated(&encryption), truncated(&integrity))
}

/// `KDF-HMAC-SHA2` (RFC 8009, section 3) of up to 384 bits.
fn kdf(secret: &[u8; 32], label: &[u8; 5], bits: u32) -> [u8; 48] {
    let mut mac = hmac(secret);
    mac.update(&1u32.to_be_bytes());
    mac.update(label);
    mac.update(&[0]);
    mac.update(&bits.to_be_bytes());
    mac.finalize().into_bytes().into()
}

fn tag(integrity: &[u8; TAG], encrypted: &[u8]) -> [u8; TAG] {
    let mut mac = hmac(integrity);
    mac.update(&[0; BLOCK]); // the IV
    mac.update(encrypted);
    truncated(&mac.finalize().into_bytes().into())
}

/// A key shorter than a block of the hash is padded with zeros, which makes the block that `Hmac::new` takes.
fn hmac<const N: usize>(key: &[u8; N]) -> Hmac<Sha384> {
    let mut block = [0; 128];
    for (padded, byte) in block.iter_mut().zip(key) {
        *padded = *byte;
    }
    Hmac::new(&block.into())
}

fn truncated<const N: usize>(hash: &[u8; 48]) -> [u8; N] {
    let mut start = [0; N];
    for (to, from) in start.iter_mut().zip(hash) {
        *to = *from;
    }
    start
}

/// CBC with ciphertext stealing, variant CS3: the last two blocks are always swapped, and the one that then stands
/// last loses what the plaintext lacks. One block alone is plain CBC. The IV is zero.
fn cts_encrypt(key: &[u8; 32], bytes: &mut Vec<u8>) {
    let cipher = Aes256::new(&(*key).into());
    let len = bytes.len();
    bytes.resize(len.next_multiple_of(BLOCK), 0);
    let mut previous = [0; BLOCK];
    for block in bytes.as_chunks_mut::<BLOCK>().0 {
        xor(block, &previous);
        cipher.encrypt_block(block.into());
        previous = *block;
    }
    if let [.., a, b] = bytes.as_chunks_mut::<BLOCK>().0 {
        std::mem::swap(a, b);
    }
    bytes.truncate(len);
}

/// Undoes [`cts_encrypt`]; there is at least one block.
fn cts_decrypt(key: &[u8; 32], bytes: &mut Vec<u8>) {
    let cipher = Aes256::new(&(*key).into());
    let len = bytes.len();
    let missing = len.next_multiple_of(BLOCK) - len;
    bytes.resize(len + missing, 0);
    if let [.., a, b] = bytes.as_chunks_mut::<BLOCK>().0 {
        // The block that was cut short got its missing end from the padding, zeros, mixed into the one before it: so
        // that end shows when the last block, which stands in `a`, is decrypted.
        let mut decrypted = Block::from(*a);
        cipher.decrypt_block(&mut decrypted);
        for (to, from) in b.iter_mut().zip(decrypted).skip(BLOCK - missing) {
            *to = from;
        }
        std::mem::swap(a, b);
    }
    let mut previous = [0; BLOCK];
    for block in bytes.as_chunks_mut::<BLOCK>().0 {
        let encrypted = *block;
        cipher.decrypt_block(block.into());
        xor(block, &previous);
        previous = encrypted;
    }
    bytes.truncate(len);
}

fn xor(block: &mut [u8; BLOCK], other: &[u8; BLOCK]) {
    for (byte, other) in block.iter_mut().zip(other) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    const SECRET: &str = "6D404D37FAF79F9DF0D33568D3206698 00EB4836472EA8A026D16B7182460C52";

    // RFC 8009, appendix A, "Sample results for key derivation".
    #[test]
    fn key_derivation_vectors() {
        let secret = hex(SECRET).try_into().unwrap();
        let (encryption, integrity) = derive(&secret, 2);
        assert_eq!(
            encryption.to_vec(),
            hex("56AB22BEE63D82D7BC5227F6773F8EA7 A5EB1C825160C38312980C442E5C7E49")
        );
        assert_eq!(integrity.to_vec(), hex("69B16514E3CD8E56B82010D5C73012B6 22C4D00FFC23ED1F"));
    }

    // RFC 8009, appendix A, "Sample encryptions".
    #[test]
    fn encryption_vectors() {
        let secret = hex(SECRET).try_into().unwrap();
        for (plain, confounder, sealed) in [
            (
                "",
                "F764E9FA15C276478B2C7D0C4E5F58E4",
                "41F53FA5BFE7026D91FAF9BE959195A0 58707273A96A40F0A01960621AC61274 8B9BBFBE7EB4CE3C",
            ),
            (
                "000102030405",
                "B80D3251C1F6471494256FFE712D0B9A",
                "4ED7B37C2BCAC8F74F23C1CF07E62BC7 B75FB3F637B9F559C7F664F69EAB7B60 \
                 92237526EA0D1F61CB20D69D10F2",
            ),
            (
                "000102030405060708090A0B0C0D0E0F",
                "53BF8A0D105265D4E276428624CE5E63",
                "BC47FFEC7998EB91E8115CF8D19DAC4B BBE2E163E87DD37F49BECA92027764F6 \
                 8CF51F14D798C2273F35DF574D1F932E 40C4FF255B36A266",
            ),
            (
                "000102030405060708090A0B0C0D0E0F1011121314",
                "763E65367E864F02F55153C7E3B58AF1",
                "40013E2DF58E8751957D2878BCD2D6FE 101CCFD556CB1EAE79DB3C3EE86429F2 \
                 B2A602AC86FEF6ECB647D6295FAE077A 1FEB517508D2C16B4192E01F62",
            ),
        ] {
            let (plain, sealed) = (hex(plain), hex(sealed));
            let confounder = hex(confounder).try_into().unwrap();
            assert_eq!(encrypt(&secret, 2, &confounder, &plain), sealed);
            assert_eq!(decrypt(&secret, 2, &sealed), Some(plain));
        }
    }
}
