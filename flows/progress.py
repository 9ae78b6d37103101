"""Stages on the terminal: bars where there is a terminal, else a line when a stage begins and ends and one every ten seconds."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds between progress lines without a terminal


class Bars:
    """Hears the stages of this process (tasks.stage.Observer) and shows them on ``console``."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, tuple[float, bool]] = {}  # slot → (seconds, cached)
        self._begun: dict[str, float] = {}
        self._said = 0.0
        self._task: TaskID | None = None
        self._bars = Progress(SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
                              TextColumn("{task.fields[unit]} {task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                              console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Bars":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, slot: str) -> None:
        self._begun[slot] = self._said = time.monotonic()
        if self._bars:
            self._task = self._bars.add_task(slot, total=None, unit="", note="")
        else:
            self.console.print(f"… {slot}", markup=False, highlight=False)

    def event(self, slot: str, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "message":
            said = data["text"] if data["text"].startswith(slot.partition(".")[0]) else f"{slot}: {data['text']}"
            self.console.print(f"  {said}", markup=False, highlight=False)
        elif event["type"] == "progress":
            if self._bars and self._task is not None:
                self._bars.update(self._task, completed=data["done"], total=data["total"], unit=data["unit"], note=data["note"])
            elif not self._bars and time.monotonic() - self._said > LINE_EVERY:
                self._said = time.monotonic()
                total = f" of {data['total']:,.0f}" if data["total"] else ""
                text = f"{data['done']:,.0f}{total} {data['unit']} {data['note']}".rstrip()
                self.console.print(f"  {slot}: {text} ({self._said - self._begun[slot]:.0f} s)", markup=False, highlight=False)

    def end(self, slot: str, result: dict[str, Any] | None) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        seconds = time.monotonic() - self._begun[slot]
        if result is None:
            self.console.print(f"✗ {slot}  {seconds:.1f} s", style="red", highlight=False)
            return
        self.seconds[slot] = (seconds, result["cached"])
        how = "cached" if result["cached"] else f"{seconds:.1f} s"
        self.console.print(f"✓ {slot}  {how}  {slot}@{result['version']}", markup=False, highlight=False)
