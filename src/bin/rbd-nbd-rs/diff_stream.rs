//! `export-diff` and `import-diff`: what has changed of an image, as a stream for another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, DiffOptions};
use ceph_native::image::transfer::{CHUNK, Reader, Writer, nonzero};
use ceph_native::image::{Image, Maintenance, Segment};
use clap::Args;
use proto::rbd::cls::SnapshotNamespace;
use tokio::sync::mpsc;

use crate::import::{failed, open};
use crate::progress::Progress;
use crate::size;
use crate::snap::closed;
use crate::spec::{ImageArgs, SnapArgs};

/// Writes what has changed of an image since a snapshot, or since it was made, to a file.
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportDiff {
    #[command(flatten)]
    image: SnapArgs,
    /// The file; "-" for standard output.
    #[arg(value_name = "PATH")]
    file: Option<String>,
    /// The file, as an option.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Since that snapshot.
    #[arg(long, value_name = "SNAP")]
    from_snap: Option<String>,
    /// Compare whole objects: fast, where object maps can be relied on.
    #[arg(long)]
    whole_object: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// Changes an image as a file of `export-diff` says.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImportDiff {
    /// The file; "-" for standard input.
    #[arg(value_name = "PATH")]
    file: Option<String>,
    #[command(flatten)]
    image: ImageArgs,
    /// The file, as an option.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Blocks of that size that are zeros take no space.
    #[arg(long, value_name = "SIZE", value_parser = size::block, default_value = "4K")]
    sparse_size: u64,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// How a stream begins (`doc/dev/rbd-diff.rst`). In the second version records say how long they are.
const MAGIC: [&[u8]; 2] = [b"rbd diff v1\n", b"rbd diff v2\n"];

/// How many pieces wait for a file or an image.
const WAITING: usize = 4;

/// What is no longer than an object is told apart in blocks of that size.
const SPARSE: usize = 4096;

const EBADMSG: i32 = 74;

/// No name of a snapshot is longer.
const LONGEST_NAME: u64 = 64 << 10;

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    /// The snapshot that it begins at.
    From(String),
    /// The snapshot that it ends at.
    To(String),
    /// The size of the image at its end.
    Size(u64),
    /// What is there now.
    Data { offset: u64, data: Bytes },
    /// What is zeros now.
    Zero { offset: u64, length: u64 },
    /// The end: what has none was cut short.
    End,
}

impl Record {
    /// As it is written in the first version.
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let name = |out: &mut BytesMut, tag, name: &str| {
            out.put_u8(tag);
            out.put_u32_le(name.len() as u32);
            out.put_slice(name.as_bytes());
        };
        match self {
            Self::From(snap) => name(&mut out, b'f', snap),
            Self::To(snap) => name(&mut out, b't', snap),
            Self::Size(size) => {
                out.put_u8(b's');
                out.put_u64_le(*size);
            }
            Self::Data { offset, data } => {
                out.put_u8(b'w');
                out.put_u64_le(*offset);
                out.put_u64_le(data.len() as u64);
                out.put_slice(data);
            }
            Self::Zero { offset, length } => {
                out.put_u8(b'z');
                out.put_u64_le(*offset);
                out.put_u64_le(*length);
            }
            Self::End => out.put_u8(b'e'),
        }
        out.freeze()
    }
}

