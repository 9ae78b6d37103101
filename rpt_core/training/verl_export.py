"""A `pretrain` run written out for verl: prompts in its Parquet schema, a tokenizer folder, a reward file and the command.

What verl does otherwise than we do: it tokenises the whole rendered chat again, where our prompt holds the document's own tokens. The
tokenizer folder makes the rendered *text* ours: its chat template opens the thought as our prompts do, and control tokens other than
EOS are not called special, so that verl's reward manager keeps them when it decodes. Both are checked while the files are written."""

import inspect
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rpt_core.reasoning import answer, rewards
from rpt_core.reasoning.items import DocumentTokens, Item, position_items
from rpt_core.reasoning.prompts import THINK, Frame, Template, load_template
from rpt_core.store.errors import UserError
from rpt_core.store.files import fsync_path, replacing, write_json
from rpt_core.store.tables import Table
from rpt_core.tokens import boxes
from rpt_core.tokens.bytes import bos_id, ids_to_text, load_tokenizer, token_bytes
from rpt_core.training import verl_score
from rpt_core.training.checkpoints import copy_tokenizer
from rpt_core.training.pretrain_config import PretrainConfig
from rpt_core.training.verl_settings import VERL, Files, arguments, check, check_prompts, phases, settings

PLAIN_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
COMPARED = 512  # prompts whose tokens are compared with ours
ROWS = 2048
SCHEMA = pa.schema([
    ("data_source", pa.string()),
    ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("ability", pa.string()),
    ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
    ("extra_info", pa.struct([("index", pa.int64()), ("position_id", pa.string()), ("doc_id", pa.string()), ("position", pa.int32()),
                              ("byte_start", pa.int32()), ("split", pa.string()), ("difficulty", pa.string()), ("prefill", pa.string()),
                              ("boundaries", pa.list_(pa.int32()))]))])


@dataclass(frozen=True)
class Exported:
    """What was written. ``retokenised``: of ``compared`` prompts, those that verl's tokeniser cuts otherwise than the document's own
    tokens; ``injected``: prompts left out because their document spells a control token, which a chat would take for one."""

    train: int
    validation: int
    too_long: int
    injected: int
    compared: int
    retokenised: int


def export(config: PretrainConfig, documents: Table, positions: Table, model: Path, folder: Path, run: str = "rpt",
           loggers: Sequence[str] = ()) -> Exported:
    """Write ``folder`` (new, or of an earlier attempt at the same run). ``run`` and ``loggers`` as in `verl_settings`. UserError where verl
    cannot train this."""
    check(config)
    files = Files(folder.absolute())
    if re.search(r"[*?\[\]{}$]", str(files.folder)):
        raise UserError(f"verl takes {files.folder} for a pattern or a variable; name a folder without any of * ? [ ] {{ }} $.")
    tokenizer = load_tokenizer(model)
    template = load_template(config.template)
    chat = write_tokenizer(model, tokenizer, template, files.tokenizer)
    frame = template.frame(tokenizer)
    chosen = positions.read(where=ds.field("selected").isin(["train", "dev"])).to_pylist()
    fitting = [row for row in chosen if row["n_prompt_tokens"] + frame.n_tokens <= config.max_prompt_tokens]
    texts = documents.read(columns=["doc_id", "text"], where=ds.field("doc_id").isin(sorted({row["doc_id"] for row in fitting})))
    prompts = Prompts(DocumentTokens(texts, tokenizer), tokenizer, load_tokenizer(files.tokenizer), frame, template, chat,
                      config.horizon_tokens)
    written = {split: prompts.write([row for row in fitting if row["selected"] == split], path)
               for split, path in (("train", files.train), ("dev", files.validation))}
    check_prompts(config, written["train"], written["dev"])
    write_text(files.reward, reward_source(files))
    common = settings(config, files, model, written["train"], loggers)
    stretches = [arguments(common, phase, run) for phase in phases(config)]
    write_json(files.arguments, stretches)
    write_text(files.launch, launch_script(stretches))
    files.launch.chmod(0o755)
    return Exported(written["train"], written["dev"], len(chosen) - len(fitting), prompts.injected, prompts.compared, prompts.retokenised)


# --- prompts ----------------------------------------------------------------------------------------------------------


