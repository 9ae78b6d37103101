"""A study's results from committed tables: each seed's models are compared with their own controls, and the page says what was seen."""

import json

import numpy as np
import pytest

from rpt_core.report.study import StudyRun, place_section, side_by_side, study_page, study_results, write_study
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.files import digest_json
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace

PARTS = {"base": ("standard",), "before": ("reasoning",), "after": ("reasoning", "no_thought"), "control.sft": ("reasoning",)}
RATES = {("base", "standard"): 0.2, ("before", "reasoning"): 0.5, ("after", "reasoning"): 0.8, ("after", "no_thought"): 0.1,
         ("control.sft", "reasoning"): 0.8}


def commit(workspace, slot, key, tables, counts):
    identity = digest_json(["study", slot, key])[:16]
    context = Context(workspace, Manifest(slot.split(".")[0], slot, identity, f"{identity}-1", 1, {}, {}, {}), {}, {})
    for name, rows in tables.items():
        context.write(name, rows)
    context.commit(counts)
    context.close()
    return context.manifest.version


def make_run(workspace, arm, seed, n_documents=40):
    """One chain's select, evaluate and pretrain; every seed has models of its own on the same documents."""
    rng = np.random.default_rng(seed)
    levels = ["hard", "medium", "easy", "below"]
    positions = [{"position_id": f"{doc:08d}{at:08d}", "doc_id": f"d{doc}", "position": at, "byte_start": at, "context_start": 0,
                  "split": "test", "entropy": 1.0, "filter_entropy": 1.0, "difficulty": levels[at % 4], "winnable": True,
                  "selected": "test", "n_prompt_tokens": 5} for doc in range(n_documents) for at in range(8)]
    predictions = [{"checkpoint_id": f"{part}-{seed}", "position_id": row["position_id"], "mode": mode, "sample": 0, "seed": 0,
                    "response": "r", "prediction": "p", "correct": bool(rng.random() < RATES[part, mode]), "tokens_matched": 1,
                    "n_tokens": 3, "finish": "stop"} for part, modes in PARTS.items() for mode in modes for row in positions]
    models = [{"checkpoint_id": f"{part}-{seed}", "parts": [part], "name": part, "kind": part, "step": 1, "flops": 1.0} for part in PARTS]
    easy = {"level": "easy", "positions": "all", "n": 240, "accuracy": 0.8, "low": 0.7, "high": 0.9, "several_tokens": 0}
    counts = {"sample": "test", "temperature": 0, "group_temperature": 0.8,
              "accuracy": [{"checkpoint_id": f"after-{seed}", "mode": "reasoning", **easy},
                           {"checkpoint_id": f"after-{seed}", "mode": "no_thought", **easy, "accuracy": 0.1, "low": 0.05, "high": 0.2}],
              "groups": [{"checkpoint_id": f"after-{seed}", "mode": "sampled", "level": "easy", "group_size": 8, "n": 99,
                          "zero_variance_share": 0.4, "all_right_share": 0.3, "all_wrong_share": 0.1}],
              "at_k": [{"checkpoint_id": f"after-{seed}", "mode": "sampled", "level": "easy", "measure": "pass", "k": k, "value": value,
                        "low": value - 0.1, "high": value} for k, value in ((1, 0.75), (8, 0.9))],
              "positions": len(positions), "documents": n_documents, "models": models,
              "responses": [{"checkpoint_id": f"after-{seed}", "mode": "reasoning", "n": 9, "tokens_mean": 20.0, "truncated_share": 0.0,
                             "unparsed_share": 0.01, "several_tokens_share": 0.0, "identical_thought_share": 0.25, "distinct_3": 0.125,
                             "answer_first_share": 0.02, "thought_words_mean": 19.0, "working_known": 50, "working_exact_share": 0.66,
                             "working_words_share": 0.77}]}
    row = {"checkpoint_id": f"after-{seed}", "parent_id": "", "kind": "pretrain", "run": "r", "seed": seed, "step": 50, "flops": 2e12,
           "wall_s": 100.0, "tokens_trained": 1000, "tokens_generated": 5000, "uri": "nowhere"}
    fit = {"split": "hard", "p_star": None, "a": None, "alpha": None, "r2": None, "n_points": 2, "warnings": ["too few"]}
    return StudyRun(arm, seed, {
        "select": commit(workspace, "select", [arm, seed], {"positions": positions}, {}),
        "evaluate": commit(workspace, "evaluate", [arm, seed], {"predictions": predictions}, counts),
        "pretrain": commit(workspace, "pretrain", [arm, seed], {"checkpoints": [row]}, {}),
        "scaling": commit(workspace, "scaling", [arm, seed], {}, {"fits": [fit]})})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("study") / "ws")


@pytest.fixture(scope="module")
def results(workspace):
    runs = [make_run(workspace, "main", seed) for seed in (0, 1, 2)] + [make_run(workspace, "other", 7)]
    about = {"name": "two scorers", "profile": "p", "code": "c", "date": "d",
             "openings": [{"date": "d", "code": "c", "design": "e", "test_seed": 3}], "arms": {"main": {}, "other": {"pretrain.steps": 9}}}
    return study_results(workspace, runs, about)


