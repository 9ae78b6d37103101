"""Every table's columns, with a comment each: the one place that says what a row means.

``volatile`` columns (times, places) are kept out of a table's content digest, so that a rerun with the same result
does not make its children run again. ``encoding`` is how Parquet stores a column before zstd; all encodings read the same
everywhere, and together they take a third off a token table (docs/log.md): differences for what counts up, bytes apart from
each other for numbers without pattern, text without its lengths for hashes, a dictionary for the rest."""

from dataclasses import dataclass

import pyarrow as pa

DICTIONARY, DIFFERENCES, BYTES_APART, TEXT = "DICTIONARY", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "DELTA_LENGTH_BYTE_ARRAY"


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    comment: str
    volatile: bool = False
    encoding: str = DICTIONARY


@dataclass(frozen=True)
class TableSchema:
    name: str
    comment: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    group_bytes: int = 16 << 20  # of a row group at most: all of it is read to find one row

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])

    @property
    def volatile(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns if c.volatile)


def _table(name: str, comment: str, keys: str, *columns: tuple, encodings: dict[str, str] | None = None, **more: int) -> TableSchema:
    encodings = encodings or {}
    found = tuple(Column(*c) if c[0] not in encodings else Column(*c, encoding=encodings[c[0]]) for c in columns)
    return TableSchema(name, comment, tuple(keys.split()), found, **more)


_s, _i8, _i16, _i32, _i64 = pa.string(), pa.int8(), pa.int16(), pa.int32(), pa.int64()
_f32, _f64, _b, _bin = pa.float32(), pa.float64(), pa.bool_(), pa.binary()

