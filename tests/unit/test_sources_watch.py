# SPDX-License-Identifier: Apache-2.0
"""A folder that is followed: what changed is told once, and nothing half written is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from dataplane.model.errors import BadInput
from dataplane.model.objects import Batch, Problem
from dataplane.sources import parsing
from dataplane.sources import watch as watching
from dataplane.sources.watch import watch
from tests.unit.nasty_yaml import DEEP, NASTY

Follow = Callable[[AsyncGenerator[Batch, None]], Awaitable[None]]


def node(name: str, zone: str = "a") -> str:
    labels = f"{{topology.kubernetes.io/zone: {zone}}}"
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {labels}}}\n---\n"


def put(file: Path, text: str) -> None:
    """As writers should: aside, then renamed."""
    aside = file.with_name(f".{file.name}")
    aside.write_text(text)
    os.replace(aside, file)


def follow(folder: Path, story: Follow) -> None:
    async def run() -> None:
        batches = watch(folder)
        try:
            await asyncio.wait_for(story(batches), 20)
        finally:
            await batches.aclose()

    asyncio.run(run())


def names(batch: Batch) -> list[str]:
    return [o.key.name for o in batch.upserts]


def test_only_what_changed_is_told(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", node("one") + node("two"))
    put(tmp_path / "b.yaml", node("three"))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        first = await anext(batches)
        assert names(first) == ["one", "two", "three"]
        assert first.synced
        put(tmp_path / "a.yaml", node("one") + node("two", zone="b"))
        assert names(await anext(batches)) == ["two"]
        put(tmp_path / "c.yaml", node("four"))
        assert names(await anext(batches)) == ["four"]
        (tmp_path / "a.yaml").unlink()
        last = await anext(batches)
        assert not last.upserts
        assert [key.name for key in last.deletes] == ["one", "two"]

    follow(tmp_path, story)


def test_only_changed_files_are_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse_text(file: str, text: str) -> parsing.Parsed:
        parsed.append(Path(file).name)
        return parsing.parse_text(file, text)

    monkeypatch.setattr(watching, "parse_text", parse_text)
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.yaml", node(name))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        await anext(batches)
        put(tmp_path / "b.yaml", node("other"))
        await anext(batches)

    follow(tmp_path, story)
    assert parsed == ["a.yaml", "b.yaml", "c.yaml", "b.yaml"]


def test_file_that_does_not_parse_keeps_its_last_good_state(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", node("one"))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        await anext(batches)
        put(tmp_path / "a.yaml", node("one", zone="b") + "}")
        bad = await anext(batches)
        assert not bad.upserts
        assert not bad.deletes
        assert [p.object for p in bad.problems] == [f"{tmp_path}/a.yaml:5:1"]
        assert "its last good state stays" in bad.problems[0].reason
        put(tmp_path / "a.yaml", node("one", zone="c"))
        good = await anext(batches)
        assert names(good) == ["one"]
        assert not good.problems

    follow(tmp_path, story)


def test_yaml_that_makes_no_value_ends_nothing(tmp_path: Path) -> None:
    texts = [*NASTY, *((text, "") for text in DEEP)]
    files = [tmp_path / f"{number:02}.yaml" for number in range(len(texts))]
    for number, file in enumerate(files):
        put(file, node(f"n{number}"))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        assert len((await anext(batches)).upserts) == len(files)
        for file, (text, _) in zip(files, texts, strict=True):
            put(file, text)
        problems: tuple[Problem, ...] = ()
        while len(problems) < len(files):
            bad = await anext(batches)
            assert not bad.upserts
            assert not bad.deletes
            problems = tuple(bad.problems)
        for problem, file, (_, place) in zip(problems, files, texts, strict=True):
            assert problem.object.startswith(f"{file}{place}")
            assert "its last good state stays" in problem.reason

    follow(tmp_path, story)


def test_file_being_written_is_not_taken_half_done(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    put(file, "".join(node(f"n{number}") for number in range(20)))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        await anext(batches)

        async def write() -> None:
            with file.open("w") as out:
                for number in range(20):
                    out.write(node(f"n{number}", zone="b"))
                    out.flush()
                    await asyncio.sleep(0.01)

        writing = asyncio.create_task(write())
        batch = await anext(batches)
        await writing
        assert len(batch.upserts) == 20
        assert not batch.deletes

    follow(tmp_path, story)


def test_renamed_file_deletes_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", node("one"))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        await anext(batches)
        os.rename(tmp_path / "a.yaml", tmp_path / "b.yaml")
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        put(tmp_path / "c.yaml", node("two"))
        batch = await waiting
        assert names(batch) == ["two"]
        assert not batch.deletes

    follow(tmp_path, story)


def test_start_without_one_file_is_refused(tmp_path: Path) -> None:
    """To serve the rest would be to delete what the last run served from this one."""
    (tmp_path / "a.yaml").write_text("}")

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        with pytest.raises(BadInput, match="does not parse"):
            await anext(batches)

    follow(tmp_path, story)


def test_start_without_folder_is_refused(tmp_path: Path) -> None:
    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        with pytest.raises(BadInput, match="is not a folder"):
            await anext(batches)

    follow(tmp_path / "missing", story)


def test_folder_that_goes_keeps_what_it_held(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    put(folder / "a.yaml", node("one"))

    async def story(batches: AsyncGenerator[Batch, None]) -> None:
        await anext(batches)
        os.rename(folder, tmp_path / "away")
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.4)
        assert not waiting.done()
        os.rename(tmp_path / "away", folder)
        put(folder / "b.yaml", node("two"))
        assert names(await waiting) == ["two"]

    follow(folder, story)
