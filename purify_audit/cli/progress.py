"""Progress on standard error, and stopping on a signal or a time limit."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from purify_audit.audit.result import Progress as Callbacks
from purify_audit.models.runner import Stopped
from purify_audit.statistics.estimates import Estimate

_HEARTBEAT_SECONDS = 30.0
# Batch systems can send SIGUSR1 some time before the time limit (SLURM: --signal).
_WISHES = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Reporter:
    """Counts network evaluations; a bar on a terminal, a line every 30 s elsewhere, or nothing."""

    def __init__(
        self, console: Console, total: int, quiet: bool, max_seconds: float = math.inf
    ) -> None:
        """Start the clock, and say what is to be done.

        Args:
            console: where to print; standard error.
            total: network evaluations expected.
            quiet: print nothing.
            max_seconds: after which the run is to end.
        """
        if not quiet:
            console.print(f"{total:,} network evaluations to do", highlight=False)
        self._max_seconds = max_seconds
        self.done, self.stop_signal = 0, 0
        self._console, self._total, self._quiet = console, total, quiet
        self._start = self._told = time.monotonic()
        self._interim = ""
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("evaluating"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TextColumn("[dim]{task.fields[rate]}[/]"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[interim]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, rate="", interim="")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def tick(self, evaluations: int) -> None:
        """Count a micro-batch.

        Raises:
            Stopped: a signal asked the run to end, or its time is over.
        """
        self.done += evaluations
        rate = f"{self.done / max(self.seconds, 1e-9):,.0f}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate, interim=self._interim)
        elif not self._quiet and time.monotonic() - self._told > _HEARTBEAT_SECONDS:
            self._told = time.monotonic()
            left = self.seconds * (self._total - self.done) / max(self.done, 1)
            self._console.print(
                f"{self.done:,} of {self._total:,} network evaluations, {rate},"
                f" about {left:,.0f} s left"
                f"{', ' if self._interim else ''}{self._interim}",
                highlight=False,
            )
        if self.stop_signal or self.seconds > self._max_seconds:
            raise Stopped

    @property
    def progress(self) -> Callbacks:
        """The callbacks of a run."""
        return Callbacks(self.tick, self.interim)

    def interim(self, estimate: Estimate) -> None:
        """Remember the rate so far, to show with the next micro-batch."""
        self._interim = f"rate {estimate.value:.3f}"
        if estimate.lower is not None and estimate.upper is not None:
            self._interim += f" ± {(estimate.upper - estimate.lower) / 2:.3f}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the bar, and take a signal of `_WISHES` as one to end after this micro-batch.

        A second signal ends at once.
        """

        def wish(number: int, frame: FrameType | None) -> None:
            if self.stop_signal:
                raise KeyboardInterrupt
            self.stop_signal = number
            self._console.print("Stopping after this micro-batch; once more to stop at once.")

        before = {n: signal.signal(n, wish) for n in _WISHES}
        try:
            if self._bar is None:
                yield
            else:
                with self._bar:
                    yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
