//! `plugin`: serves Docker until it is told to end.

use std::sync::Arc;

use ceph_native::docker::server::{Listener, Server};
use ceph_native::docker::{Settings, Volumes, activation};
use ceph_native::error::{Error, Kind, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Serves Docker. What is mounted stays mounted when it ends.
pub(crate) async fn run(settings: Settings) -> Result<()> {
    let catch =
        |kind| signal(kind).map_err(|error| Error::new(Kind::Os(5), "signals").with_source(error));
    let (mut interrupt, mut terminate) =
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);

    let tls = settings.tls.load()?;
    let bind = |text: &String| Listener::bind(text, tls.as_ref());
    let handed_over = activation::sockets();
    let own = handed_over.is_empty();
    let mut listeners: Vec<_> =
        handed_over.into_iter().map(Listener::from_fd).collect::<Result<_>>()?;
    // Unix sockets are systemd's, if any is; TCP, which may want TLS, never is.
    let ours = settings.listen.iter().filter(|text| own || text.starts_with("tcp://"));
    listeners.extend(ours.map(bind).collect::<Result<Vec<_>>>()?);
    let files: Vec<_> = listeners.iter().filter_map(Listener::path).collect();

    let volumes = Volumes::open(settings)?;
    let server = Server::new(Arc::clone(&volumes));
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(Arc::clone(&server).serve(listener)))
        .collect();
    tracing::info!(sockets = ?files, "serving");
    tokio::select! {
        () = volumes.run() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // Nobody gets in any more; who is in may finish.
    serving.iter().for_each(tokio::task::JoinHandle::abort);
    if own {
        files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    }
    server.settle().await;
    tracing::info!("ended; what is mounted stays so");
    Ok(())
}
