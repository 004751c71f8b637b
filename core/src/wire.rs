//! The messages of [`protocol`](crate::protocol) as a client writes and reads them. The server's side is derived by serde;
//! here it is by hand, because what serde derives for the same messages is half of what a browser would download.
//! Fields that are not known are passed over.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    ask::{Holder, Mode, Owner, Status, Waiter, Waiting},
    error::LostReason,
    json::Json,
    name::{ClaimId, Name},
    protocol::{
        Acquire, AcquireAll, Acquired, Change, ClaimRef, Entry, ForceRelease, ForceReleased, Grant,
        Happening, Locks, Loss, News, Problem, Proven, Release, Released, Renew, Renewal, Renewed, Terms,
        parse_id,
    },
};

/// What a client sends.
pub(crate) trait Question {
    fn json(&self) -> Json;
}

/// What it gets; `None`: it is something else.
pub(crate) trait Answer: Sized {
    fn read(json: &Json) -> Option<Self>;
}

type Fields = Vec<(String, Json)>;

impl Question for Acquire {
    fn json(&self) -> Json {
        let mut fields = claim(&self.claim);
        terms(&self.terms, &mut fields);
        Json::Object(fields)
    }
}

impl Question for AcquireAll {
    fn json(&self) -> Json {
        let mut fields = vec![claims(&self.claims)];
        terms(&self.terms, &mut fields);
        Json::Object(fields)
    }
}

impl Question for Renew {
    fn json(&self) -> Json {
        let mut fields = vec![claims(&self.claims)];
        maybe(&mut fields, "client", self.client.map(hex));
        maybe(&mut fields, "park_ms", self.park_ms.map(Json::Whole));
        if !self.proven.is_empty() {
            fields.push(("proven".into(), Json::List(self.proven.iter().map(Question::json).collect())));
        }
        Json::Object(fields)
    }
}

impl Question for Release {
    fn json(&self) -> Json {
        let mut fields = vec![claims(&self.claims)];
        maybe(&mut fields, "client", self.client.map(hex));
        Json::Object(fields)
    }
}

impl Question for Change {
    fn json(&self) -> Json {
        let mut fields = claim(&self.claim);
        maybe(&mut fields, "client", self.client.map(hex));
        fields.push(("to".into(), mode(self.to)));
        maybe(&mut fields, "number", self.number.map(Json::Whole));
        maybe(&mut fields, "wait_ms", self.wait_ms.map(Json::Whole));
        Json::Object(fields)
    }
}

impl Question for ForceRelease {
    fn json(&self) -> Json {
        let mut fields = vec![("name".into(), text(self.name.as_str()))];
        maybe(&mut fields, "fencing_token", self.fencing_token.map(Json::Whole));
        Json::Object(fields)
    }
}

/// A part of a question.
impl Question for ClaimRef {
    fn json(&self) -> Json {
        Json::Object(claim(self))
    }
}

/// A part of a question.
impl Question for Proven {
    fn json(&self) -> Json {
        proven(self)
    }
}

fn text(text: &str) -> Json {
    Json::Text(text.to_owned())
}

fn hex(id: ClaimId) -> Json {
    Json::Text(format!("{:032x}", id.reveal()))
}

fn maybe(fields: &mut Fields, key: &str, value: Option<Json>) {
    fields.extend(value.map(|value| (key.to_owned(), value)));
}

fn claim(claim: &ClaimRef) -> Fields {
    vec![("name".into(), text(claim.name.as_str())), ("claim".into(), hex(claim.claim))]
}

fn claims(claims: &[ClaimRef]) -> (String, Json) {
    ("claims".into(), Json::List(claims.iter().map(Question::json).collect()))
}

fn mode(mode: Mode) -> Json {
    match mode {
        Mode::Exclusive => text("exclusive"),
        Mode::Shared => text("shared"),
        Mode::Upgradable => text("upgradable"),
        Mode::Permit(limit) => Json::Object(vec![("permit".into(), Json::Whole(limit.get().into()))]),
    }
}

