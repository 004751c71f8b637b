//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// Named locks for shell scripts
///
/// Runs commands under named locks, shows who holds and who waits, and frees what an operator must free. The
/// locks are those of the Windlass libraries: a script, a Python service and a Rust program that name the same lock in
/// the same place exclude each other.
#[derive(Debug, Parser)]
#[command(name = "windlass", version, after_help = AFTER, after_long_help = LONG_AFTER, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<Run>),
    Ls(Ls),
    Watch(Watch),
    Release(Release),
    Serve(Box<Serve>),
    Token(Token),
    Completions(Completions),
    Man(Man),
}

/// Run a command while holding a lock
///
/// Takes the lock NAME, runs CMD, and releases the lock when CMD and everything that it started in its process group has
/// ended. Options and exit status follow flock(1).
///
/// CMD runs in a process group of its own. Signals that are sent to windlass are passed on to that group, and it has
/// the terminal while windlass is in the foreground, in a pipeline or with another stdin than a terminal once it asks.
/// When the lock is lost (freed by an operator or stolen) the group gets SIGTERM, and SIGKILL after --kill-after. When it
/// cannot be renewed, SIGTERM comes that long before it is lost, but not before the last quarter of its TTL, and SIGKILL
/// when it is, so that nobody is left when another gets it. On Linux, CMD also gets SIGKILL when windlass itself is killed;
/// this does not reach the processes that CMD has started, nor set-user-ID programs.
#[derive(Debug, Args)]
#[command(
    override_usage = "windlass run [OPTIONS] NAME [--] CMD [ARG]...\n       windlass run [OPTIONS] NAME -c TEXT",
    after_help = RUN_AFTER,
    after_long_help = RUN_LONG_AFTER
)]
pub(crate) struct Run {
    /// The lock: any text of 1 to 1,024 bytes
    pub(crate) name: OsString,

    /// The command and its arguments
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        required_unless_present = "shell",
        conflicts_with = "shell"
    )]
    pub(crate) command: Vec<OsString>,

    /// Run this text with $SHELL -c (/bin/sh if it is not set)
    #[arg(short = 'c', long = "command", value_name = "TEXT")]
    pub(crate) shell: Option<OsString>,

    /// Hold the lock together with other shared holders
    #[arg(short, long, conflicts_with = "limit")]
    pub(crate) shared: bool,

    /// Hold the lock alone: the default
    #[arg(short = 'x', long, short_alias = 'e', conflicts_with_all = ["shared", "limit"])]
    pub(crate) exclusive: bool,

    /// Hold one of N permits (a semaphore)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,

    /// Do not wait: if the lock is taken, or somebody waits for it, exit with status 1
    #[arg(short = 'n', long = "try", visible_alias = "nonblock", alias = "nb", conflicts_with = "steal")]
    pub(crate) attempt: bool,

    /// Wait no longer than this (30s, 1500ms, 2m, 1h; plain numbers are seconds), then exit with status 1
    #[arg(short = 'w', long, visible_alias = "wait", value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// The exit status, instead of 1, when --try or --timeout did not get the lock
    #[arg(short = 'E', long, value_name = "N", default_value_t = 1)]
    pub(crate) conflict_exit_code: u8,

    /// Take the lock from whoever holds it; they are told
    #[arg(long, conflicts_with_all = ["shared", "limit"])]
    pub(crate) steal: bool,

    /// How long the lock lives without a sign of life from here, 1s to 1h [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,

    /// End the command when it has held the lock for this long: SIGTERM, then SIGKILL
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) max_hold: Option<Duration>,

    /// Hold the lock for at least this long, so that a short job started by several machines at once runs once
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) hold_at_least: Option<Duration>,

    /// Wait a random time of up to this long, holding the lock, before the command is started
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) random_delay: Option<Duration>,

    /// How long the command may go on after SIGTERM before SIGKILL, unless another may have the lock sooner
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub(crate) kill_after: Duration,

    /// Who holds the lock, for people to see [default: user@host:pid]
    #[arg(long, value_name = "TEXT")]
    pub(crate) owner: Option<String>,

    /// Something more for people to see; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) meta: Vec<(String, String)>,

    /// Say nothing about waiting and about a lock that was not had; errors are still told
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Say what there is to say as JSON lines on stderr
    #[arg(long)]
    pub(crate) json: bool,

    /// What flock(1) does with --close is always done here: the command never inherits the lock
    #[arg(short = 'o', long, hide = true)]
    pub(crate) close: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

