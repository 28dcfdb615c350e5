"""kubectl on the hub of a test run, and the project's CRDs on it."""

import json
import subprocess
from pathlib import Path
from typing import Any, Protocol

from kmmhub.crds import CRD_DIRECTORY

TIMEOUT_SECONDS = 60
CRD_NAMES = ("managedclustermodules.hub.kmm.sigs.x-k8s.io", "modules.kmm.sigs.x-k8s.io")


class Hub(Protocol):
    """The part of the local hub that is used here."""

    kubeconfig: Path
    kubectl: Path


class Kubectl:
    """Calls kubectl on the hub."""

    def __init__(self, hub: Hub) -> None:
        self._command = [str(hub.kubectl), f"--kubeconfig={hub.kubeconfig}"]

    def run(self, *arguments: str, given: Any = None) -> subprocess.CompletedProcess[str]:
        """Run to the end; the caller judges the outcome."""
        return subprocess.run(
            [*self._command, *arguments],
            input=None if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def read(self, *arguments: str, given: Any = None) -> dict[str, Any]:
        """Run a command that must succeed and prints JSON."""
        done = self.run(*arguments, "--output=json", given=given)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def dry_run(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """What the API server would store, after defaults; fails if it refuses."""
        return self.read("create", "--dry-run=server", "--validate=false", "--filename=-", given=manifest)

    def refusal(self, manifest: dict[str, Any]) -> str:
        """Why the API server refuses the object; fails if it does not."""
        done = self.run("create", "--dry-run=server", "--validate=false", "--filename=-", given=manifest)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def apply_crds(self) -> None:
        """Bring the project's CRDs to the hub."""
        applied = self.run("apply", "--server-side", "--force-conflicts", f"--filename={CRD_DIRECTORY}")
        assert applied.returncode == 0, applied.stderr
        for name in CRD_NAMES:
            waited = self.run("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}")
            assert waited.returncode == 0, waited.stderr
