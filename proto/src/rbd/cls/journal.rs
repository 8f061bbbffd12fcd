//! Methods on the objects of a journal (`src/cls/journal/cls_journal.cc`).

use bytes::Bytes;

use super::{Empty, methods, record};

record! {
    /// How far an object of a journal was used, or read (`cls::journal::ObjectPosition`).
    ObjectPosition [1, 1] {
        /// Which object.
        object: u64,
        /// The entry's tag.
        tag: u64,
        /// The entry's number under that tag.
        entry: u64,
    }
}

record! {
    /// How far a client is: the last entry in each place of the set, the newest first
    /// (`cls::journal::ObjectSetPosition`).
    CommitPosition [1, 1] {
        /// One for each place of the set that has been used.
        objects: Vec<ObjectPosition>,
    }
}

record! {
    /// Somebody who writes or reads a journal (`cls::journal::Client`).
    JournalClient [1, 1] {
        /// Empty for whoever writes the image.
        id: String,
        /// What it says of itself: see [`crate::rbd::journal::ClientData`].
        data: Bytes,
        /// How far it is: it needs nothing before that.
        position: CommitPosition,
        /// 1 if it is no longer waited for.
        state: u8,
    }
}

record! {
    /// What the entries of one owner of the image have in common (`cls::journal::Tag`).
    JournalTag [1, 1] {
        /// Its number.
        tid: u64,
        /// Its class.
        class: u64,
        /// See [`crate::rbd::journal::TagData`].
        data: Bytes,
    }
}

/// In the place of a tag's class: one of its own.
pub const NEW_TAG_CLASS: u64 = u64::MAX;

/// A client that is no longer waited for.
pub const DISCONNECTED: u8 = 1;

methods! { "journal";
    /// Makes a journal. `EEXIST` if there is one.
    writes CreateJournal("create") {
        /// How large its objects become, as a power of two.
        order: u8,
        /// How many of them are written to by turns.
        width: u8,
        /// Where they are; -1 for where this one is.
        pool: i64,
    } -> Empty;

    /// How large objects become, as a power of two.
    reads GetJournalOrder("get_order") {} -> u8;

    /// How many objects are written to by turns.
    reads GetJournalWidth("get_splay_width") {} -> u8;

    /// Where the objects are; -1 for where this one is.
    reads GetJournalPool("get_pool_id") {} -> i64;

    /// The first set of objects that somebody needs.
    reads GetMinimumSet("get_minimum_set") {} -> u64;

    /// Nobody needs what is before this set of objects. `ESTALE` if that is so for later ones.
    writes SetMinimumSet("set_minimum_set") {
        /// The set.
        set: u64,
    } -> Empty;

    /// The set of objects that is written to.
    reads GetActiveSet("get_active_set") {} -> u64;

    /// This set is written to from now on. `ESTALE` if a later one is.
    writes SetActiveSet("set_active_set") {
        /// The set.
        set: u64,
    } -> Empty;

    /// A client.
    reads GetJournalClient("get_client") {
        /// Which.
        id: String,
    } -> JournalClient;

    /// The clients.
    reads ListJournalClients("client_list") {
        /// The last one that is known.
        after: String,
        /// No more than so many.
        max: u64,
    } -> Vec<JournalClient>;

    /// Notes a new client. `EEXIST` if it is known.
    writes RegisterJournalClient("client_register") {
        /// What it is called.
        id: String,
        /// What it says of itself.
        data: Bytes,
    } -> Empty;

    /// A client needs nothing up to there any more.
    writes CommitJournal("client_commit") {
        /// Which.
        id: String,
        /// How far it is.
        position: CommitPosition,
    } -> Empty;

    /// The number of the next tag.
    reads GetNextTag("get_next_tag_tid") {} -> u64;

    /// Makes a tag. `ESTALE` if its number is not the next one.
    writes CreateTag("tag_create") {
        /// Its number.
        tid: u64,
        /// Its class, or [`NEW_TAG_CLASS`].
        class: u64,
        /// What it says.
        data: Bytes,
    } -> Empty;

    /// The tags that a client may meet.
    reads ListTags("tag_list") {
        /// The last one that is known.
        after: u64,
        /// No more than so many.
        max: u64,
        /// The client.
        client: String,
        /// Of this class only.
        class: Option<u64>,
    } -> Vec<JournalTag>;

    /// `EOVERFLOW` if the object is as long already.
    writes GuardAppend("guard_append") {
        /// In bytes.
        max: u64,
    } -> Empty;
}
