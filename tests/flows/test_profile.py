"""Profiles: precedence, names under which settings are given, and one sentence for whatever is wrong."""

import pytest
import yaml

from flows.profile import configure, configure_all, load_profile, named_paths, override, parse_profile, parse_sets, profile_names
from rpt_core.store.errors import UserError
from tests.flows.toys import CHAIN

pytestmark = pytest.mark.usefixtures("toy_stages")


def profile(**values):
    return parse_profile("test", {"stages": CHAIN, **values})


def values(chosen, slot):
    return configure(chosen, slot)[1].model_dump()


def test_a_slot_section_wins_over_its_stage_and_the_stage_over_the_default():
    chosen = profile(score={"steps": 5}, **{"score.filter": {"steps": 7}}, pretrain={"steps": 9})
    assert values(chosen, "score.filter")["steps"] == 7
    assert values(chosen, "pretrain")["steps"] == 9
    assert values(chosen, "control.ntp")["steps"] == 3


def test_an_override_of_the_stage_wins_over_the_slot_section_and_one_of_the_slot_over_both():
    chosen = profile(**{"score.filter": {"steps": 7}})
    assert values(override(chosen, {"score.steps": 8}), "score.filter")["steps"] == 8
    assert values(override(chosen, {"score.filter.steps": 9, "score.steps": 8}), "score.filter")["steps"] == 9


def test_the_seed_reaches_every_stage_that_has_one_unless_its_section_says_otherwise():
    chosen = override(profile(seed=3, bootstrap={"seed": 11}), {"seed": 5})
    assert [values(chosen, slot).get("seed") for slot in CHAIN] == [5, 11, 5, 5, 5, None]


def test_the_slot_names_its_configuration():
    assert values(profile(), "score.filter")["name"] == "filter"


def test_the_base_model_replaces_bootstrap_only_where_no_slot_of_the_chain_makes_the_checkpoint():
    without = parse_profile("p", {"stages": ["ingest", "score.filter", "pretrain"], "base_model": "org/model"})
    assert [values(without, slot).get("model") for slot in without.slots] == [None, "org/model", "org/model"]
    assert values(profile(base_model="org/model"), "pretrain")["model"] == ""


def test_a_text_given_for_a_list_is_split_at_commas():
    assert values(override(profile(), {"ingest.words": "a, b"}), "ingest")["words"] == ["a", "b"]


@pytest.mark.parametrize(("given", "sentence"), [
    ({"stages": ["ingest", "selct"]}, "there is no stage selct; did you mean select?"),
    ({"stages": ["score"]}, "write score.NAME"),
    ({"stages": ["ingest.x"]}, "runs under no names"),
    ({"stages": ["ingest", "ingest"]}, "twice"),
    ({"stages": []}, "needs `stages:`"),
    ({"stages": ["ingest"], "pretrian": {}}, "did you mean pretrain?"),
    ({"stages": ["ingest"], "seed": "x"}, "seed must be a whole number"),
    ({"stages": ["ingest"], "ingest": 3}, "must hold `setting: value` lines"),
])
def test_a_wrong_profile_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        parse_profile("test", given)


@pytest.mark.parametrize(("overrides", "sentence"), [
    ({"ingest.wrds": "x"}, "unknown setting ingest.wrds; did you mean ingest.words"),
    ({"ingets.words": "x"}, "there is no stage ingets; did you mean ingest"),
    ({"score.difficulty.steps": 1}, "does not run score.difficulty"),
    ({"select.min_entropy": 1}, "does not run select"),
    ({"words": "x"}, "words names no stage"),
    ({"pretrain.steps": -1}, "pretrain.steps: .*greater than or equal to 0"),
    ({"ingest.workers": "many"}, "ingest.workers: .*integer"),
])
def test_a_wrong_override_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        configure_all(override(profile(), overrides))


def test_a_setting_of_a_stage_the_profile_does_not_run_is_checked_too():
    with pytest.raises(UserError, match=r"unknown setting pretrain\.stps"):
        configure_all(parse_profile("p", {"stages": ["ingest"], "pretrain": {"stps": 1}}))


