//! The monitor map.
