//! Sealing and opening what cephx sends: AES-128-CBC or RFC 8009, around a header that shows whether the key was right
//! (`src/auth/cephx/CephxProtocol.h`).

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Block};
use bytes::{BufMut, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;

use super::key::{Key, Secret};
use super::krb5;
use crate::denc::{Encode, Put};

/// What a key is used for (`CEPHX_KEY_USAGE_*`). An `aes256k` key becomes another key for each use; `aes` ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The secret of a connection to a monitor, under the AUTH ticket's session key.
    ConnectionSecret,
    /// A ticket's session key, under the key of whoever asked for the ticket.
    TicketSessionKey,
    /// A renewed AUTH ticket's blob, under the session key of the one it follows.
    TicketBlob,
    /// A client's word to a service, under the ticket's session key.
    Authorize,
    /// The service's challenge.
    AuthorizeChallenge,
    /// The service's reply.
    AuthorizeReply,
    /// What a ticket's blob holds, under the service's rotating secret.
    TicketInfo,
}

impl Usage {
    fn code(self) -> u32 {
        match self {
            Self::ConnectionSecret => 0x03,
            Self::TicketSessionKey => 0x04,
            Self::TicketBlob => 0x05,
            Self::Authorize => 0x10,
            Self::AuthorizeChallenge => 0x11,
            Self::AuthorizeReply => 0x12,
            Self::TicketInfo => 0x30,
        }
    }
}

/// The key does not open it: it was sealed with another one, or somebody changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not sealed with this key")]
pub struct WrongKey;

/// Random bytes that make two equal messages look different; `aes` does without.
pub type Confounder = [u8; 16];

/// `AUTH_ENC_MAGIC`.
const MAGIC: u64 = 0xff00_9cad_8826_aa55;

/// Encrypts a value behind the header (Ceph's `encode_encrypt_enc_bl`).
pub fn seal(
    key: &Key,
    usage: Usage,
    confounder: &Confounder,
    content: impl FnOnce(&mut BytesMut),
) -> Vec<u8> {
    let mut plain = BytesMut::new();
    plain.put_u8(1);
    plain.put_u64_le(MAGIC);
    content(&mut plain);
    encrypt(key, usage, confounder, &plain)
}

/// Appends [`seal`]ed content with its length (Ceph's `encode_encrypt`).
pub fn put_sealed(
    w: &mut BytesMut,
    key: &Key,
    usage: Usage,
    confounder: &Confounder,
    content: impl FnOnce(&mut BytesMut),
) {
    w.put_blob(&seal(key, usage, confounder, content));
}

/// Decrypts what [`seal`] made, and takes the header off.
pub fn open(key: &Key, usage: Usage, sealed: &[u8]) -> Result<Vec<u8>, WrongKey> {
    let mut plain = decrypt(key, usage, sealed)?;
    // The first byte is a version that nobody has ever looked at.
    let magic = plain.get(1..9).ok_or(WrongKey)?;
    if magic != MAGIC.to_le_bytes() {
        return Err(WrongKey);
    }
    plain.drain(..9);
    Ok(plain)
}

/// Shows knowledge of the key without sending it (`cephx_calc_client_server_challenge`).
///
/// `aes` encrypts both challenges, which gives the same bytes every time; `aes256k` does not, so there an HMAC takes
/// its place. Either is folded to 64 bits.
pub fn challenge_response(key: &Key, server_challenge: u64, client_challenge: u64) -> u64 {
    let mut challenges = BytesMut::new();
    challenges.put_u64_le(server_challenge);
    challenges.put_u64_le(client_challenge);
    match key.cipher() {
        Secret::Aes(_) => {
            // Ceph folds the length with the ciphertext, and leaves out the four bytes at the end.
            let mut folded = BytesMut::new();
            put_sealed(&mut folded, key, Usage::TicketSessionKey, &[0; 16], |w| {
                w.put_slice(&challenges);
            });
            fold(&folded)
        }
        Secret::Aes256k(secret) => fold(&hmac_sha256(secret, &challenges)),
    }
}

fn fold(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |folded, word| folded ^ u64::from_le_bytes(*word))
}

