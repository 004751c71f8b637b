//! Any text of 1 to 1,024 bytes is a name, and another text another lock (guarantee 10).

use windlass::{Mode, Name, ask::Ask};

use super::can_see;
use crate::place::{Place, ask};

/// Names that have hurt lock libraries, and their neighbours.
pub const ODD_NAMES: &[&str] = &[
    "a",
    "A",
    "a ",
    " a",
    "a/",
    "a/b",
    "a//b",
    "/a",
    "/",
    "//",
    ".",
    "..",
    "../..",
    "../../etc/passwd",
    "./a",
    "a\0b",
    "\0",
    "a\nb",
    "\n",
    "\r\n",
    "\u{1b}[31m",
    "\u{1f512}",
    "\u{e9}",
    "e\u{301}",
    "\u{202e}abc",
    "*",
    "?",
    "[a]",
    "%2F",
    "%",
    "a%2Fb",
    "\\",
    "a\\b",
    "C:\\x",
    "con",
    "nul",
    "~",
    "$HOME",
    "`id`",
    "'",
    "\"",
    "{a}",
    "{a}:l",
    "a:b",
    "a:l",
    "#",
    "a#b",
    "-",
    "--help",
    "0",
    "00",
    "null",
    "true",
    ".windlass",
    ".windlass/gate",
    "lock.gate",
    "locks",
    "\u{fffd}",
    "\u{feff}a",
];

pub async fn odd_names_are_names(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let asks: Vec<Ask> = ODD_NAMES.iter().map(|name| ask(name, Mode::Exclusive)).collect();
    for (n, ask) in asks.iter().enumerate() {
        let client = if n % 2 == 0 { &*a } else { &*b };
        assert!(place.attempt(client, ask).await.is_some(), "{:?} is a lock of its own", ask.name);
    }
    for name in ODD_NAMES {
        assert!(!place.could_have(&*b, name, Mode::Exclusive).await, "{name:?} is held");
    }
    let all = place.soon("a look", a.inspect("")).await.unwrap();
    let mut seen: Vec<_> = all.iter().map(|status| status.name.as_str()).collect();
    let mut wanted = ODD_NAMES.to_vec();
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "names come back as they were given");
    place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
    place.give_back(&*b, &asks.iter().collect::<Vec<_>>()).await;
    for name in ODD_NAMES {
        assert!(place.could_have(&*a, name, Mode::Exclusive).await, "{name:?} is free");
    }
}

pub async fn prefixes_are_other_locks(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let whole = "team/app/db/table/row";
    let names: Vec<&str> = (1..=whole.len()).map(|end| &whole[..end]).collect();
    let waits = ask(whole, Mode::Exclusive);
    place.take(&*a, &waits).await;
    let waiter = place.stand_in_line(&b, &ask(whole, Mode::Exclusive)).await;
    for name in &names[..names.len() - 1] {
        let held = ask(name, Mode::Exclusive);
        assert!(place.attempt(&*b, &held).await.is_some(), "{name:?} is free while {whole:?} is held");
        place.give_back(&*b, &[&held]).await;
    }
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    place.give_back(&*a, &[&waits]).await;
}

pub async fn the_longest_name(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let longest = ["x".repeat(Name::MAX_BYTES), "\u{1f512}".repeat(Name::MAX_BYTES / 4), "/".repeat(1024)];
    for name in longest {
        let shorter = name.strip_suffix(['x', '\u{1f512}', '/']).unwrap();
        let held = ask(&name, Mode::Exclusive);
        place.take(&*a, &held).await;
        if b.capabilities().see {
            assert_eq!(place.look(&*b, &name).await.holders.len(), 1);
        }
        assert!(place.could_have(&*b, shorter, Mode::Exclusive).await);
        assert!(!place.could_have(&*b, &name, Mode::Exclusive).await);
        place.give_back(&*a, &[&held]).await;
    }
}
