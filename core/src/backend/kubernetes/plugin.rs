//! A program that a kubeconfig names for logging in (`exec`): it is run, and prints what we are to show.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use serde_json::{Value, json};
use yaml_rust2::Yaml;

use super::{
    lease::millis_of,
    login::{Login, text},
};
use crate::{
    error::{Error, ErrorKind, Result},
    rt::thread,
};

const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// How to run it.
#[derive(Clone)]
pub(super) struct Plugin {
    command: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    version: String,
    /// What it is told of the cluster, if it wants to know.
    cluster: Option<Value>,
    hint: Option<String>,
}

/// What it says.
#[derive(Default)]
pub(super) struct Credential {
    pub(super) token: Option<String>,
    /// A certificate and its key in PEM.
    pub(super) identity: Option<Vec<u8>>,
    /// Until when it holds, by the wall clock.
    pub(super) until_ms: Option<u64>,
}

impl Plugin {
    pub(super) fn new(folder: &Path, exec: &Yaml, login: &Login) -> Result<Self> {
        let version = text(&exec["apiVersion"]).unwrap_or_default();
        if !VERSIONS.contains(&&*version) {
            let message = format!(
                "the kubeconfig's exec is of version \"{}\": {} are known",
                version.escape_debug(),
                VERSIONS.join(" and ")
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let command = text(&exec["command"])
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the kubeconfig's exec has no command"))?;
        // A bare name is looked up in PATH, a path is relative to the file.
        let command = if command.contains('/') { folder.join(command) } else { command.into() };
        let list = |key: &str| exec[key].as_vec().map(Vec::as_slice).unwrap_or_default();
        let environment = list("env").iter();
        let wants = exec["provideClusterInfo"].as_bool().unwrap_or_default();
        Ok(Self {
            command,
            arguments: list("args")
                .iter()
                .filter_map(|argument| argument.as_str().map(str::to_owned))
                .collect(),
            environment: environment
                .filter_map(|pair| Some((text(&pair["name"])?, text(&pair["value"])?)))
                .collect(),
            version,
            cluster: wants.then(|| {
                json!({
                    "server": login.server,
                    "tls-server-name": login.server_name,
                    "insecure-skip-tls-verify": login.insecure,
                    "certificate-authority-data": login.ca.as_deref().map(encoded),
                })
            }),
            hint: text(&exec["installHint"]),
        })
    }

    /// Runs it to its end, or for so long: on a thread of its own.
    pub(super) fn run(&self, limit: Duration) -> Result<Credential> {
        let mut spec = json!({"interactive": false});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let info = json!({"apiVersion": self.version, "kind": "ExecCredential", "spec": spec});
        let mut command = Command::new(&self.command);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command.env("KUBERNETES_EXEC_INFO", info.to_string());
        let name = self.command.display();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.spawn().and_then(|child| output(child, limit)).map_err(|error| {
            let hint = self.hint.as_deref().map(|hint| format!("; {}", hint.trim())).unwrap_or_default();
            denied(format!("cannot run {name}, which the kubeconfig names for logging in: {error}{hint}"))
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: String = said.trim().chars().take(300).flat_map(char::escape_debug).collect();
            return Err(denied(format!("{name}, by which the kubeconfig logs in, fails: {said}")));
        }
        self.read(&output.stdout).ok_or_else(|| {
            denied(format!(
                "{name}, by which the kubeconfig logs in, prints no credential of {}",
                self.version
            ))
        })
    }

    fn read(&self, said: &[u8]) -> Option<Credential> {
        let said: Value = serde_json::from_slice(said).ok()?;
        let status = &said["status"];
        let text = |key: &str| status[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let pair = text("clientCertificateData").zip(text("clientKeyData"));
        let credential = Credential {
            token: text("token"),
            identity: pair.map(|(certificate, key)| format!("{certificate}\n{key}").into_bytes()),
            until_ms: status["expirationTimestamp"].as_str().and_then(millis_of),
        };
        let is_one = said["kind"] == "ExecCredential" && said["apiVersion"] == *self.version;
        (is_one && (credential.token.is_some() || credential.identity.is_some())).then_some(credential)
    }
}

/// What it has said by its end. One that does not end in time is ended; what that has begun itself may go on, and keep its pipes.
fn output(mut child: Child, limit: Duration) -> io::Result<Output> {
    let (stdout, stderr) = (read(child.stdout.take())?, read(child.stderr.take())?);
    let said = stdout.recv_timeout(limit).and_then(|said| Ok((said, stderr.recv_timeout(limit)?)));
    if said.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let (stdout, stderr) = said.map_err(|_| io::Error::other("it does not end"))?;
    Ok(Output { status, stdout, stderr })
}

fn read(pipe: Option<impl Read + Send + 'static>) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (tell, told) = mpsc::channel();
    thread("windlass-login-read", move || {
        let mut said = Vec::new();
        // What comes before an error is all there is.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut said));
        let _ = tell.send(said);
    })?;
    Ok(told)
}

fn encoded(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn denied(message: String) -> Error {
    Error::new(ErrorKind::Denied, message)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use yaml_rust2::YamlLoader;

    use super::*;
    use crate::backend::kubernetes::login::Proof;

    const LONG: Duration = Duration::from_secs(60);

    fn plugin(script: &str) -> Result<Plugin> {
        let text = format!(
            "apiVersion: {}\ncommand: sh\nargs: [-c, {script:?}]\nenv: [{{name: WHO, value: ann}}]\nprovideClusterInfo: true\n",
            VERSIONS[0]
        );
        let exec = YamlLoader::load_from_str(&text).unwrap().swap_remove(0);
        let login = Login {
            server: "https://here".to_owned(),
            namespace: String::new(),
            ca: None,
            insecure: false,
            server_name: None,
            proxy: None,
            proof: Proof::Nothing,
            identity: None,
        };
        Plugin::new(Path::new("/etc"), &exec, &login)
    }

    fn says(status: &str) -> String {
        let kind = r#""kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1""#;
        format!("echo '{{{kind},\"status\":{status}}}'")
    }

    #[test]
    fn it_is_told_and_says_a_token() {
        let told = r#"case $KUBERNETES_EXEC_INFO in *https://here*) ;; *) exit 1 ;; esac"#;
        let said = says(r#"{"token":"of '$WHO'","expirationTimestamp":"1970-01-01T00:01:00Z"}"#);
        let credential = plugin(&format!("{told}; {said}")).unwrap().run(LONG).unwrap();
        assert_eq!((credential.token.as_deref(), credential.until_ms), (Some("of ann"), Some(60_000)));
        let said = says(r#"{"clientCertificateData":"c","clientKeyData":"k"}"#);
        assert_eq!(plugin(&said).unwrap().run(LONG).unwrap().identity.as_deref(), Some(&b"c\nk"[..]));
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let hangs = plugin("exec sleep 600").unwrap();
        let Err(error) = hangs.run(Duration::from_millis(100)) else { panic!("it ended") };
        assert!(error.message().ends_with("it does not end"), "{error}");
    }

    #[test]
    fn what_goes_wrong_is_said() {
        for (script, why) in [
            ("echo 'log in\nfirst' >&2; exit 1", "fails: log in\\nfirst"),
            ("echo hello", "prints no credential"),
            (&*says("{}"), "prints no credential"),
        ] {
            let Err(error) = plugin(script).unwrap().run(LONG) else { panic!("{script}") };
            assert!(error.kind() == ErrorKind::Denied && error.message().contains(why), "{error}");
        }
        let mut missing = plugin("").unwrap();
        (missing.command, missing.hint) = ("/nowhere/login".into(), Some("install it\n".to_owned()));
        let Err(error) = missing.run(LONG) else { panic!("it ran") };
        assert!(error.message().ends_with("; install it"), "{error}");
    }
}
