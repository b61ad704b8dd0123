# SPDX-License-Identifier: Apache-2.0
"""Text to documents: YAML and JSON with positions, and the files that hold them.

All YAML that podlane reads is read here, configs too: PyYAML ends in a dozen ways on text
that it does not like, and every one must be a BadInput. Must not know kinds of objects.
Scalars mean what they mean to Kubernetes, which goes through JSON: no dates, no base-60
numbers, no key given twice.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Protocol

import yaml

from dataplane.model.errors import BadInput
from dataplane.sources.fields import Path

SUFFIXES = (".json", ".yaml", ".yml")


# Python refuses to write integers that are longer, and messages must be able to name them.
_LONGEST_NUMBER = 1000
# Entries that merge keys (<<) may copy: a list of ten that merge ten each grows by powers.
_MOST_MERGED = 1_000_000


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: a date is a string, `1:20` is one too."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # Without merge keys a text has fewer entries than characters.
        self._entries_left = len(text) + _MOST_MERGED

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """PyYAML's, which calls this for each mapping before it copies its entries."""
        super().flatten_mapping(node)
        self._entries_left -= len(node.value)
        if self._entries_left < 0:
            raise yaml.MarkedYAMLError(
                None, None, "merge keys make too much of it", node.start_mark
            )


_Constructor = Callable[[_Loader, yaml.Node], object]


def _checked(name: str, construct: _Constructor) -> _Constructor:
    """A scalar's constructor, where a value that is none of its tag has its place told."""

    def checked(loader: _Loader, node: yaml.Node) -> object:
        text = node.value
        try:
            if name == "int" and isinstance(text, str) and len(text) > _LONGEST_NUMBER:
                raise ValueError(text)
            return construct(loader, node)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            shown = repr(text) if len(text) < 80 else f"{text[:60]!r}…"
            why = f"{shown} is no value of !!{name}"
            raise yaml.MarkedYAMLError(None, None, why, node.start_mark) from None

    return checked


