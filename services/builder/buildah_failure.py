"""What a failed buildah run means: whose fault it is, and whether a retry can help. Pure."""

from enum import StrEnum

from shared.domain.errors import HubError, PermanentError, TransientError

SHOWN_LINES = 5
"""How many of the log's last lines an error message repeats."""

UNAVAILABLE = (
    "connection refused",
    "connection reset",
    "broken pipe",
    "no route to host",
    "network is unreachable",
    "i/o timeout",
    "TLS handshake timeout",
    "Client.Timeout",
    "context deadline exceeded",
    "unexpected EOF",
    ": EOF",
    "invalid status code from registry",
    "server misbehaving",
    "Temporary failure in name resolution",
    "HTTP status: 5",
    "StatusCode: 5",
    "StatusCode: 429",
    "HTTP status: 429",
    "toomanyrequests",
    "no space left on device",
)
"""Trouble that passes, in the words of Go's net package, containers/image and the distribution spec."""

DENIED = ("unauthorized", "authentication required", "denied", "StatusCode: 403", "HTTP status: 403")
MISSING = (
    "manifest unknown",
    "name unknown",
    "repository name not known",
    "StatusCode: 404",
    "HTTP status: 404",
)
UNTRUSTED = ("x509:", "tls: ", "HTTP response to HTTPS client")


class Step(StrEnum):
    """What buildah was doing."""

    BUILD = "build"
    PUSH = "push"


class BuildFailed(PermanentError):
    """The image cannot be built until the user changes something.

    Attributes:
        log_tail: the end of the build's log.
    """

    reason = "BuildFailed"

    def __init__(self, message: str, *, reason: str | None = None, log_tail: str = "") -> None:
        super().__init__(message, reason=reason)
        self.log_tail = log_tail


class BuildTimedOut(BuildFailed):
    """The build took longer than allowed and was killed."""

    reason = "BuildTimedOut"


class BuildahMissing(PermanentError):
    """The builder's machine or image lacks buildah."""

    reason = "BuildahMissing"


class RegistryUnavailable(TransientError):
    """A registry did not answer, or the builder's disk is full: the same build may succeed later.

    Attributes:
        log_tail: the end of the build's log.
    """

    reason = "RegistryUnavailable"

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class RegistryRefused(TransientError):
    """A registry was reached, or named, in vain. What a person puts right there is found by the next try.

    Attributes:
        log_tail: the end of the build's log.
        reason: `ImageMissing`, `RegistryDenied`, `RegistryUntrusted`, `RegistryUnknown` or `PushFailed`.
    """

    def __init__(self, message: str, *, reason: str, log_tail: str = "") -> None:
        super().__init__(message, reason=reason)
        self.log_tail = log_tail


class BuildInterrupted(TransientError):
    """Something outside, such as the kernel's memory killer, ended buildah.

    Attributes:
        log_tail: the end of the build's log.
    """

    reason = "BuildInterrupted"

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


def explain(*, step: Step, exit_code: int, log_tail: str, instruction: str, destination: str) -> HubError:
    """Return the error that a failed run of buildah stands for.

    Only buildah's own last words are judged: what the instructions of a Dockerfile print is the user's text.

    Args:
        step: what buildah was doing.
        exit_code: what it ended with; negative for a signal, as in `subprocess`.
        log_tail: the end of its output, ending with its error.
        instruction: the Dockerfile's instruction that ran last; empty if none did.
        destination: the image to be pushed.

    """
    words = _last_words(log_tail)
    where = f"pushing {destination}" if step is Step.PUSH else f"instruction {instruction!r}"
    if exit_code < 0:
        return BuildInterrupted(f"{where}: buildah was ended by signal {-exit_code}.", log_tail=log_tail)
    in_run = step is Step.BUILD and words.startswith('building at STEP "RUN')
    if not in_run and _holds(words, UNAVAILABLE):
        return RegistryUnavailable(f"{where}: the registry or network failed: {words}", log_tail=log_tail)
    if not in_run and words:
        for reason, patterns, advice in _REGISTRY_ANSWERS:
            if _holds(words, patterns):
                return RegistryRefused(f"{where}: {advice} ({words})", reason=reason, log_tail=log_tail)
    shown = "\n".join(log_tail.splitlines()[-SHOWN_LINES:])
    if step is Step.PUSH:
        # The image is good: no other Dockerfile would help, and what the registry has against it may pass.
        message = f"{where} failed. The log ends:\n{shown}"
        return RegistryRefused(message, reason="PushFailed", log_tail=log_tail)
    what = f"the Dockerfile failed at {where}" if instruction else "the Dockerfile is not valid"
    return BuildFailed(f"{what}. The log ends:\n{shown}", log_tail=log_tail)


_REGISTRY_ANSWERS = (
    ("ImageMissing", MISSING, "the registry does not have this image; check its name and tag"),
    ("RegistryDenied", DENIED, "the registry denied access; check imageRepoSecret and the account's rights"),
    (
        "RegistryUntrusted",
        UNTRUSTED,
        "the registry's TLS is not trusted; see registryTLS and baseImageRegistryTLS",
    ),
    ("RegistryUnknown", ("no such host",), "the registry's host name does not exist"),
)


def _last_words(log_tail: str) -> str:
    """Return buildah's own error, the last line that it marks as one; empty if there is none."""
    marked = (line for line in reversed(log_tail.splitlines()) if line.startswith("Error: "))
    return next(marked, "").removeprefix("Error: ")


def _holds(text: str, patterns: tuple[str, ...]) -> bool:
    return any(pattern in text for pattern in patterns)
