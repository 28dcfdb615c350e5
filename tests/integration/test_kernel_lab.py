"""The kernel as the judge: a real kernel boots and decides which modules it takes."""

from datetime import UTC, datetime

import pytest
from kernel_lab import Lab

from demo.boot import BootFailed, Verdict, boot
from demo.signing_key import SigningKey, new_signing_key
from services.builder.buildah import Buildah
from services.signer.module_signature import load_certificate, load_private_key, sign_module

pytest_plugins = ["kernel_lab_fixtures"]
pytestmark = pytest.mark.integration

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def signed(module: bytes, key: SigningKey) -> bytes:
    return sign_module(module, load_private_key(key.key), load_certificate(key.certificate))


async def built_module(lab: Lab, builder: Buildah, flavour: str) -> bytes:
    kernel = lab.kernel(flavour)
    files = await lab.files("kmm-hello", await builder.build(lab.module_request(kernel)))
    return files[f"opt/lib/modules/{kernel.version}/kmm_hello.ko"]


async def test_a_real_kernel_takes_our_module_and_no_other(lab: Lab, builder: Buildah) -> None:
    ours, foreign = new_signing_key("Fleet modules", now=NOW), new_signing_key("Somebody", now=NOW)
    module = await built_module(lab, builder, "cloud-amd64")
    tampered = signed(module, ours).replace(b"kmm_hello %s: %s from", b"kmm_hacks %s: %s from", 1)
    report = await boot(
        lab.kernel("cloud-amd64"),
        {
            "unsigned": module,
            "foreign": signed(module, foreign),
            "tampered": tampered,
            "other kernel": signed(await built_module(lab, builder, "+"), ours),
            "ours": signed(module, ours),
        },
        trusted_certificate=ours.certificate,
    )
    assert report.release == lab.kernel("cloud-amd64").version
    assert any("Fleet modules" in line for line in report.certificates)
    assert {attempt.name: attempt.verdict for attempt in report.attempts} == {
        "unsigned": Verdict.REFUSED,
        "foreign": Verdict.REFUSED,
        "tampered": Verdict.REFUSED,
        "other kernel": Verdict.FAILED,
        "ours": Verdict.LOADED,
    }
    unsigned, foreign_attempt, *_, ours_attempt = report.attempts
    assert any("unsigned module is rejected" in line for line in unsigned.kernel_messages)
    assert "Key was rejected by service" in foreign_attempt.message
    greeting = f"kmm_hello 4.2: hello from {report.release}"
    assert any(line.endswith(greeting) for line in ours_attempt.kernel_messages)


async def test_a_machine_that_takes_too_long_is_stopped(lab: Lab) -> None:
    certificate = new_signing_key("Fleet modules", now=NOW).certificate
    with pytest.raises(BootFailed, match="was stopped after 1 s"):
        await boot(lab.kernel("cloud-amd64"), {}, trusted_certificate=certificate, time_limit=1.0)
