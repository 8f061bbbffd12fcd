//! What Keystone is told to get a token, and what it tells with one.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::catalog::Service;
use super::clouds::{Auth, Cloud, Named};
use crate::error::{Error, Kind, Result};

/// What a token is good for: the body of the answer. The token itself is in its header.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Token {
    /// When it ends.
    pub(crate) expires_at: String,
    /// When it began.
    pub(crate) issued_at: String,
    /// The project it is for.
    pub(crate) project: Option<Labelled>,
    /// Whose it is.
    pub(crate) user: Labelled,
    /// Where services are; nothing if it is for no project.
    #[serde(default)]
    pub(crate) catalog: Vec<Service>,
}

/// Something with an id and a name.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Labelled {
    /// The id.
    pub(crate) id: String,
    /// The name.
    #[serde(default)]
    pub(crate) name: String,
}

#[derive(Deserialize)]
struct Body {
    token: Token,
}

impl Token {
    /// Reads Keystone's answer to [`request`].
    ///
    /// # Errors
    /// A refusal, with what to look at; [`Kind::Corrupt`].
    pub(crate) fn read(answer: &Answer, cloud: &Cloud) -> Result<Self> {
        let refused = |error: Error| match (answer.status, &cloud.auth) {
            (401, Auth::Password(..)) => error
                .with_hint("user, password, project or their domains are wrong, or no role there"),
            (401, Auth::ApplicationCredential { .. }) => {
                error.with_hint("the application credential's secret is wrong, or it has expired")
            }
            (404, Auth::ApplicationCredential { .. }) => {
                error.with_hint("the application credential was removed")
            }
            (401 | 404, Auth::Token(_)) => error.with_hint("the token has expired or was revoked"),
            (300..=399 | 404, _) => error.with_hint("is auth_url Keystone's?"),
            _ => error,
        };
        answer.read::<Body>().map(|body| body.token).map_err(refused)
    }

    /// How long it is good for from when it was given.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if its times make no sense.
    pub(crate) fn life(&self) -> Result<std::time::Duration> {
        let time = |text: &str| text.parse::<jiff::Timestamp>();
        match (time(&self.issued_at), time(&self.expires_at)) {
            (Ok(from), Ok(to)) => Ok((to - from).try_into().unwrap_or_default()),
            _ => Err(Error::new(Kind::Corrupt, "a token whose times make no sense")),
        }
    }
}

/// What is sent to Keystone for a token. It has secrets: nothing logs it.
pub(crate) fn request(cloud: &Cloud) -> Value {
    let identity = match &cloud.auth {
        Auth::Password(user, password) => {
            let mut user = named(user);
            user.insert("password".to_owned(), password.reveal().into());
            json!({ "methods": ["password"], "password": { "user": user } })
        }
        Auth::ApplicationCredential { id, name, secret } => {
            let mut credential = Map::new();
            credential.insert("secret".to_owned(), secret.reveal().into());
            if let Some(id) = id {
                credential.insert("id".to_owned(), id.as_str().into());
            }
            if let Some((name, user)) = name {
                credential.insert("name".to_owned(), name.as_str().into());
                credential.insert("user".to_owned(), named(user).into());
            }
            json!({ "methods": ["application_credential"], "application_credential": credential })
        }
        Auth::Token(token) => json!({ "methods": ["token"], "token": { "id": token.reveal() } }),
    };
    // An application credential is for the project that it was made in, and may not ask for one.
    let scope = match (&cloud.auth, &cloud.project) {
        (Auth::ApplicationCredential { .. }, _) | (_, None) => None,
        (_, Some(project)) => Some(json!({ "project": named(project) })),
    };
    match scope {
        Some(scope) => json!({ "auth": { "identity": identity, "scope": scope } }),
        None => json!({ "auth": { "identity": identity } }),
    }
}

/// An id alone, or a name with its domain.
fn named(what: &Named) -> Map<String, Value> {
    let Named { id, name, domain_id, domain_name } = what;
    if let Some(id) = id {
        return Map::from_iter([("id".to_owned(), id.as_str().into())]);
    }
    let domain = match domain_name {
        Some(name) => json!({ "name": name }),
        None => json!({ "id": domain_id }),
    };
    Map::from_iter([
        ("name".to_owned(), name.as_deref().unwrap_or_default().into()),
        ("domain".to_owned(), domain),
    ])
}
