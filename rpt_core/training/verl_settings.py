"""What verl 0.9.1 is told for one `pretrain` configuration: current keys only, exactly on-policy GRPO (RPT §3.3), and a refusal for
whatever verl does otherwise than we do without saying so. Torch-free.

verl still knows the keys of its older releases at the top level, takes them without a word and, in its present trainer, never reads
them; so a setting under one of those names is refused here. Unknown keys are refused by Hydra, which verl reads its settings with."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpt_core.store.errors import UserError
from rpt_core.training.pretrain_config import PretrainConfig

VERL = "0.9.1"
# top-level names that verl 0.9.1 takes and ignores (trainer/config/legacy_reward_impl.yaml), or that later code replaced
RETIRED = {"custom_reward_function": "reward.custom_reward_function", "reward_model": "reward.reward_model and reward.reward_manager",
           "sandbox_fusion": "reward.sandbox_fusion",
           "algorithm.filter_groups.max_num_gen_batches": "nothing: verl's filtering has no bound",
           "actor_rollout_ref.actor.grad_clip": "actor_rollout_ref.actor.optim.clip_grad",
           "actor_rollout_ref.actor.optim.warmup_style": "actor_rollout_ref.actor.optim.lr_scheduler_type",
           "actor_rollout_ref.actor.ppo_micro_batch_size": "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
           "data.val_batch_size": "nothing: validation goes to the engine whole"}
# what the stage reads back or resumes from, by the setting of `pretrain` that it follows
OWN = {"trainer.total_training_steps": "steps", "trainer.total_epochs": "steps", "trainer.save_freq": "checkpoint_steps",
       "trainer.n_gpus_per_node": "processes", "trainer.nnodes": "nodes", "data.train_batch_size": "batch_positions",
       "actor_rollout_ref.rollout.n": "group_size", "algorithm.filter_groups.enable": "dynamic_from_step",
       **dict.fromkeys(("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.resume_mode", "trainer.project_name",
                        "trainer.experiment_name", "data.train_files", "data.val_files", "actor_rollout_ref.model.path",
                        "actor_rollout_ref.model.tokenizer_path", "reward.custom_reward_function"), "")}
AVERAGING = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
PLAIN = re.compile(r"[A-Za-z_/][\w./:@-]*", re.ASCII)
WORDS = ("null", "true", "false", "inf", "nan")  # what Hydra takes for something else than text
OUTSIDE = re.compile(r"[/\\~$]|\.\.|_target_")  # what a value needs to reach a file, an address, a variable or Hydra's instantiation
VERL_EPS = 1e-6  # fixed in verl's GRPO advantage


@dataclass(frozen=True)
class Files:
    """Where an exported run lies; absolute paths that every node sees."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.parquet"

    @property
    def reward(self) -> Path:
        return self.folder / "reward.py"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def arguments(self) -> Path:
        """JSON: for each phase, what verl is started with."""
        return self.folder / "arguments.json"

    @property
    def launch(self) -> Path:
        return self.folder / "launch.sh"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def rollouts(self) -> Path:
        """What verl dumps: a JSONL file per step with the responses of the update's batch."""
        return self.folder / "rollouts"

    @property
    def metrics(self) -> Path:
        """What verl's file logger writes: by launch, project and phase a JSONL file with a line per step."""
        return self.folder / "metrics"

    @property
    def scored(self) -> Path:
        """What the reward file writes: every response it scored, before any filtering."""
        return self.folder / "scored"


@dataclass(frozen=True)
class Phase:
    """A stretch of steps that one launch of verl runs: it cannot turn filtering on in the middle."""

    last_step: int
    filtering: bool
    number: int = 1


def phases(config: PretrainConfig) -> list[Phase]:
    """Without dynamic sampling up to the step before it begins, with it from there (the paper: from step 500)."""
    begin = config.dynamic_from_step
    if begin == 0 or begin > config.steps:
        return [Phase(config.steps, False)]
    before = [Phase(begin - 1, False)] if begin > 1 else []
    return [*before, Phase(config.steps, True, 1 + len(before))]