def endpoints(results, arm="main"):
    return {row["against"]: row for row in results["results"][arm]["endpoints"] if row["level"] == "hard"}


def test_endpoints_tell_a_gain_from_none(results):
    found = endpoints(results)
    assert set(found) == {"base", "before", "control.sft"}
    assert found["base"]["excludes_0"]
    assert found["before"]["excludes_0"]
    assert not found["control.sft"]["excludes_0"]
    assert found["base"]["estimate"] == pytest.approx(0.6, abs=0.08)
    assert found["base"]["low"] < 0.6 < found["base"]["high"]


def test_the_estimate_is_the_mean_of_each_seeds_own_difference(results):
    for row in results["results"]["main"]["endpoints"]:
        assert len(row["by_seed"]) == 3
        assert row["estimate"] == pytest.approx(np.mean(row["by_seed"]))


def test_accuracy_cumulates_levels_as_the_paper_does(results):
    n = {row["level"]: row["n"] for row in results["results"]["main"]["accuracy"] if (row["part"], row["mode"]) == ("after", "reasoning")}
    assert n == {"hard": [80] * 3, "medium": [160] * 3, "easy": [240] * 3, "below": [80] * 3}


def test_one_seed_alone_gets_an_interval_over_documents(results):
    [row] = [row for row in results["results"]["other"]["endpoints"] if (row["against"], row["level"]) == ("before", "hard")]
    assert row["by_seed"] == [row["estimate"]]
    assert row["low"] < row["estimate"] < row["high"]


def test_the_page_and_the_json_say_the_same(results, tmp_path):
    write_study(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    page = (tmp_path / "results.md").read_text()
    assert page == study_page(results)
    row = endpoints(results)["before"]
    assert f"{100 * row['estimate']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]" in page
    assert "was opened 1 time in this workspace" in page
    assert "`pretrain.steps=9`" in page
    assert "\n\n\n" not in page


def test_the_page_shows_every_honesty_check_of_every_seed(results):
    table = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in study_page(results).splitlines()
             if line.startswith("| ")]
    begin = next(at for at, cells in enumerate(table) if cells[:3] == ["seed", "model", "reasoning, %"])
    rows = [dict(zip(table[begin], cells, strict=True)) for cells in table[begin + 2 : begin + 5]]
    assert [(row["seed"], row["model"]) for row in rows] == [(str(seed), "after RPT") for seed in (0, 1, 2)]
    shown = {"reasoning, %": "80.0 [70.0, 90.0]", "without its thought, %": "10.0 [5.0, 20.0]", "reasoning below every threshold, %": "–",
             "tokens of a response": "20.0", "words of a thought": "19.0", "distinct 3-grams of all thoughts, %": "12.5",
             "thoughts that another repeats, %": "25.0", "answer stated before any working, %": "2.0",
             "whole working right, %": "66.0 of 50",
             "words of the working in place, %": "77.0", "pass@1, %": "75.0 [65.0, 75.0]", "pass@G, %": "90.0 [80.0, 90.0] (G = 8)",
             "groups of equal reward, %": "40.0 (30 right, 10 wrong; n = 99)"}
    assert {label: rows[0][label] for label in shown} == shown


def test_tables_of_the_page_have_as_many_cells_as_columns(results):
    lines = study_page(results).splitlines()
    for at, line in enumerate(lines):
        if line.startswith("| ---"):
            width = line.count("|")
            assert lines[at - 1].count("|") == width
            for row in lines[at + 1 :]:
                if not row.startswith("|"):
                    break
                assert row.count("|") == width, row


def test_several_arms_stand_side_by_side_in_one_table(results):
    rows = {row["arm"]: row for row in side_by_side(results["results"])}
    assert list(rows) == list(results["results"])
    for arm, row in rows.items():
        [gain] = [one for one in results["results"][arm]["endpoints"] if (one["against"], one["level"]) == ("before", "hard")]
        assert row["gain"] == gain
        assert row["after"]["estimate"] - row["before"]["estimate"] == pytest.approx(gain["estimate"])
    page = study_page(results)
    assert page.count("arm by arm") == 1
    assert "arm by arm" not in study_page({**results, "results": {"main": results["results"]["main"]}})


def test_a_study_replaces_its_own_section_of_a_page_and_no_other(tmp_path):
    page = tmp_path / "docs" / "results.md"
    place_section(page, "one", "first\n")
    place_section(page, "two", "other")
    place_section(page, "one", "second")
    assert page.read_text() == ("<!-- study one -->\nsecond\n<!-- end of study one -->\n\n"
                                "<!-- study two -->\nother\n<!-- end of study two -->\n")
    page.write_text("By hand.\n\n" + page.read_text())
    place_section(page, "two", "newer")
    assert page.read_text().startswith("By hand.\n\n<!-- study one -->\nsecond\n")
    page.write_text("<!-- study one -->\ncut")
    with pytest.raises(UserError, match="end of study one"):
        place_section(page, "one", "third")
    assert page.read_text() == "<!-- study one -->\ncut"
