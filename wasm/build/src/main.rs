//! Makes of the compiled crate what JavaScript can load: `windlass-wasm-build IN.wasm OUT_DIR`.
//!
//! It is wasm-bindgen's own program as a library, so that `Cargo.lock` pins its version.

use std::{env, error::Error};

use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(input), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: windlass-wasm-build IN.wasm OUT_DIR".into());
    };
    Bindgen::new()
        .input_path(input)
        .web(true)?
        // Each entry of the package says itself where the module is.
        .omit_default_module_path(true)
        .typescript(false)
        .out_name("core")
        .generate(out)?;
    Ok(())
}
