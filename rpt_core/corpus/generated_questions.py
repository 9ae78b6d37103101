"""Questions of the generator's kind, from the part of its item space that no document uses: a free answer (source
``generated-answers``) and multiple choice in MMLU-Pro's row schema (``generated-choice``). They measure the skill the generated
corpus teaches, and are never to be read as a public benchmark."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from rpt_core.corpus.generator import Program, draw_program, split_of
from rpt_core.corpus.questions import LETTERS, questions_table
from rpt_core.store.errors import UserError
from rpt_core.store.seeds import derive_seed

KINDS = ("generated-answers", "generated-choice")
MIN_OPTIONS = 4


def generated_questions(n: int, seed: int, *, kind: str, split: str = "test") -> pa.Table:
    """``n`` different questions of one kind as a table of the schema ``questions``, item-disjoint from every generated corpus and
    from the questions of the other kind."""
    return questions_table([{**row, "split": split} for row in generated_rows(n, seed, kind)])


def generated_rows(n: int, seed: int, kind: str) -> Iterator[dict[str, Any]]:
    """A row per question, without its split. ``question_id`` is the item's key."""
    if kind not in KINDS:
        raise UserError(f"there is no kind of generated questions called {kind}; there are {' and '.join(KINDS)}.")
    seen: set[str] = set()
    index = 0
    while len(seen) < n:
        rng = np.random.Generator(np.random.Philox(derive_seed(seed, kind, index)))
        index += 1
        program = draw_program(rng)
        while split_of(program.place, 0.0, 0.0) != "questions" or int(program.place * 2**32) % 2 != KINDS.index(kind):
            program = draw_program(rng)
        start = int(rng.integers(len(program.family.states)))
        key = program.item_key(start)
        if key not in seen:
            seen.add(key)
            yield _row(program, start, key, kind, rng)


def _row(program: Program, start: int, key: str, kind: str, rng: np.random.Generator) -> dict[str, Any]:
    family = program.family
    answer = program.answer(start).strip()
    row = {"question_id": f"{kind}:{key}", "source": kind, "subject": family.name,
           "text": f"Tell {program.statement(start)} {family.states[start]} gives", "options": [], "answer": answer, "answer_index": -1}
    if kind == "generated-choice":
        others = [state for state in family.states if state != answer]
        n_options = int(rng.integers(MIN_OPTIONS, len(family.states) + 1))
        options = [others[at] for at in rng.permutation(len(others))[: n_options - 1]]
        index = int(rng.integers(n_options))
        options.insert(index, answer)
        row |= {"options": options, "answer": LETTERS[index], "answer_index": index}
    return row


def mmlu_pro_rows(questions: pa.Table) -> list[dict[str, Any]]:
    """Multiple-choice questions as rows of MMLU-Pro's JSONL: question_id, question, options, answer, answer_index, category, src."""
    return [{"question_id": row["question_id"], "question": row["text"], "options": row["options"], "answer": row["answer"],
             "answer_index": row["answer_index"], "cot_content": "", "category": row["subject"], "src": row["source"]}
            for row in questions.to_pylist() if row["options"]]
