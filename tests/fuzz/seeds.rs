//! Inputs to start from: what real clusters said, as `fixtures` has it, in the form that each target takes.

use std::fs;
use std::path::{Path, PathBuf};

use proto::denc::Reader;
use proto::osdmap::{Incremental, OsdMap};
use proto::rbd::cls;

use crate::targets::{cephx, classes, frames, handshake, messages, osdmap, wire};

/// The inputs for a target, each with a name.
pub(crate) fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "frames" => streams().into_iter().flat_map(|stream| frames_of(&stream)).collect(),
        "handshake" => streams().into_iter().flat_map(|stream| handshakes_of(&stream)).collect(),
        "cephx" => cephx_replies(),
        "monmap" => files("monmap"),
        "osdmap" => osd_maps(),
        "crush" => crush_maps(),
        "messages" => streams().into_iter().flat_map(|stream| messages_of(&stream)).collect(),
        "classes" => class_methods(),
        _ => unreachable!("no target {target}"),
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(fixtures().join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// One direction of a captured connection in crc mode.
struct Stream {
    name: String,
    /// From a server.
    is_answer: bool,
    frames: Vec<Vec<u8>>,
}

const BANNER_LEN: usize = 26;
const TAG_AUTH_DONE: u8 = 6;
const TAG_MESSAGE: u8 = 17;

fn streams() -> Vec<Stream> {
    let mut streams = files("msgr");
    streams.retain(|(name, _)| name.starts_with("none-crc"));
    let stream = |(name, bytes): (String, Vec<u8>)| Stream {
        is_answer: name.ends_with("s2c"),
        frames: wire::plain_frames(&bytes[BANNER_LEN..]),
        name,
    };
    streams.into_iter().map(stream).collect()
}

impl Stream {
    /// The frames after the handshake.
    fn messages(&self) -> impl Iterator<Item = &Vec<u8>> {
        let first = self.frames.iter().position(|frame| frame[0] == TAG_MESSAGE);
        self.frames[first.unwrap_or(self.frames.len())..].iter()
    }
}

fn frames_of(stream: &Stream) -> Vec<(String, Vec<u8>)> {
    let all: Vec<u8> = stream.messages().flatten().copied().collect();
    let to_server = if stream.is_answer { 0 } else { frames::how::SERVER };
    let input = |how: u8| [&[how | to_server][..], &all].concat();
    let name = &stream.name;
    vec![
        (format!("{name}-crc"), input(0)),
        (format!("{name}-secure"), input(frames::how::SECURE | 3 << 3)),
    ]
}

fn handshakes_of(stream: &Stream) -> Vec<(String, Vec<u8>)> {
    let to_server = if stream.is_answer { 0 } else { handshake::how::SERVER };
    let mon = if stream.name.contains("mon") { handshake::how::MON } else { 0 };
    let input = |how: u8| {
        let mut frames = stream.frames.clone();
        if how & handshake::how::SECURE != 0 {
            let done = frames.iter_mut().find(|frame| frame[0] == TAG_AUTH_DONE);
            done.into_iter().for_each(|done| done[wire::PREAMBLE_LEN + 8] = 2);
        }
        [vec![how | to_server | mon | 1 << 6], frames.concat()].concat()
    };
    let name = &stream.name;
    let mut inputs = vec![
        (format!("{name}-crc"), input(0)),
        (format!("{name}-secure"), input(handshake::how::SECURE)),
    ];
    if stream.is_answer {
        inputs.push((format!("{name}-cephx"), input(handshake::how::CEPHX)));
        let newer = handshake::how::CEPHX | handshake::how::AES256K;
        inputs.push((format!("{name}-aes256k"), input(newer)));
    }
    inputs
}

fn messages_of(stream: &Stream) -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for (number, frame) in stream.messages().enumerate().filter(|(_, f)| f[0] == TAG_MESSAGE) {
        let mut r = Reader::new(&frame[2..], "lengths");
        let lens: [usize; 4] = std::array::from_fn(|_| {
            let len = r.u32().unwrap();
            r.skip(2).unwrap();
            len as usize
        });
        let header = &frame[wire::PREAMBLE_LEN..];
        let (header, body) = header.split_at(lens[0]);
        let kind = u16::from_le_bytes([header[16], header[17]]);
        let version = header[20];
        let Some(which) = messages::KINDS.iter().position(|known| *known == kind) else { continue };
        let front = &body[..lens[1]];
        let data = &body[lens[1] + lens[2]..][..lens[3]];
        let Ok(front_len) = u16::try_from(front.len()) else { continue };
        let mut input = vec![which as u8, version];
        input.extend(front_len.to_le_bytes());
        input.extend(front);
        input.extend(data);
        inputs.push((format!("{}-{number}", stream.name), input));
    }
    inputs
}