/// List locks with their holders and waiters
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only the locks whose names begin with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: OsString,

    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

/// Print locks as they change hands
///
/// Prints every lock once, then each one again when it has changed. Ends with Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only the locks whose names begin with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: OsString,

    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

/// Take a lock away from its holders, as an operator
///
/// The holders are told; what they do until they hear of it only a fencing token can stop. `windlass run` ends
/// its command then. On a terminal it asks first. Exits with status 1 when nobody held the lock.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The lock
    pub(crate) name: OsString,

    /// Only from the holder with this fencing token (see windlass ls)
    #[arg(long, value_name = "N")]
    pub(crate) token: Option<u64>,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Print whom it was taken from as a JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

/// Run a lock server
///
/// Programs on other machines use its locks by the URL http://HOST:PORT/NAMESPACE; a namespace is there once it is used.
/// Ends with Ctrl-C or SIGTERM, within a second; those who wait then ask again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  windlass serve &\n  windlass run deploy --url http://127.0.0.1:7420/team-a -- ./deploy.sh\n  windlass serve --store etcd://10.0.0.1,10.0.0.2,10.0.0.3/locks"
)]
pub(crate) struct Serve {
    /// Where to listen, unless systemd passes a socket (LISTEN_FDS)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7420")]
    pub(crate) listen: String,

    /// Where the server keeps what it must know after a restart [default: $STATE_DIRECTORY, else
    /// $XDG_STATE_HOME/windlass, else ~/.local/state/windlass]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Keep the locks in this store instead, which any number of servers may share: those of a namespace are at
    /// URL/NAMESPACE (in Redis ?namespace=NAMESPACE); the server then keeps nothing itself
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "ephemeral"])]
    pub(crate) store: Option<String>,

    /// Keep nothing: after a restart locks may be given to others while their holders still believe in them; for tests
    #[arg(long, conflicts_with = "data_dir")]
    pub(crate) ephemeral: bool,

    /// Who may do what: a line is TOKEN NAME RIGHTS NAMESPACE/PATTERN...; read again when it has changed
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// A key whose tokens (JWT) are good: a secret, or a public Ed25519 key in PEM; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) jwt_key: Vec<PathBuf>,

    /// Whom such tokens must be meant for
    #[arg(long, value_name = "TEXT", default_value = windlass_server::token::JwtKeys::AUDIENCE)]
    pub(crate) jwt_audience: String,

    /// The certificate to show, in PEM: the server then speaks TLS
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Its private key, in PEM, if it is in another file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authorities, in PEM, that sign the certificates of clients
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) client_ca: Option<PathBuf>,

    /// Serve everybody who can reach an address other than this machine's own, without asking who they are
    #[arg(long)]
    pub(crate) allow_anonymous: bool,

    /// A name by which clients call this server, besides its address; may be repeated, * for any
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Vec<String>,

    /// A web origin whose pages may ask, as https://app.example.com; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) origin: Vec<String>,

    /// Write who got, lost and was refused what to this file, as JSON lines; - for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) audit: Option<PathBuf>,
}

/// Make a token for a lock server
///
/// Without --key it is a random one, printed as a line for the file of --token-file, where only its hash belongs, and to be
/// given to NAME. With --key it is signed (JWT) and good for a while, without the server knowing it before.
#[derive(Debug, Args)]
#[command(after_help = TOKEN_AFTER)]
pub(crate) struct Token {
    /// Who it is for, for people to see
    pub(crate) name: String,

    /// What it is good for: NAMESPACE/NAME or NAMESPACE/PATTERN/*
    #[arg(required = true)]
    pub(crate) locks: Vec<String>,

    /// For what: some of acquire, shared, see, force, or all
    #[arg(long, value_name = "RIGHTS", default_value = "acquire,see")]
    pub(crate) rights: String,

    /// Sign it with this key: a secret, or a private Ed25519 key in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,

    /// How long a signed token is good for
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15m")]
    pub(crate) lives: Duration,

    /// Whom a signed token is meant for
    #[arg(long, value_name = "TEXT", default_value = windlass_server::token::JwtKeys::AUDIENCE)]
    pub(crate) audience: String,

    /// How many claims at once [default: what the server says]
    #[arg(long, value_name = "N")]
    pub(crate) most_claims: Option<usize>,

