//! The bodies of messages, one file per family.
