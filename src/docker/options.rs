//! What a volume is to be like: the options of `docker volume create -o NAME=VALUE`, and the same in the settings.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use proto::rbd::Features;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Every option, with what is expected of it.
const NAMES: &[&str] = &[
    "size",
    "pool",
    "namespace",
    "image",
    "data-pool",
    "object-size",
    "stripe-unit",
    "stripe-count",
    "features",
    "fstype",
    "mkfs-options",
    "mount-options",
    "uid",
    "gid",
    "mode",
    "read-only",
    "backend",
    "cloud",
    "project-id",
    "volume-type",
    "availability-zone",
    "from",
    "flatten",
    "trash",
    "delete-delay",
];

/// What only Cinder knows of a volume.
const OF_CINDER: &[&str] = &["cloud", "project-id", "volume-type", "availability-zone"];

/// What Cinder decides, not we.
const OF_RBD: &[&str] = &[
    "pool",
    "namespace",
    "image",
    "data-pool",
    "object-size",
    "stripe-unit",
    "stripe-count",
    "features",
    "flatten",
    "trash",
    "delete-delay",
];

/// Options that will exist. To take them and do nothing would be a promise broken.
const NOT_YET: &[&str] = &["encryption", "qos-iops", "qos-bps"];

/// The largest number that is taken for a size in GiB: 1 PiB. More was meant in bytes.
const MAX_BARE_SIZE: u64 = 1 << 20;

/// A file system that volumes can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl FsType {
    /// Its name, as `mount` and `mkfs` know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// Who makes a volume's image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// This plugin, in Ceph.
    #[default]
    Rbd,
    /// OpenStack's Cinder.
    Cinder,
}

