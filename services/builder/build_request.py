"""What goes into a build and what comes out, and buildah's arguments for it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.builder.buildah_failure import BuildFailed

SECRETS_FOLDER = "/run/secrets"
"""Where a build finds its secrets, as upstream's build pods mount them (internal/buildsign)."""

MAX_ARGUMENT_BYTES = 128 * 1024
"""What Linux lets one argument of a program take (execve(2), MAX_ARG_STRLEN), its end included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One image to build and push.

    Attributes:
        dockerfile: the text of the Dockerfile.
        build_args: all build arguments, the reserved KERNEL_* and MOD_* included.
        destination: the reference, with a tag, to push to.
        labels: labels of the image.
        secrets: by Secret name its files, which RUN finds at /run/secrets/<name>/<file>.
        auth_file: registry credentials in Docker's config.json format, for base images and the push.
        verify_base_image_tls: False lets base images come over plain HTTP or from an unknown certificate.
        verify_push_tls: the same for the push.
        use_cache: whether layers of earlier builds may be used. False for an explicit rebuild: instructions that
            fetch from the network then run again, here and in every later build. A build with secrets never uses
            the cache, which would ignore that a secret has changed.
        time_limit: seconds for build and push together.
    """

    dockerfile: str
    build_args: Mapping[str, str]
    destination: str
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)
    auth_file: bytes | None = field(default=None, repr=False)
    verify_base_image_tls: bool = True
    verify_push_tls: bool = True
    use_cache: bool = True
    time_limit: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """A pushed image.

    Attributes:
        digest: of its manifest in the registry.
        log_tail: the end of the build's log.
    """

    digest: str
    log_tail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where the files of one build are, and how it runs.

    Attributes:
        private: directory for temporary files.
        secrets: directory that only we may enter.
        configuration: directory of buildah's configuration.
        isolation: buildah's isolation.
        cache_age: layers older than this many seconds are not used: buildah may prefer an older layer to the one
            that an explicit rebuild has made.
    """

    private: Path
    secrets: Path
    configuration: Path
    isolation: str
    cache_age: float

    @property
    def context(self) -> Path:
        """Return the build context, an empty directory."""
        return self.private / "context"

    @property
    def dockerfile(self) -> Path:
        """Return the file that holds the Dockerfile."""
        return self.private / "Dockerfile"

    @property
    def image_file(self) -> Path:
        """Return the file that buildah writes the image's ID to."""
        return self.private / "image"

    @property
    def digest_file(self) -> Path:
        """Return the file that buildah writes the pushed digest to."""
        return self.private / "digest"

    @property
    def auth_file(self) -> Path:
        """Return the file with registry credentials."""
        return self.secrets / "auth.json"


def build_arguments(request: BuildRequest, workspace: Workspace) -> list[str]:
    """Return the arguments that build a request's image, without the program's name.

    `--pull-always` also refuses image IDs in FROM: they would name images of other users in the storage.

    Raises:
        BuildFailed: a build argument is longer than a program's argument may be.
    """
    for name, value in request.build_args.items():
        if len(f"--build-arg={name}={value}".encode()) >= MAX_ARGUMENT_BYTES:
            raise BuildFailed(
                f"build argument {name[:80]!r} has {len(value)} characters; an argument may have "
                f"{MAX_ARGUMENT_BYTES} bytes. Shorten it, or put it into the Dockerfile."
            )
    arguments = ["bud", f"--isolation={workspace.isolation}", "--force-rm", "--pull-always"]
    arguments += ["--retry=1", "--retry-delay=1s", f"--authfile={workspace.auth_file}"]
    arguments += [f"--signature-policy={workspace.configuration / 'pull-policy.json'}"]
    if not request.verify_base_image_tls:
        arguments.append("--tls-verify=false")
    arguments.append(f"--layers={'false' if request.secrets else 'true'}")
    if not request.use_cache or request.secrets:
        arguments.append("--no-cache")
    else:
        arguments.append(f"--cache-ttl={workspace.cache_age:.3f}s")
    arguments += [f"--build-arg={name}={value}" for name, value in request.build_args.items()]
    arguments += [f"--label={name}={value}" for name, value in request.labels.items()]
    arguments += [
        f"--volume={workspace.secrets / 'build' / name}:{SECRETS_FOLDER}/{name}:ro"
        for name in request.secrets
    ]
    arguments += [
        f"--iidfile={workspace.image_file}",
        f"--file={workspace.dockerfile}",
        str(workspace.context),
    ]
    return arguments


def push_arguments(request: BuildRequest, workspace: Workspace) -> list[str]:
    """Return the arguments that push the image that was built, without the program's name."""
    arguments = ["push", "--retry=1", "--retry-delay=1s", f"--authfile={workspace.auth_file}"]
    arguments += [f"--signature-policy={workspace.configuration / 'push-policy.json'}"]
    if not request.verify_push_tls:  # "true" would overrule what registries.conf says of loopback
        arguments.append("--tls-verify=false")
    arguments.append(f"--digestfile={workspace.digest_file}")
    return [*arguments, workspace.image_file.read_text().strip(), f"docker://{request.destination}"]
