//! Class methods: code that runs on the OSD, next to the object that it reads or changes. What goes in and what comes
//! out (`src/cls/rbd/cls_rbd.cc`, `src/cls/lock/cls_lock_ops.h`), for both sides.
//!
//! Each method is a type: its fields are the input, in the order in which they are sent.

mod directory;
mod image;
mod journal;
mod layers;
pub mod lock;
mod object_map;
mod trash;
mod types;

use bytes::Bytes;

use crate::denc::{Decode, Encode, Result, decode};

use directory::METHODS as DIRECTORY;
use image::METHODS as IMAGE;
use journal::METHODS as JOURNAL;
use layers::METHODS as LAYERS;
use lock::METHODS as LOCK;
use object_map::METHODS as OBJECT_MAP;
use trash::METHODS as TRASH;

pub use directory::*;
pub use image::*;
pub use journal::*;
pub use layers::*;
pub use object_map::*;
pub use trash::*;
pub use types::*;

/// A class method with the input of one call.
pub trait Method: Encode + Decode {
    /// The class.
    const CLASS: &'static str;
    /// The method.
    const NAME: &'static str;
    /// Whether it may change the object. A call that does must be sent as a write.
    const WRITES: bool;
    /// What comes out. A method that writes gives nothing back.
    type Reply: Encode + Decode;

    /// Reads what came back.
    fn reply(bytes: &[u8]) -> Result<Self::Reply> {
        decode(bytes, Self::NAME)
    }

    /// What goes in.
    fn input(&self) -> Bytes {
        self.to_bytes()
    }
}

/// A method without its types, for what has to be true of all of them.
#[derive(Clone, Copy, Debug)]
pub struct AnyMethod {
    /// The class.
    pub class: &'static str,
    /// The method.
    pub name: &'static str,
    /// Reads what goes in, and writes it again.
    pub input: fn(&[u8]) -> Result<Bytes>,
    /// Reads what comes out, and writes it again.
    pub reply: fn(&[u8]) -> Result<Bytes>,
}

impl AnyMethod {
    const fn of<M: Method>() -> Self {
        Self {
            class: M::CLASS,
            name: M::NAME,
            input: |bytes| Ok(decode::<M>(bytes, M::NAME)?.input()),
            reply: |bytes| Ok(M::reply(bytes)?.to_bytes()),
        }
    }
}

/// Every method.
pub fn all() -> impl Iterator<Item = &'static AnyMethod> {
    [DIRECTORY, IMAGE, JOURNAL, LAYERS, LOCK, OBJECT_MAP, TRASH].into_iter().flatten()
}

/// Nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty;

impl Decode for Empty {
    fn decode(_: &mut crate::denc::Reader<'_>) -> Result<Self> {
        Ok(Self)
    }
}

impl Encode for Empty {
    fn encode(&self, _: &mut bytes::BytesMut) {}
}

/// Declares a structure whose encoding is that of its fields, one after the other; with `[version, compat]`, in an
/// envelope.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident $([$version:literal, $compat:literal])? {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::denc::Decode for $name {
            #[allow(unused_variables, reason = "a method may have no input")]
            fn decode(r: &mut $crate::denc::Reader<'_>) -> $crate::denc::Result<Self> {
                $crate::rbd::cls::record!(@decode r $name [$($version)?] { $($field,)* })
            }
        }

        impl $crate::denc::Encode for $name {
            #[allow(unused_variables, reason = "a method may have no input")]
            fn encode(&self, w: &mut bytes::BytesMut) {
                $crate::rbd::cls::record!(@encode w self [$($version, $compat)?] { $($field,)* })
            }
        }
    };
    (@decode $r:ident $name:ident [] { $($field:ident,)* }) => {
        Ok(Self { $($field: $r.get()?,)* })
    };
    (@decode $r:ident $name:ident [$version:literal] { $($field:ident,)* }) => {
        $r.envelope(stringify!($name), $version, |_, r| Ok(Self { $($field: r.get()?,)* }))
    };
    (@encode $w:ident $self:ident [] { $($field:ident,)* }) => {{
        $($crate::denc::Put::put_value($w, &$self.$field);)*
    }};
    (@encode $w:ident $self:ident [$version:literal, $compat:literal] { $($field:ident,)* }) => {
        $crate::denc::Put::put_envelope($w, $version, $compat, |w| {
            $($crate::denc::Put::put_value(w, &$self.$field);)*
        })
    };
}

/// Declares methods: `reads` or `writes` `Name("method") { input } -> Reply;`
macro_rules! methods {
    ($class:literal; $(
        $(#[$doc:meta])*
        $access:ident $name:ident($method:literal) $([$version:literal, $compat:literal])? {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        } -> $reply:ty;
    )*) => {
        /// The methods of this file, for [`super::all`].
        pub(super) const METHODS: &[$crate::rbd::cls::AnyMethod] =
            &[$($crate::rbd::cls::AnyMethod::of::<$name>(),)*];

        $(
        $crate::rbd::cls::record! {
            $(#[$doc])*
            $name $([$version, $compat])? { $($(#[$field_doc])* $field: $type,)* }
        }

        impl $crate::rbd::cls::Method for $name {
            const CLASS: &'static str = $class;
            const NAME: &'static str = $method;
            const WRITES: bool = $crate::rbd::cls::methods!(@writes $access);
            type Reply = $reply;
        }
        )*
    };
    (@writes reads) => { false };
    (@writes writes) => { true };
}

use {methods, record};

#[cfg(test)]
mod tests;