fn owner(owner: &str, metadata: &BTreeMap<String, String>, fields: &mut Fields) {
    fields.push(("owner".into(), text(owner)));
    if !metadata.is_empty() {
        let all = metadata.iter().map(|(key, value)| (key.clone(), text(value)));
        fields.push(("metadata".into(), Json::Object(all.collect())));
    }
}

fn terms(terms: &Terms, fields: &mut Fields) {
    maybe(fields, "client", terms.client.map(hex));
    fields.push(("mode".into(), mode(terms.mode)));
    let entry = match terms.entry {
        Entry::Queue => "queue",
        Entry::Try => "try",
        Entry::Steal => "steal",
    };
    fields.push(("entry".into(), text(entry)));
    fields.push(("ttl_ms".into(), Json::Whole(terms.ttl_ms)));
    maybe(fields, "wait_ms", terms.wait_ms.map(Json::Whole));
    maybe(fields, "keep_ms", terms.keep_ms.map(Json::Whole));
    owner(&terms.owner, &terms.metadata, fields);
}

fn proven(proven: &Proven) -> Json {
    let kept = &proven.kept;
    let mut fields = vec![
        ("name".into(), text(kept.name.as_str())),
        ("claim".into(), hex(kept.claim)),
        ("mode".into(), mode(kept.mode)),
        ("ttl_ms".into(), Json::Whole(kept.ttl_ms)),
        ("for_ms".into(), Json::Whole(kept.for_ms)),
        ("proof".into(), text(&proven.proof)),
    ];
    maybe(&mut fields, "fencing_token", kept.fencing_token.map(Json::Whole));
    owner(&kept.owner.owner, &kept.owner.metadata, &mut fields);
    Json::Object(fields)
}

impl<A: Answer> Answer for Vec<A> {
    fn read(json: &Json) -> Option<Self> {
        json.list()?.iter().map(A::read).collect()
    }
}

/// A single grant is just the shortest list.
impl Answer for Acquired<Vec<Grant>> {
    fn read(json: &Json) -> Option<Self> {
        Some(match json.get("outcome").text()? {
            "granted" => Self::Granted {
                grant: match json.get("grant") {
                    several @ Json::List(_) => Answer::read(several)?,
                    one => vec![Answer::read(one)?],
                },
                held_ms: json.get("held_ms").whole()?,
            },
            "waiting" => Self::Waiting(Waiting {
                holders: Answer::read(json.get("holders"))?,
                place: json.get("place").whole().and_then(|place| place.try_into().ok()),
            }),
            "busy" => Self::Busy,
            _ => return None,
        })
    }
}

impl Answer for Grant {
    fn read(json: &Json) -> Option<Self> {
        Some(Self {
            fencing_token: json.get("fencing_token").whole()?,
            mode: Answer::read(json.get("mode"))?,
            ttl_ms: json.get("ttl_ms").whole(),
            proof: json.get("proof").text().map(str::to_owned),
        })
    }
}

/// A list that is left out when it is empty.
fn maybe_some<A: Answer>(list: &Json) -> Option<Vec<A>> {
    if *list == Json::Null { Some(Vec::new()) } else { Answer::read(list) }
}

impl Answer for Renewed {
    fn read(json: &Json) -> Option<Self> {
        Some(Self {
            held_ms: json.get("held_ms").whole()?,
            claims: Answer::read(json.get("claims"))?,
            news: maybe_some(json.get("news"))?,
            prove: *json.get("prove") == Json::Bool(true),
        })
    }
}

impl Answer for Renewal {
    fn read(json: &Json) -> Option<Self> {
        Some(match json.get("state").text()? {
            "held" => Self::Held(Answer::read(json)?),
            "lost" => Self::Lost { reason: Answer::read(json.get("reason"))? },
            "not_held" => Self::NotHeld,
            "unknown" => Self::Unknown(Answer::read(json)?),
            _ => return None,
        })
    }
}

