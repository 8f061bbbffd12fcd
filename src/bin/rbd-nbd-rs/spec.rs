//! Which image is meant: `[POOL/[NAMESPACE/]]IMAGE[@SNAP]`, or the same by options, or mixed.

use std::fmt;

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::{Image, OpenOptions, Version, admin};
use ceph_native::pool::Pool;
use clap::Args;

/// Names a pool or a namespace.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PoolArgs {
    /// Pool and namespace.
    #[arg(value_name = "POOL[/NAMESPACE]")]
    spec: Option<String>,
    #[command(flatten)]
    parts: PoolParts,
}

#[derive(Args, Clone, Debug, Default)]
struct PoolParts {
    /// Pool name.
    #[arg(short, long)]
    pool: Option<String>,
    /// Namespace name.
    #[arg(long)]
    namespace: Option<String>,
}

/// Names an image by its id.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct IdArgs {
    /// The image's id.
    #[arg(value_name = "[POOL/[NAMESPACE/]]ID")]
    spec: Option<String>,
    #[command(flatten)]
    parts: PoolParts,
    /// Image id.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
}

/// Names an image.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ImageArgs {
    /// The image.
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE")]
    spec: Option<String>,
    #[command(flatten)]
    parts: PoolParts,
    /// Image name.
    #[arg(long)]
    image: Option<String>,
}

/// Names an image or one of its snapshots by options.
#[derive(Args, Clone, Debug, Default)]
struct SnapParts {
    #[command(flatten)]
    parts: PoolParts,
    /// Image name.
    #[arg(long)]
    image: Option<String>,
    /// Snapshot name.
    #[arg(long)]
    snap: Option<String>,
}

/// Names an image or one of its snapshots.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SnapArgs {
    /// The image or snapshot.
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE[@SNAP]")]
    spec: Option<String>,
    #[command(flatten)]
    named: SnapParts,
}

/// Names an image or one of its snapshots, and a file: words that are told apart by what options name.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FileArgs {
    #[command(flatten)]
    named: SnapParts,
    /// The file, as an option.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
}

/// Names an image or snapshot, and another one that is made of it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PairArgs {
    /// The source and the destination.
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE[@SNAP]", num_args = 0..=2)]
    specs: Vec<String>,
    #[command(flatten)]
    parts: PoolParts,
    /// Source image name.
    #[arg(long)]
    image: Option<String>,
    /// Source snapshot name.
    #[arg(long)]
    snap: Option<String>,
    #[command(flatten)]
    dest: DestArgs,
}

/// Names what is made, by options.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DestArgs {
    /// Destination pool name.
    #[arg(long)]
    dest_pool: Option<String>,
    /// Destination namespace name.
    #[arg(long)]
    dest_namespace: Option<String>,
    /// Destination image name.
    #[arg(long)]
    dest: Option<String>,
    /// Destination snapshot name.
    #[arg(long)]
    dest_snap: Option<String>,
}

/// Names what is made, by either kind of options.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NewNameArgs {
    #[command(flatten)]
    parts: PoolParts,
    /// Image name.
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    dest: DestArgs,
}

/// What a spec names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The default one, if none is named.
    pub(crate) pool: Option<String>,
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) snap: Option<String>,
}

impl PoolArgs {
    /// Opens the pool that is meant.
    pub(crate) async fn open(&self, cluster: &Cluster) -> Result<Pool> {
        self.spec()?.open_pool(cluster).await
    }

    /// Opens the pool that is meant; its namespace, which need not exist, is only named.
    pub(crate) async fn open_unchecked(&self, cluster: &Cluster) -> Result<(Pool, String)> {
        let mut spec = self.spec()?;
        let namespace = std::mem::take(&mut spec.namespace);
        Ok((spec.open_pool(cluster).await?, namespace))
    }

    fn spec(&self) -> Result<Spec> {
        let mut spec = Spec::default();
        if let Some(text) = &self.spec {
            let (pool, namespace) = text.split_once('/').unwrap_or((text, ""));
            if pool.is_empty() || namespace.contains(['/', '@']) || pool.contains('@') {
                return Err(invalid(text));
            }
            (spec.pool, spec.namespace) = (Some(pool.to_owned()), namespace.to_owned());
        }
        self.parts.complete(&mut spec);
        Ok(spec)
    }
}

