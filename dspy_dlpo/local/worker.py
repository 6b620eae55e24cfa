"""The process that holds the local model, and its one class.

The model has a process of its own because OpenVINO keeps Python's global lock while it computes: in the user's process
no other thread would get on meanwhile. This file is run by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MAX_IN_FLIGHT = 24
"""Prompts that are answered at once; more wait. Beyond it, an answer takes longer and no more come in a minute."""

CACHE_GB = 1
_BATCHED_TOKENS = 512  # Of new prompts in one step, while the answers of others wait.


class Server:
    """Answers requests step by step, all that are in flight together.

    Args:
        genai: The module `openvino_genai`.
        path: The GGUF file.
        num_ctx: Context length in tokens.
        num_threads: CPU threads; None for all cores.

    Raises:
        RuntimeError: If OpenVINO cannot load the file.
        ValueError: If the file has no chat template.
    """

    def __init__(self, genai: Any, path: str, num_ctx: int, num_threads: int | None) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = MAX_IN_FLIGHT
        scheduler.max_num_batched_tokens = _BATCHED_TOKENS
        scheduler.enable_prefix_caching = True
        properties = {} if num_threads is None else {"INFERENCE_NUM_THREADS": num_threads}
        self._genai, self._num_ctx = genai, num_ctx
        self._pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        if not self._tokenizer.chat_template:
            raise ValueError("it has no chat template. Take the file of a model that was tuned for chat")
        self._live: dict[int, tuple[Any, int]] = {}

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take new requests in, drop cancelled ones, and compute one more token of each that is in flight.

        Args:
            message: `new`, a list of requests `{id, messages, settings}`, and `cancelled`, a list of ids.

        Returns:
            `failed`, pairs of an id and a problem, and `done`, pairs of an id and an answer.
        """
        failed = []
        for each in message["new"]:
            try:
                self._add(each)
            except (RuntimeError, ValueError) as error:  # Of this request alone.
                failed.append((each["id"], {"kind": type(error).__name__, "text": str(error)}))
        for number in message["cancelled"]:
            if number in self._live:
                self._live.pop(number)[0].cancel()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        done = [(number, self._answer(number)) for number in [*self._live] if self._has_ended(number)]
        return {"failed": failed, "done": done}

    def _add(self, request: dict[str, Any]) -> None:
        text = self._tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True)
        tokens = self._tokenizer.encode(text, add_special_tokens=False).input_ids
        num_tokens = tokens.shape[1]
        if num_tokens >= self._num_ctx:
            raise ValueError(
                f"The prompt has {num_tokens} tokens, which leaves no room for an answer in num_ctx={self._num_ctx}. "
                "Shorten the prompt, or raise `num_ctx`."
            )
        config, settings = self._pipeline.get_config(), dict(request["settings"])
        room = self._num_ctx - num_tokens
        config.max_new_tokens = min(settings.pop("max_new_tokens") or room, room)
        config.stop_strings = set(settings.pop("stop_strings"))
        schema = settings.pop("json_schema")
        if schema is not None:
            config.structured_output_config = self._genai.StructuredOutputConfig(json_schema=json.dumps(schema))
        for name, value in settings.items():
            setattr(config, name, value)
        self._live[request["id"]] = self._pipeline.add_request(request["id"], tokens, config), num_tokens

    def _has_ended(self, number: int) -> bool:
        return bool(self._live[number][0].get_status().name != "RUNNING")

    def _answer(self, number: int) -> dict[str, Any] | None:
        """Return an answer, None if the pipeline has none: then the prompt did not fit into its cache."""
        handle, num_tokens = self._live.pop(number)
        outputs = handle.read_all() if handle.can_read() else []
        if not outputs:
            return None
        tokens = outputs[0].generated_ids
        return {
            "text": str(self._tokenizer.decode(tokens)),
            "finish_reason": "length" if outputs[0].finish_reason.name == "LENGTH" else "stop",
            "input_tokens": num_tokens,
            "output_tokens": len(tokens),
        }


def main() -> None:
    """Serve the process that started this one: a line of JSON in, a line of JSON out, until it is gone."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What the libraries print must not get between the replies.

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        import openvino_genai

        server = Server(openvino_genai, **json.loads(sys.argv[1]))
    except (ImportError, RuntimeError, IndexError, ValueError) as error:
        reply({"kind": type(error).__name__, "text": str(error)})
        return
    reply({})
    for line in sys.stdin:
        try:
            reply(server.step(json.loads(line)))
        except RuntimeError as error:
            reply({"kind": "RuntimeError", "text": str(error)})
            return


if __name__ == "__main__":
    main()
