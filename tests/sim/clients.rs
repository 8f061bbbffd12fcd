//! What clients do: the whole real client, from its configuration up, writes and reads an image and tells the model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ceph_native::cluster::Cluster;
use ceph_native::config::{Args, Config, Environment};
use ceph_native::error::{Kind, Result};
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::{Completion, Image, Io, OpenOptions, Queue, Segment};
use proto::rbd::Features;
use tokio::time::Instant;

use crate::model::{Model, Outcome, Reading, SECTOR, Writing, content};
use crate::network::Host;
use crate::random::{Random, SharedRandom};
use crate::world::{Millis, World};

/// Objects of 4 KiB, the smallest that there are.
pub(crate) const ORDER: u8 = 12;
/// A few objects, so that requests get in each other's way.
pub(crate) const SECTORS: u64 = 48;

const IMAGE: &str = "disk";

/// What all clients of a simulation share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) seed: u64,
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) model: Rc<RefCell<Model>>,
    /// Clients that are connected.
    pub(crate) connected: Rc<RefCell<BTreeMap<usize, Cluster>>>,
}

impl Context {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.world.borrow_mut().note(what);
    }

    fn fail(&self, what: String) {
        self.note(format_args!("WRONG: {what}"));
        self.model.borrow_mut().fail(what);
    }

    /// What the image is like.
    fn features(&self) -> Features {
        let mut features = Features::LAYERING;
        let mut random = Random::new(self.seed, 4);
        if random.one_in(2) {
            features |= Features::EXCLUSIVE_LOCK;
            if random.one_in(2) {
                features |= Features::OBJECT_MAP | Features::FAST_DIFF;
            }
        }
        features
    }

    /// Logs in.
    async fn connect(&self, client: usize, timeout: Option<Duration>) -> Result<Cluster> {
        let (host, conf) = {
            let world = self.world.borrow();
            let random = SharedRandom::new(self.seed, 100 + client as u64);
            (Host::new(Arc::clone(&world.network), client, random), world.conf())
        };
        let args = Args { conf: Some("ceph.conf".to_owned()), ..Args::default() };
        let mut config = Config::load(&args, &Files(conf)).expect("a configuration");
        config.osd_op_timeout = timeout;
        let cluster = Cluster::connect_in(Arc::new(host), config).await?;
        self.connected.borrow_mut().insert(client, cluster.clone());
        Ok(cluster)
    }

    /// Opens the image.
    async fn open(
        &self,
        client: usize,
        read_only: bool,
        timeout: Option<Duration>,
    ) -> Result<Image> {
        let cluster = self.connect(client, timeout).await?;
        let pool = cluster.pool("rbd").await?;
        Image::open(&pool, IMAGE, &OpenOptions { read_only, ..OpenOptions::default() }).await
    }

    /// Makes the image.
    pub(crate) async fn create(&self, client: usize) {
        let made = async {
            let cluster = self.connect(client, None).await?;
            let pool = cluster.pool("rbd").await?;
            let mut options = CreateOptions::new(SECTORS * SECTOR);
            (options.order, options.features) = (ORDER, self.features());
            admin::create(&pool, IMAGE, &options).await
        };
        made.await.expect("an image");
        self.connected.borrow_mut().remove(&client);
    }

    /// Reads everything.
    pub(crate) async fn verify(&self, client: usize) {
        let image = match self.open(client, true, None).await {
            Ok(image) => image,
            Err(error) => {
                return self.fail(format!("the image cannot be opened in the end: {error}"));
            }
        };
        let mut work = Work::new(self.clone(), client, 0, image.queue());
        work.read(0..SECTORS);
        work.finish().await;
        self.connected.borrow_mut().remove(&client);
    }

    fn is_fenced(&self, client: usize) -> bool {
        self.world.borrow().fences.contains_key(&client)
    }
}

/// What a client is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) requests: u64,
    pub(crate) depth: usize,
    pub(crate) writes: bool,
    /// Operations fail after so long.
    pub(crate) timeout: Option<Duration>,
}

