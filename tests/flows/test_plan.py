"""The plan: inputs are what this pipeline made or found, never another profile's current version."""

import pytest

from flows.plan import make_plan
from flows.profile import Profile, configure_all, override, parse_profile
from rpt_core.store.errors import UserError
from rpt_core.store.stage import execute
from tests.flows.toys import CHAIN

pytestmark = pytest.mark.usefixtures("toy_stages")
PROFILE = Profile("test", tuple(CHAIN), None, "", {})


def run_all(profile, workspace, **range_):
    """Run what the plan says until nothing is left to run; returns slot → version."""
    for _ in profile.slots:
        for step in make_plan(profile, workspace, **range_):
            if step.state == "run":
                execute(step.stage, step.config, workspace, step.inputs)
    return {step.slot: step.version for step in make_plan(profile, workspace, **range_)}


def states(steps):
    return {step.slot: step.state for step in steps}


def test_a_fresh_workspace_runs_the_first_stage_and_knows_the_rest_only_after_it(workspace):
    steps = make_plan(PROFILE, workspace)
    assert states(steps) == {"ingest": "run", "bootstrap": "after", "score.filter": "after", "pretrain": "after", "control.ntp": "after",
                             "evaluate": "after"}
    assert steps[2].note == "bootstrap, ingest"


def test_after_a_run_everything_is_cached_and_a_changed_setting_runs_only_what_follows(workspace):
    run_all(PROFILE, workspace)
    assert set(states(make_plan(PROFILE, workspace)).values()) == {"cached"}
    changed = make_plan(override(PROFILE, {"pretrain.steps": 4}), workspace)
    assert states(changed) == {**dict.fromkeys(CHAIN, "cached"), "pretrain": "run", "evaluate": "after"}
    runtime_only = make_plan(override(PROFILE, {"ingest.workers": 4}), workspace)
    assert set(states(runtime_only).values()) == {"cached"}


def test_a_pipeline_never_reads_another_profiles_current_version(workspace):
    first = run_all(PROFILE, workspace)
    other = parse_profile("other", {"stages": CHAIN, "ingest": {"words": ["three"]}})
    second = run_all(other, workspace)
    assert workspace.current("ingest") == second["ingest"] != first["ingest"]
    steps = {step.slot: step for step in make_plan(PROFILE, workspace)}
    assert steps["score.filter"].inputs["documents"] == f"ingest@{first['ingest']}"
    assert steps["evaluate"].state == "cached"


def test_slots_the_profile_does_not_run_are_absent_even_where_they_are_current(workspace):
    run_all(PROFILE, workspace)
    small = parse_profile("small", {"stages": [slot for slot in CHAIN if slot not in ("control.ntp", "score.filter")]})
    run_all(small, workspace)
    step = make_plan(small, workspace)[-1]
    assert step.inputs["trained"] == f"pretrain@{workspace.current('pretrain')}"
    assert step.inputs["filter"] == "none"
    assert workspace.manifest("evaluate", step.version).counts["models"] == ["pretrain-3"]


def test_an_identity_is_the_same_in_a_pipeline_and_alone(workspace):
    versions = run_all(PROFILE, workspace)
    for slot, stage, config in configure_all(PROFILE):
        assert execute(stage, config, workspace).manifest.version == versions[slot]


def test_from_stage_takes_earlier_versions_by_identity_not_by_pointer(workspace):
    first = run_all(PROFILE, workspace)
    run_all(parse_profile("other", {"stages": CHAIN, "ingest": {"words": ["three"]}}), workspace)
    steps = {step.slot: step for step in make_plan(PROFILE, workspace, from_stage="pretrain")}
    assert steps["ingest"].state == "kept"
    assert steps["ingest"].version == first["ingest"]
    assert steps["ingest"].note == ""


def test_from_stage_falls_back_to_the_current_version_and_says_so(workspace):
    made = run_all(PROFILE, workspace)
    other = override(PROFILE, {"ingest.words": ["never run"]})
    step = make_plan(other, workspace, from_stage="pretrain")[0]
    assert (step.state, step.version) == ("kept", made["ingest"])
    assert "current version" in step.note


def test_from_stage_without_its_inputs_names_what_was_never_run(workspace):
    with pytest.raises(UserError, match=r"--from-stage pretrain needs what ingest, bootstrap, score\.filter would make"):
        make_plan(PROFILE, workspace, from_stage="pretrain")


def test_until_stage_ends_the_plan_and_a_stage_name_stands_for_its_slots(workspace):
    assert [step.slot for step in make_plan(PROFILE, workspace, until_stage="score")] == ["ingest", "bootstrap", "score.filter"]


@pytest.mark.parametrize(("range_", "sentence"), [
    ({"from_stage": "pretrian"}, r"does not run pretrian; did you mean pretrain\?"),
    ({"until_stage": "select"}, "does not run select"),
    ({"from_stage": "evaluate", "until_stage": "ingest"}, "nothing would run"),
])
def test_a_wrong_range_is_refused(workspace, range_, sentence):
    with pytest.raises(UserError, match=sentence):
        make_plan(PROFILE, workspace, **range_)


def test_force_runs_what_is_committed_and_only_from_from_stage(workspace):
    run_all(PROFILE, workspace)
    steps = make_plan(PROFILE, workspace, from_stage="pretrain", force=True)
    assert states(steps) == {"ingest": "kept", "bootstrap": "kept", "score.filter": "kept", "pretrain": "run", "control.ntp": "run",
                             "evaluate": "after"}


def test_a_required_input_that_the_profile_never_makes_is_named(workspace):
    with pytest.raises(UserError, match=r"pretrain needs checkpoints from warmstart or bootstrap.*or set its model"):
        make_plan(parse_profile("p", {"stages": ["ingest", "pretrain"]}), workspace)
