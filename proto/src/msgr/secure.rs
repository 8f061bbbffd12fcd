//! Secure mode: AES-128-GCM with an implicit nonce, one counter in each direction (`doc/dev/msgr2.rst`, "On-wire
//! format"; the layout of the connection secret is in Ceph's `crypto_onwire.cc`).

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, KeyInit};

use super::Error;
use crate::denc::Reader;

/// An authentication tag on the wire.
pub(super) const TAG_LEN: usize = 16;
const KEY_LEN: usize = 16;

/// The cipher. Both are the same function; which one runs depends on the processor (see docs/decisions.md).
enum Cipher {
    /// Four times as fast, and needs instructions that every server processor since 2015 has.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Fast(Box<graviola::aead::AesGcm>),
    /// Runs everywhere.
    Portable(Box<Aes128Gcm>),
}

impl Cipher {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if graviola::util::is_cpu_supported() {
            return Self::Fast(Box::new(graviola::aead::AesGcm::new(key)));
        }
        Self::portable(key)
    }

    fn portable(key: &[u8; KEY_LEN]) -> Self {
        Self::Portable(Box::new(Aes128Gcm::new(key.into())))
    }
}

/// One direction of a connection.
pub(super) struct Gcm {
    cipher: Cipher,
    /// The nonce is this and the counter, little-endian. The counter does not wrap: it has 64 bits.
    fixed: [u8; 4],
    counter: u64,
}

impl Gcm {
    fn new(cipher: Cipher, nonce: [u8; 12]) -> Self {
        let [a, b, c, d, counter @ ..] = nonce;
        Self { cipher, fixed: [a, b, c, d], counter: u64::from_le_bytes(counter) }
    }

    /// What a client receives and sends with, from the connection secret. A server swaps them.
    pub(super) fn pair(connection_secret: &[u8]) -> Result<(Self, Self), Error> {
        let mut r = Reader::new(connection_secret, "connection secret");
        let key = r.array()?;
        Ok((Self::new(Cipher::new(&key), r.array()?), Self::new(Cipher::new(&key), r.array()?)))
    }

    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        let (fixed, counter) = nonce.split_at_mut(4);
        fixed.copy_from_slice(&self.fixed);
        counter.copy_from_slice(&self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        nonce
    }

    /// Encrypts all of `block` but its last 16 bytes in place and writes the tag there.
    #[inline]
    pub(super) fn seal(&mut self, block: &mut [u8]) {
        let nonce = self.next_nonce();
        let Some((text, tag)) = block.split_last_chunk_mut::<TAG_LEN>() else { return };
        match &self.cipher {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Cipher::Fast(cipher) => cipher.encrypt(&nonce, &[], text, tag),
            Cipher::Portable(cipher) => {
                // Refuses only texts above 64 GiB, which no frame has; nothing would be sent in the clear.
                let sealed = cipher.encrypt_inout_detached(&nonce.into(), &[], (&mut *text).into());
                match sealed {
                    Ok(sealed) => *tag = sealed.into(),
                    Err(_) => text.fill(0),
                }
            }
        }
    }

    /// Decrypts all of `block` but its last 16 bytes, the tag, in place.
    #[inline]
    pub(super) fn open(&mut self, block: &mut [u8]) -> Result<(), Error> {
        let nonce = self.next_nonce();
        let opened =
            block.split_last_chunk_mut::<TAG_LEN>().is_some_and(|(text, tag)| match &self.cipher {
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                Cipher::Fast(cipher) => cipher.decrypt(&nonce, &[], text, tag).is_ok(),
                Cipher::Portable(cipher) => {
                    let tag = (*tag).into();
                    cipher.decrypt_inout_detached(&nonce.into(), &[], text.into(), &tag).is_ok()
                }
            });
        if opened { Ok(()) } else { Err(Error::misbehaved("a frame that does not decrypt")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn both(key: &[u8; KEY_LEN]) -> [Cipher; 2] {
        [Cipher::new(key), Cipher::portable(key)]
    }

    #[test]
    fn known_answers() {
        // Test cases 2 and 3 of McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
        let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525\
                     b16aedf5aa0de657ba637b391aafd255";
        let sealed = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa05\
                      1ba30b396a0aac973d58e091473f59854d5c2af327cd64a62cf35abd2ba6fab4";
        for (key, nonce, plain, sealed) in [
            (
                "00".repeat(16),
                "00".repeat(12),
                "00".repeat(16),
                "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf".to_owned(),
            ),
            (
                "feffe9928665731c6d6a8f9467308308".to_owned(),
                "cafebabefacedbaddecaf888".to_owned(),
                plain.to_owned(),
                sealed.to_owned(),
            ),
        ] {
            for cipher in both(&hex(&key).try_into().unwrap()) {
                let nonce: [u8; 12] = hex(&nonce).try_into().unwrap();
                let mut gcm = Gcm::new(cipher, nonce);
                let mut block = hex(&plain);
                block.extend([0; TAG_LEN]);
                gcm.seal(&mut block);
                assert_eq!(block, hex(&sealed));
            }
        }
    }

    #[test]
    fn what_one_seals_the_other_opens() {
        let key = *b"0123456789abcdef";
        let [fast, portable] = both(&key);
        // The counter goes from the last 64-bit number to 0.
        let nonce = [9, 9, 9, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let (mut sealer, mut opener) = (Gcm::new(fast, nonce), Gcm::new(portable, nonce));
        for len in [0, 1, 15, 16, 17, 48, 80, 255, 4096, 10_000] {
            let plain: Vec<u8> = (0..len + TAG_LEN).map(|i| i as u8).collect();
            let mut block = plain.clone();
            sealer.seal(&mut block);
            opener.open(&mut block).unwrap();
            assert_eq!(block[..len], plain[..len]);
        }
        let mut block = vec![0; 40];
        sealer.seal(&mut block);
        assert!(sealer.open(&mut block.clone()).is_err(), "another nonce");
        assert!(opener.open(&mut block[..39]).is_err(), "cut short");
        assert!(opener.open(&mut []).is_err(), "nothing");
    }
}