impl Answer for ClaimRef {
    fn read(json: &Json) -> Option<Self> {
        Some(Self { name: Answer::read(json.get("name"))?, claim: parse_id(json.get("claim").text()?).ok()? })
    }
}

impl Answer for Released {
    fn read(json: &Json) -> Option<Self> {
        Some(Self { lost: maybe_some(json.get("lost"))? })
    }
}

impl Answer for Loss {
    fn read(json: &Json) -> Option<Self> {
        Some(Self { claim: Answer::read(json)?, reason: Answer::read(json.get("reason"))? })
    }
}

impl Answer for News {
    fn read(json: &Json) -> Option<Self> {
        let claim = Answer::read(json)?;
        let what = match json.get("happened").text()? {
            "lost" => Happening::Lost { reason: Answer::read(json.get("reason"))? },
            "contended" => Happening::Contended,
            _ => return None,
        };
        Some(Self { claim, what })
    }
}

impl Answer for ForceReleased {
    fn read(json: &Json) -> Option<Self> {
        Some(Self { taken_from: Answer::read(json.get("taken_from"))? })
    }
}

impl Answer for Locks {
    fn read(json: &Json) -> Option<Self> {
        Some(Self { locks: Answer::read(json.get("locks"))? })
    }
}

impl Answer for Status {
    fn read(json: &Json) -> Option<Self> {
        Some(Self {
            name: Answer::read(json.get("name"))?,
            holders: Answer::read(json.get("holders"))?,
            waiters: Answer::read(json.get("waiters"))?,
        })
    }
}

impl Answer for Holder {
    fn read(json: &Json) -> Option<Self> {
        Some(Self {
            owner: Answer::read(json)?,
            mode: Answer::read(json.get("mode"))?,
            fencing_token: json.get("fencing_token").whole()?,
            held_for: json.get("held_for_ms").whole().map(Duration::from_millis),
        })
    }
}

impl Answer for Waiter {
    fn read(json: &Json) -> Option<Self> {
        Some(Self {
            owner: Answer::read(json)?,
            mode: Answer::read(json.get("mode"))?,
            waited_for: json.get("waited_for_ms").whole().map(Duration::from_millis),
        })
    }
}

impl Answer for Owner {
    fn read(json: &Json) -> Option<Self> {
        let mut metadata = BTreeMap::new();
        for (key, value) in json.get("metadata").fields() {
            metadata.insert(key.clone(), value.text()?.to_owned());
        }
        Some(Self { owner: json.get("owner").text()?.to_owned(), metadata })
    }
}

impl Answer for Mode {
    fn read(json: &Json) -> Option<Self> {
        Some(match json.text() {
            Some("exclusive") => Self::Exclusive,
            Some("shared") => Self::Shared,
            Some("upgradable") => Self::Upgradable,
            Some(_) => return None,
            None => Self::Permit(u32::try_from(json.get("permit").whole()?).ok()?.try_into().ok()?),
        })
    }
}

impl Answer for LostReason {
    fn read(json: &Json) -> Option<Self> {
        Some(match json.text()? {
            "expired" => Self::Expired,
            "unreachable" => Self::Unreachable,
            "force_released" => Self::ForceReleased,
            "stolen" => Self::Stolen,
            "session_ended" => Self::SessionEnded,
            _ => return None,
        })
    }
}

impl Answer for Name {
    fn read(json: &Json) -> Option<Self> {
        json.text()?.parse().ok()
    }
}

impl Answer for Problem {
    fn read(json: &Json) -> Option<Self> {
        let field = |key| json.get(key).text().unwrap_or_default().to_owned();
        json.fields().first()?;
        Some(Self {
            problem_type: field("type"),
            title: field("title"),
            status: json.get("status").whole().and_then(|status| status.try_into().ok()).unwrap_or_default(),
            detail: field("detail"),
            kind: field("kind"),
            lock: Answer::read(json.get("lock")),
            retry_after_ms: json.get("retry_after_ms").whole(),
        })
    }
}

#[cfg(test)]
mod tests;
