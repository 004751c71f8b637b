//! The manifests of `examples/kubernetes`: the API server takes them, and what they run works with the rights that they give.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    kubernetes::RIGHTS,
    place::{Folder, acquire, block_on, waits},
    processes::until,
    server_process::{port_to_keep, spawn},
};

use super::{cluster, program};

const TOKEN: &str = "a-token-of-twenty-bytes-and-more";

/// All objects of a file, as the API server has made them.
fn applied(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes").join(file);
    let text = fs::read_to_string(path).unwrap();
    let objects = text.split("\n---\n").map(|text| cluster().create(text));
    objects.collect()
}

fn of<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// A kubeconfig for the one that pods have: its service account and namespace.
fn kubeconfig(objects: &[Value], folder: &Folder) -> String {
    let account = &of(objects, "ServiceAccount")["metadata"];
    let (namespace, name) = (account["namespace"].as_str().unwrap(), account["name"].as_str().unwrap());
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let token = cluster().ask("POST", &path, Some(&request))["status"]["token"].as_str().unwrap().to_owned();
    let file = folder.path("token");
    fs::write(&file, token).unwrap();
    let file = cluster().kubeconfig(cluster().address(), namespace, &json!({"tokenFile": file}));
    file.display().to_string()
}

fn args(container: &Value) -> Vec<String> {
    let args = container["args"].as_array().unwrap().iter();
    args.map(|argument| argument.as_str().unwrap().to_owned()).collect()
}

/// One of the replicas, and its address.
struct Replica {
    child: std::process::Child,
    address: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    fn start(container: &Value, kubeconfig: &str, tokens: &str) -> Self {
        let address = format!("127.0.0.1:{}", port_to_keep());
        let args = args(container).into_iter().map(|argument| {
            argument.replace("0.0.0.0:7420", &address).replace("/etc/windlass/tokens", tokens)
        });
        let mut command = Command::new(program());
        command.args(args).env("KUBECONFIG", kubeconfig).stdout(Stdio::null());
        Self { child: spawn(&mut command), address }
    }

    /// The status of a GET.
    fn status(&self, path: &str, token: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10"]);
        curl.args(["--header", &format!("Authorization: Bearer {token}")]);
        String::from_utf8(curl.arg(format!("http://{}{path}", self.address)).output().unwrap().stdout)
            .unwrap()
    }

    fn locker(&self) -> Locker {
        let options = ConnectOptions::new().ttl(Duration::from_secs(2)).token(TOKEN);
        block_on(options.connect(&format!("http://{}/team-a", self.address))).unwrap()
    }
}

#[test]
fn the_server() {
    let (objects, folder) = (applied("server.yaml"), Folder::new());
    assert_eq!(
        of(&objects, "Role")["rules"],
        json!([{
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": RIGHTS,
        }])
    );
    let tokens = folder.path("tokens");
    fs::write(&tokens, format!("{TOKEN} ci all team-a/*\n")).unwrap();
    let kubeconfig = kubeconfig(&objects, &folder);
    let deployment = of(&objects, "Deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(deployment["spec"]["replicas"], 2);
    let [one, other] =
        [(); 2].map(|()| Replica::start(container, &kubeconfig, &tokens.display().to_string()));
    for replica in [&one, &other] {
        let probe = |kind: &str| container[kind]["httpGet"]["path"].as_str().unwrap();
        // The rights come late.
        until("it is ready", || replica.status(probe("readinessProbe"), "") == "200");
        assert_eq!(replica.status(probe("livenessProbe"), ""), "200");
        let metrics = &deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"];
        assert_eq!(replica.status(metrics.as_str().unwrap(), TOKEN), "200");
        assert_eq!(replica.status(metrics.as_str().unwrap(), ""), "401");
    }
    let (one, other) = (one.locker(), other.locker());
    let guard = acquire(&one, "lock");
    assert!(block_on(other.lock("lock").try_acquire()).unwrap().is_none());
    let guard = std::thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        block_on(guard.release()).unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(block_on(one.force_release("lock", None)).unwrap().len(), 1);
    block_on(guard.lost());
}

#[test]
fn the_job() {
    let (objects, folder) = (applied("cronjob.yaml"), Folder::new());
    let kubeconfig = kubeconfig(&objects, &folder);
    let pod = &of(&objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let url = container["env"][0]["value"].as_str().unwrap();
    let job = || {
        let mut command = Command::new(program());
        command.args(args(container)).env("KUBECONFIG", &kubeconfig).env("WINDLASS_URL", url);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    until("the rights", || job().wait_with_output().unwrap().status.success());
    // Two are started at once: both end well, and one has done the work.
    let said = [job(), job()].map(|job| {
        let output = job.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    let done: Vec<&String> = said.iter().filter(|said| said.contains("the report with token ")).collect();
    assert_eq!(done.len(), 1, "{said:?}");
}
