from pathlib import Path

import pytest

from services.builder.build_request import BuildRequest, Workspace, build_arguments, push_arguments

WORKSPACE = Workspace(
    private=Path("/b/work/1"),
    secrets=Path("/b/secrets-1"),
    configuration=Path("/b/conf"),
    isolation="chroot",
    cache_age=90,
)


def request(**changes: object) -> BuildRequest:
    values = {"dockerfile": "FROM x", "build_args": {}, "destination": "r.example/mod:1", **changes}
    return BuildRequest(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["6.1.0-56-amd64", "a b", "$(reboot)", "--volume=/:/host", "x\ny", ""])
def test_a_value_stays_one_argument(value: str) -> None:
    arguments = build_arguments(
        request(build_args={"KERNEL_FULL_VERSION": value}, labels={"l": value}), WORKSPACE
    )
    assert f"--build-arg=KERNEL_FULL_VERSION={value}" in arguments
    assert f"--label=l={value}" in arguments
    assert len(arguments) == len(build_arguments(request(), WORKSPACE)) + 2


def test_the_cache_is_used_unless_a_rebuild_was_asked_for() -> None:
    usual, rebuild = (build_arguments(request(use_cache=use), WORKSPACE) for use in (True, False))
    assert "--cache-ttl=90.000s" in usual
    assert "--no-cache" not in usual
    assert {"--no-cache", "--layers=true"} <= set(rebuild)


def test_secrets_are_mounted_read_only_and_leave_no_layers() -> None:
    arguments = build_arguments(request(secrets={"token": {"value": b"canary"}}), WORKSPACE)
    assert "--volume=/b/secrets-1/build/token:/run/secrets/token:ro" in arguments
    assert {"--no-cache", "--layers=false"} <= set(arguments)
    assert not any("canary" in argument for argument in arguments)


def test_tls_is_only_ever_switched_off_and_only_where_asked() -> None:
    base, push = request(verify_base_image_tls=False), request(verify_push_tls=False)
    assert "--tls-verify=false" in build_arguments(base, WORKSPACE)
    assert "--tls-verify=false" not in build_arguments(push, WORKSPACE)
    assert not any(argument.startswith("--tls-verify") for argument in build_arguments(request(), WORKSPACE))


def test_the_push_goes_to_a_registry_and_nowhere_else(tmp_path: Path) -> None:
    workspace = Workspace(
        private=tmp_path, secrets=tmp_path, configuration=tmp_path, isolation="chroot", cache_age=90
    )
    workspace.image_file.write_text("sha256:abc\n")
    arguments = push_arguments(request(verify_push_tls=False), workspace)
    assert arguments[0] == "push"
    assert arguments[-2:] == ["sha256:abc", "docker://r.example/mod:1"]
    assert "--tls-verify=false" in arguments
    assert "--tls-verify=false" not in push_arguments(request(verify_base_image_tls=False), workspace)


def test_secret_values_are_kept_out_of_representations() -> None:
    shown = repr(request(secrets={"token": {"value": b"canary"}}, auth_file=b"canary"))
    assert "canary" not in shown