_ALL = (
    _table("documents", "One document of the corpus, after normalisation and de-duplication.", "doc_id",
           ("doc_id", _s, "Hash of the normalised text (16 hex digits)."),
           ("split", _s, "train, dev or test; by hash, so it does not change when documents are added."),
           ("source", _s, "File, Hub data set or generator family the document came from."),
           ("text", _s, "The document, UTF-8."),
           ("n_bytes", _i64, "Length of the text in bytes."),
           ("meta", _s, "JSON object with the source's other fields."),
           ("item_keys", pa.list_(_s), "Keys of the generator's items in this document; empty for natural text."),
           group_bytes=1 << 20),
    _table("questions", "One question with a checkable answer, or a multiple-choice item.", "question_id",
           ("question_id", _s, "Hash of source, question and options, or the source's own id."),
           ("source", _s, "Where it came from; generated items say so."),
           ("split", _s, "train, dev or test."),
           ("subject", _s, "Subject or family; '' where there is none."),
           ("subfield", _s, "Finer subject (SuperGPQA's 285 subfields); '' where there is none."),
           ("text", _s, "The question."),
           ("options", pa.list_(_s), "Answer options in their order; empty for free answers."),
           ("answer", _s, "The right answer: text, or the letter of the right option."),
           ("answer_index", _i16, "Index of the right option; -1 for free answers."),
           ("pass_rate", _f32, "Share of a stronger model's tries that were right, as the source says; null where it says nothing.")),
    _table("tokens", "One token of a document, as a scorer saw it; sorted by document and position.", "scorer doc_id position",
           ("scorer", _s, "Name the scoring ran under: filter or difficulty."),
           ("doc_id", _s, "The document."),
           ("position", _i32, "Index of the token in the document, from 0."),
           ("token_id", _i32, "Vocabulary entry."),
           ("byte_start", _i32, "Offset of the token's first byte in the document."),
           ("byte_len", _i16, "Number of the document's bytes the token covers."),
           ("entropy", _f32, "Entropy of the scorer's renormalised top-16 next tokens before this token, nats; null for a first token "
                            "without BOS."),
           ("nll", _f32, "Negative log-likelihood of this token over the whole vocabulary, nats; null as above."),
           ("rank", _i32, "Rank of this token in the scorer's distribution, 0 = most likely; -1 as above."),
           ("top_id", _i32, "The scorer's most likely token; -1 as above."),
           encodings={"position": DIFFERENCES, "byte_start": DIFFERENCES,
                      **dict.fromkeys(("token_id", "byte_len", "entropy", "nll", "rank", "top_id"), BYTES_APART)}),
    _table("vocabulary", "One vocabulary entry of a scorer's tokenizer.", "tokenizer token_id",
           ("tokenizer", _s, "Digest of the id to bytes table (16 hex digits)."),
           ("token_id", _i32, "Vocabulary entry."),
           ("bytes", _bin, "The bytes it stands for."),
           ("text", _s, "The bytes as text, with U+FFFD for what is not UTF-8."),
           ("special", _b, "A control token that never stands for document text.")),
    _table("positions", "One eligible position: a token to be predicted after reasoning.", "position_id",
           ("position_id", _s, "Hash of doc_id and byte_start (16 hex digits)."),
           ("doc_id", _s, "The document."),
           ("position", _i32, "Index of the token to predict."),
           ("byte_start", _i32, "Offset of that token's first byte."),
           ("context_start", _i32, "Offset of the first byte of the prefix the prompt shows; > 0 where it was truncated."),
           ("split", _s, "The document's split."),
           ("entropy", _f32, "Entropy by the difficulty scorer, nats."),
           ("filter_entropy", _f32, "Entropy by the filter scorer, nats."),
           ("difficulty", _s, "Highest level exceeded by entropy: below, easy (> 0.5), medium (> 1.0), hard (> 1.5)."),
           ("winnable", _b, "Extracting the boxed truth can earn the reward."),
           ("selected", _s, "Sample the position belongs to: train, dev, test, or '' for none."),
           ("n_prompt_tokens", _i32, "Tokens of the prefix the prompt shows, template not counted."),
           encodings={"position_id": TEXT, "position": DIFFERENCES, "byte_start": DIFFERENCES, "context_start": DIFFERENCES,
                      "entropy": BYTES_APART, "filter_entropy": BYTES_APART, "n_prompt_tokens": DIFFERENCES}),
    _table("eligible_tokens", "An eligible position as one scorer saw it, in the order of its entropy: by scorer, falling tenth of a nat, "
           "document and position, so that a threshold reads only what exceeds it.", "scorer doc_id position",
           ("scorer", _s, "filter or difficulty."),
           ("entropy", _f32, "Entropy by this scorer, nats."),
           ("doc_id", _s, "The document."),
           ("position", _i32, "Index of the token."),
           ("byte_start", _i32, "Offset of the token's first byte in the document."),
           ("byte_len", _i16, "Number of the document's bytes the token covers."),
           ("token_id", _i32, "Vocabulary entry."),
           ("split", _s, "The document's split."),
           ("difficulty", _s, "Highest level the difficulty scorer's entropy exceeds: below, easy, medium, hard."),
           ("winnable", _b, "Extracting the boxed truth can earn the reward."),
           ("selected", _s, "Sample the position belongs to: train, dev, test, or '' for none."),
           encodings={"entropy": BYTES_APART, "position": DIFFERENCES, "byte_start": DIFFERENCES, "byte_len": BYTES_APART,
                      "token_id": BYTES_APART}),
    _table("eligible_counts", "How many eligible positions of one split a scorer's entropy puts into one tenth of a nat: a threshold's "
           "count is a sum of these and of a part of one tenth of eligible_tokens.", "scorer split tenth",
           ("scorer", _s, "filter or difficulty."),
           ("split", _s, "The documents' split."),
           ("tenth", _i16, "floor(10 * entropy), in single precision: 12 holds 1.2 up to 1.3 nats."),
           ("tokens", _i64, "Eligible positions.")),
    _table("checkpoints", "One saved model.", "checkpoint_id",
           ("checkpoint_id", _s, "Hash of kind, step and weights (16 hex digits)."),
           ("parent_id", _s, "Checkpoint the run started from; '' for none."),
           ("kind", _s, "bootstrap, warmstart, pretrain, finetune, control.KIND."),
           ("run", _s, "Version that wrote it.", True),
           ("seed", _i64, "Seed of the run."),
           ("step", _i32, "Optimizer step within the run; 0 is the start."),
           ("flops", _f64, "Model FLOPs spent by the run up to this step, generation included."),
           ("wall_s", _f64, "Seconds the run had taken.", True),
           ("tokens_trained", _i64, "Tokens that passed through forward and backward."),
           ("tokens_generated", _i64, "Tokens generated for training, dropped groups included."),
           ("uri", _s, "Folder of the model, relative to the workspace, or absolute for external models.", True)),
    _table("rollouts", "One response of the policy, written before any filtering.", "run step item_id sample",
           ("run", _s, "Version that wrote it.", True),
           ("step", _i32, "Optimizer step the rollout was made for."),
           ("item_kind", _s, "position or question."),
           ("item_id", _s, "position_id or question_id."),
           ("sample", _i16, "Index within the group."),
           ("policy_step", _i32, "Step of the weights that wrote it."),
           ("seed", _i64, "Seed of the response."),
           ("response", _s, "The response, special tokens kept, U+FFFD for bytes that are not UTF-8."),
           ("prediction", _s, "Extracted answer; null when there is none."),
           ("reward", _f32, "Total reward."),
           ("components", _s, "JSON object: each part of the reward."),
           ("n_tokens", _i32, "Tokens of the response."),
           ("finish", _s, "stop or length."),
           ("logprob_gap", _f32, "Mean |engine - trainer| log-probability over the response, nats; null where not computed."),
           ("kept", _b, "The group went into the update.")),
    _table("predictions", "One prediction at one evaluated position.", "checkpoint_id position_id mode sample",
           ("checkpoint_id", _s, "The model."),
           ("position_id", _s, "The position."),
           ("mode", _s, "standard, reasoning (greedy by default), no_thought, or sampled: reasoning in groups at a temperature."),
           ("sample", _i16, "Index of the sample; 0 for greedy."),
           ("seed", _i64, "Seed of the response; 0 for greedy."),
           ("response", _s, "Text after the prompt; the predicted token in standard mode."),
           ("prediction", _s, "Extracted prediction; null when there is none."),
           ("correct", _b, "The prediction earns the prefix-matching reward."),
           ("tokens_matched", _i16, "Document tokens a right prediction covers; 0 when wrong."),
           ("n_tokens", _i32, "Tokens of the response."),
           ("finish", _s, "stop or length.")),
    _table("answers", "One answer to one question.", "checkpoint_id benchmark question_id mode shots sample",
           ("checkpoint_id", _s, "The model."),
           ("benchmark", _s, "Name of the question set; generated sets start with generated-."),
           ("question_id", _s, "The question."),
           ("subject", _s, "The question's subject."),
           ("mode", _s, "ntp (option letters), ntp_text (option texts per byte), reasoning or solve."),
           ("shots", _i16, "Worked examples in the prompt."),
           ("sample", _i16, "Index of the sample."),
           ("response", _s, "The response; '' in ntp mode."),
           ("extracted", _s, "The answer found in it; null when none was."),
           ("correct", _b, "It is right."),
           ("n_tokens", _i32, "Tokens of the response."),
           ("finish", _s, "stop, length or none (ntp mode).")),
    _table("fits", "One scaling-law fit: P(C) = p_star + a / C^alpha (paper Eq. 5).", "run_id split",
           ("run_id", _s, "Training run whose checkpoints were fitted."),
           ("split", _s, "easy, medium or hard; cumulative, as in the paper."),
           ("p_star", _f64, "Accuracy in the limit, 0 to 1."),
           ("p_star_low", _f64, "Lower end of p_star's 95 % interval from refitting over a bootstrap of documents."),
           ("p_star_high", _f64, "Upper end."),
           ("a", _f64, "Coefficient; below 0 when accuracy rises with compute; C in units of c_unit."),
           ("a_low", _f64, "Lower end of a's 95 % interval."),
           ("a_high", _f64, "Upper end."),
           ("alpha", _f64, "Exponent."),
           ("alpha_low", _f64, "Lower end of alpha's 95 % interval."),
           ("alpha_high", _f64, "Upper end."),
           ("c_unit", _f64, "FLOPs per unit of C in the fit."),
           ("r2", _f64, "Coefficient of determination, unweighted, on accuracy."),
           ("n_points", _i32, "Checkpoints fitted."),
           ("points", _s, "JSON list of {checkpoint_id, step, flops, accuracy, low, high, n, fitted, residual}."),
           ("warnings", _s, "JSON list of reasons to distrust the fit.")),
    _table("pattern_shares", "Share of responses that contain a keyword of a reasoning-pattern group (paper §4.5).", "source pattern",
           ("source", _s, "What wrote the responses: next-token thoughts or problem solving, and by which model."),
           ("checkpoint_id", _s, "The model."),
           ("pattern", _s, "transition, reflection, breakdown, hypothesis, divergent_thinking or deduction."),
           ("share", _f64, "Share of responses with at least one keyword, 0 to 1."),
           ("n", _i32, "Responses.")),
)

TABLES: dict[str, TableSchema] = {table.name: table for table in _ALL}
