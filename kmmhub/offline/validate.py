"""`kmmhub validate`: would the hub accept these modules, and the change from what they were?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from kmmhub.offline.documents import (
    STANDARD_INPUT,
    Document,
    UnusableInput,
    modules_in,
    read_documents,
    skipped,
)
from kmmhub.offline.output import NOT_ALLOWED, UNUSABLE, Format, formatted, note, printable
from kmmhub.offline.structure import check_structure
from shared.domain import admission
from shared.domain.admission import Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said about one module.

    Attributes:
        module: its name.
        errors: why it is refused; none if it is allowed.
        warnings: what is allowed, but will not work or be dropped.
    """

    module: str
    errors: tuple[Violation, ...]
    warnings: tuple[Violation, ...]


def validate(
    file: Annotated[
        str,
        typer.Option("-f", "--filename", metavar="FILE", help="ManagedClusterModules; - is standard input."),
    ],
    old: Annotated[
        str | None, typer.Option("--old", metavar="FILE", help="The same modules as they are on the hub.")
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="What to print.")] = Format.TEXT,
) -> None:
    """Check modules without a server. Status 0: allowed; 1: not allowed; 2: the files cannot be used."""
    try:
        documents = read_documents([file])
        modules = modules_in(documents, file)
        before = None if old is None else _old_modules(old, file)
    except UnusableInput as error:
        note([f"kmmhub validate: {error}"])
        raise typer.Exit(UNUSABLE) from error
    note(skipped(documents, modules))
    verdicts = [judge(module, (before or {}).get(module.name)) for module in modules]
    if before is not None and not before.keys() & {module.name for module in modules}:
        verdicts = [_renamed(verdict, before) for verdict in verdicts]
    note(f"{one.module}: warning: {_line(warning)}" for one in verdicts for warning in one.warnings)
    if output is Format.TEXT:
        for verdict in verdicts:
            print("\n".join(printable(line) for line in _lines(verdict)))
    else:
        print(formatted(to_json(verdicts), output), end="")
    if any(verdict.errors for verdict in verdicts):
        raise typer.Exit(NOT_ALLOWED)


def _old_modules(old: str, file: str) -> Mapping[str, Document]:
    if old == file == STANDARD_INPUT:
        raise UnusableInput("-f and --old are both standard input (-), which can be read once; name a file")
    return {module.name: module for module in modules_in(read_documents([old]), old)}


def judge(new: Document, old: Document | None) -> Verdict:
    """What the API server and the admission rules say about a module, and about the change from the old one.

    As on a server, the rules are asked only once the structure is right.
    """
    structure = check_structure(new.content)
    errors = structure.violations
    warnings = tuple(
        Violation(
            path, "UnknownField", "the API server drops this unknown field; take it out, or correct its name"
        )
        for path in structure.unknown
    )
    if not errors:
        errors = admission.validate(structure.content)
        if old is not None:
            changed = admission.validate_update(structure.content, check_structure(old.content).content)
            errors += tuple(violation for violation in changed if violation not in errors)
        warnings += admission.warnings(structure.content)
    warnings = tuple(
        one for one in warnings if (one.path, one.reason) not in {(e.path, e.reason) for e in errors}
    )
    return Verdict(module=new.name or new.where, errors=errors, warnings=warnings)


def _renamed(verdict: Verdict, before: Iterable[str]) -> Verdict:
    """The verdict on a module where none of the old ones has its name: whoever compares files means a change."""
    was = ", ".join(sorted(before))
    renamed = Violation(
        "metadata.name",
        "FieldValueInvalid",
        f"the two files name different modules: --old has {was[:200]}; a name cannot be changed: keep it, or delete "
        "that module and create this one",
    )
    return replace(verdict, errors=(renamed, *verdict.errors))


def to_json(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The answer for programs; errors name their module only where there are several."""
    return {
        "allowed": not any(verdict.errors for verdict in verdicts),
        "errors": [
            {"path": error.path, "reason": error.reason, "message": error.message}
            | ({"module": verdict.module} if len(verdicts) > 1 else {})
            for verdict in verdicts
            for error in verdict.errors
        ],
    }


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"{verdict.module}: {'not allowed' if verdict.errors else 'allowed'}"
    for error in verdict.errors:
        yield f"  {_line(error)}"


def _line(violation: Violation) -> str:
    return f"{violation.path}: {violation.message}"
