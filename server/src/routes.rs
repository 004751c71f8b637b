//! The server's own protocol: each route reads a question, asks the namespace's backend, and writes the answer.

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{HeaderValue, header, request::Parts},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::FutureExt;
use windlass::{
    ClaimId, Mode, Owner, Result, Waiting,
    ask::{Ask, Claim, Term},
    protocol::{
        Acquire, AcquireAll, Acquired, Change, ForceRelease, ForceReleased, Grant, Happening, Locks, Loss,
        MISSING, News, Problem, Release, Released, Renew, Renewal, Renewed, millis,
    },
    table::Kept,
    time::Moment,
};

use crate::{
    answer::{Answer, Namespace, Prefix, Refusal, answer, invalid, question},
    events,
    metrics::{self, Meter},
    overview, page,
    parked::{self, Line, Question, Waited, held_open_for},
    space::Space,
    spaces::Spaces,
    terms, together,
    who::{Asking, Who},
};

type Here = State<Arc<Spaces>>;

pub(crate) fn router(spaces: Arc<Spaces>, meter: Meter) -> Router {
    // What a store cannot do its clients hear with each answer, and need not ask for it.
    let missing = spaces.promises().missing();
    let router = routes(spaces, meter);
    match HeaderValue::try_from(&missing) {
        Ok(missing) if !missing.is_empty() => router.layer(map_response(move |mut response: Response| {
            response.headers_mut().insert(MISSING, missing.clone());
            ready(response)
        })),
        _ => router,
    }
}

fn routes(spaces: Arc<Spaces>, meter: Meter) -> Router {
    Router::new()
        .route("/v1/{namespace}/acquire", post(acquire))
        .route("/v1/{namespace}/acquire-all", post(acquire_all))
        .route("/v1/{namespace}/renew", post(renew))
        .route("/v1/{namespace}/together", post(together::together))
        .route("/v1/{namespace}/release", post(release))
        .route("/v1/{namespace}/change", post(change))
        .route("/v1/{namespace}/force-release", post(force_release))
        .route("/v1/{namespace}/locks", get(locks))
        .route("/v1/{namespace}/events", get(watch))
        .route("/v1", get(namespaces))
        .route("/v1/events", get(watch_all))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(is_ready))
        .route("/openapi.json", get(openapi))
        .merge(crate::lockgate::router(&spaces))
        .merge(page::router())
        .merge(metrics::router(meter))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        // The door has read them, within the limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(spaces)
}

async fn acquire(visit: Visit, body: Bytes) -> Answer {
    answer(&visit.acquire(question(&body)?).await?)
}

async fn acquire_all(visit: Visit, body: Bytes) -> Answer {
    answer(&visit.acquire_all(question(&body)?).await?)
}

async fn change(visit: Visit, body: Bytes) -> Answer {
    answer(&visit.change(question(&body)?).await?)
}

async fn renew(visit: Visit, body: Bytes) -> Answer {
    let heard = visit.hear(question(&body)?).await?;
    answer(&visit.tell(heard).await?)
}

/// Somebody asks about the locks of a namespace.
pub(crate) struct Visit {
    pub(crate) spaces: Arc<Spaces>,
    pub(crate) namespace: String,
    pub(crate) who: Who,
}

impl FromRequestParts<Arc<Spaces>> for Visit {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, spaces: &Arc<Spaces>) -> Result<Self, Refusal> {
        let Namespace(namespace) = Namespace::from_request_parts(parts, spaces).await?;
        let who = Who::from_request_parts(parts, spaces).await?;
        Ok(Self { spaces: spaces.clone(), namespace, who })
    }
}

/// What a renewal has come to.
pub(crate) struct Heard {
    space: Arc<Space>,
    client: Option<ClaimId>,
    claims: Vec<Claim>,
    begun: Moment,
    /// `None`: they are to be renewed once more.
    renewals: Option<Vec<windlass::ask::Renewal>>,
    news: Vec<windlass::ask::News>,
    prove: bool,
}

