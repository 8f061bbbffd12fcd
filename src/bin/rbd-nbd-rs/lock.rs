//! `lock`: who has locked an image, and locking it by hand.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, Locks, address_text};
use ceph_native::image::header::image_id;
use ceph_native::pool::Pool;

use crate::output::{Format, Tree};
use crate::spec::ImageArgs;

/// Shows, takes and removes locks of an image.
#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum Lock {
    /// Shows who has locked an image.
    #[command(name = "ls", visible_alias = "list")]
    List {
        #[command(flatten)]
        image: ImageArgs,
        #[command(flatten)]
        format: Format,
    },
    /// Takes a lock on an image.
    Add {
        #[command(flatten)]
        image: ImageArgs,
        /// Unique lock id.
        #[arg(value_name = "LOCK-ID")]
        id: Option<String>,
        /// Share the lock with others who name the same tag.
        #[arg(long, value_name = "TAG")]
        shared: Option<String>,
    },
    /// Releases a lock on an image. The client that holds it is fenced off.
    #[command(name = "rm", visible_alias = "remove")]
    Remove {
        #[command(flatten)]
        image: ImageArgs,
        /// Unique lock id.
        #[arg(value_name = "LOCK-ID")]
        id: Option<String>,
        /// Who holds it: client.NUMBER.
        #[arg(value_name = "LOCKER")]
        locker: Option<String>,
    },
}

impl Lock {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::List { image, format } => {
                let (pool, id) = open(cluster, &image).await?;
                let locks = admin::locks(&pool, &id).await?;
                format.print("locks", || tree(&locks), || plain(&locks))
            }
            Self::Add { image, id: cookie, shared } => {
                let cookie = given(cookie, "lock id")?;
                let (pool, id) = open(cluster, &image).await?;
                admin::add_lock(&pool, &id, &cookie, shared.as_deref()).await
            }
            Self::Remove { image, id: cookie, locker } => {
                let cookie = given(cookie, "lock id")?;
                let locker = given(locker, "locker")?;
                let (pool, id) = open(cluster, &image).await?;
                admin::remove_lock(&pool, &id, &cookie, &locker).await
            }
        }
    }
}

fn given(word: Option<String>, what: &str) -> Result<String> {
    word.ok_or_else(|| Error::new(Kind::Invalid, format!("{what} was not specified")))
}

async fn open(cluster: &Cluster, image: &ImageArgs) -> Result<(Pool, String)> {
    let spec = image.spec()?;
    let pool = spec.open_pool(cluster).await?;
    let id = image_id(&pool, &spec.image).await?;
    Ok((pool, id))
}

fn tree(locks: &Locks) -> Tree {
    Tree::list(
        "lock",
        locks.lockers.iter().map(|locker| {
            Tree::Object(vec![
                ("id", locker.cookie.as_str().into()),
                ("locker", locker.client.to_string().into()),
                ("address", address_text(&locker.addr).into()),
            ])
        }),
    )
}

fn plain(locks: &Locks) -> String {
    let count = locks.lockers.len();
    if count == 0 {
        return String::new();
    }
    let (verb, plural) = if count == 1 { ("is", "") } else { ("are", "s") };
    let kind = if locks.shared.is_some() { "shared" } else { "exclusive" };
    let mut text = format!("There {verb} {count} {kind} lock{plural} on this image.\n");
    if let Some(tag) = &locks.shared {
        text += &format!("Lock tag: {tag}\n");
    }
    let rows: Vec<_> = (locks.lockers.iter())
        .map(|locker| {
            vec![locker.client.to_string(), locker.cookie.clone(), address_text(&locker.addr)]
        })
        .collect();
    let head = ["Locker", "ID", "Address"].map(str::to_owned);
    let lines: Vec<&[String]> =
        std::iter::once(&head[..]).chain(rows.iter().map(Vec::as_slice)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    // Unlike in rbd's other tables, the last column is filled up, too.
    lines.iter().fold(text, |text, line| {
        let [a, b, c] = widths;
        text + &format!("{:a$}  {:b$}  {:c$}\n", line[0], line[1], line[2])
    })
}
