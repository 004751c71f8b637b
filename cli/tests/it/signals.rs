//! Signals that are sent to windlass while its command runs.

use std::os::unix::process::CommandExt;

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::support::{Place, Running};

#[test]
fn are_passed_on_to_the_whole_group() {
    // Two processes of the group say what they hear: the command, and a background process, which in a shell without
    // job control ignores SIGINT and SIGQUIT for good.
    let script = |name: &str| {
        format!(
            "trap 'echo front {name}; wait $!; exit 7' {name}; \
             (trap 'echo background {name}; exit' {name}; echo set; while :; do sleep 0.05; done) & \
             while :; do wait; done"
        )
    };
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        let place = Place::new();
        let name = signal.as_str().trim_start_matches("SIG");
        let mut holder = place.hold("a", &[], &script(name));
        holder.stdout.until("set");
        holder.signal(signal);
        let mut said = [holder.stdout.next().unwrap(), holder.stdout.next().unwrap()];
        said.sort_unstable();
        assert_eq!(said, [format!("background {name}"), format!("front {name}")]);
        assert_eq!(holder.wait(), 7);
    }
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let place = Place::new();
        let name = signal.as_str().trim_start_matches("SIG");
        let mut holder = place.hold(
            "a",
            &[],
            &format!("trap 'echo front {name}; exit 7' {name}; echo set; read line; read line"),
        );
        holder.stdout.until("set");
        holder.signal(signal);
        holder.stdout.until(&format!("front {name}"));
        assert_eq!(holder.wait(), 7);
    }
}

#[test]
fn that_end_the_command_end_windlass() {
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let place = Place::new();
        let mut holder = place.hold("a", &[], "exec sleep 1000");
        holder.signal(signal);
        assert_eq!(holder.wait(), status);
        assert_eq!(place.run("a", &["-n", "true"]), 0);
    }
}

#[test]
fn end_those_who_are_left_behind() {
    let place = Place::new();
    let mut holder =
        place.hold("a", &["--kill-after", "100ms"], "exec 3<&0; (trap '' TERM; echo set; cat) <&3 & exit 4");
    holder.stdout.until("set");
    holder.stderr.until("not all that it has started");
    holder.signal(Signal::SIGINT);
    assert_eq!(holder.wait(), 4);
}

#[test]
fn that_were_ignored_from_the_start_stay_ignored() {
    let place = Place::new();
    let mut command = place.windlass(["run", "a", "--", "sh", "-c", "echo ready; read line; echo $line"]);
    // SAFETY: the call is allowed between fork and exec.
    unsafe { command.pre_exec(|| Ok(signal(Signal::SIGHUP, SigHandler::SigIgn).map(drop)?)) };
    let mut holder = Running::start(command);
    holder.stdout.until("ready");
    holder.signal(Signal::SIGHUP);
    std::io::Write::write_all(holder.child.stdin.as_mut().unwrap(), b"alive\n").unwrap();
    holder.stdout.until("alive");
    assert_eq!(holder.wait(), 0);
}

#[test]
fn stop_and_continue_are_passed_on() {
    let place = Place::new();
    // It starts nothing once it is set: a shell that is just starting a command (by vfork) cannot stop before that has.
    let script = "trap 'echo continued; kill $!; exit 0' CONT; sleep 1000 & echo set; wait";
    let mut holder = place.hold("a", &[], script);
    holder.stdout.until("set");
    holder.signal(Signal::SIGTSTP);
    let stopped = || {
        let group = std::process::Command::new("ps")
            .args(["-o", "stat=", "--ppid", &holder.child.id().to_string()])
            .output();
        String::from_utf8_lossy(&group.unwrap().stdout).starts_with('T')
    };
    crate::support::until("the command to be stopped", stopped);
    holder.signal(Signal::SIGCONT);
    holder.stdout.until("continued");
    assert_eq!(holder.wait(), 0);
}
