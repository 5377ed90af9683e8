"""Progress reports: a progress bar on a terminal, periodic log lines elsewhere.

A progress bar in a log file consists of thousands of carriage returns. If standard error is not a terminal, `Progress`
therefore logs a line every `every` seconds.

Example::

    from worldgym.utils.progress import Progress, setup_logging
    setup_logging()
    with Progress(total=100, description="collect") as progress:
        for episode in range(100):
            progress.update(1, success=0.9)
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

logger = logging.getLogger("worldgym.progress")


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def setup_logging(verbose: int = 1) -> None:
    """Send log lines to standard error. Only for programs, not for libraries.

    Args:
        verbose: 0 for warnings only, 1 for information, 2 for debugging.
    """
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("worldgym", "envs", "rewards", "agents", "experiments"):
        logging.getLogger(name).setLevel(level)


def format_seconds(seconds: float) -> str:
    """Format a duration for a progress line: `75` -> `1m15s`."""
    seconds = int(max(seconds, 0))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Progress:
    """A counter that shows a progress bar or log lines.

    Args:
        total: final count; None if unknown.
        description: label in front of the count.
        every: seconds between log lines without a terminal.
        initial: count at the start, for a resumed run.
        terminal: draw a bar; None uses `on_terminal()`.
    """

    def __init__(
        self,
        total: int | None = None,
        description: str = "",
        *,
        every: float = 30.0,
        initial: int = 0,
        terminal: bool | None = None,
    ) -> None:
        self.total, self.description, self.every = total, description, every
        self.count = self._initial = initial
        self._start = self._last = time.monotonic()
        self._values: dict[str, Any] = {}
        self._bar: Any = None
        if on_terminal() if terminal is None else terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=description, initial=initial, dynamic_ncols=True, smoothing=0.1
            )

    def update(self, n: int = 1, **values: Any) -> None:
        """Advance by `n` and show the latest `values`, such as `loss=0.3`."""
        self.count += n
        self._values.update(values)
        if self._bar is not None:
            if values:
                self._bar.set_postfix(self._shown(), refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """The current state as one line of text."""
        elapsed = time.monotonic() - self._start
        rate = (self.count - self._initial) / elapsed if elapsed > 0 else 0.0
        of = f"/{self.total}" if self.total else ""
        left = f", {format_seconds((self.total - self.count) / rate)} left" if self.total and rate > 0 else ""
        values = "".join(f" {name}={value}" for name, value in self._shown().items())
        return f"{self.description} {self.count}{of} in {format_seconds(elapsed)}{left}{values}".strip()

    def close(self) -> None:
        """Close the bar, or log the last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self.count > self._initial:
            logger.info("%s", self.line())

    def _shown(self) -> dict[str, str]:
        return {
            name: f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in self._values.items()
        }

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
