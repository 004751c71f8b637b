//! Markdown.

use std::{
    fmt::{Display, Write as _},
    fs,
    path::Path,
    process::Command,
};

use crate::stats::{least, median, most, quantile};

/// Rows of pairs a second, each with one value a round; ratios to the first row.
pub(crate) fn rates(title: &str, note: &str, rows: &[(&str, Vec<f64>)]) -> String {
    let mut text = head(title, note, &["library", "pairs/s", "min .. max", "to the first row"]);
    let first = rows.first().map_or(f64::NAN, |(_, values)| median(values));
    for (label, values) in rows {
        let spread = format!("{} .. {}", count(least(values)), count(most(values)));
        line(&mut text, &[(*label).to_owned(), count(median(values)), spread, ratio(median(values) / first)]);
    }
    text
}

/// Rows of hand-over times, each with the samples of one value a round.
pub(crate) fn delays(title: &str, note: &str, rows: &[(&str, Vec<Vec<f64>>)]) -> String {
    let columns = ["library", "p50", "p50 of the rounds", "p99", "hand-overs", "p50 to the first row"];
    let mut text = head(title, note, &columns);
    let first = rows.first().map_or(f64::NAN, |(_, rounds)| quantile(&rounds.concat(), 0.5));
    for (label, rounds) in rows {
        let all = rounds.concat();
        let medians: Vec<f64> = rounds.iter().map(|round| median(round)).collect();
        line(
            &mut text,
            &[
                (*label).to_owned(),
                time(median(&all)),
                format!("{} .. {}", time(least(&medians)), time(most(&medians))),
                time(quantile(&all, 0.99)),
                all.len().to_string(),
                ratio(median(&all) / first),
            ],
        );
    }
    text
}

/// A table of texts.
pub(crate) fn table(title: &str, note: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = head(title, note, columns);
    for row in rows {
        line(&mut text, row);
    }
    text
}

fn head(title: &str, note: &str, columns: &[&str]) -> String {
    let mut text = format!("\n## {title}\n\n{note}\n\n");
    line(&mut text, columns);
    let rule: Vec<&str> = (0..columns.len()).map(|column| if column == 0 { "---" } else { "--:" }).collect();
    line(&mut text, &rule);
    text
}

fn line(text: &mut String, cells: &[impl Display]) {
    for cell in cells {
        let _ = write!(text, "| {cell} ");
    }
    text.push_str("|\n");
}

/// The page with other figures of one part: its rows of goals, which begin with its name, and its sections, whose titles do
/// with "In" before it. They stand where the old ones stood, or last.
pub(crate) fn renewed(page: &str, part: &str, goals: &[Vec<String>], sections: &str) -> String {
    let (goal, section) = (format!("| {part}, "), format!("In {part}"));
    let mut rows = String::new();
    goals.iter().for_each(|row| line(&mut rows, row));
    let mut parts = Vec::new();
    for (number, old) in page.trim_end().split("\n## ").enumerate() {
        let heading = if number == 0 { "" } else { "\n## " };
        if old.starts_with("Goals\n") {
            let old: Vec<String> = old.trim_end().lines().map(|row| format!("{row}\n")).collect();
            parts.push(heading.to_owned() + &put(old, |row| row.starts_with(&goal), &rows));
        } else {
            parts.push(format!("{heading}{}\n", old.trim_end()));
        }
    }
    put(parts, |part| part.trim_start_matches(['\n', '#', ' ']).starts_with(&section), sections)
}

/// The parts with the new one instead of the old ones.
fn put(mut parts: Vec<String>, is_old: impl Fn(&str) -> bool, new: &str) -> String {
    let at = parts.iter().position(|part| is_old(part)).unwrap_or(parts.len());
    parts.retain(|part| !is_old(part));
    parts.insert(at, new.to_owned());
    parts.concat()
}

/// `1.23 M`, `345 k`, `98.7`.
pub(crate) fn count(value: f64) -> String {
    match value {
        value if value >= 999_500.0 => format!("{} M", digits(value / 1e6)),
        value if value >= 999.5 => format!("{} k", digits(value / 1e3)),
        value => digits(value),
    }
}

/// `1.23 s`, `45.6 ms`, `789 µs`, `12.3 ns`.
pub(crate) fn time(seconds: f64) -> String {
    let unit =
        [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")].into_iter().find(|(unit, _)| seconds >= 0.9995 * unit);
    let (unit, name) = unit.unwrap_or((1e-9, "ns"));
    format!("{} {name}", digits(seconds / unit))
}

pub(crate) fn ratio(value: f64) -> String {
    format!("{} x", digits(value))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        value if value.is_nan() => "?".to_owned(),
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value if value >= 0.0995 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

/// What this machine is.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu =
        after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: f64 = after(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse().ok())
        .unwrap_or(f64::NAN);
    let release = read("/proc/sys/kernel/osrelease");
    let linux: Vec<&str> = release.trim().split('.').take(2).collect();
    format!("{cores} cores of {cpu}, {:.0} GiB, Linux {}", memory / f64::from(1 << 20), linux.join("."))
}

/// Says so where other work runs beside the measures.
pub(crate) fn load() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (load > cores as f64 / 2.0).then(|| {
        format!("- **Busy**: the load was {load:.1} on {cores} cores when it began: trust the order, not the digits\n")
    })
}

