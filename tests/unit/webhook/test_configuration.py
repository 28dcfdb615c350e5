"""The ValidatingWebhookConfiguration that is printed."""

import base64
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kmmhub.main import app
from localhub.pki import ensure_authority
from services.admission.configuration import configuration_text, webhook_configuration
from shared.domain.errors import PermanentError

PATH = "/validate-hub-kmm-sigs-x-k8s-io-v1beta1-managedclustermodule"


@pytest.mark.parametrize(
    ("target", "client"),
    [
        ("https://127.0.0.1:9443", {"url": f"https://127.0.0.1:9443{PATH}"}),
        ("https://hub.example/", {"url": f"https://hub.example{PATH}"}),
        (
            "kmm-operator-system/admission",
            {
                "service": {
                    "namespace": "kmm-operator-system",
                    "name": "admission",
                    "path": PATH,
                    "port": 443,
                }
            },
        ),
    ],
)
def test_where_reviews_go(target: str, client: dict[str, object]) -> None:
    [webhook] = webhook_configuration(target, b"pem")["webhooks"]

    assert webhook["clientConfig"] == client | {"caBundle": base64.b64encode(b"pem").decode()}
    assert (webhook["failurePolicy"], webhook["sideEffects"]) == ("Fail", "None")
    assert webhook["rules"][0]["operations"] == ["CREATE", "UPDATE"]


@pytest.mark.parametrize("target", ["", "admission", "http://127.0.0.1:1", "a/b/c", "/b", "a/", "host:443"])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(PermanentError, match="names no webhook"):
        webhook_configuration(target, b"pem")


def test_the_command_prints_yaml(tmp_path: Path) -> None:
    ensure_authority(tmp_path / "pki")
    authority = tmp_path / "pki" / "ca.crt"

    printed = CliRunner().invoke(
        app, ["admission", "--print-configuration", "https://127.0.0.1:1", "--ca-file", str(authority)]
    )

    assert printed.exit_code == 0, printed.output
    assert yaml.safe_load(printed.output) == webhook_configuration(
        "https://127.0.0.1:1", authority.read_bytes()
    )


def test_an_authority_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="--ca-file is missing"):
        configuration_text("a/b", None)
    with pytest.raises(PermanentError, match="cannot be read"):
        configuration_text("a/b", tmp_path / "gone")
    (tmp_path / "text").write_text("none")
    with pytest.raises(PermanentError, match="no certificate in PEM"):
        configuration_text("a/b", tmp_path / "text")
