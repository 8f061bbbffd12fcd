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
