"""In verl's place where no GPU is: takes what `verl.trainer.main_ppo` is given, composes the same configuration, calls the exported reward
for made-up responses, and leaves what verl leaves, written by verl's own code: metrics and dumps per step, checkpoints that two gloo
processes save of an FSDP2 model, the marker of the last one. Half of the groups are equal; with filtering they are drawn and left out.
``STAND_IN_DIES`` names a file: where it is not there yet, step 4 makes it and ends the process. Where validations are to be dumped to
``fails``, it ends at once."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from oracle import configuration
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.fsdp_utils import apply_fsdp2
from verl.utils.import_utils import load_extern_object
from verl.utils.tracking import Tracking

torch.set_num_threads(1)  # so that the saving processes may be forks
config = configuration(sys.argv[1:])
if config.trainer.validation_data_dir == "fails":
    sys.exit("RuntimeError: the stand-in fails")
trainer, checkpoints = config.trainer, Path(config.trainer.default_local_dir)
marker = checkpoints / "latest_checkpointed_iteration.txt"
score = load_extern_object(config.reward.custom_reward_function.path, config.reward.custom_reward_function.name)
rows = pq.read_table(config.data.train_files).to_pylist()
tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.tokenizer_path)
model = AutoModelForCausalLM.from_pretrained(config.actor_rollout_ref.model.path, dtype=torch.float32)
STEP_ADDS = 0.125
dies = Path(os.environ["STAND_IN_DIES"]) if "STAND_IN_DIES" in os.environ else None


def respond(row, step, sample, equal):
    """The truth from even samples, and from all where the group is to be equal; with a separator that some take for the end of a line."""
    info = row["extra_info"]
    truth = bytes.fromhex(row["reward_model"]["ground_truth"])[: info["boundaries"][0]].decode("utf-8", "replace")
    return f"step {step}\u2028</think>\\boxed{{{truth if equal or sample % 2 == 0 else truth + '!'}}}"


def group(row, step, equal):
    n = config.actor_rollout_ref.rollout.n
    responses = [tokenizer.decode(tokenizer(respond(row, step, sample, equal), add_special_tokens=False)["input_ids"],
                                  skip_special_tokens=True) for sample in range(n)]
    truth, info = row["reward_model"]["ground_truth"], row["extra_info"]
    return [(response, score(data_source="rpt", solution_str=response, ground_truth=truth, extra_info=info)) for response in responses]


def save(step):
    """As verl's workers save: each process of the mesh its shards of weights and optimizer, the first the model's configuration."""
    folder = checkpoints / f"global_step_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    size = trainer.n_gpus_per_node * trainer.nnodes
    torch.multiprocessing.start_processes(save_shards, (size, step, folder), size, start_method="fork")
    marker.write_text(str(step))


def save_shards(rank, size, step, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(STEP_ADDS * step)  # so that each checkpoint is another
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=["fsdp"])  # as verl's create_device_mesh
    apply_fsdp2(model, {"mesh": mesh}, config.actor_rollout_ref.actor.fsdp_config)
    optimizer = torch.optim.AdamW(model.parameters())
    keeps = FSDPCheckpointManager(model, optimizer, processing_class=tokenizer, checkpoint_config=config.actor_rollout_ref.actor.checkpoint)
    keeps.save_checkpoint(str(folder / "actor"), None, step, trainer.max_actor_ckpt_to_keep)
    torch.distributed.destroy_process_group()


tracking = Tracking(trainer.project_name, trainer.experiment_name, trainer.logger, config={"trainer": dict(trainer)})
done = int(marker.read_text()) if marker.exists() else 0
for step in range(done + 1, trainer.total_training_steps + 1):
    if dies and not dies.exists() and step == 4:
        dies.touch()
        sys.exit("RuntimeError: the stand-in dies")
    first = step * config.data.train_batch_size
    kept = {"inputs": [], "outputs": [], "gts": [], "scores": []}
    uids, number, wanted = [], first, config.data.train_batch_size
    while wanted:
        row, equal = rows[number % len(rows)], number % 2 == 0
        found, number = group(row, step, equal), number + 1
        if config.algorithm.filter_groups.enable and len({result[config.algorithm.filter_groups.metric] for _, result in found}) == 1:
            continue
        wanted -= 1
        for sample, (response, result) in enumerate(found):
            kept["inputs"].append("")
            kept["outputs"].append(response)
            kept["gts"].append(row["reward_model"]["ground_truth"])
            kept["scores"].append(result["score"])
            uids.append(f"uid-{number}_{sample}_0")
    if step % trainer.save_freq == 0 or step == trainer.total_training_steps:
        save(step)
    PPOTrainer._write_generations(**kept, reward_extra_infos_dict={"uid": uids}, dump_path=trainer.rollout_data_dir, global_steps=step)
    tracking.log({"critic/score/mean": sum(kept["scores"]) / len(kept["scores"]), "timing_s/step": float("nan"), "perf/step": step}, step)
tracking.finish()