/// A client's life: it connects, opens the image, does what it is to do, and lets go.
pub(crate) async fn live(context: Context, client: usize, plan: Plan) {
    let image = loop {
        match context.open(client, !plan.writes, plan.timeout).await {
            Ok(image) => break image,
            Err(error) if error.kind() == Kind::Fenced && context.is_fenced(client) => {
                context.connected.borrow_mut().remove(&client);
                return;
            }
            Err(error) if error.kind() == Kind::TimedOut && plan.timeout.is_some() => {}
            Err(error) => {
                return context.fail(format!("client {client} cannot open the image: {error}"));
            }
        }
    };
    let mut work = Work::new(context.clone(), client, plan.requests, image.queue());
    while work.left > 0 {
        let pause = match work.random.within(0..4) {
            0 => work.random.within(1..2000),
            1 => work.random.within(1..50),
            _ => 0,
        };
        let until = Instant::now() + Duration::from_millis(pause);
        work.until(until).await;
        for _ in 0..work.random.within(1..5) {
            if work.left > 0 && work.pending.len() < plan.depth {
                work.left -= 1;
                work.submit(plan.writes);
            }
        }
        work.queue.kick();
        if work.pending.len() >= plan.depth {
            work.some().await;
        }
    }
    work.finish().await;
    if context.is_fenced(client) {
        work.after_fencing().await;
    }
    drop(work);
    image.close().await;
    context.connected.borrow_mut().remove(&client);
}

enum Pending {
    Write(Writing),
    Read(Reading),
}

/// A client at work.
struct Work {
    context: Context,
    client: usize,
    queue: Queue,
    random: Random,
    left: u64,
    last: u64,
    /// What is under way, and since when.
    pending: BTreeMap<u64, (Pending, Millis)>,
}

impl Work {
    fn new(context: Context, client: usize, requests: u64, queue: Queue) -> Self {
        let random = Random::new(context.seed, 200 + client as u64);
        let pending = BTreeMap::new();
        Self { context, client, queue, random, left: requests, last: 0, pending }
    }

    fn submit(&mut self, writes: bool) {
        let from = self.random.within(0..SECTORS);
        let most = if self.random.one_in(4) { 16 } else { 4 };
        let sectors = from..(from + self.random.within(1..most)).min(SECTORS);
        match self.random.within(0..10) {
            0..6 if writes => self.write(sectors),
            6 if writes => self.zero(sectors),
            7 if writes => {
                // The same place twice at once.
                self.write(sectors.clone());
                self.write(sectors);
            }
            _ => self.read(sectors),
        }
    }

    fn write(&mut self, sectors: std::ops::Range<u64>) {
        let value = (self.client as u64) << 32 | (self.last + 1);
        let data = content(value, sectors.end - sectors.start).into();
        let writing = self.context.model.borrow_mut().write(self.client, value, sectors.clone());
        let io = Io::Write { offset: sectors.start * SECTOR, data };
        self.begin(Pending::Write(writing), io, format_args!("writes {value:x} to {sectors:?}"));
    }

    fn zero(&mut self, sectors: std::ops::Range<u64>) {
        let length = (sectors.end - sectors.start) * SECTOR;
        let writing = self.context.model.borrow_mut().write(self.client, 0, sectors.clone());
        let may_free = self.random.one_in(2);
        let io = Io::WriteZeroes { offset: sectors.start * SECTOR, length, may_free };
        self.begin(Pending::Write(writing), io, format_args!("zeroes {sectors:?}"));
    }

    fn read(&mut self, sectors: std::ops::Range<u64>) {
        let length = (sectors.end - sectors.start) * SECTOR;
        let reading = self.context.model.borrow().read(sectors.clone());
        let io = Io::Read { offset: sectors.start * SECTOR, length };
        self.begin(Pending::Read(reading), io, format_args!("reads {sectors:?}"));
    }

