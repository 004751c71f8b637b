//! The way to a cluster and who we are there: a kubeconfig as `kubectl` reads it, or what a pod is given.

use std::{
    fmt,
    io::ErrorKind as Io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use yaml_rust2::{Yaml, YamlLoader};

use super::plugin::Plugin;
use crate::error::{Error, ErrorKind, Result};

/// What a pod has of its service account.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Which cluster, and who we are there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    /// `None`: as `kubectl` finds it, and in a pod the pod's own.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// `None`: the current one.
    pub(crate) context: Option<String>,
}

/// How to get there.
#[derive(Debug)]
pub(super) struct Login {
    /// A URL without a slash at its end.
    pub(super) server: String,
    /// That of the context, or of the pod.
    pub(super) namespace: String,
    /// Certificates in PEM.
    pub(super) ca: Option<Vec<u8>>,
    pub(super) insecure: bool,
    /// What the certificate of the server is for, where that is not the host in its URL.
    pub(super) server_name: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) proof: Proof,
    /// A certificate and its key in PEM.
    pub(super) identity: Option<Vec<u8>>,
}

/// What we show with each request.
#[derive(Clone)]
pub(super) enum Proof {
    Nothing,
    Token(String),
    /// It is written anew now and then.
    TokenFile(PathBuf),
    Password(String, String),
    Plugin(Plugin),
}

impl fmt::Debug for Proof {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Token(_) | Self::TokenFile(_) => "Token",
            Self::Password(..) => "Password",
            Self::Plugin(_) => "Plugin",
        })
    }
}

impl Cluster {
    /// Reads it: again each time that a connection is made, for what is written there changes.
    pub(super) fn login(&self) -> Result<Login> {
        if let Some(file) = &self.kubeconfig {
            return Files::read(std::slice::from_ref(file))?.login(self.context.as_deref());
        }
        let files = match std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
            // As kubectl does it, those that are not there are passed over.
            Some(paths) => std::env::split_paths(&paths).filter(|path| path.exists()).collect(),
            None => {
                std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect::<Vec<_>>()
            }
        };
        let files: Vec<PathBuf> = files.into_iter().filter(|path| path.exists()).collect();
        if !files.is_empty() || self.context.is_some() {
            return Files::read(&files)?.login(self.context.as_deref());
        }
        in_pod(Path::new(POD), |name| std::env::var(name).ok()).ok_or_else(|| {
            invalid("no way to a cluster: there is no kubeconfig ($KUBECONFIG, ~/.kube/config), and this is no pod")
        })
    }
}

fn in_pod(folder: &Path, variable: impl Fn(&str) -> Option<String>) -> Option<Login> {
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let namespace = std::fs::read_to_string(folder.join("namespace")).ok()?;
    Some(Login {
        server: format!("https://{host}:{port}"),
        namespace: namespace.trim().to_owned(),
        ca: Some(std::fs::read(folder.join("ca.crt")).ok()?),
        insecure: false,
        server_name: None,
        proxy: None,
        proof: Proof::TokenFile(folder.join("token")),
        identity: None,
    })
}

/// Kubeconfigs, each with the folder that its paths are relative to. Of what several of them say, the first counts.
struct Files(Vec<(PathBuf, Yaml)>);

impl Files {
    fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let wrong = |what: &str| invalid(&format!("the kubeconfig {} {what}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| {
                let what = match error.kind() {
                    Io::NotFound => "is not there".to_owned(),
                    _ => format!("cannot be read: {error}"),
                };
                wrong(&what).with_source(error)
            })?;
            let mut all = YamlLoader::load_from_str(&text)
                .map_err(|error| wrong(&format!("is no YAML (line {})", error.marker().line())))?;
            if all.is_empty() {
                continue;
            }
            files.push((path.parent().map(Path::to_owned).unwrap_or_default(), all.swap_remove(0)));
        }
        Ok(Self(files))
    }

    fn login(&self, context: Option<&str>) -> Result<Login> {
        let current = self.0.iter().find_map(|(_, file)| text(&file["current-context"]));
        let context = context.map(str::to_owned).or(current).ok_or_else(|| {
            invalid("the kubeconfig has no current context: name one by ?context=NAME, or `kubectl config use-context NAME`")
        })?;
        let missing = |what: &str, name: &str| {
            let name = name.escape_debug();
            invalid(&format!("the kubeconfig has no {what} \"{name}\""))
        };
        let (_, found) =
            self.named("contexts", "context", &context).ok_or_else(|| missing("context", &context))?;
        let of = |key: &str| text(&found[key]).unwrap_or_default();
        let cluster = of("cluster");
        let (folder, it) =
            self.named("clusters", "cluster", &cluster).ok_or_else(|| missing("cluster", &cluster))?;
        let server = text(&it["server"]).ok_or_else(|| missing("server of the cluster", &cluster))?;
        let ca = bytes(folder, it, "certificate-authority")?;
        let server_name = text(&it["tls-server-name"]);
        let proxy = text(&it["proxy-url"]);
        let mut login = Login {
            server: server.trim_end_matches('/').to_owned(),
            namespace: text(&found["namespace"]).unwrap_or_else(|| "default".to_owned()),
            ca,
            insecure: it["insecure-skip-tls-verify"].as_bool().unwrap_or_default(),
            server_name,
            proxy,
            proof: Proof::Nothing,
            identity: None,
        };
        // kubectl goes on as nobody where the user is missing, and so does this: the server says what it thinks of it.
        if let Some((folder, user)) = self.named("users", "user", &of("user")) {
            login.show(folder, user)?;
        }
        Ok(login)
    }

    /// An entry of one of the lists, and the folder of its file.
    fn named(&self, list: &str, what: &str, name: &str) -> Option<(&Path, &Yaml)> {
        self.0.iter().find_map(|(folder, file)| {
            let entries = file[list].as_vec()?;
            let entry = entries.iter().find(|entry| entry["name"].as_str() == Some(name))?;
            Some((folder.as_path(), &entry[what]))
        })
    }
}

