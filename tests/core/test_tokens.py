"""Tokens are counted as litellm counts them, without it and without the network."""

from __future__ import annotations

import os
import subprocess
import sys

import litellm
import pytest

from dspy_dlpo.core.tokens import count_tokens

TEXTS = {
    "nothing": "",
    "a sentence": "Answer the question in one word.",
    "Markdown": "# Rules\n\n1. Be brief.\n2. **Never** guess.\n\n```python\nprint('x')\n```\n",
    "German": "Die Antwort ist die größte Zahl, nicht die Ursache.",
    "Chinese": "请用一句话回答问题。",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 fine",
    "special tokens": "<|endoftext|> <|im_start|>system",
    "lone surrogate": "99: \ud83d what",
    "white space": "  a \n\n\t b   ",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_count_is_that_of_litellm(text: str) -> None:
    assert count_tokens(text) == (litellm.token_counter(model="", text=text) if text else 0)


@pytest.mark.parametrize("folder", [None, "/nowhere/at/all"], ids=["no folder set", "a folder without the file"])
def test_tokens_are_counted_offline_without_importing_litellm(folder: str | None) -> None:
    code = """
import os, socket, sys
def no_network(*args, **kwargs): raise OSError("no network")
socket.create_connection = socket.getaddrinfo = no_network
from dspy_dlpo.core.tokens import count_tokens
before = dict(os.environ)
print(count_tokens("One two three."), "litellm" in sys.modules, dict(os.environ) == before)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TIKTOKEN_CACHE_DIR"}
    environment |= {"TIKTOKEN_CACHE_DIR": folder} if folder else {}
    told = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert told.split() == [str(count_tokens("One two three.")), "False", "True"]
