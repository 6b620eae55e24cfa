from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.benchmarks.tasks.loaders import SOURCES, load_rows
from dspy_dlpo.benchmarks.tasks.prompts import BBH
from dspy_dlpo.benchmarks.tasks.registry import MGSM_LANGUAGES, load_task
from dspy_dlpo.benchmarks.tasks.scorers import WORLD_NUMBER
from dspy_dlpo.benchmarks.tasks.task import Task

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="The folder of the public sets is not there.")

# The columns of each set on the hub, with made-up rows.
HUB: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "openai/gsm8k": lambda index: {"question": f"What is {index} + 1000?", "answer": f"Add them.\n#### 1,{index:03}"},
    "LightChen2333/BigGSM": lambda index: {
        "index": str(index),
        "question": f"What is {index} + 1000?",
        "answer": f"Add them.\n#### 1,{index:03}.",
    },
    "lukaemon/bbh": lambda index: {"input": f"How many is {index}?", "target": str(index)},
    "nlile/hendrycks-MATH-benchmark": lambda index: {
        "problem": f"What is {index}/7?",
        "solution": f"$\\boxed{{\\frac{{{index}}}{{7}}}}$",
        "answer": f"\\frac{{{index}}}{{7}}",
        "subject": "Algebra",
        "level": 1,
        "unique_id": f"test/algebra/{index}.json",
    },
    "juletxara/mgsm": lambda index: {
        "question": f"{index} + 1?",
        "answer": None,
        "answer_number": index + 1,
        "equation_solution": None,
    },
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Stand in for the hub; a list of what was asked from it."""
    asked = []

    def load_dataset(path: str, config: str, *, split: str) -> Sequence[dict[str, Any]]:
        asked.append((path, config, split))
        rows = [HUB[path](index + 700 * (split == "test")) for index in range(250)]
        return [{**row, "question": f"{config}: {row['question']}"} if "mgsm" in path else row for row in rows]

    monkeypatch.setattr(
        pytest.importorskip("datasets", reason="needs datasets, of the `test` extra"), "load_dataset", load_dataset
    )
    return asked


def write(folder: Path, name: str, rows: Sequence[Any]) -> Path:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def made_up(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": f"x-{i:03}", "question": f"What is {i}?", "answer": str(i), **fields} for i in range(number)]


def sizes_of(task: Task) -> tuple[int, ...]:
    return tuple(len(part) for part in (task.trainset, task.valset, task.testset))


def ids(task: Task) -> list[str]:
    return [example.dspy_id for part in (task.trainset, task.valset, task.testset) for example in part]


@pytest.mark.parametrize(
    ("name", "asked", "sizes", "answer"),
    [
        ("gsm8k", [("openai/gsm8k", "main", part) for part in ("train", "test")], (50, 100, 250), "1"),
        ("biggsm", [("LightChen2333/BigGSM", "default", "test")], (77, 4, 169), "1"),
        ("bbh/object_counting", [("lukaemon/bbh", "object_counting", "test")], (50, 50, 150), ""),
        ("math", [("nlile/hendrycks-MATH-benchmark", "default", p) for p in ("train", "test")], (83, 167, 250), "\\"),
        ("mgsm/de", [("juletxara/mgsm", "de", "test")], (50, 50, 150), ""),
        ("mgsm", [("juletxara/mgsm", each, "test") for each in MGSM_LANGUAGES], (550, 550, 1650), ""),
    ],
)
def test_set_comes_from_its_home_on_the_hub(
    hub: list[tuple[str, str, str]], name: str, asked: list[Any], sizes: tuple[int, ...], answer: str
) -> None:
    task = load_task(name)
    assert hub == asked
    assert sizes_of(task) == sizes
    assert all(each.answer.startswith(answer) for part in (task.trainset, task.testset) for each in part)
    assert not any("," in each.answer or "#" in each.answer for each in task.trainset)


def test_training_and_test_part_of_a_set_are_kept_apart(hub: object) -> None:
    task = load_task("gsm8k")
    assert {part.split("-")[2] for part in (each.dspy_id for each in [*task.trainset, *task.valset])} == {"train"}
    assert {each.dspy_id.split("-")[2] for each in task.testset} == {"test"}


def test_translations_of_a_problem_never_cross_splits(hub: object) -> None:
    task = load_task("mgsm")
    parts = [{each.answer for each in part} for part in (task.trainset, task.valset, task.testset)]
    assert [len(part) for part in parts] == [50, 50, 150]  # Here the answer is the problem.
    assert len(set.union(*parts)) == 250


def test_translations_in_a_folder_belong_together_by_the_number_at_the_end_of_their_ids(tmp_path: Path) -> None:
    rows = [
        {"id": f"mgsm-{lang}-{i}", "question": f"{lang} {i}", "answer": str(i), "subtask": lang}
        for lang, numbers in (("de", range(40)), ("th", range(39, 4, -1)))
        for i in numbers
    ]
    task = load_task("mgsm", data_dir=write(tmp_path, "mgsm/test", rows), sizes=(10, 10, 20))
    parts = [{each.answer for each in part} for part in (task.trainset, task.valset, task.testset)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert sum(sizes_of(task)) == 75


def test_translation_without_the_number_of_its_problem_is_an_error(tmp_path: Path) -> None:
    row = {"id": "eins", "question": "1?", "answer": "1", "subtask": "de"}
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: `id` must end in the number .* got 'eins'"):
        load_task("mgsm/de", data_dir=write(tmp_path, "mgsm/test", [row]))


@pytest.mark.parametrize(
    ("name", "number", "sizes"),
    [
        ("biggsm", 700, (190, 10, 410)),
        ("biggsm", 610, (190, 10, 410)),
        ("biggsm", 305, (95, 5, 205)),
        ("biggsm", 4, (1, 1, 2)),
        ("bbh/object_counting", 250, (50, 50, 150)),
        ("bbh/object_counting", 146, (50, 50, 46)),
        ("bbh/object_counting", 50, (20, 20, 10)),
    ],
)
def test_small_set_is_split_in_the_same_proportion(
    tmp_path: Path, name: str, number: int, sizes: tuple[int, ...]
) -> None:
    set_name, _, subtask = name.partition("/")
    part = "all" if set_name == "biggsm" else "test"
    folder = write(tmp_path, f"{set_name}/{part}", made_up(number, subtask=subtask))
    assert sizes_of(load_task(name, data_dir=folder)) == sizes


def test_sizes_take_the_place_of_the_papers(tmp_path: Path) -> None:
    folder = write(tmp_path, "biggsm/all", made_up(40))
    assert sizes_of(load_task("biggsm", data_dir=folder, sizes=(5, 6, 7))) == (5, 6, 7)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((20, 20, 20), r"must fit into the set, .* of 40"), ((0, 1, 1), "at least 1"), ((1, 1), "three")],
)
def test_sizes_that_cannot_be_are_an_error(tmp_path: Path, sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"`sizes` .*{message}"):
        load_task("biggsm", data_dir=write(tmp_path, "biggsm/all", made_up(40)), sizes=sizes)


def test_same_seed_gives_the_same_splits_and_another_seed_others(tmp_path: Path) -> None:
    folder = write(tmp_path, "biggsm/all", made_up(100))
    first, same, other = (ids(load_task("biggsm", data_dir=folder, seed=seed)) for seed in (0, 0, 1))
    assert first == same != other
    assert sorted(first) == sorted(other)


def test_question_is_in_one_split_only_and_conflicting_or_unscorable_rows_are_left_out(tmp_path: Path) -> None:
    rows = [
        *made_up(40),
        {"id": "again", "question": "What  is 3?\n", "answer": "3"},
        {"id": "conflict", "question": "what is 4?", "answer": "5"},
        {"id": "no number", "question": "Who?", "answer": "Ann"},
    ]
    found = ids(load_task("biggsm", data_dir=write(tmp_path, "biggsm/all", rows)))
    assert sorted(found) == sorted({row["id"] for row in made_up(40)} - {"x-004"})


def test_question_of_the_training_part_is_left_out_of_the_test_part(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k/train", made_up(10))
    write(tmp_path, "gsm8k/test", made_up(15))
    task = load_task("gsm8k", data_dir=tmp_path)
    assert len(task.trainset) + len(task.valset) == 10
    assert len(task.testset) == 5


def test_id_of_an_example_is_seen_by_no_model() -> None:
    example = load_task("reasoning-gym/gcd", sizes=(1, 1, 1)).trainset[0]
    assert example.dspy_id
    assert example.keys() == ["question", "answer"]
    assert "dspy_id" not in repr(example)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "question": "1?"', "but: Expecting"),
        ("", "but: Expecting"),
        ("[" * 100_000, "but: "),
        ('["a"]', "with the strings id, question, answer"),
        ('{"id": "a", "question": "1?"}', "with the strings id, question, answer"),
        ('{"id": "a", "question": "1?", "answer": 1}', "with the strings id, question, answer"),
    ],
)
def test_malformed_line_is_told_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    folder = write(tmp_path, "biggsm/all", [*made_up(2), line])
    with pytest.raises(ValueError, match=f"all.jsonl, line 3, must be a JSON object.*{message}"):
        load_task("biggsm", data_dir=folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "z", "question": " ", "answer": "1"}, "`question` must not be empty"),
        ({"id": "z", "question": "1?", "answer": "1"}, "`id` must be unique, but 'z' is in an earlier line too"),
    ],
)
def test_line_that_is_no_problem_is_told_by_file_and_number(tmp_path: Path, line: dict[str, str], message: str) -> None:
    first = json.dumps({"id": "z", "question": "2?", "answer": "2"})
    folder = write(tmp_path, "biggsm/all", [first, json.dumps(line)])
    with pytest.raises(ValueError, match=f"all.jsonl, line 2: {message}"):
        load_task("biggsm", data_dir=folder)


def test_line_that_is_no_utf8_is_told_by_file_and_number(tmp_path: Path) -> None:
    write(tmp_path, "biggsm/all", made_up(2))
    (tmp_path / "biggsm" / "all.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match=r"all.jsonl, line 1, must be a JSON object, but: 'utf-8'"):
        load_task("biggsm", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "`name` must be one of bbh, biggsm, gsm8k, math, mgsm, reasoning-gym, but got name='gsm9k'"),
        ("bbh", "`subtask` of bbh must be one of boolean_expressions, .*, word_sorting, but got subtask=''"),
        ("bbh/counting", "`subtask` of bbh must be one of boolean_expressions, .* got subtask='counting'"),
        ("mgsm/it", "`subtask` of mgsm must be one of bn, de, .* got subtask='it'"),
        ("reasoning-gym/nothing", "`subtask` of reasoning-gym must be one of .*chain_sum, .* got subtask='nothing'"),
        ("gsm8k/easy", "gsm8k has no subtasks, but got subtask='easy'"),
    ],
)
def test_unknown_task_is_an_error_that_lists_the_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_folder_without_the_set_is_an_error_that_says_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`data_dir` must have rows of gsm8k in .*train.jsonl or .* hub"):
        load_task("gsm8k", data_dir=tmp_path)
    write(tmp_path, "bbh/test", made_up(5, subtask="snarks"))
    with pytest.raises(FileNotFoundError, match="rows of bbh/navigate in"):
        load_task("bbh/navigate", data_dir=tmp_path)


def test_hub_out_of_reach_is_an_error_that_says_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **settings: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(
        pytest.importorskip("datasets", reason="needs datasets, of the `test` extra"), "load_dataset", load_dataset
    )
    with pytest.raises(ConnectionError, match=r"openai/gsm8k .*no route to host.* network, or give `data_dir`"):
        load_task("gsm8k")


@pytest.mark.parametrize(("name", "package"), [("gsm8k", "datasets"), ("reasoning-gym/gcd", "reasoning_gym")])
def test_missing_extra_is_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed .*pip install 'dspy-dlpo\[bench\]'"):
        load_task(name)


def test_every_task_has_a_seed_program_and_a_human_prompt_for_its_predictors(tmp_path: Path) -> None:
    golds = {"True or": "True", "Yes or": "Yes", "valid or": "valid", "the letter": "(A)", "the missing": ") )"}
    rows = [
        {
            "id": f"{name}-{i}",
            "question": f"{i}?\n(A) a",
            "subtask": name,
            "answer": next((gold for form, gold in golds.items() if scorer.form.startswith(form)), "7"),
        }
        for name, (scorer, _) in BBH.items()
        for i in range(6)
    ]
    write(tmp_path, "bbh/test", [{**row, "answer": "bee"} if row["subtask"] == "word_sorting" else row for row in rows])
    names = [*(f"bbh/{subtask}" for subtask in BBH), "biggsm", "reasoning-gym/chain_sum"]
    write(tmp_path, "biggsm/all", made_up(6))
    tasks = [load_task(name, data_dir=tmp_path, sizes=(2, 2, 2)) for name in names]
    assert len(BBH) == 27
    for task in tasks:
        assert list(task.human) == [path for path, _ in task.program.named_predictors()]
        assert all(len(text.split()) > 20 for text in task.human.values())
        assert task.metric(task.trainset[0], dspy.Prediction(answer=task.trainset[0].answer)).score == 1


def test_reasoning_gym_makes_distinct_problems_that_the_seed_decides() -> None:
    one, same, other = (load_task("reasoning-gym/gcd", seed=seed, sizes=(5, 5, 5)) for seed in (0, 0, 1))
    questions = [
        [each.question for each in (*task.trainset, *task.valset, *task.testset)] for task in (one, same, other)
    ]
    assert questions[0] == questions[1]
    assert len({*questions[0], *questions[2]}) == 30


NUMBERS = ["{}", "{}.", "${}", "{} units", "The answer is {}.", r"\boxed{{{}}}", "**{}**", "{}.0"]
SPELLINGS: Mapping[str, Sequence[str]] = {
    "gsm8k": NUMBERS,
    "biggsm": NUMBERS,
    "mgsm": NUMBERS,
    "math": ["{}", "${}$", r"\boxed{{{}}}", r"The answer is $\boxed{{{}}}$.", "The answer is ${}$."],
    "bbh": ["{}", "**{}**", "The answer is {}", "Answer: {}", "`{}`"],
}


def wrong(answer: str) -> list[str]:
    """Return answers near the right one that are wrong."""
    if answer.lstrip("-").isdigit():
        return [str(int(answer) + 1), f"{answer}1", f"{answer}.5", f"{answer} or {int(answer) - 1}"]
    opposites = {"True": "False", "Yes": "No", "valid": "invalid"}
    opposites |= {value: key for key, value in opposites.items()}
    return [opposites.get(answer, r"\sqrt{777}"), f"not {answer}", ""]


@needs_data
@pytest.mark.parametrize("name", SOURCES)
def test_every_row_of_the_folder_loads_and_its_answer_alone_is_right(name: str) -> None:
    lines = [json.loads(line) for part in SOURCES[name].parts for line in lines_of(DATA / name / f"{part}.jsonl")]
    subtasks = sorted({line["subtask"] for line in lines}) if name in ("bbh", "mgsm") else []
    rows = [row for part in load_rows(name, subtasks, DATA).values() for row in part]
    assert [row.id for row in rows] == [line["id"] for line in lines]
    metrics = {each: load_task(f"{name}/{each}" if each else name, data_dir=DATA).metric for each in subtasks or [""]}
    refused, accepted = [], []
    for row, line in zip(rows, lines, strict=True):
        example = dspy.Example(question=row.question, answer=row.answer).with_inputs("question")
        metric = metrics[line["subtask"] if subtasks else ""]
        if name == "bbh" and row.id == "bbh-movie_recommendation-163":
            with pytest.raises(ValueError, match="letter of one option"):  # Its answer is none of its options.
                metric(example, dspy.Prediction(answer="(A)"))
            continue
        answers = [spelling.format(row.answer) for spelling in SPELLINGS[name]]
        refused += [(row.id, each) for each in answers if metric(example, dspy.Prediction(answer=each)).score != 1]
        accepted += [
            (row.id, each) for each in wrong(row.answer) if metric(example, dspy.Prediction(answer=each)).score
        ]
    assert refused == []
    assert accepted == []


@needs_data
def test_answer_of_every_exemplar_of_mgsm_is_right_too() -> None:
    for line in map(json.loads, lines_of(DATA / "mgsm" / "train.jsonl")):
        example = dspy.Example(question=line["question"], answer=line["answer"])
        assert all(WORLD_NUMBER(example, dspy.Prediction(answer=each.format(line["answer"]))).score for each in NUMBERS)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n") if path.exists() else []


@needs_data
def test_every_task_of_the_folder_is_split_without_overlap_and_without_loss() -> None:
    lines = [json.loads(line) for line in lines_of(DATA / "bbh" / "test.jsonl")]
    rows = Counter(line["subtask"] for line in lines)
    left_out = 0
    for subtask, number in rows.items():
        task = load_task(f"bbh/{subtask}", data_dir=DATA)
        questions = [each.question for part in (task.trainset, task.valset, task.testset) for each in part]
        assert len(questions) == len(set(questions))
        left_out += number - len(questions)
    assert left_out == 1