impl IdArgs {
    /// The pool that is meant, and the id.
    pub(crate) async fn open(&self, cluster: &Cluster) -> Result<(Pool, String)> {
        let mut spec = self.spec.as_deref().map(Spec::parse).transpose()?.unwrap_or_default();
        if let (true, Some(id)) = (spec.image.is_empty(), &self.image_id) {
            spec.image.clone_from(id);
        }
        self.parts.complete(&mut spec);
        if spec.image.is_empty() {
            return Err(Error::new(Kind::Invalid, "image id was not specified"));
        }
        Ok((spec.open_pool(cluster).await?, spec.image))
    }
}

impl PoolParts {
    /// Adds what was named by options. A spec's own names come first.
    fn complete(&self, spec: &mut Spec) {
        spec.pool = spec.pool.take().or_else(|| self.pool.clone());
        if let (true, Some(namespace)) = (spec.namespace.is_empty(), &self.namespace) {
            spec.namespace.clone_from(namespace);
        }
    }
}

impl ImageArgs {
    /// What is meant. It must be an image.
    pub(crate) fn spec(&self) -> Result<Spec> {
        let spec = Spec::from_parts(self.spec.as_deref(), &self.parts, self.image.as_deref())?;
        spec.without_snap()?.with_image()
    }

    /// What is meant, and what is in the place of the image's spec, if that is named by options.
    pub(crate) fn spec_and_word(&self) -> Result<(Spec, Option<String>)> {
        match &self.image {
            None => Ok((self.spec()?, None)),
            Some(image) => {
                let spec = Spec::from_parts(None, &self.parts, Some(image))?;
                Ok((spec.without_snap()?.with_image()?, self.spec.clone()))
            }
        }
    }

    /// The same, where the image may be named otherwise.
    pub(crate) fn spec_or_pool(&self) -> Result<Spec> {
        Spec::from_parts(self.spec.as_deref(), &self.parts, self.image.as_deref())?.without_snap()
    }
}

impl SnapParts {
    /// What is meant by a spec, if there is one, and options.
    fn complete(&self, text: Option<&str>) -> Result<Spec> {
        let mut spec = Spec::from_parts(text, &self.parts, self.image.as_deref())?;
        spec.snap = spec.snap.take().or_else(|| self.snap.clone());
        Ok(spec)
    }
}

impl SnapArgs {
    /// What is meant. Its image's name may be missing.
    pub(crate) fn spec(&self) -> Result<Spec> {
        self.named.complete(self.spec.as_deref())
    }

    /// The spec alone, as it was given.
    pub(crate) fn text(&self) -> Option<&str> {
        self.spec.as_deref()
    }

    /// Whether no image is named at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.spec.is_none() && self.named.image.is_none()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, namespace, image, snap } = self;
        for part in [pool.as_deref().unwrap_or_default(), namespace] {
            if !part.is_empty() {
                write!(f, "{part}/")?;
            }
        }
        f.write_str(image)?;
        snap.as_ref().map_or(Ok(()), |snap| write!(f, "@{snap}"))
    }
}

impl SnapArgs {
    /// What is meant. It must be a snapshot.
    pub(crate) fn snapshot(&self) -> Result<Spec> {
        self.spec()?.with_image()?.with_snap()
    }
}

impl FileArgs {
    /// What is meant by words of which the first is the image, and the second the file, as far as options name neither.
    pub(crate) fn image_then_file(&self, words: &[String]) -> Result<(Spec, Option<String>)> {
        let mut words = words.iter().map(String::as_str);
        let image = self.spec(&mut words)?;
        let file = self.file(&mut words);
        all_used(words)?;
        Ok((image, file))
    }

    /// The other way round.
    pub(crate) fn file_then_image(&self, words: &[String]) -> Result<(Option<String>, Spec)> {
        let mut words = words.iter().map(String::as_str);
        let file = self.file(&mut words);
        let image = self.spec(&mut words)?;
        all_used(words)?;
        Ok((file, image))
    }