def test_set_values_are_yaml_and_may_hold_equals_signs():
    assert parse_sets(["a.b=1.5", "a.c=[1, 2]", "a.d=x=y", "a.e="]) == {"a.b": 1.5, "a.c": [1, 2], "a.d": "x=y", "a.e": ""}
    assert parse_sets(["b=1"], "a") == {"a.b": 1}
    with pytest.raises(UserError, match="--set a is not of the form"):
        parse_sets(["a"])


def test_a_users_own_file_may_name_its_paths_relative_to_itself(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("{}")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"stages": ["ingest"], "ingest": {"sources": ["corpus.jsonl", "org/dataset"]}}))
    chosen = load_profile(str(tmp_path / "own.yaml"))
    assert chosen.settings("ingest")["sources"] == [str(tmp_path / "corpus.jsonl"), "org/dataset"]
    assert named_paths({"benchmark.shots_source": "/a/validation.jsonl", "finetune.pass_model": "/m"}) == ["/a/validation.jsonl", "/m"]
    assert named_paths({"ingest.sources": ["q=/a/b.jsonl", "/c", "org/x"], "ingest.words": ["/no"]}) == ["/a/b.jsonl", "/c"]


@pytest.mark.parametrize(("text", "sentence"), [("stages: [", "not valid YAML"), ("- 1", "holds no settings"), (None, "does not exist")])
def test_a_broken_or_missing_profile_file_is_told_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_profile(str(path))


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    assert "tiny" in profile_names()
    with pytest.raises(UserError, match=r"there is no profile tniy; did you mean tiny\?"):
        load_profile("tniy")


def test_a_study_names_arms_with_their_settings_and_seeds():
    study = profile(study={"seeds": [1, 2], "arms": {"main": None, "other": {"pretrain.steps": 9, "seeds": [5]}}}).study
    assert [(arm.name, dict(arm.overrides), arm.seeds) for arm in study.arms] == [
        ("main", {}, (1, 2)), ("other", {"pretrain.steps": 9}, (5,))]
    assert profile().study is None


@pytest.mark.parametrize(("study", "sentence"), [
    ({"seed": [1]}, "holds `name:`, `seeds:` and `arms:`, nothing else"),
    ({"arms": ["a"]}, "must be `name: settings` lines"),
    ({"arms": {"a": {"steps": 1}}}, "the arm a of the study test must hold `stage.setting: value` lines"),
    ({"arms": {"a": 3}}, "the arm a of the study test must hold"),
    ({"seeds": ["x"]}, "must be a list of whole numbers"),
    ({"seeds": []}, "must be a list of whole numbers"),
])
def test_a_wrong_study_is_refused_in_one_sentence(study, sentence):
    with pytest.raises(UserError, match=sentence):
        profile(study=study)


def test_a_study_without_evaluate_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="add evaluate to its stages"):
        parse_profile("test", {"stages": ["ingest"], "study": {"seeds": [0]}})


def test_a_profile_that_extends_another_keeps_its_sections_setting_by_setting(tmp_path):
    from flows.profile import Profile

    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nstages: [ingest, bootstrap, pretrain]\npretrain: {steps: 9}\nfinetune: {steps: 1}\n")
    found: Profile = load_profile(str(path))
    assert found.slots == ("ingest", "bootstrap", "pretrain")
    assert found.sections["pretrain"] == {**load_profile("tiny").sections["pretrain"], "steps": 9}
    assert found.sections["score"] == load_profile("tiny").sections["score"]
    assert found.seed == load_profile("tiny").seed


@pytest.mark.parametrize(("text", "sentence"), [
    ("extends: tiyn\n", "it can extend .*tiny"), ("extends: tiny-science\n", "extends another one itself"),
    ("extends: [tiny]\n", "it can extend")])
def test_a_profile_that_extends_what_cannot_be_is_refused(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_profile(str(path))
