"""Every format gives the same records, what is broken is told with file and line, and a bomb costs one sentence."""

import gzip
import json
import re
import time
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpt_core.corpus.documents import Report
from rpt_core.corpus.files import list_files, open_source
from rpt_core.corpus.readers import Limits, read_source
from rpt_core.store.errors import UserError

ROWS = [{"text": "one\n", "n": 1}, {"text": "zwei – ä", "n": 2}, {"text": "三", "n": 3}]


def jsonl(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_every_format(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_bytes(jsonl(ROWS))
    (folder / "b.json").write_text(json.dumps(ROWS))
    (folder / "c.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (folder / "d.json").write_bytes(jsonl(ROWS))
    pl.DataFrame(ROWS).write_parquet(folder / "e.parquet")
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS)))
    (folder / "g.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[:1])) + gzip.compress(jsonl(ROWS[1:])))
    (folder / "h.ndjson.zst").write_bytes(zstandard.compress(jsonl(ROWS[:2])) + zstandard.compress(jsonl(ROWS[2:])))
    (folder / "i.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n{", b"\r\n\r\n{"))
    return sorted(folder.iterdir())


def test_every_format_and_compression_gives_the_same_records(root, report):
    for path in write_every_format(root):
        assert [record.fields for record in read_source(str(path), report, Limits())] == ROWS, path.name
    assert not report.malformed


def test_text_and_markdown_files_are_documents_verbatim(root, report):
    (root / "a.txt").write_bytes("line\r\n\ttab ’\n".encode())
    (root / "b.md.gz").write_bytes(gzip.compress(b"# Title\n"))
    assert [record.fields["text"] for record in read_source(str(root), report, Limits())] == ["line\r\n\ttab ’\n", "# Title\n"]
    assert [r.fields["text"] for r in read_source(str(root / "a.txt"), report, Limits(), format="lines")] == ["line", "\ttab ’"]


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_files_and_says_what_it_skips(root):
    for name in ("b/2.txt", "b/10.txt", "a.txt", ".hidden/x.txt", "b/.x.txt", "b/picture.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    said: list[str] = []
    report = Report(said.append, 0.0)
    records = list(read_source(str(root), report, Limits()))
    assert [record.source for record in records] == ["sources/a.txt", "sources/b/10.txt", "sources/b/2.txt"]
    assert report.counts["files_of_other_kinds"] == 1
    assert len(said) == 1
    assert "picture.png" in said[0]


def test_a_link_out_of_the_allowed_roots_is_refused(root, tmp_path, report):
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match="outside the allowed roots"):
        list(read_source(str(root), report, Limits()))


BAD_LINES = {
    b'{"text": "a"': "not_json",
    b'{"text": "\xff"}': "not_utf8",
    b"[1, 2]": "not_an_object",
    b'{"text": "' + b"x" * 900 + b'"}': "too_long",
    b"[" * 200_000: "too_long",
}


@pytest.mark.parametrize(("line", "rule"), BAD_LINES.items(), ids=[*list(BAD_LINES.values())[:4], "deep"])
def test_a_bad_line_is_told_with_file_and_line_and_the_rest_is_read(root, line, rule):
    path = root / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n\n' + line + b'\n{"text": "last"}\n')
    said: list[str] = []
    report = Report(said.append, 1.0)
    records = list(read_source(str(path), report, Limits(max_document_bytes=100)))
    assert [record.fields["text"] for record in records] == ["first", "last"]
    assert dict(report.malformed) == {rule: 1}
    assert said[0].startswith(f"{path}:3: ")
    assert report.counts["records_read"] == 3


def test_deeply_nested_json_is_malformed_not_a_crash(root, report):
    (root / "a.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    assert list(read_source(str(root / "a.jsonl"), report, Limits())) == []
    assert dict(report.malformed) == {"not_json": 1}


def test_only_the_first_malformed_records_are_told_and_all_are_counted(root):
    (root / "a.jsonl").write_bytes(b"nonsense\n" * 50)
    said: list[str] = []
    report = Report(said.append, 1.0, shown=3)
    list(read_source(str(root / "a.jsonl"), report, Limits()))
    assert report.malformed["not_json"] == 50
    assert len(said) == 4


def bomb(suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(bytes(64 * 2**20))
    return zstandard.ZstdCompressor(level=1).compress(bytes(2**30))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_decompression_bomb_costs_one_sentence_and_little_memory(root, report, suffix):
    path = root / f"bomb.txt{suffix}"
    path.write_bytes(bomb(suffix))
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"expands to more than \d+ MiB from \d+ KiB"):
        list(read_source(str(path), report, Limits(max_document_bytes=2**30)))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_archive_is_an_error_not_a_shorter_corpus(root, report, suffix, damage):
    data = jsonl([{"text": str(number) * 50} for number in range(2000)])
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.compress(data)
    path = root / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2] if damage == "cut" else data)
    with pytest.raises(UserError, match=re.escape(str(path))):
        list(read_source(str(path), report, Limits()))


def test_a_file_that_is_no_parquet_is_named(root, report):
    (root / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"a\.parquet is not a sound Parquet file"):
        list(read_source(str(root / "a.parquet"), report, Limits()))


@pytest.mark.parametrize(("name", "says"), [
    ("missing.txt", "does not exist"), ("a.bin", r"set ingest\.format"), ("empty", "holds no file to read")])
def test_what_cannot_be_a_source_is_told_in_one_sentence(root, report, name, says):
    (root / "a.bin").write_bytes(b"x")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        list(read_source(str(root / name), report, Limits()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000), pieces=st.integers(1, 4), kind=st.sampled_from([".gz", ".zst"]))
def test_decompression_gives_back_the_bytes_whatever_the_members(root, data, pieces, kind):
    pack = gzip.compress if kind == ".gz" else zstandard.compress
    size = -(-len(data) // pieces) or 1
    path = root / f"x.txt{kind}"
    path.write_bytes(b"".join(pack(data[at : at + size]) for at in range(0, max(len(data), 1), size)))
    with open_source(path, 200.0, 2**30) as file:
        assert file.read() == data


def test_labels_do_not_contain_the_machine_s_folders(root):
    (root / "deep").mkdir()
    (root / "deep" / "a.txt").write_text("x")
    assert [label for _, label in list_files(str(root))] == ["sources/deep/a.txt"]
    assert [label for _, label in list_files(str(root / "deep" / "a.txt"))] == ["a.txt"]
