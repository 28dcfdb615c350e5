import pytest

from demo.boot import Attempt, BootFailed, Verdict, read_console

CONSOLE = """\
BdsDxe: loading Boot0002
[    1.0] Linux version 6.1.0
@release 6.1.0-10-amd64
@certificate [    1.5] integrity: Loaded X.509 cert 'Fleet: 76'
@failed 0000 insmod: can't insert '/modules/0000.ko': Key was rejected by service
@kernel 0000 [    2.0] Loading of unsigned module is rejected
@failed 0001 insmod: can't insert '/modules/0001.ko': invalid module format
@loaded 0002 \n@kernel 0002 [    2.1] hello: loading out-of-tree module taints kernel.
@kernel 0002 [    2.2] hello
@end
"""


def test_each_module_gets_the_kernels_verdict() -> None:
    report = read_console(CONSOLE, names=("unsigned", "other kernel", "ours"), seconds=6.0)
    assert report.release == "6.1.0-10-amd64"
    assert report.certificates == ("[    1.5] integrity: Loaded X.509 cert 'Fleet: 76'",)
    assert [attempt.verdict for attempt in report.attempts] == [
        Verdict.REFUSED,
        Verdict.FAILED,
        Verdict.LOADED,
    ]
    assert report.attempts[0].message.endswith("Key was rejected by service")
    assert report.attempts[2] == Attempt(
        name="ours",
        verdict=Verdict.LOADED,
        message="",
        kernel_messages=("[    2.1] hello: loading out-of-tree module taints kernel.", "[    2.2] hello"),
    )


def test_a_machine_that_stopped_early_is_no_verdict() -> None:
    with pytest.raises(BootFailed, match="Loading of unsigned"):
        read_console(CONSOLE.split("@kernel 0002")[0], names=("unsigned", "other", "ours"), seconds=1.0)
