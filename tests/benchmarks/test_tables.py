from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from dspy_dlpo.benchmarks.cells import Cell
from dspy_dlpo.benchmarks.tables import Mean, average_curve, calls_to, draw, rows, to_csv, to_json, to_markdown, to_text
from dspy_dlpo.benchmarks.tables import write as write_tables


def cell(optimizer: str, seed: int, score: float, *, curve: list[tuple[int, float]] | None = None) -> Cell:
    ends = [(0, 0.1), (100, score)]
    return Cell("toy", optimizer, 300, seed, score=score, curve=curve or ends, metric_calls=100, lm_calls=110, cost=0.5)


OURS = [cell("dlpo", seed, score) for seed, score in enumerate([0.7, 0.8, 0.9])]
THEIRS = [cell("gepa", seed, score) for seed, score in enumerate([0.5, 0.6, 0.7])]
EQUAL = [cell("apo", seed, score) for seed, score in enumerate([0.8, 0.7, 0.9])]


def test_the_interval_is_students_t_over_the_seeds() -> None:
    mean = Mean.of([0.6, 0.7, 0.8])  # t of 2 degrees of freedom is 4.303; the standard error is 0.1 / sqrt(3).
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.7, 0.7 - 0.2484, 0.7 + 0.2484), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert Mean.of([0.7]) == Mean(0.7, None, None)
    assert not Mean.of([0.7]).is_sure


def test_differences_are_paired_by_seed() -> None:
    table = {row.optimizer: row for row in rows([*OURS, *THEIRS])}
    difference = table["gepa"].difference
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((-0.2, -0.2))
    assert table["dlpo"].difference is None
    assert table["gepa"].remark == ""


def test_only_seeds_that_both_have_are_compared() -> None:
    (_, row) = rows([*OURS, cell("gepa", 1, 0.5), cell("gepa", 9, 1.0)])
    assert row.difference is not None
    assert row.difference.value == pytest.approx(-0.3)
    assert row.num_seeds == 2


def test_what_makes_no_sure_difference_is_said_to_make_none() -> None:
    (_, row) = rows([*OURS, *EQUAL])
    assert row.remark == "no sure difference"


def test_the_reference_can_be_another() -> None:
    table = {row.optimizer: row for row in rows([*OURS, *THEIRS], reference="gepa")}
    assert table["dlpo"].difference is not None
    assert table["dlpo"].difference.value == pytest.approx(0.2)


def test_calls_to_the_target_are_the_first_at_which_the_best_so_far_reaches_it() -> None:
    run = cell("dlpo", 0, 0.8, curve=[(0, 0.1), (50, 0.77), (80, 0.6), (120, 0.8)])
    assert calls_to(run, 0.76) == 50
    (row,) = rows([run])
    assert row.target == pytest.approx(0.76)
    assert (row.calls_to_target, row.reached) == (50, 1.0)
    assert rows([run], target=0.78)[0].calls_to_target == 120


def test_the_target_is_set_by_the_best_mean_and_not_by_the_human_prompt() -> None:
    table = rows([*OURS, *THEIRS, cell("human", 0, 1.0)])
    assert [row.target for row in table] == pytest.approx([0.76] * 3)
    assert [row.reached for row in table] == pytest.approx([2 / 3, 0.0, 1.0])
    assert [row.calls_to_target for row in table] == [100, None, 100]


def test_skipped_and_failed_cells_are_in_the_table_with_their_reasons() -> None:
    skipped = [Cell("toy", "simba", 300, seed, skipped="too small") for seed in range(2)]
    table = rows([*OURS, Cell("toy", "dlpo", 300, 7, failed="RuntimeError: no"), *skipped])
    assert table[0].remark == "failed 1 of 4: RuntimeError: no"
    assert (table[1].num_seeds, table[1].score, table[1].remark) == (0, None, "skipped: too small")
    assert "skipped: too small" in to_markdown(table)


