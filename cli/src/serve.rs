//! `windlass serve`: the lock server.

use std::{
    env,
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use tokio::net::TcpListener;
use windlass_server::{
    Access, Audit, Server, ServerOptions, Store, Tls,
    token::{JwtKey, JwtKeys, Tokens},
};

use crate::{
    args::Serve,
    exit::{CANNOT_CREATE, Exit, Failure, OS_ERROR, UNAVAILABLE, USAGE},
    text::complain,
};

pub(crate) fn serve(serve: &Serve) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("windlass-serve")
        .build()
        .map_err(|error| Failure::new(OS_ERROR, format!("cannot start threads: {error}")))?;
    runtime.block_on(run(serve))
}

async fn run(serve: &Serve) -> Result<Exit, Failure> {
    raise_limit_on_files();
    let options = options(serve)?;
    let store = store(serve)?;
    let listener = listener(&serve.listen).await.map_err(|error| refused(&serve.listen, &error))?;
    let address = listener.local_addr().map_err(|error| refused(&serve.listen, &error))?;
    let ended = ended().map_err(|error| Failure::new(OS_ERROR, format!("cannot hear signals: {error}")))?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    if let Some(grace) = store.grace() {
        let seconds = grace.as_secs_f64();
        complain(&format!(
            "the last server here did not end cleanly: for {seconds} s only those who held locks then are served"
        ));
    }
    let server = Server::with_options(store, options)?;
    server.may_listen_at(address)?;
    complain(&format!("serving locks at {scheme}://{address}/NAMESPACE; Ctrl-C ends it"));
    server.serve(listener, ended).await?;
    Ok(Exit::DONE)
}

/// The socket that whoever starts the server has opened for it, by systemd's protocol; else one of its own. Theirs stays
/// open when the server ends: those who come before the next one begins find no closed door.
#[cfg(unix)]
async fn listener(address: &str) -> io::Result<TcpListener> {
    match listenfd::ListenFd::from_env().take_tcp_listener(0)? {
        Some(passed) => {
            passed.set_nonblocking(true)?;
            TcpListener::from_std(passed)
        }
        None => TcpListener::bind(address).await,
    }
}

#[cfg(not(unix))]
async fn listener(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Each connection is a descriptor, and the limit that shells start with is for programs that have few.
#[cfg(unix)]
fn raise_limit_on_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Where it cannot be raised the server is as good as it is.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

#[cfg(not(unix))]
fn raise_limit_on_files() {}

fn options(serve: &Serve) -> Result<ServerOptions, Failure> {
    let keys: Vec<JwtKey> =
        serve.jwt_key.iter().map(|path| JwtKey::of_file(path)).collect::<Result<_, _>>()?;
    let access = Access {
        tokens: serve.token_file.as_ref().map(Tokens::of_file).transpose()?,
        jwt: (!keys.is_empty()).then(|| JwtKeys::new(keys, &serve.jwt_audience)),
    };
    let tls = serve.tls_cert.clone().map(|certificate| Tls {
        key: serve.tls_key.clone().unwrap_or_else(|| certificate.clone()),
        certificate,
        client_ca: serve.client_ca.clone(),
    });
    Ok(ServerOptions {
        access,
        allow_anonymous: serve.allow_anonymous,
        hosts: serve.host.clone(),
        origins: serve.origin.clone(),
        tls,
        audit: serve.audit.as_deref().map(audit).transpose()?,
        ..ServerOptions::default()
    })
}

fn audit(path: &Path) -> Result<Audit, Failure> {
    let audit = if path == Path::new("-") {
        Audit::to(io::stdout())
    } else {
        OpenOptions::new().append(true).create(true).open(path).and_then(Audit::to)
    };
    audit.map_err(|error| Failure::new(CANNOT_CREATE, format!("cannot write to {}: {error}", path.display())))
}

fn store(serve: &Serve) -> Result<Store, Failure> {
    if let Some(url) = &serve.store {
        return Ok(Store::shared(url)?);
    }
    if serve.ephemeral {
        complain("keeping nothing: do not use these locks for anything that matters");
        return Ok(Store::in_memory());
    }
    let directory = serve.data_dir.clone().or_else(default_directory).ok_or_else(|| {
        Failure::new(USAGE, "there is no home directory to keep data in: say where with --data-dir")
    })?;
    Ok(Store::in_directory(&directory)?)
}

fn default_directory() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("STATE_DIRECTORY")
        .or_else(|| Some(variable("XDG_STATE_HOME")?.join("windlass")))
        .or_else(|| Some(variable("HOME")?.join(".local/state/windlass")))
}

fn refused(address: &str, error: &io::Error) -> Failure {
    let (status, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => (UNAVAILABLE, ": another server listens there; give another --listen"),
        io::ErrorKind::InvalidInput => (USAGE, ": write it as 127.0.0.1:7420"),
        _ => (OS_ERROR, ""),
    };
    Failure::new(status, format!("cannot listen on {address}: {error}{advice}"))
}

/// Completes when a signal asks the server to end.
#[cfg(unix)]
fn ended() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn ended() -> io::Result<impl Future<Output = ()> + Send> {
    Ok(async {
        // Where it cannot be heard the server goes on until it is ended otherwise.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
