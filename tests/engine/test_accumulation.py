"""Windows of micro-batches: when gradients are synchronized, and what each micro-batch weighs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from diag.engine.accumulation import Window, power_of_two, share
from diag.errors import DiagError


@dataclass
class Loader:
    """A loader of `length` batches (None: it does not know) that stands at its n-th."""

    length: int | None
    batches_yielded: int = 0
    real_length: int = 0
    local_samples: int | None = None
    global_samples: int | None = None

    @property
    def end_on_some_rank(self) -> bool:
        return self.batches_yielded >= (self.length or self.real_length)

    @property
    def common_length(self) -> int:
        if self.length is None:
            raise TypeError("no length")
        return self.length


def run(window: Window, loader: Loader | None, batches: int) -> list[tuple[bool, int, float]]:
    """(synchronizes, divisor, correction) of each of the next micro-batches."""
    seen = []
    for _ in range(batches):
        if loader is not None:
            loader.batches_yielded += 1
        window.begin_micro_batch(loader)
        seen.append((window.synchronizes, window.divisor, window.correction))
        window.collected()
    return seen


def test_the_tail_weighs_what_it_holds() -> None:
    seen = run(Window(4), Loader(length=10), 10)
    assert [s for s, _, _ in seen] == [False, False, False, True] * 2 + [False, True]
    assert [d for _, d, _ in seen] == [4] * 8 + [2, 2]
    assert seen[-1][2] == 1  # known beforehand: nothing to correct


def test_an_unknown_length_is_corrected_at_the_end() -> None:
    seen = run(Window(4), Loader(length=None, real_length=5), 5)
    assert [s for s, _, _ in seen] == [False, False, False, True, True]
    assert seen[3] == (True, 4, 1.0)
    assert seen[4] == (True, 4, 4.0)  # one micro-batch that was weighed as a quarter


def test_a_settled_window_divides_by_what_it_held() -> None:
    window = Window(4)
    run(window, Loader(length=None, real_length=1), 1)
    window.settled = True
    assert window.divisor == 1


def test_without_a_loader_windows_are_full() -> None:
    assert [s for s, _, _ in run(Window(3), None, 7)] == [False, False, True] * 2 + [False]


def test_a_window_may_span_loaders_on_request() -> None:
    window = Window(3, follows_loader=False)
    assert [s for s, _, _ in run(window, Loader(length=2), 2)] == [False, False]
    assert run(window, Loader(length=2), 1) == [(True, 3, 1.0)]


def test_a_loader_left_early_does_not_cut_the_window() -> None:
    window = Window(4)
    run(window, Loader(length=100), 2)
    assert run(window, Loader(length=100), 2) == [(False, 4, 4 / 3), (True, 4, 1.0)]


def test_a_loader_shorter_than_it_said_is_corrected() -> None:
    window, loader = Window(4), Loader(length=10)
    run(window, loader, 1)
    loader.length = 2
    assert run(window, loader, 1) == [(True, 4, 2.0)]


def test_batches_that_some_ranks_do_not_get_are_windows_of_their_own() -> None:
    seen = run(Window(4), Loader(length=2), 4)
    assert [s for s, _, _ in seen] == [False, True, True, True]
    assert [c for _, _, c in seen][1:] == [1.0, 4.0, 4.0]


def test_a_changed_number_of_steps_holds_from_the_next_window() -> None:
    window = Window(4)
    run(window, None, 2)
    window.steps = 2
    assert [s for s, _, _ in run(window, None, 4)] == [False, True, False, True]


def test_clearing_is_allowed_where_nothing_is_lost() -> None:
    window = Window(2)
    allowed = []
    for _ in range(3):
        window.begin_micro_batch(None)
        before = window.may_clear
        window.collected()
        allowed.append((before, window.may_clear))
    assert allowed == [
        (False, False),  # nothing is known of backward yet: only that this does not synchronize
        (False, True),  # before the second backward the first one's gradients are there
        (True, False),
    ]


def test_items_count_once_per_micro_batch() -> None:
    window = Window(2)
    window.begin_micro_batch(None)
    window.count_items(torch.tensor(3.0))
    with pytest.raises(DiagError) as error:
        window.count_items(torch.tensor(3.0))
    assert error.value.slug == "items-counted-twice"
    window.begin_micro_batch(None)
    window.count_items(torch.tensor(4.0))
    assert window.items == torch.tensor(7.0)


@pytest.mark.parametrize(
    ("local", "total", "ranks", "expected"),
    [(4, 12, 3, 1.0), (1, 9, 3, 1 / 3), (8, 9, 3, 8 / 3), (None, 9, 3, 1.0), (1, 1, 1, 1.0)],
)
def test_share_is_samples_times_ranks_over_all(
    local: int | None, total: int, ranks: int, expected: float
) -> None:
    loader = Loader(length=1, local_samples=local, global_samples=total)
    assert share(loader, ranks) == expected
    assert share(None, ranks) == 1


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (1023, 512), (1024, 1024), (0, 1)])
def test_power_of_two(value: float, expected: float) -> None:
    assert power_of_two(torch.tensor(float(value))).item() == expected
