"""Debian's docker-registry, started by a test that needs settings of its own."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRegistry:
    """A running registry: `host:port`, and the directory of its blobs."""

    address: str
    storage: Path


@contextmanager
def run_registry(
    directory: Path, *, auth: dict | None = None, tls: dict | None = None
) -> Iterator[OwnRegistry]:
    """A registry on a free loopback port; `auth` and `http.tls` are sections of its configuration."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = directory / "storage"
    config = directory / "registry.yaml"
    document = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}},
        "http": {"addr": address, "secret": "of-the-test", **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
    }
    config.write_text(yaml.safe_dump(document))
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait_until_up(address, process)
            yield OwnRegistry(address=address, storage=storage)
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait_until_up(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # 401 of a registry with auth, 400 of one with TLS
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"docker-registry at {address} did not start")
