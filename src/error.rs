//! What can go wrong, told so that somebody can act on it.
//!
//! An [`Error`] has a [`Kind`] for programs to decide by, and a text for people: what was attempted, on which image,
//! object or daemon, why it failed, and what to do about it where that is known.

use std::fmt;

/// What kind of failure it is: stable, and enough to decide what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The caller asked for something that makes no sense.
    Invalid,
    /// There is no such pool, image, object or file.
    NotFound,
    /// It exists already.
    Exists,
    /// The cluster does not allow this client to do that.
    PermissionDenied,
    /// Somebody else is using it.
    Busy,
    /// It cannot be written to.
    ReadOnly,
    /// No space is left, or a quota is used up.
    Full,
    /// No answer in time. What became of a request is unknown.
    TimedOut,
    /// No daemon could be reached.
    Unreachable,
    /// The cluster fenced this client off: nothing it sends is applied any more.
    Fenced,
    /// Something that is not built yet, or that the cluster is too old or too new for.
    Unsupported,
    /// What was read makes no sense.
    Corrupt,
    /// This side is shutting down.
    Closed,
    /// Any other errno that a daemon answered, positive.
    Os(i32),
}

impl Kind {
    /// The errno that programs expect, positive.
    pub fn errno(self) -> i32 {
        match self {
            Self::Invalid => 22,
            Self::NotFound => 2,
            Self::Exists => 17,
            Self::PermissionDenied => 1,
            Self::Busy => 16,
            Self::ReadOnly => 30,
            Self::Full => 28,
            Self::TimedOut | Self::Unreachable => 110,
            Self::Fenced | Self::Closed => 108,
            Self::Unsupported => 95,
            Self::Corrupt => 5,
            Self::Os(errno) => errno,
        }
    }

    /// From an errno of either sign.
    pub fn from_errno(errno: i32) -> Self {
        match errno.saturating_abs() {
            1 | 13 => Self::PermissionDenied,
            2 => Self::NotFound,
            16 => Self::Busy,
            17 => Self::Exists,
            22 => Self::Invalid,
            28 | 122 => Self::Full,
            30 => Self::ReadOnly,
            95 => Self::Unsupported,
            108 => Self::Fenced,
            110 => Self::TimedOut,
            errno => Self::Os(errno),
        }
    }
}

/// The words for an errno that Ceph answers.
fn words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno.saturating_abs()).to_string()
}

/// A failure: what was attempted, and why it did not work.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand for what everything here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure in words.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None, source: None }
    }

    /// A failure that a daemon answered with an errno of either sign.
    pub fn from_errno(errno: i32, what: impl fmt::Display) -> Self {
        Self::new(Kind::from_errno(errno), format!("{what}: {}", words(errno)))
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what may be done about it, or why it may be, unless something better is known already.
    #[must_use]
    pub fn or_hint(mut self, hint: impl FnOnce() -> String) -> Self {
        self.hint.get_or_insert_with(hint);
        self
    }

    /// Says what was being done when it happened.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno that programs expect, positive.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Adds context to an error, if there is one.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, doing: impl fmt::Display) -> Self {
        self.map_err(|error| error.context(doing))
    }
}

impl<T> Context<T> for std::result::Result<T, proto::denc::DecodeError> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            Error::new(Kind::Corrupt, format!("{doing}: cannot be decoded")).with_source(error)
        })
    }
}
