//! The core for JavaScript: thin bindings, with no lock logic in them. `js/` wraps them in what programs see.
#![cfg(all(target_family = "wasm", target_os = "unknown"))]
#![allow(missing_debug_implementations, reason = "what JavaScript has, Rust never shows")]

mod callbacks;
mod error;
mod held;
mod locker;
mod options;
mod seen;
mod watch;

pub use held::Held;
pub use locker::{Asking, Locker, connect};
pub use watch::Watch;

/// A third of the code of the standard library's.
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();
