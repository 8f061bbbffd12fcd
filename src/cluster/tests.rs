//! The client against devcluster, with sockets that are watched.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use devcluster::{DevCluster, Options};
use proto::msg::object::Locator;
use proto::msg::op::Op;
use proto::msg::osd_op::Operation;
use proto::types::Entropy;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Cluster, Connecting, Inbox, Surroundings};
use crate::config::{Args, Config, Environment};
use crate::net::{Machine, Stream};

/// This machine, with writes to the network counted.
#[derive(Default)]
struct Counting(Arc<AtomicU64>);

impl Surroundings for Counting {
    fn connect(&self, addr: SocketAddr) -> Connecting {
        let (connecting, writes) = (Machine.connect(addr), Arc::clone(&self.0));
        Box::pin(async move {
            Ok(Box::new(Counted { stream: connecting.await?, writes }) as Box<dyn Stream>)
        })
    }

    fn entropy(&self) -> Box<dyn Entropy> {
        Machine.entropy()
    }
}

struct Counted {
    stream: Box<dyn Stream>,
    writes: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A machine with nothing on it but the cluster's configuration.
struct Files<'a>(&'a DevCluster);

impl Environment for Files<'_> {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("ceph.conf") => Ok(self.0.conf(Path::new("keyring")).into_bytes()),
            Some("keyring") => Ok(self.0.keyring().into_bytes()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "localhost".to_owned()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }
}

#[tokio::test]
async fn what_is_kicked_is_written_at_once_and_together() {
    let devcluster = DevCluster::start(Options::default()).await.unwrap();
    let args = Args { conf: Some("ceph.conf".to_owned()), ..Args::default() };
    let config = Config::load(&args, &Files(&devcluster)).unwrap();
    let (surroundings, inbox) = (Counting::default(), Arc::<Inbox>::default());
    let writes = Arc::clone(&surroundings.0);
    let writes = || writes.load(Ordering::Relaxed);
    let client = Cluster::connect_in(Arc::new(surroundings), config).await.unwrap();
    let pool = client.with_map(|map| map.pools.keys().next().copied()).flatten().unwrap();
    let stat =
        |n: u64| Operation::new(Locator::of_pool(pool), n.to_string(), vec![Op::Stat.into()]);
    // With this there is a session.
    client.execute(stat(0)).await.unwrap();

    let before = writes();
    for n in 0..10 {
        client.submit(stat(n), &inbox, n);
    }
    assert_eq!(writes(), before, "written before it was all there");
    client.kick();
    assert_eq!(writes(), before + 1, "not written, or not together");
    let (mut taken, mut answers) = (Vec::new(), 0);
    while answers < 10 {
        poll_fn(|cx| inbox.poll_take(cx, &mut taken)).await;
        answers += taken.drain(..).filter(|(_, result)| result.is_ok()).count();
    }
    devcluster.stop().await;
}