class Prompts:
    """Rows of verl's schema for positions, each checked against the prompt we would give."""

    def __init__(self, documents: DocumentTokens, tokenizer: Any, chat_tokenizer: Any, frame: Frame, template: Template, chat: "Chat",
                 horizon: int):
        self.documents, self.tokenizer, self.chat_tokenizer = documents, tokenizer, chat_tokenizer
        self.frame, self.template, self.chat, self.horizon = frame, template, chat, horizon
        self.table = token_bytes(tokenizer)
        spellings = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
        self.control = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)")
        self.injected = self.compared = self.retokenised = 0

    def write(self, rows: Sequence[dict[str, Any]], path: Path) -> int:
        """Write the rows' prompts; returns how many there are."""
        count = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as out:
            for start in range(0, len(rows), ROWS):
                found = list(self._rows(rows[start : start + ROWS], count))
                out.write_table(pa.Table.from_pylist(found, schema=SCHEMA))
                count += len(found)
        fsync_path(path)
        return count

    def _rows(self, rows: Sequence[dict[str, Any]], first: int) -> Iterator[dict[str, Any]]:
        index = first
        for item, row in zip(position_items(self.documents, rows, self.tokenizer, self.frame, horizon_tokens=self.horizon), rows,
                             strict=True):
            prefix = ids_to_text(self.table, item.prefix_ids)
            if self.control.search(prefix):
                self.injected += 1
                continue
            content = self.chat.head + prefix + self.chat.tail
            if self.compared < COMPARED:
                self._compare(content, item)
            yield {"data_source": "rpt", "prompt": [{"role": "user", "content": content}], "ability": "next-token reasoning",
                   "reward_model": {"style": "rule", "ground_truth": item.completion.hex()},
                   "extra_info": {"index": index, "position_id": item.position_id, "doc_id": item.doc_id, "position": item.position,
                                  "byte_start": row["byte_start"], "split": item.split, "difficulty": item.difficulty,
                                  "prefill": self.frame.prefill, "boundaries": list(item.boundaries)}}
            index += 1

    def _compare(self, content: str, item: Item) -> None:
        """The chat as verl renders it must be our prompt's text; how often its tokens differ is counted."""
        message = [{"role": "user", "content": content}]
        text = self.chat_tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        if text != ids_to_text(self.table, item.prompt_ids):
            raise UserError(f"the chat template of the tokenizer does not give back the prompt of position {item.position_id} as it is; "
                            "use a prompt template with chat: no.")
        self.compared += 1
        self.retokenised += self.chat_tokenizer(text, add_special_tokens=False)["input_ids"] != item.prompt_ids


@dataclass(frozen=True)
class Chat:
    """What stands before and behind a prefix in the user's message."""

    head: str
    tail: str


def write_tokenizer(model: Path, tokenizer: Any, template: Template, folder: Path) -> Chat:
    """Copy the model's tokenizer with a chat template whose rendering is our prompt, and with no control token special but EOS, BOS and
    padding, which verl's decoding then leaves out as it must."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy_tokenizer(model, folder)
    own = getattr(tokenizer, "chat_template", None) if template.chat else None
    frame = template.frame(tokenizer)
    if own:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
        opens_itself = template.prefill.strip() == THINK and rendered.rstrip("\n").endswith(THINK)  # as Template.frame sees it
        chat_template = own if opens_itself else own + "{% if add_generation_prompt %}{{ " + json.dumps(frame.prefill) + " }}{% endif %}"
        chat = Chat(template.head, template.tail)
    else:
        chat_template = ("{{ bos_token }}" if bos_id(tokenizer) is not None else "") + PLAIN_CHAT
        chat = Chat(template.head, template.tail + ("\n\n" if template.chat else "") + frame.prefill)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    ends = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token}
    path = folder / "tokenizer_config.json"
    configured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key in ("chat_template", "extra_special_tokens", "additional_special_tokens"):
        configured.pop(key, None)
    for token in configured.get("added_tokens_decoder", {}).values():
        token["special"] = token["content"] in ends
    if tokenizer.pad_token is None:  # verl pads, and asks the tokenizer with what
        configured["pad_token"] = tokenizer.eos_token
    path.write_text(json.dumps(configured, indent=1), encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    described = folder / "tokenizer.json"
    if described.exists():
        whole = json.loads(described.read_text(encoding="utf-8"))
        for token in whole["added_tokens"]:
            token["special"] = token["content"] in ends
        described.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return chat


# --- reward and command --------------------------------------------------------------------------------------------------


def reward_source(files: Files) -> str:
    """One Python file with our reward: the modules' own source, without the imports that it makes superfluous."""
    ours = re.compile(r"^from rpt_core\.[^\n]*\n", re.MULTILINE)
    scored = re.sub(r"^SCORED = .*$", lambda _: f"SCORED = {str(files.scored)!r}", inspect.getsource(verl_score), flags=re.MULTILINE)
    parts = [inspect.getsource(boxes), inspect.getsource(answer.extract), inspect.getsource(rewards.prefix_match),
             inspect.getsource(rewards.tokens_matched), scored]
    head = (f'"""Reward of an RPT run for verl {VERL}, written by `rpt export verl` from the source of rpt_core; do not edit.\n\n'
            'It needs nothing but Python. verl finds compute_score through reward.custom_reward_function.path."""\n\n'
            "from __future__ import annotations\n\nfrom collections.abc import Sequence\n")
    bodies = [ours.sub("", re.sub(r'^r?""".*?"""\n', "", part, count=1, flags=re.DOTALL)).strip("\n") for part in parts]
    return head + "\n\n" + "\n\n\n".join(bodies) + "\n"


def launch_script(stretches: Sequence[Sequence[str]]) -> str:
    """A shell script that runs verl phase by phase; VERL_PYTHON names the interpreter. The first phase joins the MLflow run of
    MLFLOW_RUN_ID; one that follows has other parameters, which MLflow refuses in the same run, so it makes a run of its own."""
    lines = ["#!/bin/sh", f"# RPT by verl {VERL}: written by `rpt export verl`. A run that was cut short goes on from its last checkpoint.",
             "set -eu"]
    for number, given in enumerate(stretches):
        call = f'{"env -u MLFLOW_RUN_ID " if number else ""}"${{VERL_PYTHON:-python}}" -m verl.trainer.main_ppo'
        lines.append(" \\\n    ".join([call, *map(shlex.quote, given)]))
    return "\n\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
