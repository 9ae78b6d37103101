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
from flows.profile import PATH_KEYS, configure, load_profile, override
from flows.stages import STAGES
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


# Every setting that may name a file, with what else the stage needs to look at it; {model} is a sound model folder in the allowed roots.
NAMES_A_FILE = [
    ("ingest", "sources", {}), ("ingest", "question_sources", {}), ("ingest", "decontaminate_against", {}), ("score.filter", "model", {}),
    ("warmstart", "model", {}), ("warmstart", "template", {}), ("warmstart", "traces_file", {"traces": "file"}),
    ("pretrain", "model", {}), ("pretrain", "template", {"model": "{model}"}),
    ("pretrain", "verl_python", {"model": "{model}", "backend": "verl"}), ("control.ntp", "model", {}),
    ("evaluate", "model", {}), ("evaluate", "models", {}), ("evaluate", "template", {}),
    ("finetune.base", "model", {}), ("finetune.base", "pass_model", {"model": "{model}", "hard_by": "model"}),
    ("benchmark", "model", {}), ("benchmark", "source", {"benchmark": "mine"}), ("benchmark", "shots_source", {"shots": 1}),
]
# Settings that are text and name no file: devices, addresses, names of fields and data, words; verl's own are checked one by one.
NAMES_NO_FILE = {"device", "ray_address", "rendezvous", "verl_address", "verl_settings", "text_template", "question_pass_rate", "benchmark",
                 "split", "shots_subject", "title"}


@pytest.mark.parametrize(("slot", "key", "needed"), NAMES_A_FILE, ids=lambda value: value if isinstance(value, str) else "")
def test_no_setting_makes_a_stage_read_outside_the_allowed_roots(workspace, chain, tmp_path, slot, key, needed):
    model = shutil.copytree(next((chain.path / "versions" / "bootstrap").glob("*/files/*")), tmp_path / "allowed" / "model")
    outside = shutil.copytree(model, tmp_path / "elsewhere")  # sound in itself: only its place is wrong
    needed = {name: value.format(model=model) if isinstance(value, str) else value for name, value in needed.items()}
    listed = configure(load_profile(PROFILE), slot)[1].model_dump()[key] == []
    for path in (str(outside), "/etc/hostname", f"{tmp_path}/allowed/../elsewhere", "/proc/self/environ"):
        assert "outside the allowed roots" in refused(workspace, slot, **needed, **{key: [path] if listed else path})


def test_every_setting_that_is_text_is_known_to_name_a_file_or_none():
    found = {(name, key) for name, stage in STAGES.items() for key, field in stage.config.model_fields.items()
             if field.annotation in (str, list[str])}
    files = {(slot.partition(".")[0], key) for slot, key, _ in NAMES_A_FILE}
    assert {key for _, key in files} | {"base_model"} == PATH_KEYS
    assert {pair for pair in found - files if pair[1] not in NAMES_NO_FILE} == {("finetune", "source")}  # the name of a question set


@pytest.mark.parametrize("reference", ["control./../../../outside", "control.ntp/../../../outside", "control.ntp@../../../../outside-1",
                                       "control.x/../../outside@0123456789abcdef-1", "bootstrap@../../outside"])
def test_no_input_reference_leaves_the_workspace(workspace, reference):
    for folder in (workspace.path.parent, workspace.path):  # what a traversal would find
        (folder / "outside.json").write_text('{"version": "0123456789abcdef-1"}')
    for name in ("control.", "control.ntp", "control.x"):
        (workspace.path / "pointers" / name).mkdir()
    with pytest.raises(UserError, match=r"does not name a|comes from"):
        execute(*configure(load_profile(PROFILE), "evaluate"), workspace, {"trained": reference})


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
