//! A token of one project, and requests with it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Url};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::answer::Answer;
use super::catalog;
use super::clouds::{Auth, Cloud, Named};
use super::http::{Http, Request};
use super::identity::{self, Labelled, Token};
use super::secret::Secret;
use crate::error::{Context as _, Error, Kind, Result};

/// A token is renewed when less than this is left of it, or a fifth of its life.
const RENEW: Duration = Duration::from_secs(120);

/// Requests as one user, in one project of one cloud. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cloud: Cloud,
    http: Http,
    /// Who finds no good token here gets one, while others wait for that: so this lock, unlike others, is held
    /// meanwhile.
    ticket: Mutex<Option<Ticket>>,
}

/// A token that is used.
#[derive(Clone, Debug)]
struct Ticket {
    token: Secret,
    renew_at: Instant,
    cinder: String,
    project: Labelled,
    user: String,
}

impl Session {
    /// A session in a cloud, or in another of its projects. Nothing is asked yet.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub fn new(cloud: Cloud, project_id: Option<&str>) -> Result<Self> {
        let http = Http::new(&cloud)?;
        let project = project_id.map(|id| Named { id: Some(id.to_owned()), ..Named::default() });
        let cloud = Cloud { project: project.or(cloud.project), ..cloud };
        Ok(Self(Arc::new(Inner { cloud, http, ticket: Mutex::default() })))
    }

    /// The cloud's name.
    pub fn cloud(&self) -> &str {
        &self.0.cloud.name
    }

    /// The id and the name of the project that it works in.
    ///
    /// # Errors
    /// Whatever keeps us from getting a token.
    pub async fn project(&self) -> Result<(String, String)> {
        let ticket = self.ticket(None).await?;
        Ok((ticket.project.id, ticket.project.name))
    }

    /// Asks Cinder: a path below the project's address. A token that is refused is renewed once.
    ///
    /// # Errors
    /// Whatever keeps the request from being sent or answered; a refusal is an answer.
    pub(crate) async fn cinder(
        &self,
        method: Method,
        path: &str,
        version: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer> {
        self.ask(method, version, body, |endpoint| Url::parse(&format!("{endpoint}/{path}")).ok())
            .await
    }

    /// Asks for an address that Cinder gave: it must lie below the project's own.
    ///
    /// # Errors
    /// The same; [`Kind::Corrupt`] if it lies elsewhere.
    pub(crate) async fn follow(&self, href: &str, version: Option<&str>) -> Result<Answer> {
        let endpoint = self.ticket(None).await?.cinder;
        // A proxy may know Cinder by another name than Cinder does: the path and the query count.
        let path = Url::parse(href).ok().and_then(|next| {
            let below = Url::parse(&endpoint).ok()?.path().to_owned();
            let rest = next.path().strip_prefix(below.as_str())?.strip_prefix('/')?.to_owned();
            Some(format!("{rest}?{}", next.query().unwrap_or_default()))
        });
        match path {
            Some(path) => self.cinder(Method::GET, &path, version, None).await,
            None => Err(Error::new(Kind::Corrupt, "the next page would be at another address")),
        }
    }

    /// Asks for what lies above the project: Cinder's versions.
    ///
    /// # Errors
    /// As [`Session::cinder`].
    pub(crate) async fn versions(&self) -> Result<Answer> {
        let url = |endpoint: &str| {
            let mut url = Url::parse(endpoint).ok()?;
            let path = url.path().to_owned();
            let path = path.split_inclusive('/').scan(false, |done, part| {
                let go_on = !*done;
                *done = part.trim_end_matches('/') == "v3";
                go_on.then_some(part)
            });
            let path: String = path.collect();
            url.set_path(&format!("{}/", path.trim_end_matches('/')));
            Some(url)
        };
        self.ask(Method::GET, None, None, url).await
    }

    async fn ask(
        &self,
        method: Method,
        version: Option<&str>,
        body: Option<&Value>,
        url: impl Fn(&str) -> Option<Url>,
    ) -> Result<Answer> {
        let mut refused = None;
        loop {
            let ticket = self.ticket(refused.as_ref()).await?;
            let bad = || {
                let what = format!("Cinder's address {} makes no sense", ticket.cinder);
                Error::new(Kind::Invalid, what)
            };
            let request = Request {
                method: method.clone(),
                url: url(&ticket.cinder).ok_or_else(bad)?,
                token: Some(&ticket.token),
                version,
                body,
            };
            let answer = self.0.http.send(request).await.context("Cinder")?;
            // What is refused so had no effect.
            if answer.status != 401 || refused.is_some() {
                return Ok(answer);
            }
            refused = Some(ticket.token);
        }
    }

    /// A token that is good for a while, and not the one that was just refused.
    async fn ticket(&self, refused: Option<&Secret>) -> Result<Ticket> {
        let mut kept = self.0.ticket.lock().await;
        if let Some(ticket) = kept
            .as_ref()
            .filter(|ticket| Instant::now() < ticket.renew_at && refused != Some(&ticket.token))
        {
            return Ok(ticket.clone());
        }
        let ticket = self.log_in().await.context(format!("Keystone, cloud {}", self.cloud()))?;
        tracing::debug!(
            cloud = self.cloud(),
            project = ticket.project.name,
            user = ticket.user,
            "logged in"
        );
        *kept = Some(ticket.clone());
        Ok(ticket)
    }

    async fn log_in(&self) -> Result<Ticket> {
        let Inner { cloud, http, .. } = &*self.0;
        let url = format!("{}/auth/tokens", cloud.auth_url);
        let bad = |error| Error::new(Kind::Invalid, "auth_url").with_source(error);
        let request = Request {
            method: Method::POST,
            url: Url::parse(&url).map_err(bad)?,
            token: None,
            version: None,
            body: Some(&identity::request(cloud)),
        };
        let begun = Instant::now();
        let answer = http.send(request).await?;
        let token = Token::read(&answer, cloud)?;
        let secret =
            answer.token.ok_or_else(|| Error::new(Kind::Corrupt, "an answer without a token"))?;
        let Some(project) = token.project.clone() else {
            let what = format!("user {} has no project by default", token.user.name);
            return Err(Error::new(Kind::Invalid, what).with_hint("set project_name or project_id"));
        };
        // Asked for another, it could only be refused.
        let wanted = cloud.project.as_ref().and_then(|project| project.id.as_ref());
        if let (Auth::ApplicationCredential { .. }, Some(wanted)) = (&cloud.auth, wanted)
            && *wanted != project.id
        {
            let what =
                format!("the application credential is for project {}, not {wanted}", project.id);
            return Err(Error::new(Kind::PermissionDenied, what));
        }
        let life = token.life()?;
        let cinder = catalog::cinder(&token.catalog, cloud, &project.id)?;
        let renew_at = begun + (life - RENEW.min(life / 5));
        Ok(Ticket { token: secret, renew_at, cinder, project, user: token.user.name })
    }
}
