//! What the fuzz targets in `fuzz/` call and nobody else may: built with `--cfg fuzzing` only.

pub use crate::{backend::file::fuzz as record, connect::fuzz as url};
