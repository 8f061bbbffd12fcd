//! Monitor maps.

use proto::denc::{Encode, decode};
use proto::monmap::MonMap;

pub(super) fn run(input: &[u8]) {
    let Ok(map) = decode::<MonMap>(input, "MonMap") else { return };
    // Who is in charge of ciphers is not written for old peers.
    let bare = MonMap { auth: None, ..map };
    assert_eq!(decode(&bare.to_bytes(), "MonMap"), Ok(bare));
}
