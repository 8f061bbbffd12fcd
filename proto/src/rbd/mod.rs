//! RBD image maths and class-method payloads.