_DEEPEST = 500
_DEEP_LINE = re.compile(rf"^[ ?-]{{{_DEEPEST // 2}}}", re.MULTILINE)
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]*|0o[0-7]+|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_PREFIX = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [r for r in resolvers if r[0].removeprefix(_PREFIX) not in ("timestamp", "int", "float")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern, _first in (
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        _PREFIX + _name, re.compile(f"^(?:{_pattern.pattern})$"), list(_first)
    )
for _name in ("bool", "int", "float", "timestamp", "binary"):
    _constructor = _Loader.yaml_constructors[_PREFIX + _name]
    _Loader.add_constructor(_PREFIX + _name, _checked(_name, _constructor))


class _Mark(Protocol):
    """A position, from 0; PyYAML has a class of it in Python and one in C."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file: its data as JSON would have it, and where its parts are."""

    file: str
    text: str
    data: object
    node: yaml.Node | None

    def locate(self, path: Path) -> str:
        """`file:line:column` of the field at `path`, or of the nearest part around it."""
        node = self.node if self.node is not None else _compose(self.text)
        if node is None:
            return self.file
        mark = node.start_mark
        for part in path:
            key, node = _child(node, part)
            if node is None:
                break
            mark = (key or node).start_mark
        return _at(self.file, mark)


def _at(file: str, mark: _Mark | None) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The key (in a mapping) and value under `part`."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return None, node.value[part]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key, value
    return None, None


def _compose(text: str) -> yaml.Node | None:
    """The node graph of JSON, which is YAML too; only made when something is wrong."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return None
    return node


def parse(file: str, text: str) -> Iterator[Document]:
    """All documents of `text` that are not empty.

    Args:
        file: the name that messages give it; JSON is expected if it ends so.

    Raises:
        BadInput: the text does not parse; says line and column.
    """
    try:
        if file.endswith(".json") or text.lstrip()[:1] == "{":
            try:
                data = json.loads(text, object_pairs_hook=_unique)
                yield Document(file, text, data, None)
                return
            except ValueError as error:
                if file.endswith(".json"):
                    raise _json_error(file, error) from None
        yield from _parse_yaml(file, text)
    except RecursionError:
        raise BadInput(
            file, "is nested too deep", "no manifest needs this; look at the file"
        ) from None


def one_document(what: str, text: str) -> object:
    """The data of the one YAML document of `text`; None if it is empty.

    Args:
        what: what messages call it, before line and column.

    Raises:
        BadInput: it does not parse, or has two documents; says line and column.
    """
    try:
        found = list(_parse_yaml(what, text))
    except RecursionError:
        raise BadInput(what, "is nested too deep") from None
    if len(found) > 1:
        raise BadInput(found[1].locate(()), "is a second document", "give one")
    return found[0].data if found else None


def read_one(what: str, path: FilePath) -> object:
    """As `one_document`, of a file; BadInput too if it can't be read or is not UTF-8."""
    return one_document(what, read_text(path, what))


def _refuse_depth(file: str, text: str) -> None:
    """libyaml's reader calls itself for each level and crashes when the stack ends.

    Levels are opened by brackets, or by spaces, dashes and question marks before the
    first word of a line: few of these, and there is nothing to count.
    """
    brackets = text.count("[") + text.count("{")
    if brackets < _DEEPEST // 2 and not _DEEP_LINE.search(text):
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise BadInput(_at(file, event.start_mark), "is nested too deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _parse_yaml(file: str, text: str) -> Iterator[Document]:
    try:
        _refuse_depth(file, text)
        yield from _load(file, text)
    except yaml.MarkedYAMLError as error:
        where = _at(file, error.problem_mark or error.context_mark)
        raise BadInput(
            where, _yaml_reason(error), "correct it there or in the line before"
        ) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = f"{file}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise BadInput(where, "has a character that YAML does not allow") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise BadInput(file, f"does not parse as YAML: {error}") from None


def _load(file: str, text: str) -> Iterator[Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            _refuse_duplicate_keys(node)
            data = loader.construct_document(node)
            if data is not None:
                yield Document(file, text, data, node)
    finally:
        loader.dispose()


def _yaml_reason(error: yaml.MarkedYAMLError) -> str:
    reason = f"does not parse as YAML: {error.problem}"
    return f"{reason} ({error.context})" if error.context else reason


def _refuse_duplicate_keys(root: yaml.Node) -> None:
    """A key given twice has two meanings; readers differ on which one wins."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in keys:
                        raise yaml.MarkedYAMLError(
                            None, None, f"key {key.value!r} is given twice", key.start_mark
                        )
                    keys.add(key.value)
                children.append(value)
        for child in children:
            if not isinstance(child, yaml.ScalarNode) and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} is given twice in one object")
    return result


def _json_error(file: str, error: ValueError) -> BadInput:
    if isinstance(error, json.JSONDecodeError):
        return BadInput(
            f"{file}:{error.lineno}:{error.colno}", f"does not parse as JSON: {error.msg}"
        )
    return BadInput(file, f"does not parse as JSON: {error}")


def read_text(path: FilePath, what: str = "") -> str:
    """The text of a file, which messages call `what` or by its path.

    Raises:
        BadInput: it can't be read, or is not UTF-8.
    """
    what = what or str(path)
    try:
        return decode(what, path.read_bytes())
    except OSError as error:
        raise BadInput(what, f"can't be read: {error.strerror}") from None


def decode(file: str, raw: bytes) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}", "is not UTF-8 text") from None


def folder_files(folder: FilePath) -> tuple[list[FilePath], list[FilePath]]:
    """Manifest files of a folder and its subfolders, sorted; and links that lead out of it.

    Hidden names are skipped and links to folders not followed, so a mounted ConfigMap
    (links into a hidden folder) is read once. Devices, pipes and sockets are skipped.
    """
    root = os.path.realpath(folder)
    files: list[FilePath] = []
    outside: list[FilePath] = []

    def refuse(error: OSError) -> None:
        if error.filename == str(folder) or not isinstance(error, FileNotFoundError):
            raise BadInput(str(error.filename), f"can't be read: {error.strerror}") from None

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            path = FilePath(place, name)
            if path.is_symlink() and not _is_below(path, root):
                outside.append(path)
            elif _is_regular(path):
                files.append(path)
    return sorted(files), sorted(outside)


def _is_below(path: FilePath, root: str) -> bool:
    return os.path.realpath(path).startswith(root.rstrip("/") + "/")


def _is_regular(path: FilePath) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # gone since the folder was listed