/// Captured payloads as they are, and parts to be sealed.
fn cephx_replies() -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for (name, text) in files("cephx") {
        let text = String::from_utf8(text).unwrap();
        inputs.push((format!("{name}-keyring"), keyring(&text)));
        for (number, line) in text.lines().filter(|line| line.starts_with("mon ")).enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let mut input = vec![cephx::how::RAW];
            for payload in [words[3], words[7]] {
                put_piece(&mut input, &hex(payload));
            }
            inputs.push((format!("{name}-{number}"), input));
        }
    }
    for how in 0..8 {
        let mut ticket = vec![1];
        let session = cephx::key(how & cephx::how::TICKET_AES256K != 0);
        ticket.extend(proto::denc::Encode::to_bytes(&session));
        ticket.extend([16, 14, 0, 0, 0, 0, 0, 0]);
        let blob = [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 8, 9];
        let secret = [&[64, 0, 0, 0][..], &[5; 64]].concat();
        let mut input = vec![how];
        put_piece(&mut input, &[1; 9]);
        let login: [&[u8]; 5] = [&ticket, &blob, &secret, &ticket, &blob];
        login.iter().for_each(|part| put_piece(&mut input, part));
        // The service's challenge and its reply: our nonce was 0.
        put_piece(&mut input, &[1; 9]);
        let reply = [&[2, 1, 0, 0, 0, 0, 0, 0, 0][..], &secret].concat();
        put_piece(&mut input, &reply);
        input.push(0);
        put_piece(&mut input, &ticket);
        put_piece(&mut input, &blob);
        login.iter().for_each(|part| put_piece(&mut input, part));
        inputs.push((format!("sealed-{how}"), input));
    }
    inputs
}

fn keyring(text: &str) -> Vec<u8> {
    let key = text.lines().find_map(|line| line.strip_prefix("key ")).unwrap();
    let text = format!("[client.admin]\n\tkey = {key}\n\tcaps mon = \"allow *\"\n");
    [&[cephx::how::KEYRING][..], text.as_bytes()].concat()
}

fn put_piece(input: &mut Vec<u8>, piece: &[u8]) {
    input.extend(u16::try_from(piece.len()).unwrap().to_le_bytes());
    input.extend(piece);
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Every eighth incremental of each history, and the full maps of some epochs.
fn osd_maps() -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for (name, history) in files("osdmap") {
        let Some(name) = name.strip_suffix(".incrementals") else { continue };
        let mut map = OsdMap::default();
        for (number, bytes) in osdmap::incrementals(&history).enumerate() {
            map.apply(&Incremental::decode(bytes).unwrap()).unwrap();
            if number % 8 == 0 {
                let input = [&[osdmap::how::INCREMENTAL][..], bytes].concat();
                inputs.push((format!("{name}-{number}"), input));
            }
            if [20, 120, 250].contains(&number) {
                let full = map.encode(osdmap::FEATURES);
                inputs.push((
                    format!("{name}-full-{number}"),
                    [&[osdmap::how::FULL][..], &full].concat(),
                ));
            }
        }
    }
    inputs
}

/// The compiled maps, and every twelfth of those that were drawn.
fn crush_maps() -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    let files = files("crush");
    for (name, bytes) in &files {
        if name.ends_with(".bin") {
            inputs.push((name.clone(), bytes.clone()));
        }
        let Some(stem) = name.strip_suffix(".maps") else { continue };
        let (_, lines) = files.iter().find(|(name, _)| *name == format!("{stem}.txt")).unwrap();
        let lines = std::str::from_utf8(lines).unwrap();
        let mut rest = bytes.as_slice();
        for (number, line) in lines.lines().enumerate() {
            let len = line.split(' ').nth(1).unwrap().parse().unwrap();
            let (map, others) = rest.split_at(len);
            rest = others;
            if number % 12 == 0 {
                inputs.push((format!("{stem}-{number}"), map.to_vec()));
            }
        }
    }
    inputs
}

/// What zeros mean to each method.
fn class_methods() -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for method in cls::all() {
        for (what, read) in [(0, method.reply), (1, method.input)] {
            // An envelope of any version, if it has one.
            for zeros in [[0; 200].to_vec(), [&[1, 1, 190, 0, 0, 0][..], &[0; 194]].concat()] {
                let Ok(bytes) = read(&zeros) else { continue };
                let mut input = classes::number(method).to_vec();
                input.push(what);
                input.extend(bytes);
                inputs
                    .push((format!("{}-{}-{what}-{}", method.class, method.name, zeros[0]), input));
            }
        }
    }
    inputs
}
