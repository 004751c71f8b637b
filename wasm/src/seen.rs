//! What is seen of locks, as plain objects.

use std::time::Duration;

use js_sys::{Array, Object, Reflect};
use wasm_bindgen::JsValue;
use windlass::{Holder, Mode, Owner, Status, Waiter, Waiting};

type Field<'a> = (&'a str, Option<JsValue>);

/// An object with those of the fields that have values.
pub(crate) fn object(fields: &[Field<'_>]) -> Object {
    let object = Object::new();
    for (key, value) in fields {
        if let Some(value) = value {
            // A plain object takes any field.
            let _ = Reflect::set(&object, &(*key).into(), value);
        }
    }
    object
}

pub(crate) fn millis(time: Duration) -> JsValue {
    (time.as_secs_f64() * 1000.0).into()
}

pub(crate) fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        Mode::Upgradable => "upgradable",
        Mode::Permit(_) => "permit",
    }
}

fn limit(mode: Mode) -> Option<JsValue> {
    match mode {
        Mode::Permit(limit) => Some(limit.get().into()),
        _ => None,
    }
}

fn metadata(owner: &Owner) -> JsValue {
    let fields: Vec<Field<'_>> =
        owner.metadata.iter().map(|(key, value)| (key.as_str(), Some(value.as_str().into()))).collect();
    object(&fields).into()
}

fn claim(owner: &Owner, mode: Mode, more: &[Field<'_>]) -> JsValue {
    let mut fields = vec![
        ("owner", Some(owner.owner.as_str().into())),
        ("metadata", Some(metadata(owner))),
        ("mode", Some(mode_text(mode).into())),
        ("limit", limit(mode)),
    ];
    fields.extend_from_slice(more);
    object(&fields).into()
}

pub(crate) fn holder(holder: &Holder) -> JsValue {
    let more =
        [("fencingToken", Some(holder.fencing_token.into())), ("heldFor", holder.held_for.map(millis))];
    claim(&holder.owner, holder.mode, &more)
}

fn waiter(waiter: &Waiter) -> JsValue {
    claim(&waiter.owner, waiter.mode, &[("waitedFor", waiter.waited_for.map(millis))])
}

pub(crate) fn waiting(waiting: &Waiting) -> JsValue {
    let holders: Array = waiting.holders.iter().map(holder).collect();
    let place = waiting.place.map(|place| (place as f64).into());
    let text = waiting.to_string().into();
    object(&[("holders", Some(holders.into())), ("place", place), ("text", Some(text))]).into()
}

pub(crate) fn status(status: &Status) -> JsValue {
    let holders: Array = status.holders.iter().map(holder).collect();
    let waiters: Array = status.waiters.iter().map(waiter).collect();
    let name = status.name.as_str().into();
    object(&[("name", Some(name)), ("holders", Some(holders.into())), ("waiters", Some(waiters.into()))])
        .into()
}