impl ExportDiff {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?.with_image()?;
        let path = self.path.as_ref().or(self.file.as_ref());
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let image = spec.open(cluster, true).await?;
        let done = match path.as_str() {
            "-" => self.export(&image, spec.snap.clone(), Box::new(io::stdout()), None).await,
            path => {
                match OpenOptions::new().write(true).create_new(true).open(path).map(Arc::new) {
                    Ok(file) => {
                        let sink = Box::new(Arc::clone(&file));
                        let done = self.export(&image, spec.snap.clone(), sink, Some(file)).await;
                        done.inspect_err(|_| drop(fs::remove_file(path)))
                    }
                    Err(error) => Err(failed(path, error)),
                }
            }
        };
        closed(image, done).await
    }

    /// Reads the image and has a thread write, which may wait for whoever reads a pipe. A file is synced at the end.
    async fn export(
        &self,
        image: &Image,
        snap: Option<String>,
        mut sink: Box<dyn Write + Send>,
        file: Option<Arc<File>>,
    ) -> Result<()> {
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(WAITING);
        let writer = tokio::task::spawn_blocking(move || -> io::Result<()> {
            while let Some(piece) = waiting.blocking_recv() {
                sink.write_all(&piece)?;
            }
            sink.flush()?;
            file.map_or(Ok(()), |file| file.sync_all())
        });
        let progress = Progress::new("Exporting image", !self.no_progress);
        let read = self.send(image, snap, &pieces, &progress).await;
        drop(pieces);
        let written = writer.await.map_err(|error| gone().with_source(error))?;
        written.map_err(|error| failed("writing", error))?;
        read?;
        progress.finish();
        Ok(())
    }

    async fn send(
        &self,
        image: &Image,
        snap: Option<String>,
        pieces: &mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> Result<()> {
        let from = match &self.from_snap {
            Some(name) => Some(admin::user_snapshot(image, name).await?.id),
            None => None,
        };
        let options = DiffOptions { from, whole_objects: self.whole_object, with_parent: true };
        let (mut data, mut zeros) = (Vec::new(), Vec::new());
        let mut add = |admin::Difference { offset, length, exists }| {
            match exists {
                true => data.push((offset, length)),
                false => zeros.push((offset, length)),
            }
            Ok(())
        };
        admin::diff(image, options, &mut add).await?;

        // Who is gone says why.
        let put = async |piece: Bytes| pieces.send(piece).await.map_err(|_| gone());
        put(Bytes::from_static(MAGIC[0])).await?;
        let names = [self.from_snap.clone().map(Record::From), snap.map(Record::To)];
        for record in names.into_iter().flatten().chain([Record::Size(image.size())]) {
            put(record.encode()).await?;
        }
        let (mut reader, mut zeros) = (Reader::of(image, data), zeros.into_iter().peekable());
        while let Some((mut at, segments)) = reader.next().await? {
            // `rbd merge-diff` wants them in order.
            while let Some((offset, length)) = zeros.next_if(|(offset, _)| *offset < at) {
                put(Record::Zero { offset, length }.encode()).await?;
            }
            for segment in segments {
                let length = segment.len();
                for record in records(at, segment, SPARSE) {
                    put(record.encode()).await?;
                }
                at += length;
            }
            progress.set(at, image.size());
        }
        for (offset, length) in zeros {
            put(Record::Zero { offset, length }.encode()).await?;
        }
        put(Record::End.encode()).await
    }
}

fn gone() -> Error {
    Error::new(Kind::Closed, "the thread that writes ended")
}

/// What was read, with blocks of zeros told apart.
fn records(at: u64, segment: Segment, block: usize) -> Vec<Record> {
    let length = segment.len();
    let Segment::Data(data) = segment else {
        return vec![Record::Zero { offset: at, length }];
    };
    let (mut told, end) = (at, at + length);
    let mut records = Vec::new();
    for (begin, data) in nonzero(&data, block) {
        let offset = at + begin;
        if offset > told {
            records.push(Record::Zero { offset: told, length: offset - told });
        }
        told = offset + data.len() as u64;
        records.push(Record::Data { offset, data });
    }
    if told < end {
        records.push(Record::Zero { offset: told, length: end - told });
    }
    records
}

