//! What is shown to people: plain text, fit for any terminal and log.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write},
    time::Duration,
};

use unicode_width::UnicodeWidthStr;
use windlass::rt::{Native, Runtime};

use crate::exit::Failure;

/// Says something on stderr. Where even that fails there is nobody to tell.
pub(crate) fn complain(message: &str) {
    let _ = io::stderr().lock().write_all(complaint(message).as_bytes());
}

/// How something is said on stderr.
pub(crate) fn complaint(message: &str) -> String {
    format!("windlass: {}\n", lines(message))
}

/// Writes to stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::of_stdout(&error))
}

/// Writes a line of JSON to stdout.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

/// One line without control characters: what others wrote must not move a terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    escape(text, |_| false)
}

/// As [`plain`], of several lines.
fn lines(text: &str) -> String {
    escape(text, |c| c == '\n')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !keep(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// A table: columns as wide as their widest cell, two spaces between them.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.width()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if at + 1 < row.len() {
                text.extend(std::iter::repeat_n(' ', widths[at].saturating_sub(cell.width()) + 2));
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

/// As much of a line as fits into this many columns.
pub(crate) fn cut(line: &str, columns: usize) -> String {
    if line.width() <= columns {
        return line.to_owned();
    }
    let mut cut = String::new();
    let mut width = 0;
    for c in line.chars() {
        width += unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if width >= columns {
            break;
        }
        cut.push(c);
    }
    cut.push('…');
    cut
}

/// A duration, or `-` where nobody knows it.
pub(crate) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The time of day in UTC, as `06:12:45Z`.
pub(crate) fn time_of_day() -> String {
    let second = Native.now().wall.as_secs() % 86_400;
    let mut text = String::new();
    let _ = write!(text, "{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
    text
}

/// A duration as it is set on the command line: `5 s`, `1.5 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_by_what_is_seen() {
        let rows = [vec!["名前".into(), "b".into()], vec!["a".into(), "c".into()]];
        assert_eq!(table(&rows), "名前  b\na     c\n");
    }

    #[test]
    fn a_line_is_cut_to_the_terminal() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("名前だ", 4), "名…");
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(lines("a\nb\r"), "a\nb\\r");
    }
}
