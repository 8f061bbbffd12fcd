//! RBD image maths and class-method payloads: what an image is made of, and where each of its bytes is.

pub mod cls;
pub mod features;
pub mod journal;
pub mod layout;
pub mod names;
pub mod notify;
pub mod object_map;

pub use features::{Features, Flags, OpFeatures};
pub use layout::Layout;
pub use object_map::{ObjectState, ObjectStates};
