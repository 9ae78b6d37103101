"""Bad input: one clear sentence, and every committed file is the same afterwards, byte for byte."""

import errno
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.cli import sentence_of
from flows.profile import configure, load_profile, override
from rpt_core.store.errors import UserError
from rpt_core.store.files import sha256_file
from rpt_core.store.sources import allow_source
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace

PROFILE = str(Path(__file__).with_name("micro.yaml"))

pytestmark = pytest.mark.xdist_group("faults")


def run(workspace: Workspace, slot: str, **settings):
    overrides = {f"{slot}.{key}": value for key, value in settings.items()}
    return execute(*configure(override(load_profile(PROFILE), overrides), slot), workspace)


def committed(workspace: Workspace) -> dict[str, str]:
    """Every file of every committed version and every pointer, with its digest."""
    files = [path for slot in workspace.slots() for version in workspace.versions(slot)
             for path in workspace.version_folder(slot, version).rglob("*") if path.is_file()]
    files += (workspace.path / "pointers").glob("*")
    return {str(path): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Workspace:
    """Everything up to `select`, committed."""
    workspace = Workspace(tmp_path_factory.mktemp("chain") / "ws")
    for slot in ("ingest", "bootstrap", "score.filter", "score.difficulty", "select"):
        run(workspace, slot)
    return workspace


@pytest.fixture
def workspace(chain, tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("RPT_SOURCES", str(tmp_path / "allowed"))
    (tmp_path / "allowed").mkdir()
    shutil.copytree(chain.path, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def refused(workspace: Workspace, slot: str, **settings) -> str:
    """The sentence a run is refused with; fails where anything committed changed."""
    before = committed(workspace)
    with pytest.raises(UserError) as error:
        run(workspace, slot, **settings)
    assert committed(workspace) == before
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_a_missing_file(workspace, tmp_path):
    assert "does not exist" in refused(workspace, "ingest", sources=[str(tmp_path / "allowed" / "none.jsonl")])


def test_an_empty_corpus(workspace, tmp_path):
    (tmp_path / "allowed" / "empty.jsonl").write_text("")
    assert "no " in refused(workspace, "ingest", sources=[str(tmp_path / "allowed" / "empty.jsonl")])


def test_bytes_that_are_not_utf8(workspace, tmp_path):
    source = tmp_path / "allowed" / "latin.jsonl"
    source.write_bytes(b'{"text": "caf\xe9"}\n' * 3)
    assert "malformed" in refused(workspace, "ingest", sources=[str(source)])


def test_a_decompression_bomb(workspace, tmp_path):
    source = tmp_path / "allowed" / "bomb.txt.gz"
    source.write_bytes(gzip.compress(b"a" * 64 * 2**20))
    assert "bomb.txt.gz" in refused(workspace, "ingest", sources=[str(source)])


def test_an_unknown_setting_and_an_unknown_stage(workspace):
    assert "did you mean" in refused(workspace, "select", min_entropi=1)
    with pytest.raises(UserError, match="selct"):
        override(load_profile(PROFILE), {"selct.min_entropy": 1})


def test_a_model_folder_without_a_tokenizer(workspace, chain, tmp_path):
    model = next((chain.path / "versions" / "bootstrap").glob("*/files/*"))
    folder = shutil.copytree(model, tmp_path / "allowed" / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer" in refused(workspace, "score.filter", model=str(folder))


def test_two_tokenizers_that_differ_in_bytes(workspace, chain, tmp_path):
    model = next((chain.path / "versions" / "bootstrap").glob("*/files/*"))
    folder = shutil.copytree(model, tmp_path / "allowed" / "model")
    saved = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    one, two = (token for token in (max(vocabulary, key=len), "a") if token in vocabulary)
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").chmod(0o644)
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    run(workspace, "score.difficulty", model=str(folder))
    assert "tokenizer" in refused(workspace, "select")


def test_an_empty_split(workspace, tmp_path):
    source = tmp_path / "allowed" / "few.jsonl"
    source.write_text("".join(json.dumps({"text": f"text number {n} of a corpus that holds nothing out"}) + "\n" for n in range(2)))
    assert "split" in refused(workspace, "ingest", sources=[str(source)])  # two documents cannot fill three splits


def test_a_source_outside_the_allowed_roots_even_through_a_link(workspace, tmp_path):
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"text": "not yours"}\n')
    (tmp_path / "allowed" / "link.jsonl").symlink_to(outside)
    for path in (outside, tmp_path / "allowed" / "link.jsonl"):
        assert "outside the allowed roots" in refused(workspace, "ingest", sources=[str(path)])


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on_when_there_is_room(chain, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        shutil.copytree(chain.path, disk / "ws")
        workspace = Workspace(disk / "ws")
        allow_source(disk)
        before = committed(workspace)
        filler = disk / "filler"
        room = shutil.disk_usage(disk).free - 256 * 1024
        filler.write_bytes(b"\0" * room)
        with pytest.raises(OSError, match="No space left") as error:
            run(workspace, "ingest", generator_documents=20_000)
        assert error.value.errno == errno.ENOSPC
        sentence, code = sentence_of(error.value)
        assert sentence.startswith("the disk is full")
        assert code == 2
        assert committed(workspace) == before
        filler.unlink()
        assert not run(workspace, "ingest", generator_documents=20_000).cached
    finally:
        subprocess.run(["umount", str(disk)], check=True)
