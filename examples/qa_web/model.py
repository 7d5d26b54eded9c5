"""A language model behind OpenAI's protocol: a server of this network as well as of another.

    JACOLBERT_LLM_BASE_URL   such as http://localhost:11434/v1 (Ollama), :8080/v1 (llama-server)
    JACOLBERT_LLM_MODEL      as that server calls it
    JACOLBERT_LLM_API_KEY    where it asks for one
    JACOLBERT_LLM_TIMEOUT    seconds that an answer may take; 60 where it is not set

Without the first two there is no model, and no request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import httpx
from openai import AsyncOpenAI, OpenAIError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

CONNECT_S = 5.0
MAX_RETRIES = 2  # of a request that was refused or lost, within the same time


class ModelError(Exception):
    """The server is not there, refused, or went silent; the message says which, in a few words."""


@dataclass(frozen=True)
class ChatModel:
    """A model and where it is asked.

    Attributes:
        name: as its server calls it.
        base_url: of the server.
        api_key: may be empty.
        timeout_s: that an answer may take.
    """

    name: str
    base_url: str
    api_key: str = ""
    timeout_s: float = 60.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ChatModel | None:
        """The model that the environment names; None where it names none.

        Raises:
            ModelError: it names half of one.
        """
        base_url = environment.get("JACOLBERT_LLM_BASE_URL", "")
        name = environment.get("JACOLBERT_LLM_MODEL", "")
        if not base_url and not name:
            return None
        if not base_url.startswith(("http://", "https://")) or not name:
            raise ModelError("JACOLBERT_LLM_BASE_URL must be an http(s) address, with JACOLBERT_LLM_MODEL")
        try:
            timeout = float(environment.get("JACOLBERT_LLM_TIMEOUT") or 60.0)
        except ValueError:
            raise ModelError("JACOLBERT_LLM_TIMEOUT must be a number of seconds") from None
        return cls(name, base_url, environment.get("JACOLBERT_LLM_API_KEY", ""), timeout)

    async def stream(self, messages: list[dict[str, str]]) -> AsyncIterator[str]:
        """The answer, in parts.

        Args:
            messages: a chat in OpenAI's format.

        Raises:
            ModelError: the server failed, before the first part or after some, or said nothing.
        """
        client = AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.api_key or "none",
            timeout=httpx.Timeout(self.timeout_s, connect=CONNECT_S),
            max_retries=MAX_RETRIES,
        )
        is_empty = True
        try:
            async with client, asyncio.timeout(self.timeout_s):
                parts = await client.chat.completions.create(
                    model=self.name,
                    messages=cast("list[ChatCompletionMessageParam]", messages),
                    stream=True,
                )
                async for part in parts:
                    if part.choices and part.choices[0].delta.content:
                        is_empty = False
                        yield part.choices[0].delta.content
        except (OpenAIError, httpx.HTTPError, TimeoutError, ValueError) as error:  # ValueError: no JSON
            raise ModelError(_in_short(error)) from error
        if is_empty:
            raise ModelError("empty answer")


def _in_short(error: Exception) -> str:
    """What went wrong, without what a server may have put into its message."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__}, HTTP {status}" if status is not None else type(error).__name__
