"""The chain that is to run at larger sizes on a GPU: its settings fit every shape, and the whole of it runs small on a processor."""

import json

import pytest

from benchmarks import harness
from benchmarks.gpu import effect


@pytest.mark.parametrize("shape", sorted(effect.SHAPES))
def test_every_shape_is_a_model_of_about_its_name(shape):
    from rpt_core.training.bootstrap import new_model
    from rpt_core.training.bootstrap_config import BootstrapConfig

    given = effect.settings(effect.arguments(["--shape", shape, "--folder", "x"]))
    config = BootstrapConfig.build("bootstrap", {key.split(".")[1]: value for key, value in given.items() if key.startswith("bootstrap.")})
    if shape == "tiny":
        assert config.hidden_size == BootstrapConfig.build("bootstrap", {}).hidden_size
        return
    import torch

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in new_model(config, 600).parameters())
    assert size == pytest.approx(float(shape.removesuffix("m")) * 1e6, rel=0.15)


@pytest.mark.full
def test_the_chain_runs_without_prefect_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    given = ["--device", "cpu", "--shape", "tiny", "--small", "--folder", str(tmp_path / "ws"), "--set", "pretrain.group_size=4"]
    effect.main(given)
    first = json.loads((tmp_path / "effect_cpu_tiny.json").read_text())
    assert [row["stage"] for row in first["rows"]] == list(effect.SLOTS)
    assert {row["stage"] for row in first["rows"] if row.get("flops", 0) > 0} == {
        "bootstrap", "warmstart", "pretrain", "control.ntp", "control.sft"}
    assert {row["model"] for row in first["accuracy"]} == {"base", "before", "after", "control.ntp", "control.sft"}
    assert set(first["ratios"]) == {"hard_after_minus_before", "hard_after_minus_control.sft"}
    effect.main(given)
    second = json.loads((tmp_path / "effect_cpu_tiny.json").read_text())
    assert second["accuracy"] == first["accuracy"]
    assert all(row["wall_s"] is None for row in second["rows"]), "everything was there"
