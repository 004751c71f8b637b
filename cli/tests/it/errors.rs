//! What is said when something is wrong.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use crate::support::{Place, as_shell, output, stderr, windlass};

fn failed(command: &mut Command) -> (i32, String) {
    let output = output(command);
    let stderr = stderr(&output);
    assert!(stderr.starts_with("windlass: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (as_shell(output.status), stderr)
}

#[test]
fn a_name_that_is_none() {
    let place = Place::new();
    let not_utf8 = OsStr::from_bytes(b"caf\xe9");
    for subcommand in ["run", "release", "ls", "watch"] {
        let mut command = place.windlass([OsStr::new(subcommand), not_utf8]);
        if subcommand == "run" {
            command.arg("true");
        }
        let (status, said) = failed(&mut command);
        assert_eq!(status, 64, "{said}");
        assert!(said.contains("not UTF-8"), "{said}");
    }
    for name in [String::new(), "x".repeat(1025)] {
        let (status, said) = failed(&mut place.windlass(["run", &name, "true"]));
        assert_eq!(status, 64, "{said}");
        assert!(said.contains("1,024"), "{said}");
    }
    assert_eq!(place.run(&"x".repeat(1024), &["true"]), 0);
}

#[test]
fn a_url_that_is_none() {
    for url in ["gopher://host/x", "nonsense", "file://host/dir", "file:", "memory:?bogus=1"] {
        let (status, said) = failed(&mut windlass(["ls", "--url", url]));
        assert_eq!(status, 64, "{url}: {said}");
    }
    let (_, said) = failed(&mut windlass(["ls", "--url", "gopher://user:hunter2@host/x"]));
    assert!(!said.contains("hunter2"), "{said}");
    assert!(said.contains("file:///DIR"), "it does not say what would do: {said}");
}

#[test]
fn a_directory_that_cannot_be() {
    let (status, said) = failed(&mut windlass(["run", "--url", "file:///proc/no/such", "a", "true"]));
    assert_eq!(status, 66, "{said}");
    assert!(said.contains("/proc/no"), "{said}");
    assert_eq!(said.matches("No such file").count(), 1, "the cause is told once: {said}");
    let place = Place::new();
    std::fs::write(place.path("locks"), "").unwrap();
    let (status, said) = failed(&mut place.windlass(["ls"]));
    assert_eq!(status, 64, "{said}");
}

#[test]
fn a_missing_directory_is_made() {
    let place = Place::new();
    let url = format!("file://{}", place.path("a/b/c").display());
    assert_eq!(crate::support::status(&mut windlass(["run", "--url", &url, "a", "true"])), 0);
    assert!(place.path("a/b/c").is_dir());
}

#[test]
fn a_command_that_is_none() {
    let place = Place::new();
    let (status, said) = failed(&mut place.windlass(["run", "a", "./no\x1bcommand"]));
    assert_eq!(status, 127);
    assert!(said.contains("./no\\u{1b}command") && said.contains("No such file"), "{said}");
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let place = Place::new();
    let output = output(&mut place.windlass(["run", "a", "--json", "./no-command"]));
    let stderr = stderr(&output);
    let last: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["status"]), (&"failed".into(), &127.into()), "{last}");
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let place = Place::new();
    let _holder = place.hold_until_told("a", &[]);
    for args in [&["ls"][..], &["ls", "--json"], &["man"], &["completions", "bash"], &["--help"], &["watch"]]
    {
        let mut command = place.windlass(args);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{args:?}");
        assert_eq!(as_shell(child.wait().unwrap()), 0, "{args:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = windlass(["man"]).stdout(full).output().unwrap();
    assert_eq!(as_shell(output.status), 74);
    assert!(stderr(&output).contains("No space left"), "{output:?}");
}

#[test]
fn the_command_line_is_explained() {
    for args in
        [&["--help"][..], &["run", "--help"], &["--version"], &["man", "run"], &["completions", "zsh"]]
    {
        let output = output(&mut windlass(args));
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
        assert!(output.stdout.len() > 10 && !output.stdout.contains(&0x1b), "{args:?}");
    }
    let (status, said) = failed(&mut windlass(["runn"]));
    assert_eq!(status, 64);
    assert!(said.contains("run"), "{said}");
    assert_eq!(failed(&mut windlass(["man", "nothing"])).0, 64);
    let nothing = output(&mut windlass::<&str>([]));
    assert_eq!(nothing.status.code(), Some(64));
    assert!(stderr(&nothing).contains("Usage: windlass"), "{nothing:?}");
}
