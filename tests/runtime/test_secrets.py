"""Nothing that is written, sent or shown holds a setting of a model but its name and harmless numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import InvalidRequestError, TransportError

from dspy_dlpo.policies import Policy, TextualLearningRate
from dspy_dlpo.runtime.secrets import redacted, secrets_of, settings_of
from dspy_dlpo.views.report import save_report
from dspy_dlpo.views.trackers import _files
from tests.scripted import Oracle, examples, role_of, scripted_lm, world

SECRET = "zx81-Very-Secret-0815"
SETTINGS = {
    "api_key": SECRET,
    "aws_secret_access_key": SECRET,
    "azure_ad_token": SECRET,
    "headers": {"X-Whatever": SECRET},
    "extra_headers": {"Authorization": f"Bearer {SECRET}"},
    "extra_body": {"gateway": {"pass": SECRET}},
    "api_base": f"https://me:{SECRET}@host/v1",
    "client_cert": (SECRET, "path"),
    "new_provider_thing": SECRET,
}


def lm_with(name: str) -> dspy.LM:
    lm = scripted_lm(temperature=0.5, max_tokens=77)
    lm.kwargs[name] = SETTINGS[name]
    return lm


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_may_be_written_are_a_list_of_what_may(name: str) -> None:
    assert settings_of(lm_with(name)) == {"max_tokens": 77, "temperature": 0.5}
    assert SECRET in " ".join(secrets_of([lm_with(name), None]))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"https://me:{SECRET}@host/v1 is down", SECRET),
        ("postgres://bob:hunter22@db:5432/x", "hunter22"),
        ("https://token-only@host", "token-only"),
        ("Incorrect API key provided: sk-proj-abcdefghijkl0123", "sk-proj-abcdefghijkl0123"),
        ("headers: {'Authorization': 'Bearer abc.def.ghi'}", "abc.def.ghi"),
        ("GET /v1?api_key=abcdef99&x=1", "abcdef99"),
        ('{"password": "letmein77"}', "letmein77"),
        ("AWS AKIAIOSFODNN7EXAMPLE is not allowed", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_what_looks_like_a_secret_is_blotted_out_of_a_text(text: str, hidden: str) -> None:
    assert hidden in text
    assert hidden not in redacted(text)


@pytest.mark.parametrize(
    "text", ["max_tokens: 4096 exceeded", "mail me@example.org", "The keyword is missing", "https://host/a?b=c"]
)
def test_ordinary_words_stay(text: str) -> None:
    assert redacted(text) == text


class Guarded(Policy):
    """A policy of a user's that calls a service."""

    def __init__(self) -> None:
        self.api_key = SECRET
        self.endpoint = {"url": f"https://u:{SECRET}@host", "retries": 2}
        self.max_share = 0.25


def test_no_secret_is_in_ledger_report_files_result_log_and_errors(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"https://me:{SECRET}@host/v1"

    def answer(system: str, user: str) -> str:
        if role_of(system) == "program" and "beta" in user:
            raise InvalidRequestError(f"400 from {address}")
        if role_of(system) == "proposer":
            raise TransportError(f"cannot reach {address}")
        return world()(system, user)

    prompt_model = scripted_lm(answer)
    prompt_model.model = f"openai/{address}"
    with dspy.context(lm=scripted_lm(answer)):
        optimizer = make(
            num_steps=2,
            log_dir=tmp_path / "run",
            policies=[Guarded(), TextualLearningRate(3)],
            verbose=True,
            prompt_model=prompt_model,
        )
        program = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(10, 100))
    result = program.detailed_results
    program.lm = dspy.LM("openai/gpt-x", **SETTINGS)
    with _files(result) as folder:
        sent = "".join(path.read_text(errors="replace") for path in folder.iterdir())
        loaded = dspy.Predict(Oracle)
        loaded.load(str(folder / "program.json"))
    assert loaded.signature.instructions == program.signature.instructions
    page = save_report(result, tmp_path / "report.html").read_text()
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    told = caplog.text + "".join(capsys.readouterr())
    for text in (sent, page, written.decode(errors="replace"), json.dumps(result.to_dict()), told):
        assert SECRET not in text
    assert "host/v1" in told, "what went wrong is told"
    assert "max_share=0.25" in page
