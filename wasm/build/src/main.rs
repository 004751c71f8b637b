//! Makes of the compiled crate what JavaScript can load: `windlass-wasm-build IN.wasm OUT_DIR`.
//!
//! It is wasm-bindgen's own program as a library, so that `Cargo.lock` pins its version.

use std::{env, error::Error};

use walrus::{FunctionBuilder, FunctionId, FunctionKind, Module, ModuleConfig};
use wasm_bindgen_cli_support::Bindgen;

/// What says why a program panics, as parts of mangled names.
const LAST_WORDS: &[&str] = &[
    "4core9panicking",
    "13unwrap_failed",
    "13expect_failed",
    "16slice_error_fail",
    "16slice_index_fail",
    "17capacity_overflow",
    "7raw_vec12handle_error",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(input), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: windlass-wasm-build IN.wasm OUT_DIR".into());
    };
    let mut module = ModuleConfig::new().generate_dwarf(false).parse_file(input)?;
    mute_panics(&mut module);
    Bindgen::new()
        .input_module("core", module)
        .web(true)?
        // Each entry of the package says itself where the module is.
        .omit_default_module_path(true)
        .typescript(false)
        .out_name("core")
        .generate(out)?;
    Ok(())
}

/// Ends a panic in a trap at once. Rust would make a text first and write it to a standard error that JavaScript's hosts do not have:
/// all that is seen of a panic there is the trap.
fn mute_panics(module: &mut Module) {
    let says_why = |name: &str| LAST_WORDS.iter().any(|part| name.contains(part));
    let muted: Vec<FunctionId> = module
        .funcs
        .iter_local()
        .map(|(id, _)| id)
        .filter(|id| module.funcs.get(*id).name.as_deref().is_some_and(says_why))
        .collect();
    for id in muted {
        let function = module.funcs.get(id);
        let FunctionKind::Local(local) = &function.kind else { continue };
        let (signature, arguments) = (module.types.get(function.ty()), local.args.clone());
        let (takes, gives) = (signature.params().to_vec(), signature.results().to_vec());
        let mut trap = FunctionBuilder::new(&mut module.types, &takes, &gives);
        trap.func_body().unreachable();
        module.funcs.get_mut(id).kind = FunctionKind::Local(trap.local_func(arguments));
    }
}
