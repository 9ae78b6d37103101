"""One model that both scores and generates for an evaluation: loaded when first needed, with what stops it and how much it can take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rpt_core.rollout.engine import Completion, Engine, Sampling
from rpt_core.rollout.make import make_engine, stop_ids
from rpt_core.store.errors import UserError
from rpt_core.store.models import ModelRef
from rpt_core.tokens.models import load_causal_lm, resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Generator:
    """A model folder behind a forward pass (``model``) and a rollout engine (``generate``); each is made when first used."""

    def __init__(self, ref: ModelRef, tokenizer: Any, *, engine: Literal["torch", "vllm"], dtype: str, device: str, batch_tokens: int):
        self.ref, self.dtype, self.device, self.batch_tokens = ref, dtype, resolve_device(device), batch_tokens
        self.kind: Literal["torch", "vllm"] = engine
        self.stop_ids: tuple[int, ...] = stop_ids(tokenizer)
        self._model: PreTrainedModel | None = None
        self._engine: Engine | None = None
        self._config: Any = None

    @property
    def model(self) -> "PreTrainedModel":
        if self._model is None:
            self._model = load_causal_lm(self.ref.path, self.dtype, self.device)
        return self._model

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        """See ``Engine.generate``; UserError where prompt and response do not fit the model."""
        self.require_room(prompts, sampling.max_new_tokens)
        if self._engine is None:
            self._engine = self._open()
        return self._engine.generate(prompts, seeds, sampling)

    @property
    def room(self) -> int | None:
        """Longest sequence the model was made for, tokens; None where its configuration sets no limit."""
        if self._config is None:
            from transformers import AutoConfig

            self._config = AutoConfig.from_pretrained(str(self.ref.path), trust_remote_code=False, local_files_only=True).get_text_config()
        return getattr(self._config, "max_position_embeddings", None) or getattr(self._config, "n_positions", None)

    def require_room(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        longest = max((len(prompt) for prompt in prompts), default=0) + new_tokens
        if self.room and longest > self.room:
            raise UserError(f"prompt and response reach {longest} tokens and the model {self.ref.run} takes {self.room}; "
                            "select with a smaller max_prompt_tokens, or set a smaller max_response_tokens.")

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = self._model = None

    def _open(self) -> Engine:
        """The engine keeps weights of its own, so the ones that scored are let go first."""
        model, self._model = self.model if self.kind == "torch" else None, None
        return make_engine(self.kind, self.ref.path, model=model, dtype=self.dtype, device=self.device, chunk_tokens=self.batch_tokens,
                           max_model_len=self.room)
