//! The same random operations on twin images: by our verbs in one namespace, by `rbd`'s in another. After each, both
//! programs had the same exit code, and everything that `rbd` tells of the images is the same: what they are like,
//! their snapshots, the space they take, what is in them.
//!
//! `CEPH_NATIVE_SEED` repeats a run, `CEPH_NATIVE_OPS` makes it longer.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ceph, Ran, Release, Serve};
use crate::{full, on_new_clusters, run};

/// Images and snapshots are named from few names, so that they meet.
const IMAGES: [&str; 6] = ["a", "b", "c", "d", "e", "ü–ß"];
const SNAPS: [&str; 4] = ["one", "two", "three", "vier"];

const LAYOUTS: [&[&str]; 5] = [
    &[],
    &["--object-size", "1M"],
    &["--object-size", "64K"],
    &["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "3"],
    &["--data-pool", "data"],
];

const MAPPED: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten";

const FEATURES: [&str; 6] =
    ["layering", "layering,deep-flatten", "layering,exclusive-lock", MAPPED, MAPPED, MAPPED];

#[test]
fn the_same_operations_make_the_same_images() {
    let env = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = env("CEPH_NATIVE_SEED").unwrap_or(1);
    let count = env("CEPH_NATIVE_OPS").unwrap_or_else(|| if full() { 300 } else { 25 });
    on_new_clusters(|ceph| {
        ceph.create_pool("data");
        for namespace in ["ours", "theirs"] {
            ceph.rbd(&["namespace", "create", &format!("rbd/{namespace}")]);
        }
        let mut twins = Twins { ceph, random: Random(seed), story: String::new() };
        for _ in 0..count {
            twins.step();
        }
        twins.compare_all();
    });
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Twins<'a> {
    ceph: &'a Ceph,
    random: Random,
    /// What was done so far, to be told when it went wrong.
    story: String,
}

impl Drop for Twins<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what was done\n{}", self.story);
        }
    }
}

