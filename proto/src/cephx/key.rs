//! Secret keys, and the base64 form that people copy around.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::denc::{Decode, DecodeError, Encode, Reader, Result, decode};
use crate::types::{Entropy, UTime};

/// The cipher that a key is for (`CEPH_CRYPTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// AES-128-CBC with a constant IV and no authentication: all there was before 19.2.6 and 20.2.4.
    Aes,
    /// AES-256-CTS with HMAC-SHA-384 (RFC 8009): all that a new cluster of 20.2.4 allows.
    Aes256k,
}

impl KeyType {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Aes => 1,
            Self::Aes256k => 2,
        }
    }

    /// From the number on the wire.
    pub fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Aes),
            2 => Some(Self::Aes256k),
            _ => None,
        }
    }

    /// The name that `ceph auth --key_type` and `mon set auth_allowed_ciphers` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Aes256k => "aes256k",
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A secret key. Never shown by [`fmt::Debug`]; [`Key::to_base64`] shows it to whoever really wants it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    created: UTime,
    secret: Secret,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Aes([u8; 16]),
    Aes256k([u8; 32]),
}

/// Text that is not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A character that base64 does not have, or a wrong length.
    #[error("the key is not valid base64")]
    Base64,
    /// What base64 hides is not a key.
    #[error("the key is damaged: {0}")]
    Blob(#[from] DecodeError),
}

impl Key {
    /// A new random key.
    pub fn generate(kind: KeyType, created: UTime, entropy: &mut dyn Entropy) -> Self {
        let secret = match kind {
            KeyType::Aes => Secret::Aes(random(entropy)),
            KeyType::Aes256k => Secret::Aes256k(random(entropy)),
        };
        Self { created, secret }
    }

    /// Which cipher it is for.
    pub fn kind(&self) -> KeyType {
        match self.secret {
            Secret::Aes(_) => KeyType::Aes,
            Secret::Aes256k(_) => KeyType::Aes256k,
        }
    }

    /// The bytes of the secret, as the messenger's signatures use them.
    pub fn secret(&self) -> &[u8] {
        match &self.secret {
            Secret::Aes(secret) => secret,
            Secret::Aes256k(secret) => secret,
        }
    }

    pub(super) fn cipher(&self) -> &Secret {
        &self.secret
    }

    /// The form of keyrings and of `ceph auth get-key`.
    pub fn to_base64(&self) -> String {
        base64_encode(&self.to_bytes())
    }
}

/// `N` random bytes.
pub(super) fn random<const N: usize>(entropy: &mut dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, ..)", self.kind())
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// From base64; white space around it is ignored.
    fn from_str(text: &str) -> std::result::Result<Self, KeyError> {
        let blob = base64_decode(text.trim()).ok_or(KeyError::Base64)?;
        Ok(decode(&blob, "key")?)
    }
}

impl Decode for Key {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let code = r.u16()?;
        let created = r.get()?;
        let len = r.u16()?;
        let secret = match (KeyType::from_code(code), len) {
            (Some(KeyType::Aes), 16) => Secret::Aes(r.array()?),
            (Some(KeyType::Aes256k), 32) => Secret::Aes256k(r.array()?),
            (None, _) => return Err(DecodeError::Invalid { what: "key type", value: code.into() }),
            _ => return Err(DecodeError::Invalid { what: "key length", value: len.into() }),
        };
        Ok(Self { created, secret })
    }
}

impl Encode for Key {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u16_le(self.kind().code());
        self.created.encode(w);
        w.put_u16_le(self.secret().len() as u16);
        w.put_slice(self.secret());
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, i| {
            group << 8 | u32::from(chunk.get(i).copied().unwrap_or_default())
        });
        for i in 0..4 {
            let digit = (group >> (18 - 6 * i)) as usize & 0x3f;
            let digit = ALPHABET.get(digit).copied().unwrap_or(b'=');
            text.push(if i <= chunk.len() { digit.into() } else { '=' });
        }
    }
    text
}

/// Groups of four digits, the last one padded. A secret's digits are looked up with arithmetic rather than in a table
/// only because that is shorter: keys are read once, from a file.
fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        group = group << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // `ceph-authtool --gen-print-key` of Ceph 16.2.15.
    const AES: &str = "AQDkWgRrhWMrBRAAdQHa7mkGSqGhtz2Tau2wNw==";

    #[test]
    fn a_real_key_is_read_and_written() {
        let key: Key = AES.parse().unwrap();
        assert_eq!(key.kind(), KeyType::Aes);
        assert_eq!(key.secret().len(), 16);
        assert_eq!(key.to_base64(), AES);
    }

    #[test]
    fn a_long_key_is_read_and_written() {
        let key = Key { created: UTime { sec: 1, nsec: 2 }, secret: Secret::Aes256k([0x5a; 32]) };
        assert!(key.to_base64().starts_with("Ag"));
        assert_eq!(key.to_base64().parse(), Ok(key));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key: Key = AES.parse().unwrap();
        assert_eq!(format!("{key:?}"), "Key(aes, ..)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for cut in 0..AES.len() {
            assert!(AES[..cut].parse::<Key>().is_err(), "{cut} characters were enough");
        }
        assert_eq!(AES.replace('A', "!").parse::<Key>(), Err(KeyError::Base64));
        // Type 3, and type 1 with 32 bytes.
        let blob = |code: u8, len: u8| {
            let mut blob = vec![code, 0];
            blob.extend([0; 8]);
            blob.extend([len, 0]);
            blob.extend(vec![7; len.into()]);
            base64_encode(&blob).parse::<Key>()
        };
        assert!(blob(1, 16).is_ok());
        assert!(matches!(blob(3, 16), Err(KeyError::Blob(_))));
        assert!(matches!(blob(1, 32), Err(KeyError::Blob(_))));
        assert!(matches!(blob(2, 16), Err(KeyError::Blob(_))));
    }

    #[test]
    fn base64_vectors() {
        // RFC 4648, section 10.
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64_encode(plain.as_bytes()), text);
            assert_eq!(base64_decode(text).as_deref(), Some(plain.as_bytes()));
        }
        for bad in ["Zg", "Z===", "Zm9v====", "Zg=a", "=", "Zm 9"] {
            assert_eq!(base64_decode(bad), None, "{bad}");
        }
    }
}