def check(config: PretrainConfig) -> None:
    """UserError for a configuration that verl would train otherwise than it says, and for batches that do not come out even."""
    only = {"reward": ("prefix_matching", "the other rewards ask the model or its tokenizer, which verl's reward workers do not have"),
            "truncated": ("train", "verl neither masks nor penalises truncated responses"),
            "engine": ("vllm", "verl rolls out with vLLM"),
            "advantage_eps": (VERL_EPS, "verl's is fixed")}
    for name, (value, why) in only.items():
        if getattr(config, name) != value:
            raise UserError(f"backend verl needs pretrain.{name}={value}: {why}.")
    if config.advantage == "rlp":
        raise UserError("backend verl knows pretrain.advantage grpo and dr_grpo, not rlp.")
    gpus = config.processes * config.nodes
    responses = config.batch_positions * config.group_size
    if responses % gpus:
        raise UserError(f"{config.batch_positions} contexts of {config.group_size} responses ({responses}) do not divide by {gpus} GPUs; "
                        "set pretrain.batch_positions, group_size, processes or nodes otherwise.")
    for line in config.verl_settings:
        own_setting(line)


def check_prompts(config: PretrainConfig, n_train: int, n_validation: int) -> None:
    """UserError where verl could not train on so many prompts, or not validate."""
    if n_train < config.batch_positions:
        raise UserError(f"verl needs at least a batch of prompts: {n_train} are selected for training and pretrain.batch_positions is "
                        f"{config.batch_positions}.")
    if not n_validation:
        raise UserError("verl needs a validation file and no position is selected for dev; set select.dev_positions.")


def settings(config: PretrainConfig, files: Files, model: Path, n_train: int, loggers: Sequence[str] = ()) -> dict[str, Any]:
    """verl's settings that all phases share, by key. ``loggers`` beside the console: file (under VERL_FILE_LOGGER_ROOT), mlflow (the run
    that MLFLOW_RUN_ID and MLFLOW_TRACKING_URI name). ``verl_settings`` come last and so win."""
    longest = config.max_prompt_tokens + config.max_response_tokens
    actor, rollout, reward = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "reward"
    steps_per_epoch = n_train // config.batch_positions
    found: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": config.advantage == "grpo",
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.rollout_is": "token" if config.tis_cap else None,
        "algorithm.rollout_correction.rollout_is_threshold": config.tis_cap or 2.0,
        "algorithm.rollout_correction.bypass_mode": False,
        "algorithm.filter_groups.metric": "acc",
        "data.train_files": str(files.train),
        "data.val_files": str(files.validation),
        "data.train_batch_size": config.batch_positions,
        "data.gen_batch_size": 1,  # so that the data's state fits both phases
        "data.max_prompt_length": config.max_prompt_tokens,
        "data.max_response_length": config.max_response_tokens,
        "data.filter_overlong_prompts": False,  # left out when the file was written
        "data.truncation": "error",
        "data.shuffle": True,
        "data.seed": config.seed,
        "data.dataloader_num_workers": 0,
        "data.trust_remote_code": False,
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.model.tokenizer_path": str(files.tokenizer),
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.gradient_checkpointing,
        "actor_rollout_ref.model.trust_remote_code": False,
        f"{actor}.strategy": "fsdp2",  # as the local trainer; verl's default is the older FSDP
        f"{actor}.ppo_mini_batch_size": config.batch_positions,  # one update a step: exactly on-policy
        f"{actor}.ppo_epochs": 1,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(config.micro_batch_tokens, longest),
        f"{actor}.use_kl_loss": False,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.clip_ratio_low": config.clip_low,
        f"{actor}.clip_ratio_high": config.clip_high,
        f"{actor}.loss_agg_mode": AVERAGING[config.averaging],
        f"{actor}.loss_scale_factor": config.max_response_tokens if config.averaging == "constant" else None,
        f"{actor}.optim.lr": config.lr,
        f"{actor}.optim.lr_warmup_steps": config.warmup_steps,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.optim.weight_decay": config.weight_decay,
        f"{actor}.optim.betas": [0.9, 0.999],
        f"{actor}.optim.clip_grad": config.max_grad_norm or math.inf,
        f"{actor}.fsdp_config.dtype": config.dtype,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"{rollout}.name": "vllm",
        f"{rollout}.n": config.group_size,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        f"{rollout}.dtype": config.dtype,
        f"{rollout}.seed": config.seed,
        f"{rollout}.gpu_memory_utilization": config.gpu_memory_share,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.max_model_len": longest,
        f"{rollout}.logprobs_mode": "processed_logprobs",  # of logits / temperature, as everywhere here
        f"{rollout}.calculate_log_probs": True,  # engine against trainer, and what the correction needs
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.val_kwargs.do_sample": False,
        f"{reward}.custom_reward_function.path": str(files.reward),
        f"{reward}.custom_reward_function.name": "compute_score",
        f"{reward}.reward_manager.name": "naive",
        "trainer.n_gpus_per_node": config.processes,
        "trainer.nnodes": config.nodes,
        "trainer.total_epochs": config.steps // max(1, steps_per_epoch) + 2,  # the steps end the run, not the epochs
        "trainer.save_freq": math.gcd(*config.milestones),
        "trainer.test_freq": math.gcd(*config.milestones),
        "trainer.val_before_train": False,
        "trainer.resume_mode": "auto",
        "trainer.balance_batch": True,
        "trainer.default_local_dir": str(files.checkpoints),
        "trainer.rollout_data_dir": str(files.rollouts),
        "hydra.run.dir": str(files.folder / "hydra"),  # else it writes where it is started
        "trainer.project_name": "rpt",
        "trainer.logger": ["console", *loggers],
    }
    for line in config.verl_settings:
        key, value = own_setting(line)
        found.pop(key, None)
        found[key] = RawValue(value)
    return found


