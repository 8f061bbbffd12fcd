//! Changing many objects of an image, a bounded number of them at a time.

use std::sync::Arc;

use proto::msg::object::SnapContext;
use proto::msg::op::Op;
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result};
use crate::pool::Pool;

/// Told how much is done, and of how much.
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// Applies one operation each to objects. That an object is not there is as good as done.
///
/// Ends with the first failure, when everything that was begun is over.
pub(super) async fn change(
    pool: &Pool,
    snaps: &Arc<SnapContext>,
    window: u64,
    changes: impl Iterator<Item = (String, Op)>,
    mut done: impl FnMut(),
) -> Result<()> {
    let mut changes = changes;
    let mut in_flight = JoinSet::new();
    let mut failed: Option<Error> = None;
    loop {
        while failed.is_none() && (in_flight.len() as u64) < window {
            let Some((object, op)) = changes.next() else { break };
            let (pool, snaps) = (pool.clone(), Arc::clone(snaps));
            in_flight.spawn(async move { pool.operate_with_snaps(&object, vec![op], snaps).await });
        }
        match in_flight.join_next().await {
            None => return failed.map_or(Ok(()), Err),
            Some(Ok(Err(error))) if error.kind() != Kind::NotFound => {
                failed.get_or_insert(error);
            }
            Some(Ok(_)) => done(),
            Some(Err(error)) => {
                failed = failed
                    .or_else(|| Some(Error::new(Kind::Closed, "a task ended").with_source(error)));
            }
        }
    }
}