    fn begin(&mut self, pending: Pending, io: Io, what: std::fmt::Arguments<'_>) {
        self.last += 1;
        self.context.note(format_args!("client {} request {} {what}", self.client, self.last));
        let now = self.context.world.borrow().millis();
        self.pending.insert(self.last, (pending, now));
        self.queue.submit(self.last, io);
    }

    /// Takes completions until a time.
    async fn until(&mut self, time: Instant) {
        while Instant::now() < time {
            tokio::select! {
                biased;
                () = self.some() => {}
                () = tokio::time::sleep_until(time) => {}
            }
        }
    }

    /// Takes at least one completion.
    async fn some(&mut self) {
        let mut done = Vec::new();
        poll_fn(|cx| self.queue.poll_completions(cx, &mut done)).await;
        for completion in done {
            self.completed(completion);
        }
    }

    async fn finish(&mut self) {
        self.queue.kick();
        while !self.pending.is_empty() {
            self.some().await;
        }
    }

    fn completed(&mut self, Completion { token, result }: Completion) {
        let client = self.client;
        let Some((pending, since)) = self.pending.remove(&token) else {
            return self
                .context
                .fail(format!("client {client}: request {token} is complete again"));
        };
        let kind = result.as_ref().err().map(|error| error.kind());
        self.context.note(format_args!("client {client} request {token}: {kind:?}"));
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(error) if error.kind() == Kind::Fenced && self.context.is_fenced(client) => {
                self.left = 0;
                self.in_time(since);
                Outcome::Fenced
            }
            Err(error) if error.kind() == Kind::TimedOut => Outcome::TimedOut,
            Err(error) => {
                return self
                    .context
                    .fail(format!("client {client}: request {token} fails: {error}"));
            }
        };
        let mut model = self.context.model.borrow_mut();
        match (pending, result) {
            (Pending::Write(writing), _) => model.written(&writing, outcome),
            (Pending::Read(reading), Ok(read)) => model.was_read(&reading, &bytes(read)),
            (Pending::Read(_), Err(_)) => {}
        }
    }

    /// Who is fenced must know within a second of being told, and from then on at once.
    fn in_time(&self, since: Millis) {
        let (known, now) = {
            let world = self.context.world.borrow();
            (world.fences[&self.client].known, world.millis())
        };
        if known.is_some_and(|known| now > known.max(since) + 1000) {
            let client = self.client;
            self.context.fail(format!("client {client} was told at {known:?} that it is fenced"));
        }
    }

    /// Nothing works any more, and that is told at once.
    async fn after_fencing(&mut self) {
        let (token, now) = (self.last + 1, Instant::now());
        let known = self.context.world.borrow().fences[&self.client].known.is_some();
        self.queue.submit(token, Io::Read { offset: 0, length: SECTOR });
        self.queue.kick();
        let mut done = Vec::new();
        poll_fn(|cx| self.queue.poll_completions(cx, &mut done)).await;
        let fenced = done
            .iter()
            .all(|done| done.result.as_ref().is_err_and(|error| error.kind() == Kind::Fenced));
        if !fenced || known && Instant::now() > now {
            self.context.fail(format!("client {} is fenced and reads on: {done:?}", self.client));
        }
    }
}

fn bytes(outcome: ceph_native::image::Outcome) -> Vec<u8> {
    match outcome {
        ceph_native::image::Outcome::ReadWhole(data) => data.into(),
        ceph_native::image::Outcome::Read(segments) => {
            let bytes = segments.into_iter().flat_map(|segment| match segment {
                Segment::Data(data) => data.to_vec(),
                Segment::Hole(length) => vec![0; length as usize],
            });
            bytes.collect()
        }
        _ => Vec::new(),
    }
}

/// A machine with nothing on it but a configuration.
struct Files(String);

impl Environment for Files {
    fn var(&self, _name: &str) -> Option<String> {
        None
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("ceph.conf") => Ok(self.0.clone().into_bytes()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "client".to_owned()
    }

    fn pid(&self) -> u32 {
        1
    }
}