def test_tables_show_points_calls_and_dollars() -> None:
    text = to_text(rows([*OURS, *THEIRS]))
    title, heading, ours, theirs = text.splitlines()
    assert title == "toy, budget 300"
    assert heading.split()[:2] == ["optimiser", "seeds"]
    assert "80.0 (55.2 to 100.0)" in ours  # No score is above 100.
    assert "-20.0 (-20.0 to -20.0)" in theirs
    assert "$0.50" in ours
    assert "67%" in to_markdown(rows(OURS))


def test_interval_of_a_score_stays_between_0_and_100_and_that_of_a_difference_between_minus_100_and_100() -> None:
    few = [*(cell("dlpo", seed, score) for seed, score in enumerate([0.8, 1.0]))]
    others = [*(cell("gepa", seed, score) for seed, score in enumerate([0.6, 0.0]))]
    (ours, theirs) = rows([*few, *others])
    assert ours.score == Mean(0.9, 0.0, 1.0)
    assert theirs.difference is not None
    assert (theirs.difference.low, theirs.difference.high) == (-1.0, 1.0)


def test_table_for_the_terminal_is_at_most_100_columns_wide_and_has_its_remarks_below() -> None:
    slow = [
        Cell("toy", "dlpo:paper-TRegu", 12_000, seed, score=seed / 4, curve=[(0, 0.1)], cost=99.5) for seed in (0, 3)
    ]
    lost = [Cell("toy", "simba", 12_000, 0, failed="RuntimeError: " + "a long story. " * 20 + "\n\nIts end")]
    reference = [Cell("toy", "dlpo", 12_000, seed, score=0.5, curve=[(0, 0.5)]) for seed in (0, 3)]
    title, *lines = to_text(rows([*reference, *slow, *lost, *OURS])).split("\n\n")[0].splitlines()
    assert title == "toy, budget 12,000"
    assert max(map(len, lines[:4])) <= 100
    assert [line.split(":")[0] for line in lines[4:]] == ["  dlpo", "  simba"]
    assert lines[5].endswith("a long story. Its end")


def test_text_is_no_formula_in_csv_and_breaks_no_row() -> None:
    bad = Cell("=1+1", "@SUM(A1)", 300, 0, failed='=HYPERLINK("http://x")\r\nsecond line | third')
    table = rows([bad])
    (row,) = csv.DictReader(StringIO(to_csv([replace(table[0], remark="=1+1\n2")])))
    assert (row["task"], row["optimizer"], row["remark"]) == ("'=1+1", "'@SUM(A1)", "'=1+1 2")
    assert to_csv(table).count("\n") == 2
    assert len(to_markdown(table).splitlines()) == 3
    assert "second line \\| third" in to_markdown(table)


def test_an_unknown_price_is_not_zero() -> None:
    assert "| unknown |" in to_markdown(rows([*OURS, Cell("toy", "dlpo", 300, 7, score=0.5, curve=[(0, 0.5)])]))


def test_csv_and_json_have_full_precision() -> None:
    table = rows([*OURS, *THEIRS])
    (first, second) = csv.DictReader(StringIO(to_csv(table)))
    assert float(first["score"]) == json.loads(to_json(table))[0]["score"]["value"] == table[0].score.value  # type: ignore[union-attr]  # There is one.
    assert float(second["difference_low"]) == pytest.approx(-0.2)
    assert first["difference"] == ""


def test_the_mean_curve_holds_each_best_until_the_next() -> None:
    one, two = (cell("dlpo", seed, 1.0, curve=[(0, 0.0), (calls, 1.0)]) for seed, calls in enumerate([10, 30]))
    assert [(calls, mean.value) for calls, mean in average_curve([one, two])] == [(0, 0.0), (10, 0.5), (30, 1.0)]


def test_everything_is_written_into_a_folder(tmp_path: Path) -> None:
    files = write_tables([*OURS, *THEIRS, cell("human", 0, 1.0, curve=[(0, 1.0)])], tmp_path)
    assert [path.name for path in files] == ["table.md", "table.csv", "table.json", "curves.png", "curves.svg"]
    assert all(path.stat().st_size > 100 for path in files)
    assert "<svg" in files[-1].read_text()


def test_a_picture_without_matplotlib_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'dspy-dlpo\[bench\]'"):
        draw(OURS, tmp_path / "curves.png")


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one with a curve"):
        draw([], tmp_path / "curves.png")