impl Visit {
    pub(crate) async fn acquire(&self, asked: Acquire) -> Result<Acquired<Grant>, Refusal> {
        let Self { spaces, namespace, who } = self;
        let Acquire { claim, terms } = asked;
        let asking = who.asks(namespace, &terms, [&claim])?;
        let space = spaces.get(namespace)?;
        spaces.may_grant(Duration::from_millis(terms.ttl_ms)).await?;
        let (view, ask, line) = (space.client(terms.client)?, terms.ask(claim), Line::default());
        let (asked, asks) = (ask.claim(), Arc::new([ask]));
        let (by, of, hears, ask) = (view.clone(), space.clone(), line.clone(), asks.clone());
        let work = async move {
            let ([ask], hears) = (&*ask, hears.hear());
            let granted = of.take(by.as_ref(), &[ask.claim()], by.acquire(ask, &hears)).await?;
            Ok(granted.map(|grant| vec![grant]))
        }
        .boxed();
        let question = Question { view, claims: vec![asked.clone()], asks, work, line };
        let told = |begun, grants: &[_]| told(spaces, &space, &asked, &grants[0], begun);
        held_open(spaces, &space, question, asking, told).await
    }

    pub(crate) async fn acquire_all(&self, asked: AcquireAll) -> Result<Acquired<Vec<Grant>>, Refusal> {
        let Self { spaces, namespace, who } = self;
        let AcquireAll { claims, terms } = asked;
        let asking = who.asks(namespace, &terms, &claims)?;
        let space = spaces.get(namespace)?;
        spaces.may_grant(Duration::from_millis(terms.ttl_ms)).await?;
        let (view, line) = (space.client(terms.client)?, Line::default());
        let mut asks: Vec<Ask> = claims.iter().map(|claim| terms.ask(claim.clone())).collect();
        // One order for all who ask: nobody waits for somebody who waits for them.
        asks.sort_by(|a, b| a.name.cmp(&b.name));
        let claims: Vec<Claim> = claims.into_iter().map(Claim::from).collect();
        let (order, asked, asks) = (claims.clone(), claims.clone(), Arc::<[Ask]>::from(asks));
        let (by, of, hears, each) = (view.clone(), space.clone(), line.clone(), asks.clone());
        let work = async move {
            let all: Vec<Claim> = each.iter().map(Ask::claim).collect();
            let hears = hears.hear();
            let granted = of.take(by.as_ref(), &all, by.acquire_all(&each, &hears)).await?;
            let Some(grants) = granted else { return Ok(None) };
            let grant_of = |claim: &Claim| each.iter().position(|ask| ask.claim_id == claim.id);
            Ok(Some(order.iter().filter_map(grant_of).map(|place| grants[place].clone()).collect()))
        };
        let question = Question { view, claims, asks, work: work.boxed(), line };
        let all = |begun, grants: &[_]| {
            let each = asked.iter().zip(grants);
            each.map(|(claim, grant)| told(spaces, &space, claim, grant, begun)).collect::<Vec<_>>()
        };
        held_open(spaces, &space, question, asking, all).await
    }

    pub(crate) async fn change(&self, asked: Change) -> Result<Acquired<Grant>, Refusal> {
        let Self { spaces, namespace, who } = self;
        let begun = spaces.now();
        let Change { client, claim, to, number, wait_ms } = asked;
        who.changes(namespace, &claim.name, to)?;
        let space = spaces.get(namespace)?;
        if to == Mode::Exclusive {
            // Beside it may hold those who have not been heard of since this server's abrupt end.
            spaces.may_grant_at_all()?;
        }
        let view = space.client(client)?;
        let claim = Claim::from(claim);
        let mut changing = view.change(&claim, to);
        let at_once = space
            .changes
            .in_order(&claim, client, number, Instant::now(), || (&mut changing).now_or_never())?;
        let changed = async {
            match at_once {
                Some(grant) => grant,
                None => changing.await,
            }
        };
        let wait = held_open_for(wait_ms).max(space.answers_within());
        tokio::select! {
            biased;
            grant = changed => {
                let grant = grant?;
                spaces.not_sealed()?;
                if let Err(refusal) = who.still() {
                    parked::give_back(view.as_ref(), std::slice::from_ref(&claim)).await;
                    return Err(refusal);
                }
                Ok(Acquired::Granted { grant: told(spaces, &space, &claim, &grant, begun), held_ms: 0 })
            }
            () = tokio::time::sleep(wait) => Ok(Acquired::Waiting(Waiting::default())),
            () = spaces.stopping() => Ok(Acquired::Waiting(Waiting::default())),
        }
    }

