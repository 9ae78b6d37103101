"""A workspace as the stages before `pretrain` and `finetune` leave it: documents, positions, questions, and a micro model over bytes."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rpt_core.store.tables import hash_bytes
from rpt_core.store.workspace import Workspace
from rpt_core.tokens.bytes import byte_spans, load_tokenizer
from rpt_core.training.checkpoints import weights_digest
from tests.helpers import commit_table
from tests.training.corpus import documents

CONTROL = ["<|end|>", "<think>", "</think>", "\\boxed{"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and the control tokens, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL[0])


def model_folder(folder: Path, seed: int = 0, max_positions: int = 256) -> str:
    """A seeded micro Qwen2 with its tokenizer; returns the weights' digest."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=256 + len(CONTROL), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=max_positions, tie_word_embeddings=True, initializer_range=0.3))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return weights_digest(model)


def position_rows(rows: list[dict[str, Any]], tokenizer: Any, selected: str = "train") -> list[dict[str, Any]]:
    """The first answer byte of each training document, and the byte after it."""
    found = []
    for row in rows:
        if row["split"] != "train":
            continue
        _, starts, _ = byte_spans(tokenizer, row["text"])
        answer = row["text"].encode().index(b" make") + len(b" make")
        first = list(starts).index(answer)
        for position in (first, first + 1):
            found.append({"position_id": hash_bytes(f"{row['doc_id']}:{starts[position]}".encode()), "doc_id": row["doc_id"],
                          "position": position, "byte_start": int(starts[position]), "context_start": 0, "split": "train", "entropy": 1.2,
                          "filter_entropy": 1.2, "difficulty": "medium", "winnable": True, "selected": selected,
                          "n_prompt_tokens": position})
    return found


def question_rows(train: int = 12, test: int = 6) -> list[dict[str, Any]]:
    rows = []
    for index in range(train + test):
        rows.append({"question_id": f"q{index:02d}", "source": "generated-answers", "split": "train" if index < train else "test",
                     "subject": "sums", "text": f"{index} plus one makes", "options": [], "answer": f" {index + 1}", "answer_index": -1})
    rows.append({**rows[0], "question_id": "choice", "options": ["a", "b"], "answer": "A", "answer_index": 0})
    return rows


def workspace_before_pretrain(path: Path, selected: str = "train", max_positions: int = 256) -> Workspace:
    workspace = Workspace(path)
    rows = documents(24)
    folder = path / "made" / "model"
    weights = model_folder(folder, max_positions=max_positions)
    commit_table(workspace, "ingest", {"documents": rows, "questions": question_rows()})
    commit_table(workspace, "bootstrap", {"checkpoints": [
        {"checkpoint_id": weights[:16], "parent_id": "", "kind": "bootstrap", "run": "made", "seed": 0, "step": 10, "flops": 1e9,
         "wall_s": 1.0, "tokens_trained": 100, "tokens_generated": 0, "uri": "made/model"}]})
    commit_table(workspace, "select", {"positions": position_rows(rows, load_tokenizer(folder), selected)})
    return workspace
