"""`kmmhub explain`: what one kernel gets from a module, and why not something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from kmmhub.offline.documents import Document, UnusableInput, modules_in, read_documents, skipped
from kmmhub.offline.output import NOT_ALLOWED, UNUSABLE, Format, formatted, note, printable
from kmmhub.offline.resolved import resolution_to_json
from kmmhub.offline.validate import judge
from shared.domain.image import ImageReference, InvalidImageReference
from shared.domain.kernel import InvalidKernel, cut_plus, parse_kernel
from shared.domain.mapping import InvalidPattern, InvalidResolution, MappingIndex, NoMatchingKernel
from shared.domain.module import InvalidModule, KernelMapping, parse_module

NO_MATCH, INVALID = "no-match", "invalid"
RESULT_KEYS = ("containerImage", "build", "sign", "registryTLS", "inTreeModulesToRemove")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a kernel gets.

    Attributes:
        answer: the keys that docs/commands.md describes.
        passed_over: (index, entry, why not) of the mappings before the one that matched.
        notes: what will go wrong later, though the mapping resolves.
    """

    answer: dict[str, Any]
    passed_over: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


def explain(
    file: Annotated[
        str,
        typer.Option("-f", "--filename", metavar="FILE", help="A ManagedClusterModule; - is standard input."),
    ],
    kernel: Annotated[str, typer.Option("--kernel", metavar="K", help="As `uname -r` prints it on a node.")],
    module: Annotated[
        str | None, typer.Option("--module", metavar="NAME", help="Which one, if the file has several.")
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="What to print.")] = Format.TEXT,
) -> None:
    """Say which mapping a kernel gets, without a server. Status 0: one; 1: none, or unusable; 2: wrong file."""
    try:
        documents = read_documents([file])
        chosen = _choose(modules_in(documents, file), module)
    except UnusableInput as error:
        note([f"kmmhub explain: {error}"])
        raise typer.Exit(UNUSABLE) from error
    note(skipped(documents, [chosen]))
    explanation = explain_kernel(chosen, kernel)
    if judge(chosen, None).errors:
        note([f"note: {chosen.name} is not allowed as it is; see kmmhub validate"])
    note(f"note: {text}" for text in explanation.notes)
    if output is Format.TEXT:
        print("\n".join(printable(line) for line in _lines(chosen, explanation)))
    else:
        print(formatted(explanation.answer, output), end="")
    if explanation.answer["error"] is not None:
        raise typer.Exit(NOT_ALLOWED)


def explain_kernel(module: Document, kernel: str) -> Explanation:
    """What `kernel` gets from a ManagedClusterModule.

    As from an entry of a cluster's claim, one trailing `+` is cut. Nothing else is changed: blanks around it are
    taken as they are, so that what is explained is exactly what was asked for.
    """
    cut = cut_plus(kernel)
    try:
        spec = parse_module(spec if isinstance(spec := module.content.get("spec"), dict) else {})
    except InvalidModule as error:
        return Explanation(answer=_answer(cut, None, error=INVALID, message=str(error)))
    if spec.loader is None:
        message = "the module has no moduleLoader: it is shipped as it is, whatever kernels a cluster runs"
        return Explanation(answer=_answer(cut, None, error=NO_MATCH, message=message))
    index = MappingIndex(spec)
    passed = index.explain(cut)
    try:
        found = index.resolve(module_name=module.name, spoke_namespace=spec.spoke_namespace, kernel=cut)
    except NoMatchingKernel as error:
        return Explanation(answer=_answer(cut, None, error=NO_MATCH, message=str(error)), passed_over=passed)
    except InvalidPattern as error:
        return Explanation(answer=_answer(cut, None, error=INVALID, message=str(error)), passed_over=passed)
    except InvalidResolution as error:
        answer = _answer(cut, len(passed), error=INVALID, message=str(error))
        return Explanation(answer=answer, passed_over=passed)
    message = _why(spec.loader.mappings[found.mapping_index], cut, passed)
    answer = _answer(cut, found.mapping_index, resolution_to_json(found, spec.loader), message=message)
    return Explanation(answer=answer, passed_over=passed, notes=tuple(_later(cut, found.image)))


def _choose(modules: list[Document], name: str | None) -> Document:
    chosen = modules if name is None else [module for module in modules if module.name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(module.name or module.where for module in modules)
    what = "choose one with --module" if name is None else f"none is called {name!r}"
    raise UnusableInput(f"there are these modules: {names}; {what}")


def _answer(
    kernel: str,
    matched: int | None,
    result: dict[str, Any] | None = None,
    *,
    error: str | None = None,
    message: str,
) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(RESULT_KEYS)
    return {
        "kernelVersion": kernel,
        "matched": matched,
        **(result or nothing),
        "error": error,
        "message": message,
    }


def _why(entry: KernelMapping, kernel: str, passed: tuple[tuple[int, str], ...]) -> str:
    is_equal = entry.literal == kernel
    by = f"literal {entry.literal!r} is equal" if is_equal else f"regexp {entry.regexp!r} is found in it"
    before = "".join(f"; not kernelMappings[{number}]: {reason}" for number, reason in passed)
    return f"kernelMappings[{len(passed)}]: {by}{before}"


def _later(kernel: str, image: str) -> Iterator[str]:
    try:
        parse_kernel(kernel)
    except InvalidKernel as error:
        yield f"in a cluster's claim this entry would be left out: {error}"
    try:
        ImageReference.parse(image)
    except InvalidImageReference as error:
        yield str(error)


def _lines(module: Document, explanation: Explanation) -> Iterator[str]:
    answer = explanation.answer
    yield f"module {module.name}, kernel {answer['kernelVersion']}"
    for index, reason in explanation.passed_over:
        yield f"  kernelMappings[{index}] no: {reason}"
    if answer["error"] is not None:
        yield f"  {answer['error']}: {answer['message']}"
        return
    yield f"  kernelMappings[{answer['matched']}] yes"
    for key in RESULT_KEYS:
        yield f"    {key}: {json.dumps(answer[key], ensure_ascii=False)}"
