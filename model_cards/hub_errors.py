"""Failures of the Hub as sentences that say what to do, without a token in them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from .leaked_text import without_secrets

# huggingface_hub speaks through requests, httpx or httpx2, by its version; failures of the connection are
# of the same family as its own error, whose bases are named here without naming the library.
HTTP_ERRORS: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base.__module__ != "builtins"
)
OFFLINE = "offline mode is on (HF_HUB_OFFLINE); unset it, or stay here with --dry-run."
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
SENTENCES = {
    401: f"the Hub does not accept the token; {LOG_IN} to a valid one.",
    403: "the token may not write there; take a namespace that is yours, or a token with the role `write`.",
    404: "it is not there, or hidden from this token; repeat the push.",
    409: "another repository or change is in the way; look at it on the Hub, then repeat the push.",
    412: "somebody changed it meanwhile; repeat the push, which looks again.",
    413: "the Hub takes no file or commit of that size.",
    429: "too many requests; wait some minutes and repeat the push.",
}
REPEAT = "Repeat the command when it is back: what has arrived is not sent again."


class HubError(Exception):
    """The Hub did not do what was asked; the message is for the user."""


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn every failure of the Hub or of the connection in a block into a `HubError`.

    Args:
        action: What the block does, such as "create user/name".

    Raises:
        HubError: Instead of the library's error, which is not kept as its cause: it may hold a token.
    """
    try:
        yield
    except (*HTTP_ERRORS, OSError, RuntimeError, ValueError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        raise HubError(f"could not {action}: {sentence}") from None


def _sentence(error: BaseException) -> str | None:
    """What happened, from the first error in the chain of causes that tells it; None for other errors."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None:
            return clean(_status_sentence(status, getattr(link, "server_message", None)))
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return OFFLINE
    if any(isinstance(link, (*HTTP_ERRORS, ConnectionError, TimeoutError)) for link in chain):
        return f"the connection to {clean(constants.ENDPOINT)} failed ({type(chain[-1]).__name__}). {REPEAT}"
    return None


def _status_sentence(status: int, told: str | None) -> str:
    told = f": {told}" if told else ""
    if status >= 500:
        return f"the Hub failed (HTTP {status}{told}). {REPEAT}"
    return f"{SENTENCES.get(status, 'the Hub refused it.')} (HTTP {status}{told})"


def clean(text: str) -> str:
    """The text without tokens, to be shown or logged."""
    return without_secrets(text, [get_token() or ""])


class TokenFilter(logging.Filter):
    """Takes tokens out of log records, those of libraries too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message; every record passes."""
        record.msg, record.args = clean(record.getMessage()), ()
        return True


def filter_logs() -> None:
    """Let no handler of the process or of huggingface_hub write a token."""
    for name in (None, "huggingface_hub"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(TokenFilter())
