"""Progress bars: on a terminal tqdm's own, in a log file a line now and then."""

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


def open_progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Open a progress bar with the arguments of tqdm."""
    if sys.stderr.isatty():
        return tqdm(*arguments, **options)
    return LineProgress(*arguments, **{**options, "mininterval": SECONDS_BETWEEN_LINES, "leave": False})


class LineProgress(tqdm):
    """A progress bar whose every state is a line of its own, and that shows nothing of work that is soon done."""

    monitor_interval = 0  # tqdm's own thread would draw more often

    if TYPE_CHECKING:  # the types of tqdm leave it out

        @classmethod
        def _decr_instances(cls, instance: tqdm) -> None: ...

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        is_new = self.n > self.initial and not self.disable
        if is_new:
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Clear nothing: what is in a file stays."""

    def close(self) -> None:
        """Print no last line: the stage says what it has made."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
