from __future__ import annotations

import time

import pytest

from examples.benchmarks import hostile_texts
from examples.benchmarks.hostile_texts import PIECES, functions, text_of

FUNCTIONS = functions()
MOST_SECONDS = 4.0  # 20 times the aim, for a slow machine; what took time by the square took minutes.


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_reading_foreign_text_ends_soon_and_breaks_on_nothing(name: str) -> None:
    for piece in PIECES.values():
        for end in ("", " x", '"', "]"):
            FUNCTIONS[name](text_of(piece, 3000, end))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_hundred_thousand_hostile_characters_take_no_time_that_grows_with_their_square(name: str) -> None:
    for kind, piece in PIECES.items():
        begin = time.thread_time()
        FUNCTIONS[name](text_of(piece, 100_000))
        assert time.thread_time() - begin < MOST_SECONDS, kind


def test_table_names_the_slowest_text_of_each_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile_texts, "LENGTHS", (100, 200))
    monkeypatch.setattr(hostile_texts, "measure", lambda: {("split", "digits"): [0.1, 0.3], ("split", "x"): [0.1, 0.1]})
    monkeypatch.setattr("sys.argv", ["hostile_texts"])
    with pytest.raises(SystemExit, match="True"):
        hostile_texts.main()
    printed = capsys.readouterr().out
    assert "| split | 0.100 | 0.300 | digits |" in printed
    assert "1 of 2 took longer than 0.2 s" in printed
