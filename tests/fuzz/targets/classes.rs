//! What class methods are given and give back, for each that is known, and what clients tell each other of an image.

use proto::rbd::cls;
use proto::rbd::notify::{self, Notice};

use super::Pieces;

/// An input is which method, by its name, and whether it is what goes in or what comes out; then that.
pub(super) fn run(input: &[u8]) {
    let mut pieces = Pieces(input);
    let which = [pieces.byte(), pieces.byte()];
    let is_input = pieces.byte() & 1 != 0;
    if which == [0, 0] {
        let _ = Notice::decode(pieces.0);
        let _ = notify::decode_response(pieces.0);
    }
    let Some(method) = cls::all().find(|method| number(method) == which) else { return };
    let read = if is_input { method.input } else { method.reply };
    if let Ok(bytes) = read(pieces.0) {
        assert_eq!(read(&bytes), Ok(bytes), "{}.{}", method.class, method.name);
    }
}

/// A number that a method keeps when others are added.
pub(crate) fn number(method: &cls::AnyMethod) -> [u8; 2] {
    let name = method.class.bytes().chain(method.name.bytes());
    let hash = name.fold(7u16, |hash, byte| hash.wrapping_mul(251).wrapping_add(byte.into()));
    hash.to_le_bytes()
}
