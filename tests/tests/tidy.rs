//! What must be there for each backend, and what must not be anywhere: kept by a test and not by memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Longer files are read by nobody.
const MOST_LINES: usize = 600;

#[test]
fn every_backend_has_its_parts() {
    let mut missing = Vec::new();
    let mut want = |there: bool, what: String| {
        if !there {
            missing.push(what);
        }
    };
    let connect = read("core/src/connect.rs");
    let features = section(&read("core/Cargo.toml"), "[features]");
    let all =
        features.lines().find(|line| line.starts_with("all-backends = ")).unwrap_or_default().to_owned();
    let schemes = read("core/src/connect/schemes.rs");
    let ci = read(".github/workflows/ci.yml");
    let ci = ci.lines().find(|line| line.trim().starts_with("backend: [")).unwrap_or_default();
    let readme = read("README.md");
    for name in backends() {
        let suite = text(&format!("tests/tests/{name}.rs")).unwrap_or_default();
        want(suite.contains("conformance!("), format!("tests/tests/{name}.rs with `conformance!(start);`"));
        want(
            name == "memory" || features.lines().any(|line| line.starts_with(&format!("{name} = "))),
            format!("a feature `{name}` in core/Cargo.toml"),
        );
        want(root().join(format!("docs/backends/{name}.md")).exists(), format!("docs/backends/{name}.md"));
        want(
            readme
                .lines()
                .any(|line| line.starts_with('|') && line.contains(&format!("docs/backends/{name}.md"))),
            format!("a row of the table in README.md that links to docs/backends/{name}.md"),
        );
        want(
            name == "memory" || all.contains(&format!("\"{name}\"")),
            format!("{name} in the feature all-backends of core/Cargo.toml"),
        );
        let scheme = if name == "kubernetes" { "k8s" } else { &name };
        let known = schemes.contains(&format!("\"{scheme}"));
        want(known, format!("{scheme} among the places of core/src/connect/schemes.rs"));
        want(ci.contains(&name), format!("{name} in the list of backends of .github/workflows/ci.yml"));
        want(
            connect.contains(&format!("backend::{name}::")),
            format!("an arm in core/src/connect.rs for {name}"),
        );
    }
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
}

/// A function of the suite that no list names would be run for no backend.
#[test]
fn every_function_of_the_suite_is_in_the_list() {
    let suite = read("tests/src/conformance.rs");
    let list = &suite[suite.find("conformance_list! {").unwrap()..suite.find("#[doc(hidden)]").unwrap()];
    let mut unlisted = Vec::new();
    for file in files("tests/src/conformance", "rs") {
        let module = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let listed =
            list.split_once(&format!("{module}: ")).map_or("", |(_, rest)| rest.split(';').next().unwrap());
        let listed: BTreeSet<&str> = listed.split(',').map(str::trim).collect();
        let code = fs::read_to_string(&file).unwrap();
        for line in code.lines().filter(|line| line.contains("(place: &dyn Place)")) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('(').next().unwrap();
            if !listed.contains(name) {
                unlisted.push(format!("{module}::{name}"));
            }
        }
    }
    assert!(unlisted.is_empty(), "not in the list of tests/src/conformance.rs: {unlisted:?}");
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for folder in ["core/src", "server/src", "cli/src", "python/src", "wasm/src", "tests/src", "bench/src"] {
        for file in files(folder, "rs") {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > MOST_LINES {
                long.push(format!("{} has {lines} lines", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "more than {MOST_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn every_crate_takes_lints_and_version_from_the_workspace() {
    for member in members() {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(section(&manifest, "[lints]").contains("workspace = true"), "{member} lacks lints.workspace");
        for fact in ["version", "edition", "rust-version", "license"] {
            assert!(manifest.contains(&format!("{fact}.workspace = true")), "{member} has its own {fact}");
        }
    }
}

#[test]
fn no_test_is_left_out() {
    let ignored = ["#[ign", "ore"].concat();
    for member in members() {
        for file in files(&member, "rs") {
            let code = fs::read_to_string(&file).unwrap();
            assert!(!code.contains(&ignored), "{} leaves a test out", file.display());
        }
    }
}

/// Clocks, timers, tasks, threads and randomness come from `rt` alone: clippy keeps to this list.
#[test]
fn the_list_of_what_only_rt_may_call_is_whole() {
    let clippy = read("clippy.toml");
    for path in [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "std::thread::sleep",
        "std::thread::spawn",
        "tokio::time::sleep",
        "tokio::spawn",
        "getrandom::fill",
    ] {
        assert!(clippy.contains(&format!("\"{path}\"")), "clippy.toml lacks {path}");
    }
}

/// Links between the pages lead somewhere.
#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut broken = Vec::new();
    let mut pages = files("docs", "md");
    pages.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()));
    for page in pages.iter().filter(|page| page.extension().is_some_and(|ending| ending == "md")) {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            let away = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !away && !page.parent().unwrap().join(path).exists() {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}

#[test]
fn the_lockgate_that_is_tested_is_pinned() {
    for of in ["tests", "bench"] {
        let module = read(&format!("{of}/peers/lockgate/go.mod"));
        assert!(module.contains("github.com/werf/lockgate v0.1.2-0.20240704184704-a03017298b88"), "{of}");
        assert!(root().join(format!("{of}/peers/lockgate/go.sum")).exists(), "{of}");
    }
}

/// One folder or file of `core/src/backend` a backend.
fn backends() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("core/src/backend")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn members() -> Vec<String> {
    let manifest = read("Cargo.toml");
    let list = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("a list of members");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What stands under a heading of a TOML file, up to the next.
fn section(toml: &str, heading: &str) -> String {
    let lines = toml.lines().skip_while(|line| line.trim() != heading).skip(1);
    lines.take_while(|line| !line.starts_with('[')).map(|line| format!("{line}\n")).collect()
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found
}

fn read(path: &str) -> String {
    text(path).unwrap_or_else(|| panic!("{path} is missing"))
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