    fn spec<'a>(&self, words: &mut impl Iterator<Item = &'a str>) -> Result<Spec> {
        let text = if self.named.image.is_none() { words.next() } else { None };
        self.named.complete(text)?.with_image()
    }

    fn file<'a>(&self, words: &mut impl Iterator<Item = &'a str>) -> Option<String> {
        self.path.clone().or_else(|| words.next().map(str::to_owned))
    }
}

/// Refuses words that nobody looked at.
pub(crate) fn all_used<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<()> {
    match words.next() {
        None => Ok(()),
        Some(word) => Err(Error::new(Kind::Invalid, format!("too many arguments: {word:?}"))),
    }
}

impl PairArgs {
    /// What is meant; each has an image's name, or that of the source if the destination lacks one.
    pub(crate) fn pair(&self) -> Result<(Spec, Spec)> {
        let mut specs = self.specs.iter().map(String::as_str);
        let first = if self.image.is_none() { specs.next() } else { None };
        let mut source = Spec::from_parts(first, &self.parts, self.image.as_deref())?;
        source.snap = source.snap.take().or_else(|| self.snap.clone());
        let dest = self.dest.spec(specs.next())?;
        all_used(specs)?;
        Ok((source.with_image()?, dest))
    }
}

impl NewNameArgs {
    /// What is meant. Its image's name may be missing.
    pub(crate) fn spec(&self, text: Option<&str>) -> Result<Spec> {
        let dest = &self.dest;
        let dest = DestArgs {
            dest_pool: dest.dest_pool.clone().or_else(|| self.parts.pool.clone()),
            dest_namespace: dest.dest_namespace.clone().or_else(|| self.parts.namespace.clone()),
            dest: dest.dest.clone().or_else(|| self.image.clone()),
            dest_snap: dest.dest_snap.clone(),
        };
        dest.spec(text)
    }
}

impl DestArgs {
    /// What is meant. Its image's name may be missing.
    pub(crate) fn spec(&self, text: Option<&str>) -> Result<Spec> {
        let parts =
            PoolParts { pool: self.dest_pool.clone(), namespace: self.dest_namespace.clone() };
        let mut spec = Spec::from_parts(text, &parts, self.dest.as_deref())?;
        spec.snap = spec.snap.take().or_else(|| self.dest_snap.clone());
        Ok(spec)
    }
}

impl Spec {
    /// Reads `[POOL/[NAMESPACE/]]IMAGE[@SNAP]`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (path, snap) = match text.split_once('@') {
            Some((path, snap)) if !snap.is_empty() && !snap.contains(['/', '@']) => {
                (path, Some(snap.to_owned()))
            }
            Some(_) => return Err(invalid(text)),
            None => (text, None),
        };
        let parts: Vec<_> = path.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(invalid(text));
        }
        let (pool, namespace, image) = match parts.as_slice() {
            [image] => (None, "", *image),
            [pool, image] => (Some((*pool).to_owned()), "", *image),
            [pool, namespace, image] => (Some((*pool).to_owned()), *namespace, *image),
            _ => return Err(invalid(text)),
        };
        Ok(Self { pool, namespace: namespace.to_owned(), image: image.to_owned(), snap })
    }

    fn from_parts(text: Option<&str>, parts: &PoolParts, image: Option<&str>) -> Result<Self> {
        let mut spec = text.map(Self::parse).transpose()?.unwrap_or_default();
        if let (true, Some(image)) = (spec.image.is_empty(), image) {
            let named = Self::parse(image)?;
            spec = Self { pool: spec.pool.or(named.pool), ..named };
        }
        parts.complete(&mut spec);
        Ok(spec)
    }

    /// Insists on an image's name.
    pub(crate) fn with_image(self) -> Result<Self> {
        match self.image.is_empty() {
            true => Err(Error::new(Kind::Invalid, "image name was not specified")),
            false => Ok(self),
        }
    }

    /// Insists on a snapshot's name.
    pub(crate) fn with_snap(self) -> Result<Self> {
        match self.snap {
            None => Err(Error::new(Kind::Invalid, "snapshot name was not specified")),
            Some(_) => Ok(self),
        }
    }

    /// Insists that there is no snapshot's name.
    pub(crate) fn without_snap(self) -> Result<Self> {
        match self.snap {
            None => Ok(self),
            Some(_) => Err(Error::new(
                Kind::Invalid,
                "snapshot name specified for a command that doesn't use it",
            )),
        }
    }

    /// Opens the image or snapshot that is meant.
    pub(crate) async fn open(&self, cluster: &Cluster, read_only: bool) -> Result<Image> {
        let pool = self.open_pool(cluster).await?;
        let version = self.snap.clone().map_or(Version::Head, Version::Snapshot);
        let options = OpenOptions { read_only, version, ..OpenOptions::default() };
        Image::open(&pool, &self.image, &options).await
    }

    /// Opens the pool, narrowed to the namespace, which must exist.
    pub(crate) async fn open_pool(&self, cluster: &Cluster) -> Result<Pool> {
        let config = cluster.config();
        let name = self.pool.as_deref().unwrap_or(&config.rbd.pool);
        let pool = cluster.pool(name).await?.with_namespace(&self.namespace);
        admin::check_namespace(&pool).await?;
        Ok(pool)
    }
}

