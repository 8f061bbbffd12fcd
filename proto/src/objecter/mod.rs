//! The table of operations in flight, and who must be sent what.
