"""Stores the events of a run's races on disk. A run resumes by replaying them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.atomic_write import append_line
from schedulers.events import Event, from_json, to_json


class History:
    """Reads and appends ``events.jsonl``. Each event is flushed to disk before it takes effect.

    Each line also holds the total run time of all sessions (``elapsed``). A truncated last line is removed. The file is
    created by the first event.

    Raises:
        UserError: A line is corrupt.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._started = time.monotonic()
        #: Events of earlier sessions, oldest first.
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
                    f"{file}, line {number} is corrupt: {error}; restore the file or start a new run"
                ) from None
        if whole != text:
            with file.open("r+b") as torn:
                torn.truncate(len(whole))

    @property
    def seconds(self) -> float:
        """Total run time of all sessions. A killed session counts up to its last event."""
        return self._before + time.monotonic() - self._started

    def append(self, event: Event) -> None:
        """Appends an event and flushes it to disk."""
        entry = {**to_json(event), "elapsed": round(self.seconds, 3)}
        append_line(self._file, json.dumps(entry, allow_nan=False))