fn invalid(text: &str) -> Error {
    Error::new(Kind::Invalid, format!("invalid spec {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(pool: Option<&str>, namespace: &str, image: &str, snap: Option<&str>) -> Spec {
        Spec {
            pool: pool.map(str::to_owned),
            namespace: namespace.to_owned(),
            image: image.to_owned(),
            snap: snap.map(str::to_owned),
        }
    }

    #[test]
    fn every_form() {
        let parse = |text| Spec::parse(text).unwrap();
        assert_eq!(parse("i"), spec(None, "", "i", None));
        assert_eq!(parse("p/i"), spec(Some("p"), "", "i", None));
        assert_eq!(parse("p/n/i"), spec(Some("p"), "n", "i", None));
        assert_eq!(parse("p/n/i@s"), spec(Some("p"), "n", "i", Some("s")));
        assert_eq!(parse("i@s"), spec(None, "", "i", Some("s")));
        for wrong in ["", "/i", "p/", "p//i", "a/b/c/d", "@s", "i@", "i@a@b", "i@a/b"] {
            assert!(Spec::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_fill_in_what_the_spec_leaves_out() {
        let args = ImageArgs {
            spec: Some("i".to_owned()),
            parts: PoolParts { pool: Some("p".to_owned()), namespace: Some("n".to_owned()) },
            image: Some("other".to_owned()),
        };
        assert_eq!(args.spec().unwrap(), spec(Some("p"), "n", "i", None));
        let args = ImageArgs { spec: Some("q/i".to_owned()), ..args };
        assert_eq!(args.spec().unwrap(), spec(Some("q"), "n", "i", None));
        let args = ImageArgs { spec: None, ..args };
        assert_eq!(args.spec().unwrap(), spec(Some("p"), "n", "other", None));
        let error = ImageArgs::default().spec().unwrap_err();
        assert_eq!(
            (error.errno(), error.to_string().as_str()),
            (22, "image name was not specified")
        );
        let snap = ImageArgs { spec: Some("i@s".to_owned()), ..ImageArgs::default() };
        assert_eq!(snap.spec().unwrap_err().errno(), 22);
    }

    #[test]
    fn words_are_what_options_do_not_name() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (i, f) = (spec(None, "", "i", None), Some("f".to_owned()));
        let named = |image: Option<&str>, path: Option<&str>| FileArgs {
            named: SnapParts { image: image.map(str::to_owned), ..SnapParts::default() },
            path: path.map(str::to_owned),
        };
        for (args, image_first, file_first) in [
            (named(None, None), "i f", "f i"),
            (named(Some("i"), None), "f", "f"),
            (named(None, Some("f")), "i", "i"),
            (named(Some("i"), Some("f")), "", ""),
        ] {
            let parsed = args.image_then_file(&words(image_first)).unwrap();
            assert_eq!(parsed, (i.clone(), f.clone()), "{args:?}");
            let parsed = args.file_then_image(&words(file_first)).unwrap();
            assert_eq!(parsed, (f.clone(), i.clone()), "{args:?}");
            assert!(args.image_then_file(&words(&format!("{image_first} more"))).is_err());
        }
        assert_eq!(named(None, None).image_then_file(&words("i")).unwrap(), (i, None));
    }
}
