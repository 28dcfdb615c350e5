"""The validating webhook under a real API server: refusals, warnings, rotation, and what happens while it is down."""

import http.client
import json
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import yaml
from admission_cases import MAPPING, mounting, of
from admission_edges import LEFT_TO_THE_WEBHOOK
from crd_samples import SMALL_SPEC, managed_cluster_module
from kubectl import Hub, Kubectl
from running_services import Service
from typer.testing import CliRunner

from kmmhub.main import app
from localhub.pki import ensure_authority
from services.admission.configuration import NAME
from shared.domain.admission import validate

pytestmark = pytest.mark.integration

SECONDS = 60
T = TypeVar("T")


class Webhook:
    """The webhook's process, and the configuration that makes the API server ask it."""

    def __init__(self, directory: Path, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self.tls = directory / "tls"
        self.tls.mkdir()
        self._authorities = [directory / "pki", directory / "another"]
        for authority in self._authorities:
            ensure_authority(authority)
        self.rotate(0)
        (directory / "ca.crt").write_text("".join((one / "ca.crt").read_text() for one in self._authorities))
        self.ca = directory / "ca.crt"
        environment = {
            "PATH": "/usr/bin:/bin",
            "KMMHUB_ADMISSION_TLS_DIR": str(self.tls),
            "KMMHUB_ADMISSION_BIND": "127.0.0.1:0",
        }
        # Neither NATS_URL nor DATABASE_URL nor KUBECONFIG: the webhook needs none of them.
        self.service = Service("admission", environment=environment, log=directory / "admission.log")
        self.service.start()
        self.url = str(eventually(lambda: self.logged("admission.listening"))["url"])

    def logged(self, event: str) -> dict[str, Any] | None:
        """The last line of its log about an event."""
        return next((line for line in reversed(self.service.events()) if line["event"] == event), None)

    def rotate(self, number: int) -> str:
        """Put the certificate of another authority in place, as PEM."""
        for ours, theirs in (("tls.crt", "apiserver.crt"), ("tls.key", "apiserver.key")):
            shutil.copy(self._authorities[number] / theirs, self.tls / ours)
        return (self.tls / "tls.crt").read_text()

    def served(self) -> str:
        """The certificate that it shows, as PEM."""
        address = urlsplit(self.url)
        return ssl.get_server_certificate((str(address.hostname), int(address.port or 0)), timeout=10)

    def configuration(self) -> dict[str, Any]:
        """What the command prints for it."""
        origin = self.url.partition("/validate")[0]
        printed = CliRunner().invoke(
            app, ["admission", "--print-configuration", origin, "--ca-file", str(self.ca)]
        )
        assert printed.exit_code == 0, printed.output
        manifest: dict[str, Any] = yaml.safe_load(printed.output)
        return manifest

    def health(self, path: str) -> int:
        """The status of its health endpoint."""
        started = self.logged("service.started")
        assert started
        try:
            with urllib.request.urlopen(f"{started['health']}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def eventually(look: Callable[[], T | None]) -> T:
    """What `look` returns as soon as that is true."""
    until = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def kubectl(hub: Hub) -> Kubectl:
    """A hub that has the CRDs of the project."""
    command = Kubectl(hub)
    command.apply_crds()
    return command


@pytest.fixture(scope="module")
def webhook(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """The webhook, running and asked by the API server; before that, a module that it would refuse is stored."""
    webhook = Webhook(tmp_path_factory.mktemp("admission"), kubectl)
    try:
        kubectl.read("create", "--filename=-", given=OLD)
        kubectl.read("apply", "--server-side", "--filename=-", given=webhook.configuration())
        eventually(lambda: kubectl.run(*TRY, given=WRONG).returncode != 0)
        yield webhook
    finally:
        kubectl.run("delete", "validatingwebhookconfiguration", NAME, "--ignore-not-found")
        if webhook.service.is_running:
            webhook.service.kill()
        # Other tests write modules to this API server: it must have forgotten the webhook.
        eventually(lambda: kubectl.run(*TRY, given=WRONG).returncode == 0)
        kubectl.run("delete", "mcm", OLD["metadata"]["name"], "--wait=false", "--ignore-not-found")


TRY = ("create", "--dry-run=server", "--filename=-")
WRONG = LEFT_TO_THE_WEBHOOK["a way up that leaves /dev"]
OLD = mounting("devicePlugin", "/dev/../root")
GOOD = managed_cluster_module(SMALL_SPEC)


@pytest.mark.parametrize("title", LEFT_TO_THE_WEBHOOK)
def test_what_the_crd_cannot_refuse_is_refused_with_our_text(
    webhook: Webhook, kubectl: Kubectl, title: str
) -> None:
    [violation] = validate(LEFT_TO_THE_WEBHOOK[title])

    done = kubectl.run(*TRY, given=LEFT_TO_THE_WEBHOOK[title])

    assert done.returncode != 0
    assert f"is invalid: {violation.path}: {violation.message}" in done.stderr


def test_a_good_module_is_accepted_and_a_useless_part_is_a_warning(
    webhook: Webhook, kubectl: Kubectl
) -> None:
    good = kubectl.run(*TRY, given=GOOD)
    useless = kubectl.run(
        *TRY, given=of(f"{MAPPING}", {"literal": "6.1.0+", "containerImage": "r.example/simple:1"})
    )

    assert (good.returncode, good.stderr) == (0, "")
    assert useless.returncode == 0, useless.stderr
    assert "Warning: spec.moduleSpec.moduleLoader.container.kernelMappings[0].literal" in useless.stderr


def test_an_old_wrong_module_keeps_its_labels_and_cannot_get_worse(
    webhook: Webhook, kubectl: Kubectl
) -> None:
    name = OLD["metadata"]["name"]

    labelled = kubectl.run("label", "mcm", name, "a=b")
    assert labelled.returncode == 0, labelled.stderr
    plugin = {"devicePlugin": WRONG["spec"]["moduleSpec"]["devicePlugin"]}
    worse = kubectl.run(*patch(name, {"spec": {"moduleSpec": plugin}}))
    better = kubectl.run(*patch(name, {"spec": {"moduleSpec": {"devicePlugin": None}}}))

    assert "'/dev/../etc' is not allowed" in worse.stderr
    assert better.returncode == 0, better.stderr


def test_an_update_of_the_version_is_refused(webhook: Webhook) -> None:
    """Asked directly: the API server's own rule comes before the webhook."""
    answer = ask(webhook, json.dumps(review_of_update()).encode())

    assert answer["response"]["allowed"] is False
    assert "version" in answer["response"]["status"]["message"]


def patch(name: str, change: dict[str, Any]) -> tuple[str, ...]:
    return ("patch", "mcm", name, "--type=merge", f"--patch={json.dumps(change)}", "--dry-run=server")


def ask(webhook: Webhook, body: bytes) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=str(webhook.ca))
    request = urllib.request.Request(webhook.url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def review_of_update() -> dict[str, Any]:
    resource = {"group": "hub.kmm.sigs.x-k8s.io", "version": "v1beta1", "resource": "managedclustermodules"}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "resource": resource,
            "operation": "UPDATE",
            "object": of("moduleLoader.container.version", "1"),
            "oldObject": GOOD,
        },
    }


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(webhook: Webhook) -> None:
    address = urlsplit(webhook.url)
    context = ssl.create_default_context(cafile=str(webhook.ca))
    connection = http.client.HTTPSConnection(str(address.netloc), timeout=10, context=context)
    connection.putrequest("POST", address.path)
    connection.putheader("Content-Length", str(8 * 1024 * 1024 + 1))
    connection.endheaders()

    assert connection.getresponse().status == 413
    connection.close()


def test_health_and_metrics(webhook: Webhook) -> None:
    assert (webhook.health("/healthz"), webhook.health("/readyz")) == (200, 200)
    metrics = webhook.service.metrics()
    assert metrics['kmmhub_admission_reviews_total{operation="CREATE",result="refused"}'] >= 1


def test_a_renewed_certificate_is_served_without_a_restart(webhook: Webhook, kubectl: Kubectl) -> None:
    before = webhook.served()
    process = webhook.service.pid

    renewed = webhook.rotate(1)
    eventually(lambda: webhook.served() == renewed)

    assert renewed != before
    assert webhook.service.pid == process
    assert "'/dev/../etc' is not allowed" in kubectl.run(*TRY, given=WRONG).stderr
    # Half of a pair is no certificate: the one from before stays in use.
    (webhook.tls / "tls.key").write_text("broken")
    eventually(lambda: webhook.logged("certificate.not_read"))
    assert webhook.served() == renewed
    assert webhook.health("/readyz") == 200


def test_the_webhook_ends_cleanly_and_while_it_is_away_only_changes_of_specs_wait(
    webhook: Webhook, kubectl: Kubectl
) -> None:
    """Runs last: the webhook is gone afterwards."""
    name = OLD["metadata"]["name"]

    assert webhook.service.end() == 0
    assert [line for line in webhook.service.events() if line.get("level") == "error"] == []

    refused = kubectl.run(*TRY, given=GOOD)
    assert f'failed calling webhook "{NAME}"' in refused.stderr
    labelled = kubectl.run("label", "mcm", name, "a=c", "--overwrite")
    assert labelled.returncode == 0, labelled.stderr
    status = kubectl.run(*patch(name, {"status": {"numberDesired": 1}}), "--subresource=status")
    assert status.returncode == 0, status.stderr
    assert kubectl.run("delete", "mcm", name).returncode == 0

    ignoring = webhook.configuration()
    ignoring["webhooks"][0]["failurePolicy"] = "Ignore"
    kubectl.read("apply", "--server-side", "--filename=-", given=ignoring)
    eventually(lambda: kubectl.run(*TRY, given=GOOD).returncode == 0)


def test_without_a_certificate_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "KMMHUB_ADMISSION_TLS_DIR": str(tmp_path)}
    service = Service("admission", environment=environment, log=tmp_path / "admission.log")
    service.start()

    failed = eventually(
        lambda: next((line for line in service.events() if line["event"] == "service.failed"), None)
    )

    assert failed["reason"] == "NoCertificate"
    assert "Put a certificate" in failed["error"]
    eventually(lambda: not service.is_running)