    /// Renews claims, and waits for news of them where it is asked to.
    pub(crate) async fn hear(&self, asked: Renew) -> Result<Heard, Refusal> {
        let Self { spaces, namespace, who } = self;
        let begun = spaces.now();
        let Renew { client, claims, park_ms, proven } = asked;
        who.renews(namespace, claims.iter().map(|claim| &claim.name))?;
        who.renews(namespace, proven.iter().map(|proven| &proven.kept.name))?;
        let space = spaces.get(namespace)?;
        spaces.take_up(&space, &proven);
        let view = space.client(client)?;
        let claims: Vec<Claim> = claims.into_iter().map(Claim::from).collect();
        let renewals = view.renew(&claims).await?;
        let renewed = claims.iter().zip(&renewals);
        space.waiters.stay(renewed.filter(|(_, renewal)| is_held(renewal)).map(|(claim, _)| claim));
        let all_held = renewals.iter().all(is_held);
        let (renewals, news) = match park_ms {
            // What it has missed comes along.
            _ if !all_held => (Some(renewals), view.hear().now_or_never().transpose()?.unwrap_or_default()),
            None => (Some(renewals), Vec::new()),
            Some(park) => {
                let news = tokio::select! {
                    biased;
                    news = view.hear() => news?,
                    () = tokio::time::sleep(held_open_for(Some(park))) => Vec::new(),
                    () = spaces.stopping() => Vec::new(),
                };
                (None, news)
            }
        };
        let prove = !all_held && proven.is_empty() && spaces.grace_left().is_some();
        Ok(Heard { space, client, claims, begun, renewals, news, prove })
    }

    /// Tells it. This is not to be given up half way: what was heard is not heard again.
    pub(crate) async fn tell(&self, heard: Heard) -> Result<Renewed, Refusal> {
        let Heard { space, client, claims, begun, renewals, news, prove } = heard;
        let renewals = match renewals {
            Some(renewals) => renewals,
            None => {
                self.who.still()?;
                // By the view of now: the one that heard may have been given up meanwhile.
                space.client(client)?.renew(&claims).await?
            }
        };
        self.who.has_renewed(&self.namespace, &claims, &renewals);
        let held = terms::held(begun, renewals.iter().filter_map(term));
        let each = claims.iter().zip(renewals);
        let claims =
            each.map(|(claim, renewal)| renewal_told(&self.spaces, &space, claim, renewal, begun)).collect();
        Ok(Renewed { held_ms: millis(held), claims, news: news_told(news), prove })
    }
}

fn term(renewal: &windlass::ask::Renewal) -> Option<Term> {
    match renewal {
        windlass::ask::Renewal::Renewed(grant) => grant.lease,
        _ => None,
    }
}

fn is_held(renewal: &windlass::ask::Renewal) -> bool {
    matches!(renewal, windlass::ask::Renewal::Renewed(_))
}

/// A grant as its client is told, with what shows a later server that it was granted.
fn told(spaces: &Spaces, space: &Space, claim: &Claim, grant: &windlass::ask::Grant, begun: Moment) -> Grant {
    let ttl_ms = grant.lease.map(|term| millis(terms::ttl(begun, term)));
    let told = Grant { ttl_ms, ..Grant::from(grant) };
    let kept = Kept {
        name: claim.name.clone(),
        claim: claim.id,
        mode: told.mode,
        ttl_ms: told.ttl_ms.unwrap_or(0),
        fencing_token: Some(told.fencing_token),
        owner: Owner::default(),
        for_ms: 0,
    };
    Grant { proof: spaces.proof(space, &kept), ..told }
}

fn renewal_told(
    spaces: &Spaces,
    space: &Space,
    claim: &Claim,
    renewal: windlass::ask::Renewal,
    begun: Moment,
) -> Renewal {
    match renewal {
        windlass::ask::Renewal::Renewed(grant) => Renewal::Held(told(spaces, space, claim, &grant, begun)),
        windlass::ask::Renewal::Lost(reason) => Renewal::Lost { reason },
        windlass::ask::Renewal::NotHeld => Renewal::NotHeld,
        windlass::ask::Renewal::Unknown(error) => Renewal::Unknown(Problem::of(&error)),
    }
}

fn news_told(news: Vec<windlass::ask::News>) -> Vec<News> {
    let told = news.into_iter().filter_map(|news| {
        let what = match news.what {
            windlass::ask::Happening::Lost(reason) => Happening::Lost { reason },
            windlass::ask::Happening::Contended => Happening::Contended,
            // What was renewed is in the list of claims.
            _ => return None,
        };
        Some(News { claim: (&news.claim).into(), what })
    });
    told.collect()
}

