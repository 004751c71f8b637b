"""A real etcd, and a bad network before it."""

from __future__ import annotations

import base64
import json
import random
import select
import socket
import subprocess
import threading
import time
from pathlib import Path

# Ends a server when its input ends, which is when the tests have ended, however they did.
SHELL = '"$@" >"$0" 2>&1 </dev/null & pid=$!; echo $pid; read -r _; kill -9 $pid; wait'

ROOT = "root:root-password"
# A password in which much has to be encoded, and nothing may be shown.
PASSWORD = "p@ss/word:%41?#"
PASSWORD_IN_URL = "p%40ss%2Fword%3A%2541%3F%23"


class Etcd:
    """One member."""

    def __init__(self, folder, patience):
        self.folder, self.patience, self.root = folder, patience, []
        self.port, self.peer_port = port_to_keep(), port_to_keep()
        self.start()

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def url(self, prefix, user="", host=None):
        return f"etcd://{user}{host or self.host}/{prefix}"

    def start(self):
        """Start it, also again on the data of the one that was killed, and wait until it serves."""
        client, peer = f"http://{self.host}", f"http://127.0.0.1:{self.peer_port}"
        command = ["etcd", "--unsafe-no-fsync", "--log-level=error", "--bcrypt-cost=4"]
        command += [f"--data-dir={self.folder / 'data'}"]
        command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        command += [f"--initial-cluster=default={peer}"]
        shell = ["sh", "-c", SHELL, str(self.folder / "log"), *command]
        self.process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.process.stdout.readline())
        end = time.monotonic() + self.patience
        while self.etcdctl("endpoint", "health").returncode != 0:
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    def kill(self):
        """Like a power cut; its data stay."""
        self.process.communicate("\n")

    def etcdctl(self, *args, **more):
        return subprocess.run(self.command(*args), capture_output=True, text=True, **more)

    def command(self, *args):
        return ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.host}", *self.root, *args]

    def entries(self, prefix):
        """What is below a prefix: oldest first, with leases and revisions."""
        command = ["get", "--prefix", f"/{prefix}/", "--sort-by=CREATE", "--write-out=json"]
        return json.loads(self.etcdctl(*command, check=True).stdout).get("kvs", [])

    def keys(self, prefix):
        return [base64.b64decode(entry["key"]).decode() for entry in self.entries(prefix)]

    def leases(self, prefix):
        """The leases that they hang on."""
        return {entry["lease"] for entry in self.entries(prefix)}

    def guard(self):
        """Ask who people are from now on: the user `app` has all rights on `/app/`, and no others."""
        for command in [
            ["user", "add", ROOT],
            ["user", "grant-role", "root", "root"],
            ["role", "add", "app"],
            ["role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/"],
            ["user", "add", f"app:{PASSWORD}"],
            ["user", "grant-role", "app", "app"],
            ["auth", "enable"],
        ]:
            self.etcdctl(*command, check=True)
        self.root = [f"--user={ROOT}"]


def port_to_keep():
    """A port that nobody else is given: one from below those that the kernel gives out."""
    given_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(1024, given_out)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Network:
    """Between a locker and etcd."""

    def __init__(self, server):
        self.server = server
        self.loses_answers = False
        self._streams = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.host = f"{host}:{port}"
        threading.Thread(target=self._listen, daemon=True).start()

    def heal(self):
        """Carry everything from now on. What was under way is lost with its connections."""
        self.loses_answers = False
        streams, self._streams = self._streams, []
        for stream in streams:
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self._listener.close()
        self.heal()

    def _listen(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.server)
            self._streams += [client, server]
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client, server):
        other = {client: server, server: client}
        with client, server:
            while True:
                for stream in select.select([client, server], [], [])[0]:
                    try:
                        piece = stream.recv(65536)
                        if not piece:
                            return
                        if stream is client or not self.loses_answers:
                            other[stream].sendall(piece)
                    except OSError:
                        return
