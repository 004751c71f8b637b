"""A real API server of Kubernetes over a real etcd."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from etcd import SHELL, port_to_keep

SCRIPT = Path(__file__).parents[2] / "scripts" / "kube-apiserver"
TOKEN = "admin-token"


class Kubernetes:
    """One that ends with the tests."""

    def __init__(self, folder, etcd, patience):
        self.folder, self.port = folder, port_to_keep()
        key = folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        public = ["openssl", "rsa", "-in", key, "-pubout", "-out", folder / "sa.pub"]
        subprocess.run(public, check=True, capture_output=True)
        (folder / "tokens.csv").write_text(f'{TOKEN},admin,u-admin,"system:masters"\n')
        program = subprocess.run([SCRIPT], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        options = {
            "etcd-servers": f"http://{etcd.host}",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": self.port,
            "cert-dir": folder,
            "token-auth-file": folder / "tokens.csv",
            "authorization-mode": "RBAC",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": folder / "sa.pub",
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": "10.0.0.0/24",
            "endpoint-reconciler-type": "none",
            "disable-admission-plugins": "ServiceAccount",
        }
        command = [program, *(f"--{name}={value}" for name, value in options.items())]
        shell = ["sh", "-c", SHELL, str(folder / "log"), *command]
        self.process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + patience
        while not self._ready():
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        user = {"token": TOKEN}
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.authority)}
        config = {
            "current-context": "here",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "here", "context": {"cluster": "it", "user": "me"}}],
        }
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(config))

    @property
    def authority(self):
        return self.folder / "apiserver.crt"

    def url(self, prefix):
        return f"k8s://default/leases/{prefix}?kubeconfig={self.kubeconfig}"

    def kill(self):
        self.process.communicate("\n")

    def _ready(self):
        try:
            return self._get("/readyz") == b"ok"
        except OSError:
            return False

    def _get(self, path):
        context = ssl.create_default_context(cafile=self.authority)
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.read()
