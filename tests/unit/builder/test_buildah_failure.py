"""Each case's text is what buildah 1.28 printed in that situation."""

import pytest

from services.builder.buildah_failure import (
    BuildFailed,
    BuildInterrupted,
    RegistryRefused,
    RegistryUnavailable,
    Step,
    explain,
)
from shared.domain.errors import HubError, PermanentError

PULL = "Error: creating build container: initializing source docker://r.example:5000/x:1: "
PUSH = "Error: trying to reuse blob sha256:62746f74 at destination: "
DESTINATION = "r.example:5000/mod:1"


def explained(
    log: str, *, step: Step = Step.BUILD, exit_code: int = 125, instruction: str = "FROM x"
) -> HubError:
    return explain(
        step=step, exit_code=exit_code, log_tail=log, instruction=instruction, destination=DESTINATION
    )


@pytest.mark.parametrize(
    "words",
    [
        (
            'pinging container registry r.example:5000: Get "http://r.example:5000/v2/": dial tcp 192.0.2.1:5000: '
            "connect: connection refused"
        ),
        'pinging container registry r.example: Get "https://r.example/v2/": dial tcp 192.0.2.1:443: i/o timeout',
        "reading manifest 1 in r.example:5000/x: received unexpected HTTP status: 500 Internal Server Error",
        "reading manifest 1 in r.example:5000/x: received unexpected HTTP status: 503 Service Unavailable",
        "reading manifest 1 in r.example:5000/x: StatusCode: 429, ",
        (
            'pinging container registry r.example: Get "https://r.example/v2/": dial tcp: lookup r.example on '
            "192.0.2.53:53: server misbehaving"
        ),
        "writing blob: storing blob to file: write /var/tmp/x: no space left on device",
    ],
)
def test_trouble_that_passes_may_be_retried(words: str) -> None:
    error = explained(f"STEP 1/2: FROM x\n{PULL}{words}")
    assert isinstance(error, RegistryUnavailable)
    assert words in str(error)
    assert error.log_tail.endswith(words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("reading manifest 1 in r.example:5000/x: manifest unknown: manifest unknown", "ImageMissing"),
        ("reading manifest 1 in r.example:5000/x: name unknown: repository name not known", "ImageMissing"),
        ("reading manifest 1 in r.example:5000/x: unauthorized: authentication required", "RegistryDenied"),
        ("reading manifest 1 in r.example:5000/x: StatusCode: 403, ", "RegistryDenied"),
        ("reading manifest 1 in r.example/x: denied: requested access is denied", "RegistryDenied"),
        ("http: server gave HTTP response to HTTPS client", "RegistryUntrusted"),
        ("x509: certificate signed by unknown authority", "RegistryUntrusted"),
        ("dial tcp: lookup nohost.invalid on 192.0.2.53:53: no such host", "RegistryUnknown"),
    ],
)
def test_a_registrys_refusal_is_named_and_tried_again(words: str, reason: str) -> None:
    error = explained(PULL + words)
    assert isinstance(error, RegistryRefused)
    assert error.reason == reason


def test_a_failing_command_is_the_dockerfiles_fault_whatever_it_prints() -> None:
    log = 'STEP 2/2: RUN fetch\nError: dial tcp: connection refused\nError: building at STEP "RUN fetch": exit status 3'
    error = explained(log, exit_code=3, instruction="RUN fetch")
    assert type(error) is BuildFailed
    assert error.reason == "BuildFailed"
    assert "instruction 'RUN fetch'" in str(error)
    assert "exit status 3" in str(error)


def test_a_download_by_buildah_itself_may_be_retried() -> None:
    words = 'Error: building at STEP "ADD http://a.example/x /x": reading "http://a.example/x": dial tcp: i/o timeout'
    assert isinstance(explained(words, instruction="ADD http://a.example/x /x"), RegistryUnavailable)


def test_what_is_no_dockerfile_says_so() -> None:
    error = explained("Error: no FROM statement found", instruction="")
    assert isinstance(error, PermanentError)
    assert str(error).startswith("the Dockerfile is not valid")


def test_a_push_names_its_destination() -> None:
    refused = explained(
        f"{PUSH}pinging container registry: connect: connection refused",
        step=Step.PUSH,
        instruction="RUN true",
    )
    assert isinstance(refused, RegistryUnavailable)
    assert f"pushing {DESTINATION}" in str(refused)
    denied = explained(f"{PUSH}unauthorized: authentication required", step=Step.PUSH, instruction="RUN true")
    assert denied.reason == "RegistryDenied"
    other = explained("Error: something else", step=Step.PUSH, instruction="RUN true")
    assert str(other).startswith(f"pushing {DESTINATION} failed")
    assert isinstance(other, RegistryRefused), "an image that is built is not given up because of a registry"
    assert other.reason == "PushFailed"


def test_a_push_of_an_instruction_that_looks_like_run_is_still_judged_as_a_push() -> None:
    log = 'Error: building at STEP "RUN x": connection refused'
    assert isinstance(explained(log, step=Step.PUSH), RegistryUnavailable)


def test_a_killed_buildah_may_be_retried() -> None:
    error = explained("STEP 2/2: RUN make", exit_code=-9)
    assert isinstance(error, BuildInterrupted)
    assert "signal 9" in str(error)


def test_the_message_repeats_only_the_last_lines() -> None:
    log = "\n".join(f"line {number}" for number in range(100))
    message = str(explained(log))
    assert "line 99" in message
    assert "line 87" not in message