impl ImportDiff {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let path = self.path.as_deref().or(self.file.as_deref());
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let image = self.image.spec()?;
        let (source, _) = open(path)?;
        let image = image.open(cluster, false).await?;
        let done = self.import(&image, source).await;
        closed(image, done).await
    }

    async fn import(&self, image: &Image, source: Box<dyn Read + Send>) -> Result<()> {
        let progress = Progress::new("Importing image diff", !self.no_progress);
        let mut records = read(source);
        let mut writer = Writer::new(image);
        let mut end = None;
        loop {
            let ended = || Error::new(Kind::Closed, "the thread that reads ended");
            match records.recv().await.ok_or_else(ended)?.map_err(unreadable)? {
                Record::From(name) => there(image, &name).await?,
                Record::To(name) => {
                    not_there(image, &name).await?;
                    end = Some(name);
                }
                Record::Size(size) if size != image.size() => {
                    let resize = Maintenance::Resize { size, may_shrink: true };
                    image.maintain(&resize, &mut |_, _| {}).await?;
                }
                Record::Size(_) => {}
                Record::Data { offset, data } => {
                    within(image, offset, data.len() as u64)?;
                    progress.set(offset, image.size());
                    let block = self.sparse_size as usize;
                    for record in self::records(offset, Segment::Data(data), block) {
                        match record {
                            Record::Data { offset, data } => writer.write(offset, data).await?,
                            Record::Zero { offset, length } => writer.zero(offset, length).await?,
                            _ => {}
                        }
                    }
                }
                Record::Zero { offset, length } => {
                    within(image, offset, length)?;
                    writer.zero(offset, length).await?;
                }
                Record::End => break,
            }
        }
        writer.finish().await?;
        if let Some(name) = end {
            let namespace = SnapshotNamespace::User;
            let take = Maintenance::SnapCreate { namespace, name, flags: 0 };
            image.maintain(&take, &mut |_, _| {}).await?;
        }
        progress.finish();
        Ok(())
    }
}

async fn there(image: &Image, name: &str) -> Result<()> {
    match admin::user_snapshot(image, name).await {
        Err(error) if error.kind() == Kind::NotFound => {
            let what = format!("start snapshot '{name}' does not exist in the image");
            Err(Error::new(Kind::Invalid, what))
        }
        found => found.map(drop),
    }
}

async fn not_there(image: &Image, name: &str) -> Result<()> {
    match admin::user_snapshot(image, name).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let what = format!("snapshot {}@{name} exists already", image.spec());
            Err(Error::new(Kind::Exists, what))
        }
    }
}

fn within(image: &Image, offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= image.size() => Ok(()),
        _ => Err(Error::new(Kind::Invalid, "the stream has data beyond the end of the image")),
    }
}

/// Has a thread read, which may wait for whoever writes to a pipe.
fn read(mut source: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Record>> {
    let (records, waiting) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let done = parse(&mut source, &mut |record| records.blocking_send(Ok(record)).is_ok());
        if let Err(error) = done {
            let _ = records.blocking_send(Err(error));
        }
    });
    waiting
}

/// Reads a stream until its end, or until nobody wants more of it. Data come in pieces.
fn parse(source: &mut dyn Read, found: &mut dyn FnMut(Record) -> bool) -> io::Result<()> {
    let magic: [u8; 12] = bytes(source)?;
    let version = MAGIC.iter().position(|known| *known == magic);
    let with_lengths = version.ok_or_else(|| corrupt("this is no stream of export-diff"))? == 1;
    loop {
        let [tag] = bytes(source)?;
        if tag == b'e' {
            found(Record::End);
            return Ok(());
        }
        let length = if with_lengths { Some(number(source)?) } else { None };
        let wanted = match tag {
            b'f' => found(Record::From(name(source)?)),
            b't' => found(Record::To(name(source)?)),
            b's' => found(Record::Size(number(source)?)),
            b'z' => found(Record::Zero { offset: number(source)?, length: number(source)? }),
            b'w' => {
                let (mut offset, mut left) = (number(source)?, number(source)?);
                let mut wanted = true;
                while left > 0 && wanted {
                    let data = exactly(source, left.min(CHUNK))?;
                    left -= data.len() as u64;
                    let next = offset.checked_add(data.len() as u64);
                    let next =
                        next.ok_or_else(|| corrupt("the stream has data beyond all ends"))?;
                    wanted = found(Record::Data { offset, data });
                    offset = next;
                }
                wanted
            }
            // Of a newer version.
            _ => match length {
                Some(length) if io::copy(&mut source.take(length), &mut io::sink())? == length => {
                    true
                }
                _ => return Err(corrupt("the stream has a part that is not known")),
            },
        };
        if !wanted {
            return Ok(());
        }
    }
}

