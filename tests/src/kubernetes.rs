//! A Kubernetes cluster as far as locks need one: a real kube-apiserver over a real etcd, without nodes. Both are killed, stopped
//! and started again; all of it ends with the test's process, however that ends.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;
use serde_json::{Value, json};
use windlass::{Backend, Locker, rt::Runtime};

use crate::{
    place::{Folder, Place, UrlPlace},
    processes::{Service, until},
    server_process::port_to_keep,
};

mod front;

pub use front::{Front, Next};

/// What locks in Leases need, and nothing else.
pub const RIGHTS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];
/// On a machine on which much else is started.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// Who may do everything.
const ADMIN: &str = "admin-token";
/// Who may do what it is given by name, as the user `limited`.
pub const LIMITED: &str = "limited-token";

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    etcd: Option<Service>,
    apiserver: Option<Service>,
    ports: Ports,
    folder: Folder,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    peer: u16,
    apiserver: u16,
}

impl Cluster {
    /// Starts one, and waits until it serves.
    pub fn start() -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.path("certificates")).unwrap();
        // The API server signs tokens of service accounts with it.
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        fs::write(folder.path("sa.key"), key.serialize_pem()).unwrap();
        fs::write(folder.path("sa.pub"), key.public_key_pem()).unwrap();
        let users =
            format!("{ADMIN},admin,u-admin,\"system:masters\"\n{LIMITED},limited,u-limited,\"lockers\"\n");
        fs::write(folder.path("tokens.csv"), users).unwrap();
        let ports = Ports { etcd: port_to_keep(), peer: port_to_keep(), apiserver: port_to_keep() };
        let mut cluster = Self { etcd: None, apiserver: None, ports, folder };
        cluster.start_etcd();
        cluster.start_apiserver();
        cluster.until_ready();
        cluster
    }

    /// One that was killed, on its data.
    pub fn start_etcd(&mut self) {
        let Ports { etcd, peer, .. } = self.ports;
        let (client, peer) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command
            .args(["--unsafe-no-fsync", "--log-level", "error", "--data-dir"])
            .arg(self.folder.path("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        self.etcd = Some(Service::start(&command, &self.folder.path("etcd.log"), &self.folder));
    }

    /// One that was killed.
    pub fn start_apiserver(&mut self) {
        let in_folder = |name: &str| self.folder.path(name).display().to_string();
        let mut command = Command::new(program());
        for (option, value) in [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.ports.etcd)),
            ("bind-address", "127.0.0.1".to_owned()),
            ("advertise-address", "127.0.0.1".to_owned()),
            ("secure-port", self.ports.apiserver.to_string()),
            ("cert-dir", in_folder("certificates")),
            ("token-auth-file", in_folder("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", in_folder("sa.pub")),
            ("service-account-signing-key-file", in_folder("sa.key")),
            ("service-cluster-ip-range", "10.0.0.0/24".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
        ] {
            command.arg(format!("--{option}={value}"));
        }
        self.apiserver = Some(Service::start(&command, &self.folder.path("apiserver.log"), &self.folder));
    }

    /// Until it serves.
    #[allow(clippy::disallowed_methods, reason = "of another process, in real time")]
    pub fn until_ready(&self) {
        let begun = Instant::now();
        // It makes its certificate when it starts, so the first tries go wrong.
        while !self.try_ask("GET", "/readyz", None).is_ok_and(|(status, _)| status == 200) {
            assert!(begun.elapsed() < STARTS_WITHIN, "the API server does not start");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// `kill -9`.
    pub fn kill_apiserver(&mut self) {
        self.apiserver.take().expect("it runs").end_and_keep_its_data();
    }

    pub fn apiserver(&mut self, signal: Signal) {
        self.apiserver.as_mut().expect("it runs").signal(signal);
    }

    pub fn etcd(&mut self, signal: Signal) {
        self.etcd.as_mut().expect("it runs").signal(signal);
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.apiserver))
    }

    /// The authority that its certificate is of.
    pub fn ca(&self) -> PathBuf {
        self.folder.path("certificates/apiserver.crt")
    }

    /// A namespace of its own.
    pub fn namespace(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.make_namespace(&name);
        name
    }

    pub fn make_namespace(&self, name: &str) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        // One that has just begun to serve may have something else to do yet; what it has done without saying so is done.
        until("a namespace", || {
            let made = self.try_ask("POST", "/api/v1/namespaces", Some(&namespace));
            made.is_ok_and(|(status, _)| matches!(status, 201 | 409))
        });
    }

    /// `k8s://NAMESPACE/leases` for the one who may do everything.
    pub fn url(&self, namespace: &str) -> String {
        self.url_at(self.address(), namespace, ADMIN)
    }

    /// ... at another address, and for another one.
    pub fn url_at(&self, address: SocketAddr, namespace: &str, token: &str) -> String {
        let file = self.kubeconfig(address, namespace, &json!({"token": token}));
        format!("k8s://{namespace}/leases?kubeconfig={}", file.display())
    }

    /// ... through something that carries requests on one by one.
    pub fn url_through(&self, front: &Front, namespace: &str) -> String {
        let file =
            self.kubeconfig_for(&format!("http://{}", front.address()), namespace, &json!({"token": ADMIN}));
        format!("k8s://{namespace}/leases?kubeconfig={}", file.display())
    }

    /// `k8s://NAMESPACE/configmaps/NAME` for a new one, for the one who may do everything.
    pub fn url_of_new_configmap(&self, namespace: &str, name: &str) -> String {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        self.ask("POST", &configmaps(namespace), Some(&object));
        self.url(namespace).replace("/leases?", &format!("/configmaps/{name}?"))
    }

    /// The annotations of one.
    pub fn annotations(&self, namespace: &str, name: &str) -> Vec<(String, String)> {
        let object = self.ask("GET", &format!("{}/{name}", configmaps(namespace)), None);
        let annotations = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        annotations.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect()
    }

    /// A kubeconfig with this user.
    pub fn kubeconfig(&self, address: SocketAddr, namespace: &str, user: &Value) -> PathBuf {
        self.kubeconfig_for(&format!("https://{address}"), namespace, user)
    }

    fn kubeconfig_for(&self, server: &str, namespace: &str, user: &Value) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let cluster = json!({"server": server, "certificate-authority": self.ca()});
        let context = json!({"cluster": "it", "user": "me", "namespace": namespace});
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "here", "context": context}],
        });
        let file = self.folder.path(&format!("kubeconfig-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        // Which is YAML, too.
        fs::write(&file, text.to_string()).unwrap();
        file
    }

    /// The one who may do everything asks; what it is told. It must go well.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, said) = self.try_ask(method, path, body).unwrap();
        assert!((200..300).contains(&status), "{method} {path}: {status} {said}");
        said
    }

    /// ... with the status.
    pub fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.send(method, path, kind, body.map(Value::to_string))
    }

    /// Makes what a manifest says, as `kubectl apply` would; as it is then.
    pub fn create(&self, manifest: &str) -> Value {
        let field = |key: &str| {
            let lines = manifest.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            lines.unwrap_or_default()
        };
        let kind = field("kind");
        let plural = kind.to_lowercase() + "s";
        let api = match field("apiVersion") {
            "v1" => "/api/v1".to_owned(),
            group => format!("/apis/{group}"),
        };
        let of =
            if kind == "Namespace" { String::new() } else { format!("/namespaces/{}", field("namespace")) };
        // What it does not know is an error.
        let path = format!("{api}{of}/{plural}?fieldValidation=Strict");
        let (status, said) = self.send("POST", &path, "application/yaml", Some(manifest.to_owned())).unwrap();
        assert_eq!(status, 201, "{path}: {said}");
        said
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: Option<String>,
    ) -> Result<(u16, Value), String> {
        let url = format!("https://{}{path}", self.address());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--cacert"]).arg(self.ca());
        curl.args(["--request", method, "--header", &format!("Authorization: Bearer {ADMIN}")]);
        curl.args(["--header", &format!("Content-Type: {kind}"), "--write-out", "\n%{http_code}"]);
        if body.is_some() {
            curl.args(["--data-binary", "@-"]);
        }
        let mut curl = curl
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(body.unwrap_or_default().as_bytes()).unwrap();
        let output = curl.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stderr));
        }
        let said = text(&output.stdout);
        let (said, status) = said.rsplit_once('\n').unwrap();
        Ok((status.parse().unwrap(), serde_json::from_str(said).unwrap_or(Value::String(said.to_owned()))))
    }

    /// The Leases of a namespace.
    pub fn leases(&self, namespace: &str) -> Vec<Value> {
        let list = self.ask("GET", &leases(namespace), None);
        list["items"].as_array().unwrap().clone()
    }

    /// Gives `limited` these rights on the leases of a namespace, and no others.
    pub fn allow(&self, namespace: &str, verbs: &[&str]) {
        let rule = json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs});
        self.allow_by(namespace, &[rule]);
    }

    /// ... the rights of these rules.
    pub fn allow_by(&self, namespace: &str, rules: &[Value]) {
        let of = |kind: &str| format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{kind}");
        let (kind, meta) = ("rbac.authorization.k8s.io", json!({"name": "limited"}));
        let role =
            json!({"apiVersion": format!("{kind}/v1"), "kind": "Role", "metadata": meta, "rules": rules});
        let (status, _) = self.try_ask("PUT", &(of("roles") + "/limited"), Some(&role)).unwrap();
        if status == 404 {
            self.ask("POST", &of("roles"), Some(&role));
        }
        let binding = json!({
            "apiVersion": format!("{kind}/v1"),
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": kind, "kind": "Role", "name": "limited"},
            "subjects": [{"apiGroup": kind, "kind": "User", "name": "limited"}],
        });
        let (status, said) = self.try_ask("POST", &of("rolebindings"), Some(&binding)).unwrap();
        assert!(matches!(status, 201 | 409), "{said}");
    }
}