impl Twins<'_> {
    /// One operation, and a look at the images that it was about.
    fn step(&mut self) {
        let images = self.images();
        let image = match images.is_empty() {
            true => IMAGES[0].to_owned(),
            false => self.random.of(&images),
        };
        let other = self.random.of(&IMAGES).to_owned();
        let snaps = self.snaps(&image);
        let snap = match snaps.is_empty() || self.random.chance(10) {
            true => self.random.of(&SNAPS).to_owned(),
            false => self.random.of(&snaps),
        };
        let new_snap = self.random.of(&SNAPS).to_owned();
        let at = |snap: &str| format!("{{}}/{image}@{snap}");
        let head = format!("{{}}/{image}");
        let dest = format!("{{}}/{other}");
        match self.random.below(if images.len() < 2 { 8 } else { 100 }) {
            0..8 => self.create(&other),
            8..12 => {
                let format = self.random.of(&["1", "2", "2"]);
                let format = ["--rbd-default-clone-format", format];
                self.both(&[&["clone", &at(&snap), &dest], &format[..]].concat());
            }
            12..34 => self.write(&image),
            34..44 => self.both(&["snap", "create", "--no-progress", &at(&new_snap)]),
            44..49 => self.both(&["snap", "rm", "--no-progress", &at(&snap)]),
            49..51 => self.both(&["snap", "rename", &at(&snap), &at(&new_snap)]),
            51..55 => self.both(&["snap", "protect", &at(&snap)]),
            55..58 => self.both(&["snap", "unprotect", &at(&snap)]),
            58..63 => {
                self.both(&["snap", "rollback", "--no-progress", &at(&snap)]);
                // It takes the snapshot's map, which then fails its own check, and `du` says less than has changed.
                let theirs = head.replace("{}", "rbd/theirs");
                self.ceph.run("rbd", &["object-map", "rebuild", "--no-progress", &theirs]);
            }
            63 if self.random.chance(50) => self.both(&["flatten", "--no-progress", &head]),
            63 => self.both(&["snap", "purge", "--no-progress", &head]),
            64 => {
                let limit = self.random.below(4).to_string();
                self.both(&["snap", "limit", "set", &head, "--limit", &limit]);
            }
            65..67 => self.both(&["snap", "limit", "clear", &head]),
            67..73 => {
                let size = self.size();
                let resize = ["resize", "--no-progress", &head, "--size", &size];
                let shrink = if self.random.chance(80) { &["--allow-shrink"][..] } else { &[] };
                self.both(&[&resize[..], shrink].concat());
            }
            73..76 => self.both(&["rename", &head, &dest]),
            76..79 => {
                let value = self.random.below(100).to_string();
                self.both(&["image-meta", "set", &head, "key", &value]);
            }
            79 => self.both(&["flatten", "--no-progress", &head]),
            80..84 => self.both(&["rm", "--no-progress", &head]),
            84..88 => self.both(&["trash", "mv", &head]),
            88..92 => self.trash("restore"),
            92..94 => self.trash("rm"),
            94 => self.both(&["trash", "purge", "--no-progress", "{}"]),
            95..98 => {
                let source = if self.random.chance(50) { head } else { at(&snap) };
                self.both(&["cp", "--no-progress", &source, &dest]);
            }
            _ => self.import(&other),
        }
        for image in [image, other] {
            self.compare(&image);
        }
    }

    fn size(&mut self) -> String {
        // At most 8 MiB, and not always whole objects.
        match self.random.chance(50) {
            true => format!("{}M", 1 + self.random.below(8)),
            false => format!("{}B", self.random.below(8 << 11) * 512 + 512),
        }
    }

    fn create(&mut self, image: &str) {
        let layout = self.random.of(&LAYOUTS);
        let features = self.random.of(&FEATURES);
        let (size, name) = (self.size(), format!("{{}}/{image}"));
        let args = ["create", &name, "--size", &size, "--image-feature", features];
        self.both(&[&args[..], layout].concat());
    }

    /// Writes, discards and zeroes some of an image, through an export of ours and through librbd.
    fn write(&mut self, image: &str) {
        let Some(size) = self.images_size(image) else { return };
        let mut commands = vec![];
        for _ in 0..1 + self.random.below(4) {
            let offset = self.random.below(size / 512) * 512;
            let longest = if self.random.chance(50) { 16 } else { 4096 };
            let length = (1 + self.random.below(longest)) * 512;
            let length = length.min(size / 512 * 512 - offset);
            let pattern = 1 + self.random.below(255);
            commands.push(match self.random.below(10) {
                0..6 => format!("write -P {pattern} {offset} {length}"),
                6..8 => format!("discard {offset} {length}"),
                _ => format!("write -z -u {offset} {length}"),
            });
        }
        commands.push("flush".to_owned());
        let _ = writeln!(self.story, "{image}: {commands:?}");
        let commands: Vec<_> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let serve: Serve = self.ceph.serve(&[&format!("rbd/ours/{image}")]);
        let uri = serve.uri(&format!("rbd/ours/{}", encoded(image)));
        run("qemu-io", &[&["-f", "raw", "-d", "unmap", &uri], &commands[..]].concat()).ok();
        assert_eq!(serve.terminate().0, 0);
        let conf = self.ceph.conf();
        let librbd = format!("rbd:rbd/theirs/{image}:conf={}", conf.display());
        self.ceph
            .run("qemu-io", &[&["-f", "raw", "-d", "unmap", &librbd], &commands[..]].concat())
            .ok();
    }

    /// Makes an image of a file, which has holes and an odd size.
    fn import(&mut self, image: &str) {
        let file = self.ceph.dir().join("imported");
        let mut bytes = vec![0; 1 + self.random.below(3 << 20) as usize];
        let begin = self.random.below(bytes.len() as u64) as usize;
        let end = bytes.len().min(begin + 100_000);
        bytes[begin..end].fill(b'x');
        std::fs::write(&file, bytes).unwrap();
        let (path, name) = (file.to_str().unwrap(), format!("{{}}/{image}"));
        let features = ["--image-feature", self.random.of(&FEATURES)];
        self.both(&[&["import", "--no-progress", path, &name][..], &features].concat());
    }

    /// Does something with an image in the trash.
    fn trash(&mut self, verb: &str) {
        let ids = |namespace: &str| {
            let pool = format!("rbd/{namespace}");
            let list = self.ceph.run("rbd", &["trash", "ls", &pool, "--format", "json"]).json();
            let list = list.as_array().unwrap().clone();
            let mut ids: Vec<(String, String)> =
                list.iter().map(|image| (text(&image["name"]), text(&image["id"]))).collect();
            ids.sort();
            ids
        };
        let (ours, theirs) = (ids("ours"), ids("theirs"));
        // Of images that had the same name one cannot tell which is which.
        let twice = |name: &String| ours.iter().filter(|(other, _)| other == name).count() > 1;
        let Some(at) = ours.iter().position(|(name, _)| !twice(name)) else { return };
        let _ = writeln!(self.story, "trash {verb} {}", ours[at].0);
        let ours = self.ceph.ours(&["trash", verb, &format!("rbd/ours/{}", ours[at].1)]);
        let theirs =
            self.ceph.run("rbd", &["trash", verb, &format!("rbd/theirs/{}", theirs[at].1)]);
        assert_eq!(ours.code, theirs.code, "{ours}\n{theirs}");
    }

    /// Runs a verb with both programs; `{}` stands for the namespace.
    fn both(&mut self, args: &[&str]) {
        let _ = write!(self.story, "{args:?}");
        let within = |namespace: &str| -> Vec<String> {
            args.iter().map(|arg| arg.replace("{}", &format!("rbd/{namespace}"))).collect()
        };
        let ours = self.ceph.ours(&strs(&within("ours")));
        let theirs = self.ceph.run("rbd", &strs(&within("theirs")));
        let _ = writeln!(self.story, " -> {} {}", ours.code, ours.err.trim());
        assert_eq!(ours.code, theirs.code, "{ours}\n{theirs}");
    }

    fn images(&self) -> Vec<String> {
        let list = self.ceph.run("rbd", &["ls", "rbd/theirs", "--format", "json"]).json();
        list.as_array().unwrap().iter().map(text).collect()
    }

    fn snaps(&self, image: &str) -> Vec<String> {
        let spec = format!("rbd/theirs/{image}");
        let list = self.ceph.run("rbd", &["snap", "ls", &spec, "--format", "json"]);
        if list.code != 0 {
            return Vec::new();
        }
        list.json().as_array().unwrap().iter().map(|snap| text(&snap["name"])).collect()
    }

    fn images_size(&self, image: &str) -> Option<u64> {
        let info =
            self.ceph.run("rbd", &["info", &format!("rbd/theirs/{image}"), "--format", "json"]);
        (info.code == 0).then(|| info.json()["size"].as_u64().unwrap())
    }

    fn compare_all(&self) {
        for image in IMAGES {
            self.compare(image);
            self.differences_told_alike(image);
            let head = format!("{{}}/{image}");
            self.told_alike(&["status", &head, "--format", "json"]);
            self.told_alike(&["image-meta", "ls", &head, "--format", "json"]);
            self.told_alike(&["children", &head, "--all", "--format", "json"]);
            for snap in self.snaps(image) {
                let at = format!("{head}@{snap}");
                self.told_alike(&["info", &at, "--format", "json"]);
                self.told_alike(&["diff", &at, "--format", "json"]);
            }
        }
        for list in [&["ls"][..], &["trash", "ls"]] {
            self.told_alike(&[list, &["{}", "--format", "json"]].concat());
        }
    }

    /// What `rbd` tells of an image is the same for both twins.
    fn compare(&self, image: &str) {
        let head = format!("{{}}/{image}");
        if !self.told_alike(&["info", &head, "--format", "json"]) {
            return;
        }
        self.maps_are_right(image);
        self.told_alike(&["snap", "ls", "--all", &head, "--format", "json"]);
        self.told_alike(&["du", &head, "--format", "json"]);
        self.told_alike(&["diff", &head, "--format", "json"]);
        self.we_tell_alike(image, &["du", &head, "--format", "json"]);
        self.we_tell_alike(image, &["diff", &head]);
        self.exported_alike(&head);
        for snap in self.snaps(image) {
            self.exported_alike(&format!("{head}@{snap}"));
        }
    }

    /// librbd compares the object maps of head and snapshots, if there are any, with the objects: what is wrong is told
    /// by flags.
    fn maps_are_right(&self, image: &str) {
        let head = format!("{{}}/{image}");
        let info =
            self.ceph.run("rbd", &["info", "--format", "json", &head.replace("{}", "rbd/ours")]);
        if !info.json()["features"].as_array().unwrap().contains(&"object-map".into()) {
            return;
        }
        let snaps = self.snaps(image).into_iter().map(|snap| format!("{head}@{snap}"));
        for version in snaps.chain([head.clone()]) {
            self.ceph.check_object_map(&version.replace("{}", "rbd/ours"));
        }
    }

    /// Our program says the same of an image as `rbd`.
    fn we_tell_alike(&self, image: &str, args: &[&str]) {
        for namespace in ["ours", "theirs"] {
            let args: Vec<_> =
                args.iter().map(|arg| arg.replace("{}", &format!("rbd/{namespace}"))).collect();
            let (ours, theirs) = (self.ceph.ours(&strs(&args)), self.ceph.run("rbd", &strs(&args)));
            let said = |ran: &Ran| (ran.code, String::from_utf8_lossy(&ran.out).into_owned());
            let same = said(&ours) == said(&theirs);
            if !same && self.ceph.release() == Release::Pacific && self.pacific_errs(&args) {
                continue;
            }
            assert_eq!(said(&ours), said(&theirs), "{image}: {args:?}");
        }
    }

    /// Of objects that were cut between two snapshots, Ceph 16 tells more as data, or less, than later releases, and so
    /// thinks that more is used, or less. Where we differ from it, the image reads as zeros.
    fn pacific_errs(&self, args: &[String]) -> bool {
        if args[0] != "diff" {
            return args[0] == "du";
        }
        let mut json: Vec<_> = strs(args).into_iter().filter(|arg| *arg != "json").collect();
        json.retain(|arg| *arg != "--format");
        json.extend(["--format", "json"]);
        let content = self.ceph.run("rbd", &["export", "--no-progress", json[1], "-"]).out;
        let data = |ran: Ran| {
            let mut data = vec![false; content.len()];
            for extent in ran.json().as_array().unwrap() {
                let number = |name: &str| extent[name].as_u64().unwrap() as usize;
                let exists = extent["exists"] == "true";
                data[number("offset")..][..number("length")].fill(exists);
            }
            data
        };
        let (ours, theirs) = (data(self.ceph.ours(&json)), data(self.ceph.run("rbd", &json)));
        (0..content.len()).all(|at| ours[at] == theirs[at] || content[at] == 0)
    }

    /// What has changed between any two versions of an image, in every way that one can ask.
    fn differences_told_alike(&self, image: &str) {
        let head = format!("{{}}/{image}");
        let info =
            self.ceph.run("rbd", &["info", &head.replace("{}", "rbd/ours"), "--format", "json"]);
        if info.code != 0 {
            return;
        }
        let info = info.json();
        // librbd tells wrong offsets of whole objects that take turns.
        let striped = info.get("stripe_count").is_some_and(|count| *count != 1);
        let maps = info["features"].as_array().unwrap().contains(&"fast-diff".into());
        for how in [&[][..], &["--exact"], &["--merge-snapshots"]] {
            self.we_tell_alike(image, &[&["du", &head, "--format", "json"], how].concat());
        }
        let snaps = self.snaps(image);
        for (at, from) in std::iter::once(None).chain(snaps.iter().map(Some)).enumerate() {
            let versions =
                snaps[at.saturating_sub(1)..].iter().map(|snap| format!("{head}@{snap}"));
            for to in versions.chain([head.clone()]) {
                for whole in [&[][..], &["--whole-object"]] {
                    if striped && maps && !whole.is_empty() {
                        continue;
                    }
                    let from = from.map(|from| ["--from-snap", from]);
                    let from = from.as_ref().map_or(&[][..], |from| &from[..]);
                    let diff = ["diff", &to, "--format", "json"];
                    self.we_tell_alike(image, &[&diff, whole, from].concat());
                }
            }
        }
    }

    /// True if there is something to tell.
    fn told_alike(&self, args: &[&str]) -> bool {
        let told = || {
            self.of_both(args).map(|ran| {
                // `rbd` says nothing where there is nothing.
                let told = match ran.code == 0 && !ran.out.is_empty() {
                    true => without_identity(serde_json::from_slice(&ran.out).unwrap()),
                    false => Value::Null,
                };
                (ran.code, told)
            })
        };
        let [mut ours, mut theirs] = told();
        // rbd 16 goes by what OSDs keep of removed snapshots until they have cleared it away.
        let clearing = ["diff", "du"].contains(&args[0]) && self.ceph.release() == Release::Pacific;
        let until = Instant::now() + Duration::from_secs(60);
        while clearing && ours != theirs && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            [ours, theirs] = told();
        }
        assert_eq!(ours, theirs, "rbd {args:?}");
        ours.0 == 0
    }

    fn exported_alike(&self, spec: &str) {
        let [ours, theirs] =
            self.of_both(&["export", "--no-progress", spec, "-"]).map(|ran| ran.out);
        let different = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert!(ours == theirs, "{spec} differs at {different:?}");
    }

    /// What `rbd` says of both twins.
    fn of_both(&self, args: &[&str]) -> [Ran; 2] {
        let within = |namespace: &str| {
            let args: Vec<_> =
                args.iter().map(|arg| arg.replace("{}", &format!("rbd/{namespace}"))).collect();
            self.ceph.run("rbd", &strs(&args))
        };
        std::thread::scope(|scope| {
            let ours = scope.spawn(|| within("ours"));
            let theirs = within("theirs");
            [ours.join().unwrap(), theirs]
        })
    }
}

/// Leaves out what has to differ between twins: ids, times, the names of namespaces and of hidden snapshots.
fn without_identity(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let hidden =
                fields.get("namespace").is_some_and(|namespace| namespace["type"] == "trash");
            let identity = |name: &str| {
                ["id", "snapshot_id"].contains(&name)
                    || name == "block_name_prefix"
                    || name == "pool_namespace"
                    || name.contains("timestamp")
                    || (hidden && name == "name")
            };
            let fields = fields.into_iter().filter(|(name, _)| !identity(name));
            Value::Object(fields.map(|(name, value)| (name, without_identity(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_identity).collect()),
        value => value,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// A name as it stands in a URI.
fn encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut out, byte| {
        let _ = match byte.is_ascii_alphanumeric() {
            true => write!(out, "{}", byte as char),
            false => write!(out, "%{byte:02X}"),
        };
        out
    })
}
