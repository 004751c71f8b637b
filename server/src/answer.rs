//! Questions and answers as JSON, and refusals as RFC 9457 problems.

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use windlass::{Error, ErrorKind, protocol::Problem};

use crate::{access::BadToken, bounds::Asked, limits::TooMany, metrics::Refused, routes::of_this_moment};

/// What a route gives.
pub(crate) type Answer = Result<Response, Refusal>;

/// An error on its way to the client.
pub(crate) struct Refusal {
    error: Error,
    /// Another one than the error's kind has.
    status: Option<(u16, &'static str)>,
    /// What to say in `WWW-Authenticate`.
    challenge: Option<String>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, status: None, challenge: None }
    }
}

impl From<TooMany> for Refusal {
    fn from(too_many: TooMany) -> Self {
        let refusal = Self::from(Error::from(too_many));
        match too_many {
            TooMany::OfOne(..) => refusal.with_status(429, "Too Many Requests"),
            TooMany::OfAll(..) => refusal,
        }
    }
}

impl Refusal {
    pub(crate) fn with_status(self, status: u16, title: &'static str) -> Self {
        Self { status: Some((status, title)), ..self }
    }

    /// 401: `why` is said of a bad token, and nothing where there is none.
    pub(crate) fn unauthenticated(why: Option<BadToken>) -> Self {
        let (message, challenge) = match why {
            Some(BadToken(why)) => (
                format!("the token is refused: {why}"),
                format!(r#"Bearer realm="windlass", error="invalid_token", error_description="{why}""#),
            ),
            None => (
                "this server wants a token: set WINDLASS_TOKEN, or send Authorization: Bearer TOKEN"
                    .to_owned(),
                r#"Bearer realm="windlass""#.to_owned(),
            ),
        };
        let refusal = Self::from(Error::new(ErrorKind::Denied, message)).with_status(401, "Unauthorized");
        Self { challenge: Some(challenge), ..refusal }
    }

    /// What is told of it.
    pub(crate) fn problem(&self) -> Problem {
        let mut problem = Problem::of(&self.error);
        if let Some((status, title)) = self.status {
            (problem.status, problem.title) = (status, title.to_owned());
        }
        problem
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = refuse(&self.problem());
        let challenge = self.challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok());
        if let Some(challenge) = challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// A problem as an answer.
pub(crate) fn refuse(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = of_this_moment((status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], body));
    if let Some(after) = problem.retry_after_ms {
        // Whole seconds, rounded up: our own clients read the exact time in the body.
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.div_ceil(1000)));
    }
    response.extensions_mut().insert(vec![Refused::of(problem)]);
    response
}

/// The namespace that a path names.
pub(crate) struct Namespace(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Namespace {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(invalid("the namespace in the path is not UTF-8").into()),
        }
    }
}

/// `?prefix=`: what the names of the wanted locks begin with.
pub(crate) struct Prefix(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Prefix {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Of {
            #[serde(default)]
            prefix: String,
        }
        match Query::from_request_parts(parts, state).await {
            Ok(Query(Of { prefix })) => Ok(Self(prefix)),
            Err(_) => Err(invalid("the query has one prefix: write ?prefix=TEXT").into()),
        }
    }
}

/// Reads a question that makes sense.
pub(crate) fn question<Q: DeserializeOwned + Asked>(body: &[u8]) -> Result<Q, Error> {
    let question: Q = serde_json::from_slice(body)
        .map_err(|e| invalid(&format!("the body is not the JSON that is wanted here: {e}")).with_source(e))?;
    question.makes_sense()?;
    Ok(question)
}

/// Writes an answer.
pub(crate) fn answer(answer: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(answer)
        .map_err(|e| Error::new(ErrorKind::Internal, "an answer cannot be written").with_source(e))?;
    Ok(of_this_moment(([(header::CONTENT_TYPE, "application/json")], body)))
}

pub(crate) fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