    /// The longest TTL [default: what the server says]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) longest_ttl: Option<Duration>,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  windlass completions bash > ~/.local/share/bash-completion/completions/windlass"
)]
pub(crate) struct Completions {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  windlass man run | man -l -")]
pub(crate) struct Man {
    /// The page of one command
    pub(crate) command: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Where the locks live, as file:///DIR, http://HOST:PORT/NAMESPACE, etcd://H1,H2,H3/PREFIX, redis://HOST:PORT/DB or k8s://NAMESPACE/leases [default: $WINDLASS_URL, else files of this user on this machine]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<OsString>,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    windlass::parse_duration(text).ok_or("write it as 30s, 1500ms, 2m, 1h, or in plain seconds")
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE"),
    }
}

macro_rules! examples {
    () => {
        "\
Examples:
  windlass run deploy -- ./deploy.sh            wait, run, release
  windlass run nightly -n -- ./backup.sh        run only if nobody else does
  windlass run report -s -w 30s -- ./report.sh  shared, waiting 30 s at most
  windlass ls                                   who holds what, who waits
  windlass release deploy                       take it from its holder
  windlass serve                                locks for many machines"
    };
}

const TOKEN_AFTER: &str = "\
Examples:
  windlass token ann 'team-a/*' >> tokens        the line; ann gets what is printed to the terminal
  windlass serve --token-file tokens
  WINDLASS_TOKEN=$(windlass token ci 'team-a/deploy' --key jwt.key) windlass run deploy --url ... -- make";

macro_rules! run_examples {
    () => {
        "\
Examples:
  windlass run deploy -- ./deploy.sh
  windlass run db -w 30s -E 75 -c 'pg_dump app > app.sql'
  windlass run builds --limit 3 -- make
  # From cron on several machines, to run on one of them:
  windlass run nightly -q -n --hold-at-least 1m -- ./backup.sh"
    };
}

// Lines of at most 72 characters, so that neither a terminal nor the manual wraps them.
const AFTER: &str = examples!();

const LONG_AFTER: &str = concat!(
    examples!(),
    "

Environment:
  WINDLASS_URL         where the locks live, unless --url says it
  WINDLASS_TOKEN       what proves to a lock server who one is
  WINDLASS_TOKEN_FILE  a file that it is in, read again whenever the server refuses it
  WINDLASS_PASSWORD    that of the user whom an etcd or Redis URL names

Exit status:
  0   done
  1   release: nobody held the lock, or the answer was no
  64  the command line, a name or a URL makes no sense
  66  the directory of the locks is not there
  69  the place where the locks live is unavailable
  70  a fault of windlass: please report it
  71  the operating system refused something
  73  the lock cannot be created
  74  reading or writing failed
  77  not allowed
  For windlass run, see windlass run --help."
);

const RUN_AFTER: &str = run_examples!();

const RUN_LONG_AFTER: &str = concat!(
    run_examples!(),
    "

Environment:
  WINDLASS_URL            where the locks live, unless --url says it
  WINDLASS_TOKEN          what proves to a lock server who one is
  WINDLASS_TOKEN_FILE     a file that it is in, read again whenever the
                          server refuses it
  WINDLASS_PASSWORD       that of the user whom an etcd or Redis URL names
  SHELL                   what runs the text of -c

Environment of CMD:
  WINDLASS_LOCK           the name of the lock
  WINDLASS_FENCING_TOKEN  a number greater than that of all earlier
                          holders: a store that refuses smaller ones than
                          it has seen is safe from those who do not know
                          yet that they lost the lock

Exit status:
  That of CMD, or 128 + N if signal N killed it. Otherwise:
  1    the lock was not had: --try or --timeout (-E changes the number)
  64   the command line, a name or a URL makes no sense
  66   the directory of the locks is not there
  69   the place where the locks live is unavailable
  70   a fault of windlass: please report it
  71   the operating system refused something
  73   the lock cannot be created
  74   reading or writing failed
  77   not allowed
  79   the lock was lost while CMD ran, or about to be: CMD was ended, and
       another may have held the lock meanwhile
  124  --max-hold was over: CMD was ended
  126  CMD cannot be executed
  127  CMD was not found
  A signal that comes while windlass waits for the lock ends it as it ends
  other programs: after Ctrl-C the shell says 130.

Events of --json:
  Each is an object with \"event\" and \"lock\": waiting, not_acquired,
  acquired, held_too_long, runs_out, lost, left_behind, holding,
  not_released, ended, failed. Take those that you do not know as news to come.

Process group:
  The lock is held until the last process of CMD's group has ended, also
  if CMD itself ends before. What is to outlive it must leave the group,
  by setsid(1) for example."
);
