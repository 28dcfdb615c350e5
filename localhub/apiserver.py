"""A real Kubernetes API server and its etcd. Nothing else of Kubernetes runs: no scheduler, no controllers."""

import base64
import http.client
import os
import signal
import socket
import ssl
from pathlib import Path

import yaml

from localhub.files import write_private
from localhub.processes import Command

ETCD_SOCKET = "etcd.sock"


class Etcd:
    """The API server's store, reached through sockets in its directory: no port, nobody else can read it."""

    name = "etcd"
    uses_port = False
    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory

    def command(self, port: int) -> Command:
        """As `localhub.server.Server`: it runs in its directory, because a socket's path is short (unix(7))."""
        del port
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # The advertised addresses are only recorded: a single member is never called under them.
        arguments = (
            str(self._program),
            "--name=hub",
            "--data-dir=data",
            f"--listen-client-urls=unix://{ETCD_SOCKET}",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=unix://peer.sock",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=hub=http://127.0.0.1:2380",
            "--log-level=warn",
        )
        return Command(arguments=arguments, directory=self._directory)

    def ready(self, port: int) -> bool:
        """Whether etcd calls itself healthy."""
        del port
        connection = _UnixConnection(self._directory, ETCD_SOCKET)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in a directory whose path may be longer than a socket's address may be."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__("localhost", timeout=2)
        self._place = (directory, name)

    def connect(self) -> None:
        directory, name = self._place
        handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{handle}/{name}")
        finally:
            os.close(handle)


class ApiServer:
    """kube-apiserver with RBAC, admitting an administrator by client certificate."""

    name = "kube-apiserver"
    uses_port = True
    stop_signal = signal.SIGTERM

    def __init__(
        self, program: Path, *, directory: Path, pki: Path, prefix: str = "/hub", name: str | None = None
    ) -> None:
        """A server that stores below `prefix` in the etcd of `directory`; `pki` is made by `localhub.pki`.

        A second server of the same hub needs a `name` of its own.
        """
        self.name = name or self.name
        self._program = program
        self._directory = directory
        self._pki = pki
        self._prefix = prefix

    def command(self, port: int) -> Command:
        """As `localhub.server.Server`."""
        arguments = (
            str(self._program),
            f"--etcd-servers=unix://{ETCD_SOCKET}",
            f"--etcd-prefix={self._prefix}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            # Without these two it looks for the machine's default route, and has none to find when offline.
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self._pki}/apiserver.crt",
            f"--tls-private-key-file={self._pki}/apiserver.key",
            # Also makes the ConfigMap extension-apiserver-authentication, which aggregated servers insist on.
            f"--client-ca-file={self._pki}/ca.crt",
            f"--service-account-key-file={self._pki}/service-account.pub",
            f"--service-account-signing-key-file={self._pki}/service-account.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            # There is no controller that would make the service account that this plug-in waits for.
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
        )
        return Command(arguments=arguments, directory=self._directory)

    def ready(self, port: int) -> bool:
        """Whether /readyz says so, under a certificate of our own authority."""
        context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def write_kubeconfig(path: Path, *, pki: Path, port: int, user: str = "admin") -> None:
    """Write a kubeconfig, readable by its owner only, that holds everything in itself.

    Args:
        path: the file.
        pki: directory with `ca.crt` and the user's `<user>.crt` and `<user>.key`.
        port: port of the API server on 127.0.0.1.
        user: whose certificate to use.
    """
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": _data(pki / "ca.crt")}
    credentials = {
        "client-certificate-data": _data(pki / f"{user}.crt"),
        "client-key-data": _data(pki / f"{user}.key"),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "hub", "cluster": server}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "hub", "context": {"cluster": "hub", "user": user}}],
        "current-context": "hub",
    }
    write_private(path, yaml.safe_dump(content, sort_keys=False))


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
