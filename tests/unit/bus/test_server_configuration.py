"""The configuration that is deployed is the one that the permissions say."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kmmhub.main import app
from shared.bus.permissions import ANNOUNCED, Identity, announced_prefixes, permissions
from shared.bus.server_configuration import Password, PublicKey, authorization

DEPLOYED = Path(__file__).parents[3] / "deploy" / "nats"


@pytest.mark.parametrize("proof", ["password", "nkey"])
def test_the_deployed_file_is_current(proof: str) -> None:
    printed = CliRunner().invoke(app, ["streams", "--print-users", proof])
    assert printed.exit_code == 0
    assert (DEPLOYED / f"users-{proof}.conf").read_text() == printed.stdout, (
        f"kmmhub streams --print-users {proof} > deploy/nats/users-{proof}.conf"
    )


def test_another_proof_is_refused() -> None:
    assert CliRunner().invoke(app, ["streams", "--print-users", "token"]).exit_code == 2


def test_each_user_has_its_proof_and_its_permissions() -> None:
    users = authorization({Identity.SIGNER: Password(password="p"), Identity.BUILDER: PublicKey(nkey="U")})[
        "users"
    ]
    assert [(user.get("user"), user.get("password"), user.get("nkey")) for user in users] == [
        ("signer", "p", None),
        (None, None, "U"),
    ]
    assert users[0]["permissions"]["subscribe"] == {"allow": ["_INBOX_signer.>"]}


@pytest.mark.parametrize("identity", Identity)
def test_nobody_may_remove_or_read_anything_or_publish_everything(identity: Identity) -> None:
    allowed = permissions(identity)
    removing = [
        one
        for one in allowed.publish
        if any(word in one for word in ("DELETE", "PURGE", "MSG.GET", "MSG.DEL"))
    ]
    # It was no work queue in older releases, and cannot become one.
    assert removing == (["$JS.API.STREAM.DELETE.KMM_CHANGES"] if identity is Identity.STREAMS else [])
    assert not {">", "*", "$JS.>", "$JS.API.>"} & {*allowed.publish, *allowed.subscribe}
    assert all(prefix.endswith(".") for prefix in announced_prefixes(identity))
    assert set(ANNOUNCED[identity]) <= set(allowed.publish)


def test_only_one_makes_streams() -> None:
    makers = [one for one in Identity if any(".CREATE." in subject for subject in permissions(one).publish)]
    assert makers == [Identity.STREAMS]
