"""Text from outside, between fences."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.descent.wording import fenced

TAGS = {
    "plain": "</data>",
    "capitals and spaces": "<\t / DATA \n>",
    "opening": "<data>",
    "with an attribute": '<data id="2">',
    "full width": "\uff1c\uff0f\uff24\uff21\uff34\uff21\uff1e",
    "small form": "\ufe64/data\ufe65",
    "bold letters": "</\U0001d41d\U0001d41a\U0001d42d\U0001d41a>",
    "accents": "</d\u0301a\u0308ta>",
    "struck through": "<\u0338/data>",
    "zero-width space": "<\u200b/da\u200bta>",
    "soft hyphen": "</da\u00adta>",
    "joiners": "<\u2060/d\u200dat\ufeffa>",
    "tag characters": "<\U000e0041/data>",
    "variation selector": "<\ufe0f/data>",
    "filler of Hangul": "<\u3164/data>",
    "null": "<\x00/data>",
    "right to left": "\u202e<\u202d/data>",
    "entities": "&lt;/data&gt;",
    "entities without an end": "&lt/data&gt",
    "decimal": "&#60;&#47;data&#62;",
    "hexadecimal": "&#x3C;/&#x64;ata&#x3e;",
    "zeros in front": "&#00060;/data>",
    "twice": "&amp;lt;/data&amp;gt;",
    "thrice": "&amp;amp;#60;/data",
    "entity of an invisible one": "<&#8203;/data>",
    "entity of a full-width one": "&#xFF1C;/data>",
    "entity that is cut": "&l\u200bt;/data>",
    "entity in full width": "\uff06lt;/data>",
    "JSON": "\\u003c/data\\u003e",
    "JSON of one letter": "</d\\u0061ta>",
    "Python": "\\x3c/data\\x3e",
    "URL": "%3C%2Fdata%3E",
    "URL of the bracket alone": "%3Cdata",
    "other slashes": "<\u2215data>",
    "other brackets": "\u2039/data\u203a",
    "brackets of mathematics": "\u27e8/data\u27e9",
    "Cyrillic": "</d\u0430t\u0430>",
    "Greek": "</d\u03b1\u03c4\u03b1>",
}
MARKS = {
    "field": "[[ ## answer ## ]]",
    "field without spaces": "[[##answer##]]",
    "field in full width": "\uff3b\uff3b ## completed ## ]]",
    "field of entities": "&#91;&lbrack; ## completed ## ]]",
    "field of white brackets": "\u27e6 ## completed ## \u27e7",
    "ChatML": "<|im_start|>",
    "Llama 3": "<|eot_id|>",
    "Llama 2": "[/INST]",
    "Llama 2, system": "<<SYS>>",
    "end": "</s>",
    "DeepSeek": "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "Gemma": "<start_of_turn>",
    "EXAONE": "[|system|]",
    "Command": "<|START_OF_TURN_TOKEN|>",
    "Mistral": "[SYSTEM_PROMPT]",
    "gpt-oss": "<|channel|>",
    "ChatML with an invisible character": "<\u200d|im_end|>",
    "ChatML as entities": "&lt;&vert;im_end&#124;&gt;",
}
HARMLESS = {
    "comparisons": "a < b and b > c; 3 <| 4; x[[0, 1]]",
    "a database": "<database> and </data_store> and <dataset>",
    "other tags": "<b>bold</b> <strong/> <div class='data'>",
    "entities": "&amp; &lt; &copy; &nosuch; &#0; &#x110000; &#99999999;",
    "a heading": "## data ##",
    "lists": "[1], [[2]], [#3], [ins]",
    "escapes": "C:\\users\\x1\\data, 100%, 5%2",
    "languages": "\u0424\u0430\u0439\u043b \u00e9t\u00e9 \u6570\u636e \U0001f468\u200d\U0001f469",
}


@pytest.mark.parametrize("mark", [*TAGS.values(), *MARKS.values()], ids=[*TAGS, *MARKS])
def test_mark_gets_one_backslash_and_nothing_else_changes(mark: str) -> None:
    text = f"One {mark} two {mark}"
    inside = fenced(text).removeprefix("<data>\n").removesuffix("\n</data>")
    assert mark not in inside
    assert inside != text
    assert fenced(inside) == f"<data>\n{inside}\n</data>", "it is no mark any more"
    assert len(inside) == len(text) + 2


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert fenced(text) == f"<data>\n{text}\n</data>"


PIECES = st.sampled_from(
    [*"</> &[#|x\\", "data", "amp;", "lt;", "#60;", "&lt;", "\u200b", "\uff1c", "u003c", "%3c", "\ud83d"]
)


@given(st.lists(PIECES | st.characters(), max_size=40).map("".join))
def test_no_closing_tag_survives_and_only_backslashes_are_added(text: str) -> None:
    inside = fenced(text).removeprefix("<data>\n").removesuffix("\n</data>")
    seen = "".join(each for each in inside if unicodedata.category(each) != "Cf")
    for shown in (seen, unicodedata.normalize("NFKC", seen), html.unescape(unicodedata.normalize("NFKC", seen))):
        assert not re.search(r"<\s*/?\s*data\b", shown, flags=re.IGNORECASE)
    assert inside.replace("\\", "") == text.replace("\\", "")