/// The versions of everything that was measured in memory, in files and in servers.
pub(crate) fn versions(python: &Path) -> Vec<String> {
    let mut versions = tools(python);
    versions.extend(["fasteners", "filelock", "portalocker"].into_iter().filter_map(pinned));
    versions.extend(module("lockgate", "werf/lockgate").map(|version| format!("lockgate {version}")));
    versions
}

/// ... over etcd.
pub(crate) fn etcd_versions(python: &Path) -> Vec<String> {
    let mut versions = tools(python);
    let etcd = first_line(Command::new("etcd").arg("--version"));
    versions.extend(etcd.map(|text| text.replace(" Version:", "")));
    versions.extend(module("stores", "etcd/client/v3").map(|version| format!("its Go client {version}")));
    versions.extend(["tooz", "etcd3gw"].into_iter().filter_map(pinned));
    versions
}

/// ... over Redis.
pub(crate) fn redis_versions(python: &Path) -> Vec<String> {
    let mut versions = tools(python);
    let redis = first_line(Command::new("redis-server").arg("--version"));
    versions.extend(redis.map(|text| words(&text, 3).replace(" server v=", " ")));
    versions.extend(pinned("redis").map(|version| version.replace("redis", "redis-py")));
    for (name, path) in [("redsync", "go-redsync/redsync/v4"), ("redislock", "bsm/redislock")] {
        versions.extend(module("stores", path).map(|version| format!("{name} {version}")));
    }
    versions
}

/// ... over Kubernetes.
pub(crate) fn kubernetes_versions(python: &Path) -> Vec<String> {
    let mut versions = tools(python);
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/kube-apiserver/go.mod");
    versions.extend(required(&peers, "k8s.io/kubernetes").map(|version| format!("Kubernetes {version}")));
    for (name, path) in [("lockgate", "werf/lockgate"), ("client-go", "k8s.io/client-go")] {
        versions.extend(module("stores", path).map(|version| format!("{name} {version}")));
    }
    versions
}

/// Windlass, and what it and its peers are built with.
fn tools(python: &Path) -> Vec<String> {
    let mut versions = vec![format!("windlass {}", env!("CARGO_PKG_VERSION"))];
    versions.extend(first_line(Command::new("rustc").arg("--version")).map(|text| words(&text, 2)));
    versions.extend(
        first_line(Command::new("go").arg("version")).map(|text| text.split(' ').skip(2).take(1).collect()),
    );
    versions.extend(first_line(Command::new(python).arg("--version")));
    versions
}

/// The version of a Python library, with its name.
fn pinned(library: &str) -> Option<String> {
    let pins = [include_str!("../requirements.txt"), include_str!("../../scripts/requirements.txt")];
    let pin = pins
        .iter()
        .flat_map(|pins| pins.lines())
        .find_map(|line| line.strip_prefix(library)?.strip_prefix("=="))?;
    Some(format!("{library} {}", pin.split(';').next()?))
}

/// The version of a Go module that a peer asks for.
fn module(peer: &str, module: &str) -> Option<String> {
    required(&Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(peer).join("go.mod"), module)
}

fn required(path: &Path, module: &str) -> Option<String> {
    let modules = fs::read_to_string(path).ok()?;
    let (_, version) = modules.lines().find_map(|line| line.split_once(&format!("{module} ")))?;
    Some(version.to_owned())
}

/// Today, as the machine has it.
pub(crate) fn today() -> String {
    first_line(Command::new("date").args(["--utc", "+%Y-%m-%d"])).unwrap_or_default()
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn words(text: &str, count: usize) -> String {
    text.split(' ').take(count).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_the_place_of_what_it_was() {
        let page = |goal: &str, section: &str| {
            format!("# Page\n\n## Goals\n\nNote.\n\n| files, a | 1 |\n{goal}\n## In files\n\nA\n{section}")
        };
        let old = page("| etcd, b | 2 |\n", "\n## In etcd\n\nB\n\n## In etcd: c\n\nC\n");
        let (goals, section) = ([vec!["etcd, d".to_owned(), "3".to_owned()]], "\n## In etcd\n\nD\n");
        let new = page("| etcd, d | 3 |\n", section);
        assert_eq!(renewed(&old, "etcd", &goals, section), new);
        assert_eq!(renewed(&page("", ""), "etcd", &goals, section), new);
        let before = |page: &str| {
            page.replace("| files", "| etcd, d | 3 |\n| files")
                .replace("\n## In files", "\n## In etcd\n\nD\n\n## In files")
        };
        let other = before(&page("", ""));
        assert_eq!(renewed(&other, "etcd", &goals, section), other, "it keeps its place");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        assert_eq!([0.5, 98.76, 345_678.0, 12_340_000.0].map(count), ["0.50", "98.8", "346 k", "12.3 M"]);
        assert_eq!([1.5, 0.0456, 0.000_789, 1.2e-7].map(time), ["1.50 s", "45.6 ms", "789 µs", "120 ns"]);
    }
}
