//! Every maximum of the protocol layer, each with its reason.

/// One segment of a msgr2 frame, in bytes. An OSD map of a huge cluster is the largest thing a client is sent; an OSD
/// refuses ops above `osd_max_write_size` (90 MiB). Memory is only taken as bytes arrive.
pub const FRAME_SEGMENT_BYTES: usize = 256 << 20;

/// One segment of a frame before the peer is authenticated, in bytes. Tickets with long caps are the largest
/// (Ceph's qa `huge-tickets.sh` makes some of 8 MB). Memory is only taken as bytes arrive.
pub const HANDSHAKE_SEGMENT_BYTES: usize = 16 << 20;

/// A whole handshake in each direction, in bytes: a few frames, all of which are signed in the end and so have to be
/// kept.
pub const HANDSHAKE_BYTES: usize = 3 * HANDSHAKE_SEGMENT_BYTES;

/// What one connection has queued to send, in bytes, before it takes no further message. One message of any size always
/// goes. Enough to keep a fast link busy; flow control belongs to whoever sends.
pub const SEND_QUEUE_BYTES: usize = 64 << 20;

/// How far ahead a receive buffer is made to grow for a frame that has been announced, in bytes, so that a length alone
/// never takes much memory.
pub const RECEIVE_AHEAD_BYTES: usize = 8 << 20;

/// How much of an unfinished frame has to come, in bytes, for its peer to count as alive: in the 30 s that a peer may
/// be silent, less is no network that one could work with.
pub const FRAME_PROGRESS_BYTES: usize = 64 << 10;

/// The payload of the msgr2 banner, in bytes: 16 today, room for extension.
pub const BANNER_PAYLOAD_BYTES: usize = 1024;

/// A string in a message (names, keys, error texts), in bytes.
pub const STRING_BYTES: usize = 16 << 20;

/// The depth of a CRUSH hierarchy. Ceph's own map builders stay below 12.
pub const CRUSH_DEPTH: usize = 64;

/// Devices in a CRUSH map or OSD map. Ceph caps `max_osd` through `mon_max_osd` (10,000).
pub const OSDS: usize = 1 << 20;

/// Placement groups of one pool. Ceph caps `pg_num` through `mon_max_pool_pg_num` (65,536).
pub const PGS_PER_POOL: u32 = 1 << 20;

/// The work of one CRUSH mapping, in hashes. The hardest real ones (a result that cannot be filled, in multi-step-retry
/// rules) take some million; only a malformed map takes more, and this is a tenth of a second.
pub const CRUSH_WORK: u64 = 1 << 24;

/// Operations in flight of one client. Users bound theirs far below that (NBD connections by requests and bytes); more
/// would only queue in front of the OSDs. A power of two: a tid names the operation's slot in that many bits.
pub const OPS_IN_FLIGHT: usize = 1 << 20;

/// What one OSD has of ours at once, in bytes that operations carry or ask for: enough for a fast network's latency,
/// and with one more operation still less than [`SEND_QUEUE_BYTES`].
pub const SESSION_BYTES: u64 = 16 << 20;

/// Operations that one OSD has of ours at once: as many as `objecter_inflight_ops` lets all of them have.
pub const SESSION_OPS: usize = 1024;
