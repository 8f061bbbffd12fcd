//! Class methods: code that OSDs run on an object on behalf of clients (Ceph's `src/cls`).

mod lock;
mod rbd;

use bytes::{Bytes, BytesMut};
use proto::denc::{Reader, Result};

use super::context::Context;
use crate::errno::{EINVAL, EIO, ENOENT, EOPNOTSUPP, OpResult};

/// A method.
pub(super) struct Method {
    class: &'static str,
    name: &'static str,
    /// Whether it may change the object.
    pub(super) writes: bool,
    run: Run,
}

type Run = fn(&mut Context<'_>, &Bytes, &mut BytesMut) -> OpResult;

impl Method {
    const fn reads(class: &'static str, name: &'static str, run: Run) -> Self {
        Self { class, name, writes: false, run }
    }

    const fn writes(class: &'static str, name: &'static str, run: Run) -> Self {
        Self { class, name, writes: true, run }
    }
}

/// The method of that name, if there is one.
pub(super) fn find(class: &str, name: &str) -> Option<&'static Method> {
    [lock::METHODS, rbd::METHODS]
        .into_iter()
        .flatten()
        .find(|method| method.class == class && method.name == name)
}

/// Runs a method. What it puts out counts even if it fails.
pub(super) fn call(
    context: &mut Context<'_>,
    class: &str,
    name: &str,
    input: &Bytes,
    out: &mut Bytes,
) -> OpResult<i32> {
    let method = find(class, name).ok_or(EOPNOTSUPP)?;
    context.user_modify |= method.writes;
    let mut w = BytesMut::new();
    let result = (method.run)(context, input, &mut w);
    *out = w.freeze();
    result.map(|()| 0)
}

/// The arguments of a method.
fn arguments<'i, T>(
    input: &'i Bytes,
    read: impl FnOnce(&mut Reader<'i>) -> Result<T>,
) -> OpResult<T> {
    read(&mut Reader::new(input, "class method input")).map_err(|_| EINVAL)
}

/// The value of a key; `ENOENT` if there is none.
fn get<'a, T>(
    context: &Context<'a>,
    key: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> OpResult<T> {
    let value = context.omap_value(key.as_bytes())?;
    read(&mut Reader::new(value, "omap value")).map_err(|_| EIO)
}

/// The value of a key, if there is one.
fn find_key<'a, T>(
    context: &Context<'a>,
    key: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> OpResult<Option<T>> {
    match get(context, key, read) {
        Err(ENOENT) => Ok(None),
        value => value.map(Some),
    }
}

/// Sets one key.
fn set(context: &mut Context<'_>, key: &str, write: impl FnOnce(&mut BytesMut)) {
    let mut w = BytesMut::new();
    write(&mut w);
    context.omap_set(vec![(Bytes::copy_from_slice(key.as_bytes()), w.freeze())]);
}

/// Removes one key, which need not be there.
fn remove(context: &mut Context<'_>, key: &str) -> OpResult {
    context.omap_remove(vec![Bytes::copy_from_slice(key.as_bytes())])
}