fn hmac_sha256(secret: &[u8; 32], data: &[u8]) -> [u8; 32] {
    // A key of the length of the hash needs no hashing: `new` takes a block, which the rest pads.
    let mut block = [0; 64];
    if let Some(start) = block.first_chunk_mut() {
        *start = *secret;
    }
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn encrypt(key: &Key, usage: Usage, confounder: &Confounder, plain: &[u8]) -> Vec<u8> {
    match key.cipher() {
        Secret::Aes(secret) => cbc_encrypt(secret, plain),
        Secret::Aes256k(secret) => krb5::encrypt(secret, usage.code(), confounder, plain),
    }
}

fn decrypt(key: &Key, usage: Usage, sealed: &[u8]) -> Result<Vec<u8>, WrongKey> {
    match key.cipher() {
        Secret::Aes(secret) => cbc_decrypt(secret, sealed),
        Secret::Aes256k(secret) => krb5::decrypt(secret, usage.code(), sealed),
    }
    .ok_or(WrongKey)
}

/// `CEPH_AES_IV`: constant, which is why [`super::KeyType::Aes`] is on its way out.
const IV: Block = aes::cipher::Array(*b"cephsageyudagreg");

/// AES-128-CBC with PKCS #7 padding.
fn cbc_encrypt(secret: &[u8; 16], plain: &[u8]) -> Vec<u8> {
    let cipher = Aes128::new(&(*secret).into());
    let padding = 16 - plain.len() % 16;
    let mut bytes = Vec::with_capacity(plain.len() + padding);
    bytes.extend_from_slice(plain);
    bytes.resize(plain.len() + padding, padding as u8);
    let mut previous = IV;
    for block in bytes.as_chunks_mut::<16>().0 {
        for (byte, before) in block.iter_mut().zip(previous) {
            *byte ^= before;
        }
        cipher.encrypt_block(block.into());
        previous = (*block).into();
    }
    bytes
}

fn cbc_decrypt(secret: &[u8; 16], sealed: &[u8]) -> Option<Vec<u8>> {
    let cipher = Aes128::new(&(*secret).into());
    let mut bytes = sealed.to_vec();
    let (blocks, []) = bytes.as_chunks_mut::<16>() else { return None };
    let mut previous = IV;
    for block in blocks {
        let encrypted = Block::from(*block);
        cipher.decrypt_block(block.into());
        for (byte, before) in block.iter_mut().zip(previous) {
            *byte ^= before;
        }
        previous = encrypted;
    }
    let padding = usize::from(*bytes.last()?);
    let len = bytes.len().checked_sub(padding)?;
    let padded = bytes.get(len..)?;
    if padding == 0 || padding > 16 || padded.iter().any(|byte| usize::from(*byte) != padding) {
        return None;
    }
    bytes.truncate(len);
    Some(bytes)
}

/// Appends an encodable value, for [`seal`].
pub(super) fn value(content: &impl Encode) -> impl FnOnce(&mut BytesMut) + '_ {
    |w| content.encode(w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cephx::KeyType;

    fn key(kind: KeyType) -> Key {
        struct Counting(u8);
        impl crate::types::Entropy for Counting {
            fn fill(&mut self, bytes: &mut [u8]) {
                for byte in bytes {
                    self.0 = self.0.wrapping_add(1);
                    *byte = self.0;
                }
            }
        }
        Key::generate(kind, Default::default(), &mut Counting(0))
    }

    #[test]
    fn sealed_opens_and_nothing_else_does() {
        for kind in [KeyType::Aes, KeyType::Aes256k] {
            let key = key(kind);
            for len in [0, 1, 6, 7, 8, 22, 23, 24, 100] {
                let content = vec![0x77; len];
                let sealed = seal(&key, Usage::Authorize, &[9; 16], |w| w.put_slice(&content));
                assert_eq!(open(&key, Usage::Authorize, &sealed), Ok(content));
                for cut in 0..sealed.len() {
                    assert_eq!(open(&key, Usage::Authorize, &sealed[..cut]), Err(WrongKey));
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_by_aes256k() {
        let key = key(KeyType::Aes256k);
        let sealed = seal(&key, Usage::Authorize, &[9; 16], |w| w.put_slice(&[1; 40]));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key, Usage::Authorize, &changed), Err(WrongKey), "byte {at}");
        }
        assert_eq!(open(&key, Usage::AuthorizeReply, &sealed), Err(WrongKey));
    }

    #[test]
    fn aes_is_plain_cbc() {
        // NIST SP 800-38A, F.2.1, has another IV: the first block is given as if it had been mixed with that one.
        let secret = *b"\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c";
        let first = *b"\x6b\xc1\xbe\xe2\x2e\x40\x9f\x96\xe9\x3d\x7e\x11\x73\x93\x17\x2a";
        let second = b"\xae\x2d\x8a\x57\x1e\x03\xac\x9c\x9e\xb7\x6f\xac\x45\xaf\x8e\x51";
        let mut plain: Vec<u8> = first
            .iter()
            .zip(IV)
            .zip(0u8..)
            .map(|((byte, ours), theirs)| byte ^ ours ^ theirs)
            .collect();
        plain.extend(second);
        let encrypted = cbc_encrypt(&secret, &plain);
        assert_eq!(
            encrypted[..32],
            *b"\x76\x49\xab\xac\x81\x19\xb2\x46\xce\xe9\x8e\x9b\x12\xe9\x19\x7d\
               \x50\x86\xcb\x9b\x50\x72\x19\xee\x95\xdb\x11\x3a\x91\x76\x78\xb2"
        );
        assert_eq!(encrypted.len(), 48);
        assert_eq!(cbc_decrypt(&secret, &encrypted), Some(plain));
    }

    #[test]
    fn hmac_vector() {
        // RFC 4231, test case 1, whose key is shorter; zeros pad it all the same.
        let mut secret = [0; 32];
        secret[..20].fill(0x0b);
        assert_eq!(
            hmac_sha256(&secret, b"Hi There"),
            *b"\xb0\x34\x4c\x61\xd8\xdb\x38\x53\x5c\xa8\xaf\xce\xaf\x0b\xf1\x2b\
               \x88\x1d\xc2\x00\xc9\x83\x3d\xa7\x26\xe9\x37\x6c\x2e\x32\xcf\xf7"
        );
    }
}
