"""The prompt of `rpt sql`, in a terminal of its own: statements over several lines, commands, history, and every way out."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANSWER_S = 240.0  # a loaded machine takes its time; what never comes still ends the test
PRESS_S = 10.0


def take_terminal() -> None:
    """Ctrl-C becomes a signal, and one that is ignored, as in a script's background jobs: the prompt must mind it all the same."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Terminal:
    """`rpt sql` on a terminal; ``until`` reads what it says up to a text."""

    def __init__(self, home: Path):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "RPT_HOME": str(home / "ws"), "HOME": str(home), "TERM": "dumb", "PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen([sys.executable, "-c", "from flows.cli import main; main()", "sql"], stdin=slave, stdout=slave,
                                      stderr=slave, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=take_terminal)
        os.close(slave)
        self.said = ""

    def until(self, text: str) -> str:
        end = time.monotonic() + ANSWER_S
        while text not in self.said:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waited for {text!r}, read {self.said!r}"
            try:
                part = os.read(self.master, 4096).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                part = ""
            assert part, f"it ended before {text!r}: {self.said!r}"
            self.said += part
        before, _, self.said = self.said.partition(text)
        return before + text

    def send(self, text: str) -> None:
        """Type, once the prompt is there: a terminal that is not yet being edited would take Ctrl-D and Ctrl-C for itself."""
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until the prompt is back: one that comes while Python looks at a key is noticed only at the next."""
        for _ in range(int(ANSWER_S / PRESS_S)):
            self.send("\x03")
            ready, _, _ = select.select([self.master], [], [], PRESS_S)
            if ready:
                break
        self.until("rpt> ")

    def ask(self, line: str, answer: str) -> str:
        self.send(line + "\n")
        found = self.until(answer)
        self.until("rpt> ")
        return found

    def leave(self) -> int:
        self.send("\x04")
        return self.child.wait(ANSWER_S)

    def close(self) -> None:
        if self.child.poll() is None:
            os.kill(self.child.pid, signal.SIGKILL)
            self.child.wait()
        os.close(self.master)


def test_a_session_answers_goes_on_after_errors_and_is_remembered(tmp_path):
    terminal = Terminal(tmp_path)
    try:
        terminal.until("rpt> ")
        terminal.send("select 6 * 7\n")
        terminal.until("...> ")
        terminal.ask("as answer;", "42")
        terminal.ask(".columns eligible_counts", "tenth")
        terminal.ask(".columns nothing", ".tables lists what there is")
        terminal.ask(".query tokens_above_threshold min_entropy=2", "0 rows")
        terminal.ask(".query tokens_above_threshold min_entropi=2", "did you mean min_entropy?")
        terminal.ask("drop table documents;", "only SELECT")
        terminal.ask(".format xml", ".help lists them")
        terminal.send(".format json\n")
        terminal.until("rpt> ")
        terminal.send("select half")
        terminal.until("half")
        terminal.interrupt()
        assert '"n": 43' in terminal.ask("select 43 as n;", '"n": 43'), "Ctrl-C dropped what was typed, and only that"
        assert terminal.leave() == 0
    finally:
        terminal.close()
    again = Terminal(tmp_path)
    try:
        again.until("rpt> ")
        assert "43" in again.ask("\x10", "1 rows"), "the entry before, from the last session"
        assert again.leave() == 0
    finally:
        again.close()
    assert "select 6 * 7 as answer;" in (tmp_path / ".rpt_sql_history").read_text().splitlines()


def test_commands_list_tables_and_queries_and_leave(tmp_path):
    terminal = Terminal(tmp_path)
    try:
        terminal.until("rpt> ")
        listed = terminal.ask(".tables", "rows")
        assert all(name in listed for name in ("documents", "filtered_tokens_at", "difficulty_summary", "versions"))
        assert "tokens_of_document" in terminal.ask(".queries", "wins_and_losses")
        assert ".query NAME" in terminal.ask(".help", ".quit")
        terminal.send(".quit\n")
        assert terminal.child.wait(ANSWER_S) == 0
    finally:
        terminal.close()
