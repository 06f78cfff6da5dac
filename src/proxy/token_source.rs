//! The way from a worker to a credential: the token that requests carry, and what is done when the
//! upstream rejects it.

use std::{cell::RefCell, hash::Hash, rc::Rc, sync::Arc, time::Duration};

use http::HeaderValue;

use crate::{
    base::clock::Moment,
    proxy::error::Error,
    token::{self, Credential, RejectedRequest, RequestKey, Token, Verification, Version},
};

/// One credential as one worker uses it.
#[derive(Debug)]
pub(crate) struct TokenSource {
    credential: Credential,
    /// How long a request waits for a token.
    wait: Duration,
    local: RefCell<Option<Rc<LocalToken>>>,
}

/// A token with this worker's own copy of its header: taking it touches no memory that other
/// workers write, not even a reference count.
#[derive(Debug)]
pub(crate) struct LocalToken {
    token: Arc<Token>,
    header: HeaderValue,
}

/// What a request gets whose token was rejected.
pub(crate) enum Replacement {
    /// A newer token: replay with it.
    Newer(Rc<LocalToken>),
    /// Send the request again, with the same token over another connection.
    Verify(Verification),
    /// A newer token would most likely not help: relay the response.
    Futile,
    /// There was no newer token in time.
    Late,
}

impl TokenSource {
    pub(crate) fn new(credential: Credential, wait: Duration) -> Self {
        Self {
            credential,
            wait,
            local: RefCell::default(),
        }
    }

    /// A token that is valid at `now`; waits for one if there is none.
    ///
    /// # Errors
    /// [`Error::NoToken`] when none comes in time.
    pub(crate) async fn token(&self, now: Moment) -> Result<Rc<LocalToken>, Error> {
        if let Some(current) = self.current(now) {
            return Ok(current);
        }
        self.newer_than(None).await.ok_or_else(|| Error::NoToken {
            reason: self.credential.snapshot().reason.label(),
            retry_after: self.credential.retry_after(),
        })
    }

    /// A valid token above that version (any, for `None`), waited for within the limit.
    pub(crate) async fn newer_than(&self, version: Option<Version>) -> Option<Rc<LocalToken>> {
        let newer = self.credential.newer_than(version, self.wait).await;
        newer.map(|token| self.local(&token))
    }

    /// Identifies requests with these properties. [`TokenSource::replacement`] remembers whether
    /// newer tokens helped them.
    pub(crate) fn key(&self, properties: impl Hash) -> RequestKey {
        self.credential.request_key(properties)
    }

    /// The upstream rejected this token, in a request that cannot be sent again.
    pub(crate) fn rejected(&self, token: &LocalToken) {
        self.credential.rejected(token.version());
    }

    /// The upstream rejected this token: waits for another one, within the limit.
    pub(crate) async fn replacement(&self, request: &mut RejectedRequest) -> Replacement {
        match self.credential.replacement(request, self.wait).await {
            token::Replacement::Newer(newer) => Replacement::Newer(self.local(&newer)),
            token::Replacement::Verify(verification) => Replacement::Verify(verification),
            token::Replacement::Futile => Replacement::Futile,
            token::Replacement::Late => Replacement::Late,
        }
    }

    /// The upstream accepted this token, which [needs a proof](Token::needs_proof).
    pub(crate) fn accepted(&self, token: &LocalToken, key: RequestKey) {
        self.credential.accepted(token, key);
    }

    /// The upstream rejected this token too, with which a request was sent again.
    pub(crate) fn replay_rejected(&self, token: &LocalToken, key: RequestKey) {
        self.credential.replay_rejected(token, key);
    }

    /// A token that lives longer than `token`, which expires soon: an upload whose body cannot be
    /// sent again may outlast it. Without a newer one it is what there is.
    ///
    /// # Errors
    /// [`Error::NoToken`] when it has expired meanwhile and none comes in time.
    pub(crate) async fn longer_lived(&self, token: &LocalToken) -> Result<Rc<LocalToken>, Error> {
        // Without effect when the last call was a moment ago: then its outcome is what to wait for.
        self.credential.refresh_early();
        match self.newer_than(Some(token.version())).await {
            Some(newer) => Ok(newer),
            None => self.token(self.credential.clock().now()).await,
        }
    }

    fn current(&self, now: Moment) -> Option<Rc<LocalToken>> {
        let current = self.credential.token();
        let current = current.as_ref().filter(|token| token.is_usable(now))?;
        Some(self.local(current))
    }

    fn local(&self, token: &Arc<Token>) -> Rc<LocalToken> {
        let mut local = self.local.borrow_mut();
        match &*local {
            Some(known) if known.version() == token.version() => Rc::clone(known),
            _ => Rc::clone(local.insert(Rc::new(LocalToken::new(token)))),
        }
    }
}

impl LocalToken {
    fn new(token: &Arc<Token>) -> Self {
        Self {
            token: Arc::clone(token),
            header: token.header_copy(),
        }
    }

    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl std::ops::Deref for LocalToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}
