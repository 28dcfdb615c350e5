"""Open Cluster Management's resources: their CRD files from the Go module of OCM's API, and how a hub gets them."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from localhub.files import locked
from localhub.programs import MODULES, pinned_version
from localhub.progress import Progress
from localhub.toolchain import find_go
from shared.domain.errors import TransientError

MODULE = "open-cluster-management.io/api"
# CRD name: its file in the module.
FILES = {
    "managedclusters.cluster.open-cluster-management.io": (
        "cluster/v1/0000_00_clusters.open-cluster-management.io_managedclusters.crd.yaml"
    ),
    "clusterclaims.cluster.open-cluster-management.io": (
        "cluster/v1alpha1/0000_02_clusters.open-cluster-management.io_clusterclaims.crd.yaml"
    ),
    "manifestworks.work.open-cluster-management.io": (
        "work/v1/0000_00_work.open-cluster-management.io_manifestworks.crd.yaml"
    ),
}


def ensure_files(cache: Path, progress: Progress) -> Path:
    """Directory with one `<CRD name>.yaml` for each resource in `FILES`, fetched into the cache unless it is there.

    Raises:
        TransientError: the module could not be fetched.
    """
    target = cache / f"ocm-api-{pinned_version('ocm', MODULE)}"
    if target.is_dir():
        return target
    with locked(cache / "ocm.lock", limit=900, waiting=lambda: progress("programs", "waits for OCM's API")):
        if not target.is_dir():
            progress("programs", "fetching the API of Open Cluster Management, once")
            module = fetch_module(MODULE, cache, progress)
            with tempfile.TemporaryDirectory(dir=cache, prefix="ocm-") as name:
                fresh = Path(name) / "crds"
                fresh.mkdir()
                for crd, path in FILES.items():
                    shutil.copyfile(module / path, fresh / f"{crd}.yaml")
                fresh.rename(target)
            progress("programs", "the API of Open Cluster Management fetched", done=True)
    return target


def fetch_module(module: str, cache: Path, progress: Progress, *, folder: str = "ocm") -> Path:
    """A Go module's directory in Go's own cache, fetched unless it is there; it was checked against go.sum.

    Args:
        module: its path.
        cache: the user's cache, for a toolchain if the machine has none that fits.
        progress: told about fetching a toolchain.
        folder: the wrapper module below `localhub/programs` that pins it.

    Raises:
        TransientError: the module could not be fetched.
    """
    go = find_go(MODULES / folder, cache, progress)
    arguments = (str(go), "mod", "download", "-json", module)
    outcome = subprocess.run(
        arguments, cwd=MODULES / folder, capture_output=True, text=True, timeout=600, check=False
    )
    if outcome.returncode != 0:
        tail = (outcome.stdout + outcome.stderr).strip()[-500:]
        raise TransientError(f"Go could not fetch {module}: {tail}", reason="FetchFailed")
    return Path(json.loads(outcome.stdout)["Dir"])


def apply_crds(kubectl: Path, kubeconfig: Path, files: Path, *, replace: bool) -> tuple[str, ...]:
    """Apply the CRDs and wait until the API server serves them.

    Args:
        kubectl: the program.
        kubeconfig: administrator of the hub.
        files: directory made by `ensure_files`.
        replace: also CRDs that are there. Without it a hub with an OCM of its own keeps its CRDs.

    Returns:
        The names of the CRDs that were applied.

    Raises:
        TransientError: kubectl failed; the message holds what it said.
    """
    present = set() if replace else _present(kubectl, kubeconfig)
    missing = tuple(crd for crd in FILES if crd not in present)
    if missing:
        paths = [part for crd in missing for part in ("-f", str(files / f"{crd}.yaml"))]
        manager = "--field-manager=kmmhub-local-hub"
        _run(kubectl, kubeconfig, "apply", "--server-side", "--force-conflicts", manager, *paths)
        _run(kubectl, kubeconfig, "wait", "--for=condition=Established", "--timeout=60s", "crd", *missing)
    return missing


def _present(kubectl: Path, kubeconfig: Path) -> set[str]:
    names = _run(kubectl, kubeconfig, "get", "crd", *FILES, "--ignore-not-found", "-o", "name").split()
    return {name.partition("/")[2] for name in names}


def _run(kubectl: Path, kubeconfig: Path, *arguments: str) -> str:
    command = (str(kubectl), f"--kubeconfig={kubeconfig}", "--request-timeout=60s", *arguments)
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if outcome.returncode != 0:
        message = f"kubectl {arguments[0]} failed on the hub of {kubeconfig}: {outcome.stderr.strip()}"
        raise TransientError(message, reason="ApplyFailed")
    return outcome.stdout
