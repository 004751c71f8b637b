//! The command `windlass`, as a process that tests can kill.

fn main() {
    std::process::exit(windlass_cli::main(std::env::args_os().skip(1).collect()));
}