impl Login {
    fn show(&mut self, folder: &Path, user: &Yaml) -> Result<()> {
        for unsupported in ["as", "as-uid", "as-groups", "as-user-extra", "auth-provider"] {
            if !user[unsupported].is_badvalue() {
                let message = format!("the kubeconfig's user has `{unsupported}`, which is not supported");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        if let Some(certificate) = bytes(folder, user, "client-certificate")? {
            let key = bytes(folder, user, "client-key")?
                .ok_or_else(|| invalid("the kubeconfig has a client-certificate and no client-key"))?;
            self.identity = Some([certificate, b"\n".to_vec(), key].concat());
        }
        self.proof = if let Some(token) = text(&user["token"]) {
            Proof::Token(token)
        } else if let Some(file) = text(&user["tokenFile"]) {
            Proof::TokenFile(folder.join(file))
        } else if let Some(name) = text(&user["username"]) {
            Proof::Password(name, text(&user["password"]).unwrap_or_default())
        } else if !user["exec"].is_badvalue() {
            Proof::Plugin(Plugin::new(folder, &user["exec"], self)?)
        } else {
            Proof::Nothing
        };
        Ok(())
    }
}

/// A text that is not empty.
pub(super) fn text(value: &Yaml) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What stands there in base64, or in a file.
fn bytes(folder: &Path, of: &Yaml, key: &str) -> Result<Option<Vec<u8>>> {
    if let Some(data) = text(&of[format!("{key}-data").as_str()]) {
        let decoded = STANDARD
            .decode(data)
            .map_err(|_| invalid(&format!("{key}-data in the kubeconfig is no base64")))?;
        return Ok(Some(decoded));
    }
    let Some(file) = text(&of[key]) else { return Ok(None) };
    let path = folder.join(file);
    std::fs::read(&path).map(Some).map_err(|error| {
        let message = format!("cannot use {}, which the kubeconfig names: {error}", path.display());
        invalid(&message).with_source(error)
    })
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: here
preferences: {}
clusters:
- cluster:
    certificate-authority-data: cGVtIG9mIHRoZSBDQQ==
    server: https://10.0.0.1:6443/
  name: one
- name: two
  cluster: {server: "https://two.example", tls-server-name: inner, insecure-skip-tls-verify: true}
contexts:
- {name: here, context: {cluster: one, user: ann, namespace: team-a}}
- {name: there, context: {cluster: two, user: nobody}}
- {name: acting, context: {cluster: two, user: acting}}
- {name: lost, context: {cluster: three}}
users:
- name: ann
  user:
    token: "secret-token"
- name: acting
  user: {token: t, as: bob}
"#;

    fn files(text: &str) -> Files {
        Files(vec![("/etc".into(), YamlLoader::load_from_str(text).unwrap().swap_remove(0))])
    }

    #[test]
    fn the_current_context_and_others() {
        let here = files(CONFIG).login(None).unwrap();
        assert_eq!((&*here.server, &*here.namespace), ("https://10.0.0.1:6443", "team-a"));
        assert_eq!(here.ca.as_deref(), Some(&b"pem of the CA"[..]));
        assert!(matches!(&here.proof, Proof::Token(token) if token == "secret-token"));
        assert!(!format!("{here:?}").contains("secret-token"));
        let there = files(CONFIG).login(Some("there")).unwrap();
        assert_eq!((&*there.server, &*there.namespace), ("https://two.example", "default"));
        assert!(there.insecure && there.ca.is_none());
        assert_eq!(there.server_name.as_deref(), Some("inner"));
        assert!(matches!(there.proof, Proof::Nothing));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (context, why) in [
            ("nowhere", "no context \"nowhere\""),
            ("lost", "no cluster \"three\""),
            ("acting", "`as`, which is not supported"),
        ] {
            let error = files(CONFIG).login(Some(context)).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        let error = files("clusters: []").login(None).unwrap_err();
        assert!(error.message().contains("no current context"), "{error}");
        let cluster = Cluster { kubeconfig: Some("/nowhere/kubeconfig".into()), context: None };
        let error = cluster.login().unwrap_err();
        assert!(error.message().contains("/nowhere/kubeconfig is not there"), "{error}");
    }

    #[test]
    fn the_first_file_that_says_it_counts() {
        let mut both =
            files("current-context: there\nusers: [{name: nobody, user: {username: u, password: p}}]");
        both.0.extend(files(CONFIG).0);
        let login = both.login(None).unwrap();
        assert_eq!(login.server, "https://two.example");
        assert!(matches!(login.proof, Proof::Password(name, _) if name == "u"));
    }

    #[test]
    fn a_pod_has_its_own() {
        let folder = std::env::temp_dir().join(format!("windlass-pod-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in [("namespace", "team-b\n"), ("ca.crt", "pem"), ("token", "t")] {
            std::fs::write(folder.join(file), text).unwrap();
        }
        let variable = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
                _ => None,
            }
        };
        let login = in_pod(&folder, variable("fd00::1")).unwrap();
        assert_eq!((&*login.server, &*login.namespace), ("https://[fd00::1]:443", "team-b"));
        assert!(matches!(login.proof, Proof::TokenFile(file) if file == folder.join("token")));
        assert_eq!(in_pod(&folder, variable("10.0.0.1")).unwrap().server, "https://10.0.0.1:443");
        assert!(in_pod(&folder, |_| None).is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
