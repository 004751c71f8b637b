//! An API server of Kubernetes over an etcd: starts them, and counts what they are asked.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Result,
    etcd::Etcd,
    store::{PATIENCE, Server},
};

const TOKEN: &str = "bench-token";

/// One that is killed and removed when dropped.
pub(crate) struct Kubernetes {
    child: Child,
    etcd: Etcd,
    server: String,
    folder: PathBuf,
}

impl Kubernetes {
    /// Starts them with their data below this folder, and waits until they serve.
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let program = std::env::var_os("WINDLASS_BENCH_KUBE_APISERVER")
            .ok_or("WINDLASS_BENCH_KUBE_APISERVER is not set: run scripts/bench")?;
        let etcd = Etcd::start(place)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = place.join(format!("windlass-bench-{}-{port}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let file = |name: &str| folder.join(name).display().to_string();
        let (key, public) = (file("sa.key"), file("sa.pub"));
        run(Command::new("openssl").args(["genrsa", "-out", &key, "2048"]))?;
        run(Command::new("openssl").args(["rsa", "-in", &key, "-pubout", "-out", &public]))?;
        fs::write(folder.join("tokens.csv"), format!("{TOKEN},admin,u-admin,\"system:masters\"\n"))?;
        let server = format!("https://127.0.0.1:{port}");
        let child = Command::new(program)
            .args([
                format!("--etcd-servers=http://{}", etcd.address()),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", folder.display()),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={public}"),
                format!("--service-account-signing-key-file={key}"),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let kubernetes = Self { child, etcd, server, folder };
        let begun = Instant::now();
        while kubernetes.ask("/readyz", &[]).is_err() {
            if begun.elapsed() > 3 * PATIENCE {
                return Err("the API server does not serve".into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        let cluster =
            json!({ "server": &kubernetes.server, "certificate-authority": kubernetes.authority() });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
            "clusters": [{ "name": "bench", "cluster": cluster }],
            "users": [{ "name": "bench", "user": { "token": TOKEN } }],
        });
        fs::write(kubernetes.kubeconfig(), kubeconfig.to_string())?;
        // lockgate wants one that is there.
        let locks = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"locks"}}"#;
        let made = ["--json", locks];
        kubernetes.ask("/api/v1/namespaces/default/configmaps", &made)?;
        Ok(kubernetes)
    }

    fn authority(&self) -> PathBuf {
        self.folder.join("apiserver.crt")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    fn ask(&self, path: &str, more: &[&str]) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--cacert"]).arg(self.authority());
        curl.args(["--header", &format!("Authorization: Bearer {TOKEN}")]).args(more);
        let answer = run(curl.arg(format!("{}{path}", self.server)))?;
        Ok(String::from_utf8(answer)?)
    }
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

impl Server for Kubernetes {
    fn address(&self) -> String {
        self.kubeconfig().display().to_string()
    }

    fn url(&self) -> String {
        format!("k8s://default/leases?qps=100000&kubeconfig={}", self.address())
    }

    /// Requests for what locks are kept in that it has answered; entries of the raft log.
    fn work(&self) -> Result<[f64; 2]> {
        let metrics = self.ask("/metrics", &[])?;
        let ours = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && [r#"resource="leases""#, r#"resource="configmaps""#].iter().any(|of| line.contains(of))
        };
        let asked =
            metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        let [_, written] = self.etcd.work()?;
        Ok([asked.sum(), written])
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        fs::remove_dir_all(&self.folder).ok();
    }
}
