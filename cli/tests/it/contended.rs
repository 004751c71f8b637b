//! Many at once.

use nix::sys::signal::Signal;

use crate::support::{Place, Running};

/// A counter in a file, counted up by processes that would lose steps without the lock.
#[test]
fn no_step_of_a_counter_is_lost() {
    const PROCESSES: usize = 8;
    const STEPS: usize = 50;
    let place = Place::new();
    let counter = place.path("counter");
    std::fs::write(&counter, "0\n").unwrap();
    let step = format!("read n < {0}; echo $((n + 1)) > {0}", counter.display());
    let script = format!(
        "i=0; while [ $i -lt {STEPS} ]; do {} run -q counter -c '{step}' || exit; i=$((i + 1)); done",
        env!("CARGO_BIN_EXE_windlass")
    );
    let mut processes: Vec<Running> = (0..PROCESSES)
        .map(|_| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &script]).env("WINDLASS_URL", place.url());
            Running::start(shell)
        })
        .collect();
    for process in &mut processes {
        assert_eq!(process.stderr.rest(), [""; 0]);
        assert_eq!(process.wait(), 0);
    }
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), format!("{}\n", PROCESSES * STEPS));
}

#[test]
fn a_holder_that_is_killed_frees_the_lock_and_takes_its_command_along() {
    let place = Place::new();
    let mut holder = place.hold("a", &[], "exec cat");
    let mut waiter = place.start_run("a", &[], "echo in");
    waiter.stderr.until("waiting for \"a\"");
    holder.signal(Signal::SIGKILL);
    waiter.stdout.until("in");
    assert_eq!(waiter.wait(), 0);
    // Its stdin is still open, so only the signal can have ended the command.
    assert_eq!(holder.stdout.rest(), [""; 0]);
    assert_eq!(holder.wait(), 137);
}