impl Backend {
    /// Its name, as it is given.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rbd => "rbd",
            Self::Cinder => "cinder",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Options, as far as they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct VolumeOptions {
    /// The size of the image in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The pool of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The namespace in that pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// An image that exists and becomes the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The pool of the image's data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_pool: Option<String>,
    /// The size of the image's objects, as a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<u8>,
    /// The stripe unit in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripe_unit: Option<u64>,
    /// How many objects take turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripe_count: Option<u64>,
    /// The image's features, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// The file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fstype: Option<FsType>,
    /// More for `mkfs`, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mkfs_options: Option<String>,
    /// More for `mount -o`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_options: Option<String>,
    /// Who owns the root folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Which group owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Its permissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Whether the volume is never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Who makes its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// The cloud whose Cinder makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    /// The project there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Cinder's type for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<String>,
    /// Where Cinder is to make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<String>,
    /// The volume, image or snapshot that it is a clone of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether a clone is made independent at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flatten: Option<bool>,
    /// Whether it goes to the trash when it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash: Option<bool>,
    /// For how many seconds it stays in the trash before it is removed for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_delay: Option<u64>,
}

impl VolumeOptions {
    /// Reads options by name.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for what is unknown, with the nearest name, or makes no sense; [`Kind::Unsupported`] for
    /// what is not built yet.
    pub fn parse<'a>(given: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut options = Self::default();
        for (name, value) in given {
            options.set(name, value.trim())?;
        }
        if options.stripe_unit.is_some() != options.stripe_count.is_some() {
            return Err(invalid("stripe-unit and stripe-count go together: give both"));
        }
        if options.flatten == Some(true) && options.from.is_none() {
            return Err(invalid("flatten is for a clone: give from as well"));
        }
        if options.from.is_some() && options.image.is_some() {
            return Err(invalid("from makes a new image, and image adopts one: give one of them"));
        }
        if options.delete_delay.is_some() && options.trash == Some(false) {
            return Err(invalid("delete-delay is a time in the trash: leave trash=false out"));
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let text = || match value {
            "" => Err(expected(name, value, "some text")),
            value => Ok(Some(value.to_owned())),
        };
        match name {
            "size" => self.size = Some(size(value).map_err(|what| bad(name, value, &what))?),
            "pool" => self.pool = text()?,
            // The empty one is the pool's own.
            "namespace" => self.namespace = Some(value.to_owned()),
            "image" => self.image = text()?,
            "data-pool" => self.data_pool = text()?,
            "object-size" => self.order = Some(order(name, value)?),
            "stripe-unit" => self.stripe_unit = Some(bytes(name, value)?),
            "stripe-count" => self.stripe_count = Some(number(name, value, "a number")?),
            "features" => {
                let names = "names of image features, separated by commas";
                value.parse::<Features>().map_err(|_| expected(name, value, names))?;
                self.features = Some(value.to_owned());
            }
            "fstype" => {
                self.fstype = Some(match value {
                    "ext4" => FsType::Ext4,
                    "xfs" => FsType::Xfs,
                    "btrfs" => FsType::Btrfs,
                    _ => return Err(expected(name, value, "ext4, xfs or btrfs")),
                });
            }
            "mkfs-options" => self.mkfs_options = text()?,
            "mount-options" => self.mount_options = text()?,
            "uid" => self.uid = Some(number(name, value, "a number")?),
            "gid" => self.gid = Some(number(name, value, "a number")?),
            "mode" => {
                let mode = u32::from_str_radix(value.trim_start_matches("0o"), 8).ok();
                let mode = mode.filter(|mode| *mode <= 0o7777);
                let octal = "permissions in octal, such as 0750";
                self.mode = Some(mode.ok_or_else(|| expected(name, value, octal))?);
            }
            "read-only" => self.read_only = Some(yes_or_no(name, value)?),
            "backend" => {
                self.backend = Some(match value {
                    "rbd" => Backend::Rbd,
                    "cinder" => Backend::Cinder,
                    _ => return Err(expected(name, value, "rbd or cinder")),
                });
            }
            "cloud" => self.cloud = text()?,
            "project-id" => self.project_id = text()?,
            "volume-type" => self.volume_type = text()?,
            "availability-zone" => self.availability_zone = text()?,
            "from" => self.from = text()?,
            "flatten" => self.flatten = Some(yes_or_no(name, value)?),
            "trash" => self.trash = Some(yes_or_no(name, value)?),
            "delete-delay" => self.delete_delay = Some(seconds(name, value)?),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// These, and where they say nothing, the others.
    #[must_use]
    pub fn or(self, defaults: &Self) -> Self {
        let d = defaults.clone();
        Self {
            size: self.size.or(d.size),
            pool: self.pool.or(d.pool),
            namespace: self.namespace.or(d.namespace),
            image: self.image.or(d.image),
            data_pool: self.data_pool.or(d.data_pool),
            order: self.order.or(d.order),
            stripe_unit: self.stripe_unit.or(d.stripe_unit),
            stripe_count: self.stripe_count.or(d.stripe_count),
            features: self.features.or(d.features),
            fstype: self.fstype.or(d.fstype),
            mkfs_options: self.mkfs_options.or(d.mkfs_options),
            mount_options: self.mount_options.or(d.mount_options),
            uid: self.uid.or(d.uid),
            gid: self.gid.or(d.gid),
            mode: self.mode.or(d.mode),
            read_only: self.read_only.or(d.read_only),
            backend: self.backend.or(d.backend),
            cloud: self.cloud.or(d.cloud),
            project_id: self.project_id.or(d.project_id),
            volume_type: self.volume_type.or(d.volume_type),
            availability_zone: self.availability_zone.or(d.availability_zone),
            from: self.from.or(d.from),
            flatten: self.flatten.or(d.flatten),
            trash: self.trash.or(d.trash),
            delete_delay: self.delete_delay.or(d.delete_delay),
        }
    }

    /// Whether what was given can be had from the back end that is meant.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with what is the other's.
    pub fn fit(&self, backend: Backend) -> Result<()> {
        let given = serde_json::to_value(self).unwrap_or_default();
        let (foreign, other) = match backend {
            Backend::Rbd => (OF_CINDER, Backend::Cinder),
            Backend::Cinder => (OF_RBD, Backend::Rbd),
        };
        let named =
            |name: &str| if name == "object-size" { "order".to_owned() } else { name.to_owned() };
        match foreign.iter().find(|name| !given[named(name)].is_null()) {
            None => Ok(()),
            Some(name) => {
                let what = format!("option {name} is for backend={}", other.name());
                let hint = match *name {
                    "flatten" => {
                        "Cinder's own setting is rbd_flatten_volume_from_snapshot".to_owned()
                    }
                    _ => format!("this volume's is {}", backend.name()),
                };
                Err(invalid(what).with_hint(hint))
            }
        }
    }
}

/// Reads a size: a number of GiB, or of what its unit says.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let shift = match unit.trim().trim_end_matches("iB").trim_end_matches(['b', 'B', 'i']) {
        "" if unit.is_empty() => 30,
        "" if unit.eq_ignore_ascii_case("b") => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        _ => return Err("expected a size such as 10 (GiB), 512M or 2T".to_owned()),
    };
    let number = || "expected a size such as 10 (GiB), 512M or 2T".to_owned();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let whole: u64 = whole.parse().map_err(|_| number())?;
    if unit.is_empty() && whole > MAX_BARE_SIZE {
        return Err(format!("a number alone counts in GiB: write {digits}B for bytes"));
    }
    let fraction: f64 = format!("0.{fraction}").parse().map_err(|_| number())?;
    let bytes = whole
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add((fraction * (1u64 << shift) as f64) as u64));
    match bytes {
        Some(0) => Err("expected more than nothing".to_owned()),
        Some(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
        _ => Err("too large".to_owned()),
    }
}

fn bytes(name: &str, value: &str) -> Result<u64> {
    let what = "bytes, such as 65536 or 64K";
    let plain = value.parse().ok();
    plain.or_else(|| size(value).ok()).ok_or_else(|| expected(name, value, what))
}

fn order(name: &str, value: &str) -> Result<u8> {
    let size = bytes(name, value)?;
    let fits = size.is_power_of_two() && (12..=25).contains(&size.ilog2());
    let what = "a power of two from 4K to 32M";
    if fits { Ok(size.ilog2() as u8) } else { Err(expected(name, value, what)) }
}

fn number<T: FromStr>(name: &str, value: &str, what: &str) -> Result<T> {
    value.parse().map_err(|_| expected(name, value, what))
}

fn seconds(name: &str, value: &str) -> Result<u64> {
    let unit_at = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (digits, unit) = value.split_at(unit_at);
    let unit = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    // Ceph keeps the end as seconds in 32 bits.
    let fits = number.filter(|seconds| *seconds <= 10 * 365 * 86_400);
    fits.ok_or_else(|| {
        expected(name, value, "a time such as 3600, 12h or 7d, of at most ten years")
    })
}

fn yes_or_no(name: &str, value: &str) -> Result<bool> {
    match value {
        // `-o read-only` alone.
        "" | "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err(expected(name, value, "true or false")),
    }
}

fn unknown(name: &str) -> Error {
    if NOT_YET.contains(&name) {
        return Error::new(Kind::Unsupported, format!("option {name} is not built yet"));
    }
    meant(invalid(format!("there is no option {name}")), name, NAMES)
}

/// An error about a name that is not known, with the one that may have been meant, or all.
pub(super) fn meant(error: Error, name: &str, known: &[&str]) -> Error {
    let nearest = known.iter().map(|known| (distance(name, known), known)).min();
    match nearest {
        Some((far, nearest)) if far <= 3 && far < name.len() => {
            error.with_hint(format!("did you mean {nearest}?"))
        }
        _ => error.with_hint(format!("known are {}", known.join(", "))),
    }
}

/// How many letters have to be put in, taken out or replaced to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, what)
}