fn bytes<const N: usize>(source: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(source: &mut dyn Read) -> io::Result<u64> {
    bytes(source).map(u64::from_le_bytes)
}

fn name(source: &mut dyn Read) -> io::Result<String> {
    let length = u64::from(u32::from_le_bytes(bytes(source)?));
    if length > LONGEST_NAME {
        return Err(corrupt("the stream names a snapshot at too great length"));
    }
    let name = exactly(source, length)?;
    String::from_utf8(name.to_vec()).map_err(|_| corrupt("a snapshot's name is no UTF-8"))
}

/// So many bytes; no more are set aside than there are.
fn exactly(source: &mut dyn Read, length: u64) -> io::Result<Bytes> {
    let mut data = Vec::new();
    source.take(length).read_to_end(&mut data)?;
    match data.len() as u64 == length {
        true => Ok(Bytes::from(data)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::new(Kind::Invalid, error.to_string()),
        io::ErrorKind::UnexpectedEof => {
            Error::new(Kind::Os(EBADMSG), "the stream was cut short").with_source(error)
        }
        _ => failed("reading", error),
    }
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(mut bytes: &[u8]) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        parse(&mut bytes, &mut |record| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    fn some() -> Vec<Record> {
        vec![
            Record::From("a".to_owned()),
            Record::To("β".to_owned()),
            Record::Size(1 << 40),
            Record::Zero { offset: 5, length: 7 },
            Record::Data { offset: 12, data: Bytes::from_static(b"data") },
            Record::End,
        ]
    }

    #[test]
    fn what_is_written_is_read_and_cut_short_is_refused() {
        let mut stream = MAGIC[0].to_vec();
        some().iter().for_each(|record| stream.extend_from_slice(&record.encode()));
        assert_eq!(parsed(&stream).unwrap(), some());
        for end in 0..stream.len() {
            let error = parsed(&stream[..end]).unwrap_err();
            assert_eq!(unreadable(error).errno(), EBADMSG, "{end}");
        }
        let mut beyond =
            [MAGIC[0], b"w", &u64::MAX.to_le_bytes(), &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
        beyond.extend_from_slice(b"xye");
        assert_eq!(unreadable(parsed(&beyond).unwrap_err()).errno(), 22);
    }

    #[test]
    fn the_second_version_has_lengths_and_may_have_more() {
        let mut stream = MAGIC[1].to_vec();
        let mut records = some();
        records.pop();
        for record in records {
            let bytes = record.encode();
            stream.push(bytes[0]);
            stream.extend_from_slice(&(bytes.len() as u64 - 1).to_le_bytes());
            stream.extend_from_slice(&bytes[1..]);
        }
        stream.extend_from_slice(b"?\x02\0\0\0\0\0\0\0xye");
        assert_eq!(parsed(&stream).unwrap(), some());
        stream[11] = b'?';
        assert!(parsed(&stream).is_err());
    }

    #[test]
    fn zeros_are_told_apart() {
        let mut data = vec![0; 3 * SPARSE];
        data[SPARSE] = 1;
        let records = records(100, Segment::Data(Bytes::from(data)), SPARSE);
        let [zero, Record::Data { offset, data }, last] = &records[..] else {
            panic!("{records:?}")
        };
        assert_eq!(*zero, Record::Zero { offset: 100, length: 4096 });
        assert_eq!((*offset, data.len()), (100 + 4096, 4096));
        assert_eq!(*last, Record::Zero { offset: 100 + 2 * 4096, length: 4096 });
    }
}
