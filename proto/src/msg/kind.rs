//! Message numbers (`CEPH_MSG_*` in `src/include/msgr.h`, `MSG_*` in `src/msg/Message.h`).

/// The monitor map.
pub const MON_MAP: u16 = 4;
/// Asks for the monitor map.
pub const MON_GET_MAP: u16 = 5;
/// Asks for the size of the cluster or of a pool.
pub const STATFS: u16 = 13;
/// Answers [`STATFS`].
pub const STATFS_REPLY: u16 = 14;
/// Asks for maps, and for news of them.
pub const MON_SUBSCRIBE: u16 = 15;
/// Answers [`MON_SUBSCRIBE`] of old clients.
pub const MON_SUBSCRIBE_ACK: u16 = 16;
/// Renews tickets on an established session.
pub const AUTH: u16 = 17;
/// Answers [`AUTH`].
pub const AUTH_REPLY: u16 = 18;
/// Asks for the newest version of a map.
pub const MON_GET_VERSION: u16 = 19;
/// Answers [`MON_GET_VERSION`].
pub const MON_GET_VERSION_REPLY: u16 = 20;
/// OSD maps, full and incremental.
pub const OSD_MAP: u16 = 41;
/// Operations on one object.
pub const OSD_OP: u16 = 42;
/// Answers [`OSD_OP`].
pub const OSD_OP_REPLY: u16 = 43;
/// An event on a watched object.
pub const WATCH_NOTIFY: u16 = 44;
/// Answers [`POOL_OP`].
pub const POOL_OP_REPLY: u16 = 48;
/// Creates and deletes pools and self-managed snapshots.
pub const POOL_OP: u16 = 49;
/// A command for a monitor.
pub const MON_COMMAND: u16 = 50;
/// Answers [`MON_COMMAND`].
pub const MON_COMMAND_ACK: u16 = 51;
/// An OSD asks to hold back ops of a range of objects.
pub const OSD_BACKOFF: u16 = 61;
/// Configuration from the monitors' database.
pub const CONFIG: u16 = 62;
/// The manager map.
pub const MGR_MAP: u16 = 0x704;

/// The default priority.
pub const PRIORITY_DEFAULT: u16 = 127;
/// The priority of what must get ahead (`CEPH_MSG_PRIO_HIGH`).
pub const PRIORITY_HIGH: u16 = 196;
