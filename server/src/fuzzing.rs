//! What the fuzz targets in `fuzz/` call and nobody else may: built with `--cfg fuzzing` only.

pub use crate::{access::fuzz as tokens, door::fuzz as sites, lockgate::fuzz as lockgate};
