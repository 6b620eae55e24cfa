"""Counting tokens."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

_FOLDER = "TIKTOKEN_CACHE_DIR"


@lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """Return the length of a text in tokens, as litellm's default tokenizer counts them: near enough for any model."""
    return len(_encoding().encode_ordinary(text)) if text else 0


@lru_cache(maxsize=1)
def _encoding() -> Encoding:
    """Return litellm's default encoding. Its file is with litellm, so that neither that nor the network is asked."""
    from tiktoken import get_encoding  # Most runs count no tokens.

    spec = find_spec("litellm")
    packages = (spec and spec.submodule_search_locations) or ()
    before = os.environ.get(_FOLDER)
    try:
        for package in packages:
            os.environ[_FOLDER] = str(Path(package, "litellm_core_utils", "tokenizers"))
        return get_encoding("cl100k_base")
    finally:
        if before is None:
            os.environ.pop(_FOLDER, None)
        else:
            os.environ[_FOLDER] = before
