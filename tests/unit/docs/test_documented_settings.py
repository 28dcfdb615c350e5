"""docs/configuration.md names every setting, and no other."""

import re
from pathlib import Path

import pytest

from demo.run import DemoSettings
from localhub.settings import LocalHubSettings
from services.admission.main import AdmissionSettings
from services.builder.main import BuilderSettings
from services.dispatcher.main import DispatcherSettings
from services.signer.main import SignerSettings
from services.watcher.main import WatcherSettings

DOCUMENT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
CLASSES = (
    WatcherSettings,
    DispatcherSettings,
    BuilderSettings,
    SignerSettings,
    AdmissionSettings,
    LocalHubSettings,
    DemoSettings,
)
NOT_OURS = {"XDG_STATE_HOME", "XDG_CACHE_HOME", "PATH", "HOME", "KUBECONFIG"}
"""Conventions of others, read as they are everywhere."""


def names(settings: type) -> set[str]:
    fields = settings.model_fields.items()  # type: ignore[attr-defined]
    return {str(field.validation_alias or name).upper() for name, field in fields} - NOT_OURS


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__name__)
def test_every_setting_is_documented(settings: type) -> None:
    assert names(settings)
    assert {name for name in names(settings) if f"`{name}`" not in DOCUMENT} == set()


def test_every_documented_setting_exists() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)`", DOCUMENT, flags=re.MULTILINE))
    assert documented - set().union(*(names(settings) for settings in CLASSES)) - NOT_OURS == set()
