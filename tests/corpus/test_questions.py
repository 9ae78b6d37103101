"""Questions of every published shape: options in their order, answers where the shape puts them, the files as they are."""

import json

import pytest

from rpt_core.corpus.documents import Record
from rpt_core.corpus.questions import NotAQuestion, last_box, named_source, read_questions, to_question
from rpt_core.store.errors import UserError
from tests.helpers import data_path


@pytest.fixture
def sample(monkeypatch):
    def path(name):
        found = data_path(name)
        monkeypatch.setenv("RPT_SOURCES", str(found.parent))
        return str(found)

    return path


@pytest.mark.parametrize(("name", "rows", "subjects"), [
    ("mmlu-pro/test.jsonl", 12032, 14), ("mmlu-pro/validation.jsonl", 70, 14), ("supergpqa", 5734, 1), ("gsm8k/test.jsonl", 1319, 1),
    ("math/math500.jsonl", 500, 7), ("math/test_5000_with_solutions.jsonl", 5000, 7), ("rlvr/dsr_sub_1209.parquet", 1206, 1),
    ("omni-math/omni_math_rule.jsonl", 2816, 8)])
def test_the_published_files_give_all_their_questions(sample, name, rows, subjects):
    table = read_questions(sample(name), benchmark="b")
    assert len(table) == rows
    assert len(set(table["subject"].to_pylist())) == subjects
    assert set(table["split"].to_pylist()) == {"test"}
    assert len(set(table["question_id"].to_pylist())) == rows


def test_mmlu_pro_keeps_options_answers_and_ids(sample):
    path = sample("mmlu-pro/test.jsonl")
    with open(path) as file:
        source = [json.loads(line) for line in file]
    table = read_questions(path, benchmark="mmlu-pro").to_pylist()
    assert [row["question_id"] for row in table] == [f"mmlu-pro:{row['question_id']}" for row in source]
    for column, field in (("text", "question"), ("options", "options"), ("answer", "answer"), ("answer_index", "answer_index"),
                          ("subject", "category")):
        assert [row[column] for row in table] == [row[field] for row in source]


def test_math500_solutions_box_what_their_answer_field_says(sample):
    with open(sample("math/math500.jsonl")) as file:
        rows = [json.loads(line) for line in file]
    differ = [row["answer"] for row in rows if last_box(row["solution"]).replace(" ", "") != row["answer"].replace(" ", "")]
    assert len(differ) <= 10  # the answer field rewrites a few by hand


def question(fields):
    return to_question(Record(fields, "s", "w"), "b")


@pytest.mark.parametrize(("fields", "answer"), [
    ({"question": "q", "answer": "work <<1+1=2>>\n#### 1,234"}, "1234"),
    ({"problem": "p", "solution": r"so \boxed{1}, then $\boxed{\frac{1}{\{2\}}}$"}, r"\frac{1}{\{2\}}"),
    ({"problem": "p", "solution": r"\boxed{1}", "answer": "2"}, "2"),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}], "reward_model": {"ground_truth": "3"}}, "3"),
    ({"question": "q", "answer": 0}, "0"),
])
def test_free_answers_are_found_where_the_shape_puts_them(fields, answer):
    row = question(fields)
    assert (row["answer"], row["answer_index"], row["options"]) == (answer, -1, [])
    assert row["text"] in ("q", "p")


@pytest.mark.parametrize(("fields", "index", "options"), [
    ({"options": ["x", "N/A", "y", "N/A"], "answer": "C", "answer_index": 2}, 1, ["x", "y"]),
    ({"options": ["x", "y"], "answer": "y", "answer_letter": "B"}, 1, ["x", "y"]),
    ({"options": ["D", "B"], "answer": "B", "answer_letter": "B"}, 1, ["D", "B"]),
    ({"choices": ["x", "y"], "answer": 0}, 0, ["x", "y"]),
    ({"options": ["x", "y"], "answer": "y"}, 1, ["x", "y"]),
])
def test_the_right_option_is_found_and_fillers_are_removed(fields, index, options):
    row = question({"question": "q", **fields})
    assert (row["answer_index"], row["answer"], row["options"]) == (index, "AB"[index], options)


