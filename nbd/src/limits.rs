//! Every maximum of the server, each with its reason.

use std::time::Duration;

/// Connections served at once. A client opens one per core at most; this is room for many clients, and less than the
/// open files a process is usually allowed (1024 before systemd's own limits).
pub const CONNECTIONS: usize = 900;

/// How long a client may take from one option to the next (and for the first words). A person in `nbdsh` types that
/// slowly; a connection that was forgotten is gone after it.
pub const HANDSHAKE_IDLE: Duration = Duration::from_secs(60);

/// A string: names, descriptions, queries, messages; in bytes. The NBD protocol's own limit.
pub const STRING_BYTES: usize = 4096;

/// The data of one option, in bytes: an export name and a handful of metadata queries of the longest kind.
pub const OPTION_BYTES: usize = 64 << 10;

/// The receive buffer of a connection, in bytes: one read takes 32 writes of 4 KiB with room to spare, and no more
/// than a socket buffer usually holds. Memory is only touched as bytes arrive.
pub const RECEIVE_BYTES: usize = 256 << 10;

/// The least a read from the socket asks for, in bytes: with less room left than this, a new buffer is begun.
pub const RECEIVE_SPARE_BYTES: usize = 32 << 10;

/// From which length on a request has a receive buffer of its own, in bytes, and what follows it is left in the
/// socket: what of the next one came with it would have to be moved to a buffer where all of that has room. Below,
/// moving it costs less than reading the requests one by one.
pub const LONG_REQUEST_BYTES: usize = 64 << 10;

/// What is read behind a long request nevertheless, in bytes: enough to know what comes next, or all of that if it is
/// small.
pub const BEHIND_LONG_BYTES: usize = 4 << 10;

/// What is to be written to a device of ublk is read into buffers of this size: a few requests of the longer kind, so
/// that memory is not given back to the kernel and touched anew for each.
pub const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// The longest read or write, in bytes. 32 MiB is what the protocol document expects every server to take.
pub const TRANSFER_BYTES: u32 = 32 << 20;

/// Requests of one connection in the device at once. Linux' own client has 128, fio and nbdcopy are run with up to 256.
pub const REQUESTS_IN_FLIGHT: usize = 512;

/// Payload of one connection in the device or waiting to be sent, in bytes. Two of the longest requests: one in
/// flight while the next arrives.
pub const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// Pieces given to one vectored write: 64 replies to reads. A socket buffer is full before the kernel's own limit of
/// 1024, beyond which `sendmsg` fails (`EMSGSIZE`) and sends nothing.
pub const WRITE_PIECES: usize = 128;

/// Pieces that there usually are when few requests are in flight: a reply and what was read.
pub const FEW_PIECES: usize = 4;

/// Descriptors in one reply to a block status request; the client asks again where they end. The protocol document
/// allows 2^20, but 512 such replies at once would be gigabytes.
pub const EXTENTS: usize = 1 << 16;

/// How long a connection that is closed by the server waits for the client to close as well. Closing a socket with
/// unread bytes in it resets the connection, and the last replies may be lost.
pub const LINGER: Duration = Duration::from_secs(1);

/// How long nothing is accepted after accepting failed (usually for want of file descriptors).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
