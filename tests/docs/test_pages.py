"""The documentation says what is: its commands run, its sentences are the code's, its generated parts build, its links lead somewhere."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from flows import cli
from flows.commands.run import configure_alone
from flows.profile import parse_sets
from flows.stages import STAGES
from rpt_core.store.schemas import TABLES

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
LINES = [(name, line.partition("  #")[0].strip()) for name, text in PAGES.items() for block in re.findall(r"```bash\n(.*?)```", text, re.S)
         for line in block.splitlines() if line.strip()]
RPT = list(dict.fromkeys(pair for pair in LINES if pair[1].startswith("rpt ")))


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "line"), RPT, ids=[f"{page}: {line[:60]}" for page, line in RPT])
def test_every_command_shown_is_one_that_rpt_understands(page, line):
    command = typer.main.get_command(cli.app)
    arguments = shlex.split(line)[1:]
    context = command.make_context("rpt", list(arguments), resilient_parsing=True)
    while hasattr(command, "commands") and arguments and arguments[0] in command.commands:
        command = command.commands[arguments.pop(0)]
    with command.make_context("rpt", arguments, parent=context) as parsed:
        sets = parsed.params.get("sets") or []
        if parsed.info_name == "rpt" and "name" in parsed.params and parsed.params.get("name") and "inputs" in parsed.params:
            name = parsed.params["name"]
            configure_alone(name, parse_sets(sets, name), parsed.params["profile"])


def test_other_commands_name_targets_and_modules_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, line in LINES:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.M), (page, line)
    for page, text in PAGES.items():
        for module in re.findall(r"python -m (benchmarks\.[\w.]+)", text):
            if module != "benchmarks.NAME":
                assert importlib.util.find_spec(module), (page, module)
        for target in re.findall(r"`make ([\w-]+)`", text):
            assert re.search(rf"^{target}:", makefile, re.M) or page in ("docs/log.md", "docs/architecture.md"), (page, target)


def sentences() -> list[str]:
    """Every text of the code that could be a message, with … for what is filled in."""
    def text_of(node: ast.AST) -> str | None:
        if isinstance(node, ast.JoinedStr):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return f"{text_of(node.left) or '…'}{text_of(node.right) or '…'}"
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None

    files = [path for room in ("flows", "tasks", "rpt_core") for path in (ROOT / room).rglob("*.py")]
    found = [text_of(node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [re.sub(r"…+", "…", " ".join(text.split())) for text in found if text and len(text) > 12]


def test_every_message_of_the_troubleshooting_page_is_a_sentence_of_the_code():
    shown = re.findall(r"^\| `(.+?)` \| ", PAGES["docs/troubleshooting.md"], re.M)
    known = sentences()
    assert len(shown) > 30
    missing = []
    for message in shown:
        pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
        if not any(re.search(".*".join(pieces), text) for text in known):
            missing.append(message)
    assert missing == []


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_page_shows_every_setting_input_and_output(name):
    text = hooks().on_page_markdown(PAGES[f"docs/stages/{name}.md"])
    assert "<!-- stage" not in text
    settings = text.partition("## Settings")[2]
    for field, info in STAGES[name].config.model_fields.items():
        row = re.search(rf"^\| `{field}`.*$", settings, re.M)
        assert row, field
        assert (info.description or "").replace("|", "\\|") in row[0]
    for table in STAGES[name].writes:
        assert f"tables.md#{table}" in text
    assert f"rpt stage {name}" in text


def test_the_tables_page_shows_every_column_and_the_cost_page_its_figures():
    text = hooks().on_page_markdown(PAGES["docs/tables.md"])
    for table in TABLES.values():
        for column in table.columns:
            assert column.comment.replace("|", "\\|") in text
    cost = hooks().on_page_markdown(PAGES["docs/cost.md"])
    assert len(re.findall(r"\| `(?:small-gpu|paper-14b)` \|", cost)) == 2


def test_the_cost_of_a_step_is_the_stages_own_count_of_it():
    """The 14B model has 14.8 G parameters outside of its embeddings and head: 2 FLOPs each and token, four passes' worth."""
    module = hooks()
    model = module.QWEN["R1-Distill-Qwen-14B"]
    found = module.step_flops(model, 1, 1, 0)
    blocks = 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 13_824)
    assert found == pytest.approx(8 * module.THOUGHT * (blocks + 5120 * 152_064), rel=0.02)
    assert module.step_flops(model, 2, 8, 500) == 2 * module.step_flops(model, 1, 8, 500)


HEAVY = ("rpt demo", "rpt up", "rpt serve", "rpt deploy", "rpt benchmark", "rpt tables push", "rpt tables pull", "rpt track")
LIGHT = [(page, line) for page, line in RPT if not line.startswith(HEAVY) and page != "docs/sql.md"]  # tests/catalog/test_docs.py runs that


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> dict[str, str]:
    """The smallest chain, run once; the environment that names its workspace. A page opens in a browser that does nothing."""
    home = tmp_path_factory.mktemp("docs") / "ws"
    environment = {**os.environ, "BROWSER": "true", "RPT_HOME": str(home), "RPT_TRACKING": "off", "PYTHONPATH": str(ROOT)}
    run_rpt(["run", "--profile", str(ROOT / "tests" / "faults" / "micro.yaml")], environment)
    return environment


def run_rpt(arguments: list[str], environment: dict[str, str], cwd: Path = ROOT) -> str:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize(("page", "line"), LIGHT, ids=lambda value: value[:70])
def test_every_command_shown_runs_on_a_small_workspace(chain, page, line, tmp_path):
    arguments = [argument.replace("/data/omni_math_rule.jsonl", str(tmp_path / "text.jsonl")) for argument in shlex.split(line)[1:]]
    (tmp_path / "text.jsonl").write_text('{"problem": "What is 2 + 2?", "solution": "It is 4."}\n')
    if arguments[0] == "run" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    shutil.copytree(chain["RPT_HOME"], tmp_path / "ws")  # of its own: what one command changes, another would find
    assert run_rpt(arguments, {**chain, "RPT_HOME": str(tmp_path / "ws")}).strip()


@pytest.mark.full
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs the extra docs")
def test_the_site_builds_strictly(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "stages" / "score" / "index.html").read_text(encoding="utf-8").count("<td>") > 30
    assert not (tmp_path / "site" / "hooks.py").exists()