@pytest.mark.parametrize("fields", [
    {"question": "q", "options": ["x", "y"], "answer": "A", "answer_index": 1},
    {"question": "q", "options": ["x", "y"], "answer": "C", "answer_index": 2},
    {"question": "q", "options": ["x", "y"], "answer": "x", "answer_letter": "B"},
    {"question": "q", "options": ["x", "N/A"], "answer": "B"},
    {"question": "q", "options": ["x"], "answer": "A"},
    {"question": "q", "options": ["x", "y"]},
    {"options": ["x", "y"], "answer": "A"},
    {"question": "q"},
    {"question": "q", "answer": " "},
    {"problem": "p", "solution": "no box"},
    {"problem": "p", "solution": r"\boxed{1"},
    {"prompt": [], "reward_model": {"ground_truth": "1"}},
    {"prompt": "p", "reward_model": {}},
])
def test_a_row_that_contradicts_itself_or_lacks_a_part_is_no_question(fields):
    with pytest.raises(NotAQuestion):
        question(fields)


def test_bad_rows_are_told_and_too_many_fail(root):
    path = root / "q.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b"}\n')
    said: list[str] = []
    assert len(read_questions(str(path), benchmark="mine", max_malformed_share=0.5, say=said.append)) == 1
    assert said[0].startswith(f"{path}:2: ")
    with pytest.raises(UserError, match=r"1 of 2 records are malformed .*q\.jsonl:2"):
        read_questions(str(path), benchmark="mine")


def test_repeated_questions_are_kept_once_and_told_and_reused_ids_are_told_apart(root):
    rows = [{"question_id": 1, "question": "a", "answer": "1"}, {"question_id": 1, "question": "b", "answer": "2"},
            {"question_id": 1, "question": "a", "answer": "1"}, {"question_id": 2, "question": "c", "answer": "3"}]
    path = root / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    table = read_questions(str(path), benchmark="b", say=said.append)
    assert table["text"].to_pylist() == ["a", "b", "c"]
    first, second, third = table["question_id"].to_pylist()
    assert first != second
    assert first.startswith("b:1-")
    assert third == "b:2"
    assert said == [f"{path}: 1 questions occur again word for word; each is kept once."]


@pytest.mark.parametrize(("given", "named"), [
    ("/data/Test.jsonl.gz", ("test", "/data/Test.jsonl.gz")), ("mmlu-pro=/data/t=1.jsonl", ("mmlu-pro", "/data/t=1.jsonl")),
    ("TIGER-AI-Lab/MMLU-Pro@main", ("mmlu-pro", "TIGER-AI-Lab/MMLU-Pro@main"))])
def test_a_question_source_may_carry_its_benchmark_s_name(given, named):
    assert named_source(given) == named


def test_ingest_splits_questions_by_hash_and_labels_generated_ones(root, ingest, workspace):
    (root / "a.txt").write_text("text")
    (root / "q.jsonl").write_text("".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in [*range(400), 0]))
    common = {"sources": [str(root / "a.txt")], "generator_questions": 50}
    named = ingest(**common, question_sources=[f"sums={root / 'q.jsonl'}"]).manifest
    generated = ingest(**common).manifest
    table = workspace.table("ingest", named.version, "questions").read()
    assert set(table["source"].to_pylist()) == {"sums"}
    assert named.counts["questions"]["duplicates"] == 1
    shares = [table["split"].to_pylist().count(split) / 400 for split in ("train", "dev", "test")]
    assert shares == pytest.approx([0.5, 0.1, 0.4], abs=0.08)
    assert set(generated.counts["questions"]["sources"]) == {"generated-answers", "generated-choice"}
