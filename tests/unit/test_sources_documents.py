# SPDX-License-Identifier: Apache-2.0
"""Text to documents: what does not parse is named by file, line and column."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataplane.model.errors import BadInput
from dataplane.sources.documents import folder_files, one_document, parse
from dataplane.sources.manifests import read
from tests.unit.nasty_yaml import DEEP, NASTY, NONSENSE


def data(text: str, name: str = "x.yaml") -> list[object]:
    return [document.data for document in parse(name, text)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "x.yaml:3:2"),
        ("a: 1\n  b: 2\n", "x.yaml:2:4"),
        ("a: {{ .Values.x }}\n", "x.yaml:1:5"),
        ("kind: !Ref Service\n", "x.yaml:1:7"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3:1"),
        ("ok: 1\n---\na: \x01\n", "x.yaml:3:4"),
        ("a:\n\t- b\n", "x.yaml:2:1"),
    ],
)
def test_yaml_that_does_not_parse_is_named_by_line_and_column(text: str, place: str) -> None:
    with pytest.raises(BadInput) as caught:
        data(text)
    assert caught.value.what == place


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"a": 1,\n "b": }', "x.json:2:7"), ('{"a": 1} {"b": 2}', "x.json:1:10"), ("", "x.json:1:1")],
)
def test_json_that_does_not_parse_is_named_by_line_and_column(text: str, place: str) -> None:
    with pytest.raises(BadInput) as caught:
        data(text, "x.json")
    assert caught.value.what == place


def test_json_key_given_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="'a' is given twice"):
        data('{"a": 1, "a": 2}', "x.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000 + "x", "? " * 100_000 + "x"]
)
def test_nesting_without_end_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        data(text)


@pytest.mark.parametrize(("text", "place"), NASTY)
def test_yaml_that_makes_no_value_is_named_by_line_and_column(text: str, place: str) -> None:
    """Of manifests and of configs: PyYAML's own errors would end a running agent."""
    with pytest.raises(BadInput) as caught:
        data(text)
    assert caught.value.what == f"x.yaml{place}"
    with pytest.raises(BadInput) as caught:
        one_document("config x", text)
    assert caught.value.what == f"config x{place}"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", DEEP)
def test_a_deep_config_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        one_document("config x", text)


@pytest.mark.parametrize("text", NONSENSE)
def test_yaml_that_json_cannot_have_is_no_object(tmp_path: Path, text: str) -> None:
    """Tags that make sets, dates or bytes: whoever wanted an object or a text says so."""
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert read([file]).problems


def test_a_config_is_one_document() -> None:
    assert one_document("config x", "") is None
    assert one_document("config x", "# nothing\n---\n") is None
    assert one_document("config x", "---\na: 1\n---\n") == {"a": 1}
    with pytest.raises(BadInput, match=r"^config x:3:1: is a second document"):
        one_document("config x", "a: 1\n---\nb: 1\n")


def test_merges_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 {k0: x, k1: x, k2: x, k3: x}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    with pytest.raises(BadInput, match="merge keys make too much of it"):
        data("\n".join(lines))


def test_aliases_that_multiply_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert len(data("\n".join(lines))) == 1


def test_merge_keys_are_no_duplicates() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert data(text) == [{"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 3}}]


def test_scalars_mean_what_they_mean_to_kubernetes() -> None:
    text = "[2024-01-01, 2024-01-01T00:00:00Z, 1:20, 1:2:3:4:5:6:7:8, 12, 0x10, 1.5, true, null]"
    assert data(text) == [
        ["2024-01-01", "2024-01-01T00:00:00Z", "1:20", "1:2:3:4:5:6:7:8", 12, 16, 1.5, True, None]
    ]


def test_empty_documents_are_none() -> None:
    assert data("---\n---\n# only words\n---\na: 1\n---\n") == [{"a": 1}]


def test_yaml_file_may_hold_json() -> None:
    assert data('{"a": 1}') == [{"a": 1}]
    assert data("{a: 1}") == [{"a": 1}]


def test_folder_is_read_in_order_without_leaving_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    for path in ("folder/b.yaml", "folder/a.yml", "folder/sub/c.json", "folder/.d.yaml",
                 "folder/words.txt", "outside/e.yaml"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    (folder / "link.yaml").symlink_to(outside / "e.yaml")
    (folder / "inner.yaml").symlink_to(folder / "b.yaml")
    (folder / "away").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.yaml")
    files, refused = folder_files(folder)
    names = [str(file.relative_to(folder)) for file in files]
    assert names == ["a.yml", "b.yaml", "inner.yaml", "sub/c.json"]
    assert refused == [folder / "link.yaml"]
    assert [p.reason for p in read([folder]).problems if "link" in p.object] == [
        "is a link out of the folder; not read"
    ]


def test_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    """kubelet: names link into a hidden folder, which is replaced by one rename."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "x.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}"
    )
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "x.yaml").symlink_to("..data/x.yaml")
    manifests = read([tmp_path])
    assert manifests.namespaces == ("a",)
    assert not manifests.problems


@pytest.mark.parametrize("name", ["missing.yaml", "missing", "latin1.yaml", "folder.yaml/x.yaml"])
def test_file_that_cannot_be_read_is_bad_input(tmp_path: Path, name: str) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(BadInput) as caught:
        read([tmp_path / name])
    assert caught.value.exit_status == 2
    assert name in caught.value.what
    if name == "latin1.yaml":
        assert caught.value.what.endswith(":2")


def test_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfapiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
    assert read([file]).namespaces == ("a",)
