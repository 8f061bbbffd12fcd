//! Serves a sparse disk of 1 TiB in memory: `memory SOCKET [ADDRESS:PORT]`. Ctrl-C ends it.
//!
//! Try `nbdinfo 'nbd+unix:///?socket=SOCKET'`, or measure with fio's `ioengine=nbd`.

use std::error::Error;
use std::time::Duration;

use nbd::device::Geometry;
use nbd::memory::MemoryDevice;
use nbd::{Export, Exports, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: memory SOCKET [ADDRESS:PORT]")?;
    let disk = MemoryDevice::new(Geometry::new(1 << 40));
    let server = Server::new(Exports::new(vec![Export::new("disk", disk)])?);
    server.listen_unix(&socket, 0o600)?;
    if let Some(address) = args.next() {
        println!("listening on {}", server.listen_tcp(address.parse()?)?);
    }
    println!("listening on {socket}");
    tokio::signal::ctrl_c().await?;
    println!("{}", server.shutdown(Duration::from_secs(10)).await);
    Ok(())
}
