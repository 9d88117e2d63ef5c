"""Where in its epochs a loader stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """A position, in draws of the single process's stream.

    Attributes:
        epoch: of the pass under way or broken off, else of the next one.
        draws: how many of that epoch's are done; the next pass begins after them.
    """

    epoch: int = 0
    draws: int = 0
    _begun: bool = False
    _running: bool = False
    _wanted: int | None = None

    def begin(self, at_least: int) -> tuple[int, int]:
        """A pass begins; its epoch, and the draws to begin after.

        One that follows a pass broken off is the next epoch's, as it is with torch's loaders.
        """
        if self._begun:
            self.epoch, self.draws = self.epoch + 1, 0
        self._begun = self._running = True
        self.draws = max(self.draws, at_least)
        return self.epoch, self.draws

    def complete(self) -> None:
        """The pass came to its end."""
        self.epoch, self.draws, self._begun = self.epoch + 1, 0, False

    def end(self) -> None:
        """The pass is over, complete or not."""
        self._running = False
        self._settle()

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch's; if it was to be taken up within it, it still is."""
        self._wanted = epoch
        if not self._running:
            self._settle()

    def _settle(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None and (self._begun or wanted != self.epoch):
            self.epoch, self.draws, self._begun = wanted, 0, False
