//! Giving an image another name.

use bytes::Bytes;
use proto::msg::op::Op;
use proto::rbd::cls::{GetId, RenameImage};
use proto::rbd::{names, notify};

use super::children::or_none;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::header::{image_id, spec};
use crate::pool::Pool;

/// Gives an image another name in its pool and namespace. It may be in use: whoever has it open goes on.
///
/// The order is librbd's (`librbd/operation/RenameRequest.cc`): the new name is reserved, the directory changes, the
/// old name goes. Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Exists`] if the name is taken.
pub async fn rename(pool: &Pool, name: &str, new_name: &str) -> Result<()> {
    let doing = format!("image {}", spec(pool, name));
    if new_name.is_empty() || new_name.contains(['/', '@']) {
        let what = format!("{doing}: a name must not be empty nor contain / or @");
        return Err(Error::new(Kind::Invalid, what));
    }
    let taken =
        || Error::new(Kind::Exists, format!("image {} exists already", spec(pool, new_name)));
    let id = image_id(pool, name).await?;
    if name == new_name || or_none(pool.stat(&names::old_header(new_name)).await)?.is_some() {
        return Err(taken());
    }
    let old_object = names::id_object(name);
    let new_object = names::id_object(new_name);
    let content: Bytes = pool.read(&old_object, 0, 0).await.context(&doing)?;
    let reserve = vec![Op::Create { exclusive: true }, Op::WriteFull { data: content }];
    match pool.operate(&new_object, reserve).await {
        Ok(_) => {}
        // By somebody who did not get further.
        Err(error) if error.kind() == Kind::Exists => {
            if pool.call(&new_object, &GetId {}).await? != id {
                return Err(taken());
            }
        }
        Err(error) => return Err(error.context(doing)),
    }
    let entry =
        RenameImage { name: name.to_owned(), new_name: new_name.to_owned(), id: id.clone() };
    pool.call(names::DIRECTORY, &entry).await.context(&doing)?;
    or_none(pool.remove(&old_object).await).context(&doing)?;
    // Whoever does not answer will find out by itself, or is dead.
    pool.notify(&names::header(&id), notify::header_update()).await.context(doing).map(drop)
}
