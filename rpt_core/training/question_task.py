"""Questions with checkable answers as a task for GRPO: the reward is 1 for a right answer, judged by math-verify (RLVR; RPT §4.3)."""

from collections.abc import Sequence
from typing import Any

from rpt_core.reasoning.math_answers import MathJudge, final_answer
from rpt_core.reasoning.questions import QuestionPrompts
from rpt_core.rollout.engine import Completion, GenerationCounts
from rpt_core.tokens.bytes import ids_to_text
from rpt_core.training.rollout_tasks import Outcome


class QuestionTask:
    """Rows of ``questions`` with free answers; prompts are made once."""

    item_kind = "question"

    def __init__(self, rows: Sequence[dict[str, Any]], prompts: QuestionPrompts, table: Sequence[bytes], judge: MathJudge):
        self.rows = rows
        self.item_ids: Sequence[str] = [row["question_id"] for row in rows]
        self.scoring = GenerationCounts()  # the judge is no model
        self._prompts = [prompts.prompt(row) for row in rows]
        self._prefill, self._table, self._judge = prompts.prefill, table, judge

    def prompt(self, index: int) -> list[int]:
        return self._prompts[index]

    def outcomes(self, indices: Sequence[int], responses: Sequence[Sequence[Completion]]) -> list[Outcome]:
        texts = [[ids_to_text(self._table, completion.token_ids) for completion in group] for group in responses]
        pairs = [(self._prefill + text, self.rows[index]["answer"]) for index, group in zip(indices, texts, strict=True) for text in group]
        verdicts = iter(self._judge.verify(pairs))
        found = []
        for group in texts:
            correct = [next(verdicts) for _ in group]
            rewards = [float(right) for right in correct]
            answers = [final_answer(self._prefill + text) for text in group]
            found.append(Outcome(group, answers, rewards, [{"correct": reward} for reward in rewards], correct))
        return found