fn expected(name: &str, value: &str, what: &str) -> Error {
    bad(name, value, &format!("expected {what}"))
}

fn bad(name: &str, value: &str, what: &str) -> Error {
    invalid(format!("option {name}={value}: {what}"))
}

/// Options as a map of texts, from which Docker's JSON and TOML tables are read.
pub fn from_map(map: &BTreeMap<String, String>) -> Result<VolumeOptions> {
    VolumeOptions::parse(map.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, value: &str) -> String {
        VolumeOptions::parse([(name, value)]).unwrap_err().to_string()
    }

    #[test]
    fn sizes_count_in_gib_unless_they_say_otherwise() {
        for (text, bytes) in [
            ("10", 10 << 30),
            ("0.5", 1 << 29),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5g", 3 << 29),
            ("2Ti", 2 << 40),
            ("4096B", 4096),
            ("1gb", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "x", "-1", "0", "10Q", "1e3", "9999P", "1..5", "iB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(size("10737418240").unwrap_err().contains("10737418240B"));
    }

    #[test]
    fn what_is_unknown_is_refused_with_what_was_meant() {
        assert_eq!(refused("sise", "1"), "there is no option sise (did you mean size?)");
        assert!(refused("mount_options", "x").contains("did you mean mount-options?"));
        assert!(refused("readonly", "1").contains("did you mean read-only?"));
        assert!(refused("colour-of-the-sky", "x").contains("known are size, pool"));
        for name in NOT_YET {
            assert_eq!(refused(name, "1"), format!("option {name} is not built yet"));
        }
    }

    #[test]
    fn each_back_end_has_its_own_options() {
        let given = |name, value| VolumeOptions::parse([(name, value)]).unwrap();
        for name in OF_CINDER {
            given(name, "x").fit(Backend::Cinder).unwrap();
            let error = given(name, "x").fit(Backend::Rbd).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("option {name} is for backend=cinder (this volume's is rbd)")
            );
        }
        for (name, value) in [("pool", "x"), ("object-size", "4M"), ("features", "layering")] {
            given(name, value).fit(Backend::Rbd).unwrap();
            assert!(given(name, value).fit(Backend::Cinder).is_err(), "{name}");
        }
        let flatten = VolumeOptions::parse([("from", "v"), ("flatten", "true")]).unwrap();
        let error = flatten.fit(Backend::Cinder).unwrap_err().to_string();
        assert!(error.contains("rbd_flatten_volume_from_snapshot"), "{error}");
    }

    #[test]
    fn every_option_is_read_and_checked() {
        let given = [
            ("size", "1"),
            ("pool", "p"),
            ("namespace", "n"),
            ("image", "i"),
            ("data-pool", "d"),
            ("object-size", "1M"),
            ("stripe-unit", "65536"),
            ("stripe-count", "4"),
            ("features", "layering,exclusive-lock"),
            ("fstype", "xfs"),
            ("mkfs-options", "-m crc=1"),
            ("mount-options", "noatime"),
            ("uid", "1001"),
            ("gid", "0"),
            ("mode", "0750"),
            ("read-only", "true"),
            ("backend", "cinder"),
            ("cloud", "c"),
            ("project-id", "4d47"),
            ("volume-type", "ssd"),
            ("availability-zone", "nova"),
            ("from", "golden@monday"),
            ("flatten", "true"),
            ("trash", "true"),
            ("delete-delay", "7d"),
        ];
        assert!(given.iter().map(|(name, _)| name).eq(NAMES), "a new option belongs in here");
        // All but what goes with no clone.
        let given = given.into_iter().filter(|(name, _)| *name != "image");
        let options = VolumeOptions::parse(given).unwrap();
        assert_eq!(options.delete_delay, Some(7 * 86_400));
        assert_eq!(
            (options.size, options.order, options.mode),
            (Some(1 << 30), Some(20), Some(0o750))
        );
        assert_eq!((options.stripe_unit, options.stripe_count), (Some(65536), Some(4)));
        let kept = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<VolumeOptions>(&kept).unwrap(), options);
        assert_eq!(VolumeOptions::default().or(&options), options);

        for (name, value, word) in [
            ("object-size", "3M", "power of two"),
            ("object-size", "64M", "power of two"),
            ("fstype", "zfs", "ext4, xfs or btrfs"),
            ("mode", "999", "octal"),
            ("mode", "17777", "octal"),
            ("uid", "root", "a number"),
            ("read-only", "maybe", "true or false"),
            ("features", "fast", "features"),
            ("pool", "", "some text"),
            ("backend", "glance", "rbd or cinder"),
            ("stripe-unit", "64K", "go together"),
            ("flatten", "true", "give from as well"),
            ("delete-delay", "soon", "such as 3600, 12h or 7d"),
            ("delete-delay", "99999d", "at most ten years"),
        ] {
            let error = refused(name, value);
            assert!(error.contains(word), "{name}={value}: {error}");
        }
    }
}