/// The same place by a kubeconfig of its own. Lockers of one process share what they know of a place; one that comes another way is like
/// one in another process.
pub fn apart(url: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let (place, rest) = url.split_once("kubeconfig=").unwrap();
    let (file, more) = rest.split_at(rest.find('&').unwrap_or(rest.len()));
    let copy = format!("{file}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    fs::copy(file, &copy).unwrap();
    format!("{place}kubeconfig={copy}{more}")
}

/// The path of the Leases of a namespace.
pub fn leases(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

/// ... of its ConfigMaps.
pub fn configmaps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

/// What `scripts/setup go` has built.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kube-apiserver");
        let said = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(said.status.success(), "the kube-apiserver cannot be built");
        String::from_utf8(said.stdout).unwrap().trim().into()
    })
}

/// A namespace of a test's own in a cluster.
#[derive(Debug)]
pub struct KubernetesPlace {
    cluster: &'static Cluster,
    namespace: String,
    /// Where there is one, the locks are in its annotations.
    configmap: Option<&'static str>,
    place: UrlPlace,
}

impl KubernetesPlace {
    pub fn new(cluster: &'static Cluster) -> Self {
        let namespace = cluster.namespace();
        let place = UrlPlace { url: cluster.url(&namespace), folder: None };
        Self { cluster, namespace, configmap: None, place }
    }

    /// ... in the annotations of an object.
    pub fn in_annotations(cluster: &'static Cluster) -> Self {
        let namespace = cluster.namespace();
        let url = cluster.url_of_new_configmap(&namespace, "locks");
        Self { cluster, namespace, configmap: Some("locks"), place: UrlPlace { url, folder: None } }
    }

    fn apart(&self) -> UrlPlace {
        UrlPlace { url: apart(&self.place.url), folder: None }
    }
}

impl Place for KubernetesPlace {
    fn client(&self) -> Arc<dyn Backend> {
        self.apart().client()
    }

    fn locker(&self) -> Locker {
        self.apart().locker()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.place.runtime()
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        self.place.run(test);
    }

    fn leftovers(&self) -> Vec<String> {
        match self.configmap {
            None => {
                let leases = self.cluster.leases(&self.namespace);
                leases.iter().map(|lease| lease["metadata"]["name"].to_string()).collect()
            }
            Some(name) => {
                self.cluster.annotations(&self.namespace, name).into_iter().map(|(name, _)| name).collect()
            }
        }
    }
}