async fn release(State(spaces): Here, Namespace(namespace): Namespace, who: Who, body: Bytes) -> Answer {
    let Release { client, claims } = question(&body)?;
    who.releases(&namespace)?;
    let claims: Vec<Claim> = claims.into_iter().map(Claim::from).collect();
    let space = spaces.get(&namespace)?;
    let news = space.release(space.client(client)?, &claims).await?;
    space.waiters.stay(&claims);
    who.has_released(&namespace, &claims);
    spaces.not_sealed()?;
    let lost = news.iter().filter_map(|news| match news.what {
        windlass::ask::Happening::Lost(reason) => Some(Loss { claim: (&news.claim).into(), reason }),
        _ => None,
    });
    answer(&Released { lost: lost.collect() })
}

async fn force_release(
    State(spaces): Here,
    Namespace(namespace): Namespace,
    who: Who,
    body: Bytes,
) -> Answer {
    let asked: ForceRelease = question(&body)?;
    let ForceRelease { ref name, fencing_token } = asked;
    who.forces(&namespace, name)?;
    let taken_from = spaces.get(&namespace)?.client(None)?.force_release(name, fencing_token).await?;
    who.has_forced(&namespace, &asked, &taken_from);
    tracing::warn!(namespace, lock = %name, holders = taken_from.len(), "freed by force");
    answer(&ForceReleased { taken_from })
}

async fn locks(
    State(spaces): Here,
    Namespace(namespace): Namespace,
    Prefix(prefix): Prefix,
    who: Who,
) -> Answer {
    who.sees(&namespace)?;
    let mut locks = spaces.get(&namespace)?.client(None)?.inspect(&prefix).await?;
    locks.retain(|lock| who.may_see(&namespace, &lock.name));
    answer(&Locks { locks })
}

async fn watch(
    State(spaces): Here,
    Namespace(namespace): Namespace,
    Prefix(prefix): Prefix,
    who: Who,
) -> Result<Response, Refusal> {
    who.sees(&namespace)?;
    let space = spaces.get(&namespace)?;
    Ok(events::stream(spaces, space, who, prefix).await?)
}

async fn watch_all(State(spaces): Here, who: Who) -> Response {
    overview::stream(spaces, who)
}

/// Whether this server grants locks now; for whoever decides where requests go.
async fn is_ready(State(spaces): Here) -> Result<Response, Refusal> {
    spaces.ready().await?;
    Ok(of_this_moment("ok\n"))
}

/// The protocol as OpenAPI describes it. It is made of the types and routes by `tests/it/openapi.rs`.
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn namespaces(State(spaces): Here, who: Who) -> Answer {
    let mut names = spaces.names();
    names.retain(|namespace| who.may_see_namespace(namespace));
    answer(&serde_json::json!({ "namespaces": names }))
}

async fn nothing_here() -> Response {
    let message = "there is nothing here: the protocol is under /v1/NAMESPACE/";
    let mut problem = Problem::of(&invalid(message));
    (problem.status, problem.title) = (404, "Not Found".to_owned());
    crate::answer::refuse(&problem)
}

async fn other_method() -> Response {
    let mut problem = Problem::of(&invalid("another method is wanted here: see docs/protocol.md"));
    (problem.status, problem.title) = (405, "Method Not Allowed".to_owned());
    crate::answer::refuse(&problem)
}

/// Answers an acquire: once it is granted, or when its time is over.
async fn held_open<G>(
    spaces: &Arc<Spaces>,
    space: &Arc<Space>,
    question: Question,
    asking: Asking,
    told: impl FnOnce(Moment, &[windlass::ask::Grant]) -> G,
) -> Result<Acquired<G>, Refusal> {
    let begun = spaces.now();
    let (view, claims) = (question.view.clone(), question.claims.clone());
    let patience = asking.patience;
    match parked::wait(spaces, space, question, patience, || asking.waits()).await {
        Waited::Over(Ok(Some(grants))) => {
            spaces.not_sealed()?;
            if let Err(refusal) = asking.still() {
                parked::give_back(view.as_ref(), &claims).await;
                asking.ends();
                return Err(refusal);
            }
            let held = terms::held(begun, grants.iter().filter_map(|grant| grant.lease));
            asking.was_granted(&grants);
            Ok(Acquired::Granted { grant: told(begun, &grants), held_ms: millis(held) })
        }
        Waited::Over(Ok(None)) => {
            asking.ends();
            Ok(Acquired::Busy)
        }
        Waited::Over(Err(error)) => Err(error.into()),
        Waited::Refused(too_many) => {
            asking.ends();
            Err(too_many.into())
        }
        Waited::NotYet(waiting) => Ok(Acquired::Waiting(asking.is_told(waiting))),
    }
}

/// The header that says that an answer is of this moment.
pub(crate) fn of_this_moment(response: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], response).into_response()
}
