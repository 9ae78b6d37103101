"""A study runs every arm and seed once, measures what controls of equal time may spend, and records each opening of a test sample."""

import json

import pytest

import flows.study
from flows.profile import load_profile, override
from flows.study import run_study, wall_budgets
from rpt_core.store.errors import UserError
from tests.helpers import commit_table


def row(kind, step, wall_s):
    return {"checkpoint_id": f"{kind}{step}", "parent_id": "", "kind": kind, "run": "r", "seed": 0, "step": step, "flops": 1.0,
            "wall_s": wall_s, "tokens_trained": 1, "tokens_generated": 1, "uri": "nowhere"}


@pytest.fixture
def made(workspace):
    """Committed versions of a warm start of 40 s and a pretrain of 160.4 s."""
    return {"warmstart": commit_table(workspace, "warmstart", {"checkpoints": [row("warmstart", 9, 40.0)]}),
            "pretrain": commit_table(workspace, "pretrain", {"checkpoints": [row("pretrain", 0, 0.0), row("pretrain", 5, 160.4)]})}


@pytest.fixture
def study(workspace, made, monkeypatch):
    """Run tiny-science's study on a chain that only takes notes; returns (calls, runs handed to the results)."""
    seen = []

    def results(_, runs, about):
        seen.append((runs, about))
        return {}

    monkeypatch.setattr(flows.study, "study_results", results)
    monkeypatch.setattr(flows.study, "write_study", lambda folder, results: None)

    def run(overrides=None):
        calls = []

        def chain(settings, arm, until):
            calls.append((arm, settings["seed"], until, dict(settings)))
            return {"stages": [{"slot": slot, "version": version} for slot, version in made.items()]}

        result = run_study(override(load_profile("tiny-science"), overrides or {}), overrides or {}, workspace, chain)
        return calls, seen[-1], result

    return run


def test_every_arm_runs_with_each_of_its_seeds_first_until_pretrain_then_whole(study):
    calls, (runs, _), _ = study()
    expected = [("scarce", seed) for seed in range(5)] + [("plentiful", 0)]
    assert [(run.arm, run.seed) for run in runs] == expected
    assert [(arm, seed, until) for arm, seed, until, _ in calls] == [(*one, until) for one in expected for until in ("pretrain", "")]
    assert calls[-1][3]["warmstart.n_traces"] == 5000
    assert "warmstart.n_traces" not in calls[0][3]


def test_controls_of_equal_time_get_the_seconds_of_what_they_are_compared_with(study, workspace, made):
    assert wall_budgets(("control.ntp_wall", "control.sft_wall"), made, workspace) == {
        "control.ntp_wall.budget_wall_s": 200.0, "control.sft_wall.budget_wall_s": 160.0}
    calls, _, _ = study()
    assert "control.sft_wall.budget_wall_s" not in calls[0][3]
    assert calls[1][3]["control.sft_wall.budget_wall_s"] == 160.0


def test_a_study_under_a_name_of_its_own_has_a_folder_of_its_own(study, workspace):
    study()
    _, (_, about), result = study({"study.name": "second corpus"})
    assert about["name"] == "second corpus"
    assert result["folder"] == str(workspace.path / "studies" / "second corpus")
    assert (workspace.path / "studies" / "tiny-science" / "openings.jsonl").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\nb", 7, "x" * 81])
def test_a_name_that_a_folder_or_a_page_cannot_have_is_refused(name):
    with pytest.raises(UserError, match="a study's name is made of"):
        override(load_profile("tiny-science"), {"study.name": name})


def test_every_opening_of_the_test_sample_is_on_record_and_dev_opens_nothing(study, workspace):
    path = workspace.path / "studies" / "tiny-science" / "openings.jsonl"
    assert study({"evaluate.sample": "dev"})[2]["openings"] == 0
    assert not path.exists()
    assert study()[2]["openings"] == 1
    _, (_, about), result = study({"pretrain.steps": 7})
    assert result["openings"] == 2
    openings = [json.loads(line) for line in path.read_text().splitlines()]
    assert about["openings"] == openings
    assert [opening["test_seed"] for opening in openings] == [90210, 90210]
    assert openings[0]["design"] != openings[1]["design"]
    assert all(opening["code"] for opening in openings)
