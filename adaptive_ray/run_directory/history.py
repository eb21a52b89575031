"""The history of a run on disk: what happened in its races, from which it is resumed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from adaptive_ray.errors import UserError
from schedulers.events import Event, from_json, to_json


class History:
    """``events.jsonl``: a line for every event, on disk before anything follows from it.

    Each line also says how long the run had taken (``elapsed``), over all its sessions. A last line that was being
    written when the process died is removed.

    Args:
        file: Made with the first event.

    Raises:
        UserError: A line is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._started = time.monotonic()
        #: Of the sessions before this one, oldest first.
        self.events: list[Event] = []
        self._before = 0.0
        text = file.read_bytes() if file.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                self.events.append(from_json(entry))
                self._before = float(entry["elapsed"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{file} is damaged in line {number}: {error}; restore the file, or start a new run"
                ) from None
        if whole != text:
            with file.open("r+b") as torn:
                torn.truncate(len(whole))

    @property
    def seconds(self) -> float:
        """How long the run has taken, over all its sessions; a session that was killed counts to its last event."""
        return self._before + time.monotonic() - self._started

    def append(self, event: Event) -> None:
        """Writes an event, and returns once it is on disk."""
        line = json.dumps({**to_json(event), "elapsed": round(self.seconds, 3)}, allow_nan=False) + "\n"
        with self._file.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