class RawValue(str):
    """A value in Hydra's own writing, taken as the user gave it."""


def own_setting(line: str) -> tuple[str, str]:
    """``key=value`` as the user wrote it. UserError where it is not of that form, the key is one that verl takes and ignores, or one that
    the stage itself must know."""
    key, equals, value = line.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"pretrain.verl_settings: {line} is not of the form key=value.")
    plain = key.lstrip("+~")
    for retired, now in RETIRED.items():
        if plain == retired or plain.startswith(f"{retired}."):
            raise UserError(f"pretrain.verl_settings: {plain} is retired, and verl {VERL} would ignore it without a word; use {now}.")
    if plain.startswith("hydra.") or "_target_" in plain or OUTSIDE.search(value):
        raise UserError(f"pretrain.verl_settings: {line} names a file, an address, a variable or an object; a setting here is a number, "
                        "true, false or a plain word, and files are named by the stage's own settings.")
    for ours, setting in OWN.items():
        if plain == ours or plain.startswith(f"{ours}."):
            raise UserError(f"pretrain.verl_settings: {plain} is set by this stage, which goes on from what it says"
                            + (f"; set pretrain.{setting}." if setting else "."))
    return key, value


def arguments(found: dict[str, Any], phase: Phase, run: str = "rpt") -> list[str]:
    """Settings and a phase's own as Hydra overrides ``key=value``; ``run`` names the run."""
    own = {"trainer.total_training_steps": phase.last_step, "algorithm.filter_groups.enable": phase.filtering,
           "trainer.experiment_name": f"{run}-{phase.number}"}
    return [f"{key}={hydra_value(value)}" for key, value in (own | found).items()]


def hydra_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, RawValue):
        return str(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in WORDS:
            return value
        # a backslash is itself, except in front of a quote
        return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
    if isinstance(value, Sequence):
        return "[" + ",".join(hydra_value(part) for part in value) + "]"
    return json.dumps(value) if math.isfinite(value) else "inf"
