//! Short texts that people and programs give: names, tickets, durations, rights, patterns.

#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass::{Name, Ticket, parse_duration};
use windlass_server::token::{JwtKey, Pattern, Rights};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(name) = Name::from_bytes(bytes) {
        assert_eq!(name.as_str().as_bytes(), bytes);
        assert!(!name.to_string().chars().any(char::is_control));
    }
    let _ = JwtKey::of_text(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(ticket) = text.parse::<Ticket>() {
        assert_eq!(ticket.reveal().parse::<Ticket>().unwrap(), ticket);
    }
    parse_duration(text);
    let _ = text.parse::<Rights>();
    if let Ok(pattern) = text.parse::<Pattern>() {
        pattern.covers("namespace", "name");
    }
});
