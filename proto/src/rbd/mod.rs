//! RBD image maths and class-method payloads.

pub mod features;
