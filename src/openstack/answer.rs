//! Answers of OpenStack's services: what a refusal means, in all the shapes that it comes in.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::LATE;
use crate::error::{Error, Kind, Result};

/// The longest reason that is passed on.
const MAX_REASON: usize = 400;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What was asked, for messages: `GET volumes/…`.
    pub(crate) what: String,
    /// The status of HTTP.
    pub(crate) status: u16,
    /// The token, where Keystone gives one.
    pub(crate) token: Option<super::Secret>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Whether it is a success.
    pub(crate) fn is_fine(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What it says, if it is a success.
    ///
    /// # Errors
    /// The refusal; [`Kind::Corrupt`] if it makes no sense.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.is_fine() {
            return Err(self.refusal());
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // What serde says may quote a value; where it is wrong is enough.
            let at = format!("line {} column {}", error.line(), error.column());
            let what = format!("{}: the answer makes no sense ({at})", self.what);
            Error::new(Kind::Corrupt, what)
        })
    }

    /// Success, whatever it says.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn fine(&self) -> Result<()> {
        if self.is_fine() { Ok(()) } else { Err(self.refusal()) }
    }

    /// Why it was refused.
    pub(crate) fn refusal(&self) -> Error {
        let kind = match self.status {
            400 => Kind::Invalid,
            401 | 403 => Kind::PermissionDenied,
            404 => Kind::NotFound,
            406 => Kind::Unsupported,
            409 => Kind::Exists,
            413 if self.is_quota() => Kind::Full,
            413 => Kind::Invalid,
            429 | 502..=504 => Kind::Unreachable,
            300..=399 => Kind::Corrupt,
            _ => Kind::Os(5),
        };
        let reason = reason(&self.body).unwrap_or_else(|| "without a word why".to_owned());
        let error = Error::new(kind, format!("{}: {} {reason}", self.what, self.status));
        if kind == Kind::Unreachable { error.with_hint(LATE) } else { error }
    }

    /// Whether it is a quota that is used up. 413 is also a request that is too large.
    pub(crate) fn is_quota(&self) -> bool {
        self.status == 413
            && serde_json::from_slice::<Value>(&self.body)
                .is_ok_and(|body| body["overLimit"].is_object())
    }
}

/// The reason that a body gives: `{"itemNotFound": {"message"}}`, `{"error": {"message"}}` or `{"message"}`.
fn reason(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let message = match &body["message"] {
        Value::String(message) => message.as_str(),
        _ => body.as_object()?.values().find_map(|inner| inner["message"].as_str())?,
    };
    // Behind a message broker, a traceback follows the first line; a page's lines belong together.
    let line = match message.contains("<br />") {
        true => message.replace("<br />", " "),
        false => message.trim_start().lines().next().unwrap_or_default().to_owned(),
    };
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    (!line.is_empty()).then(|| line.chars().take(MAX_REASON).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(status: u16, body: &str) -> (Kind, String) {
        let answer = Answer { what: "GET x".to_owned(), status, token: None, body: body.into() };
        let error = answer.fine().unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn a_reason_is_found_in_every_shape() {
        for (status, body, kind, text) in [
            (404, r#"{"itemNotFound": {"code": 404, "message": "no"}}"#, Kind::NotFound, "no"),
            (
                401,
                r#"{"error": {"message": "who?", "title": "T"}}"#,
                Kind::PermissionDenied,
                "who?",
            ),
            (
                503,
                r#"{"message": "down.<br /><br />\nlater", "code": "503 X"}"#,
                Kind::Unreachable,
                "down. later (OpenStack does not answer, or not in time)",
            ),
            (400, r#"{"badRequest": {"message": "bad\nTraceback"}}"#, Kind::Invalid, "bad"),
            (413, r#"{"overLimit": {"message": "full"}}"#, Kind::Full, "full"),
            (413, r#"{"message": "too large", "code": "413 x"}"#, Kind::Invalid, "too large"),
            (500, "<html>", Kind::Os(5), "without a word why"),
            (302, "", Kind::Corrupt, "without a word why"),
        ] {
            assert_eq!(refused(status, body), (kind, format!("GET x: {status} {text}")));
        }
    }
}
