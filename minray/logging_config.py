"""LoggingConfig: how a driver's log lines look. Applied by ``init(logging_config=…)``.

Invariant: applying it twice leaves one handler.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

_ENCODINGS = ("TEXT", "JSON")
_TEXT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"


@dataclass(slots=True)
class LoggingConfig:
    """How the root logger writes.

    Attributes:
        encoding: "TEXT" or "JSON" (one object per line).
        log_level: a level's name or number.
        additional_log_standard_attrs: further attributes of ``logging.LogRecord`` for each line.
    """

    encoding: str = "TEXT"
    log_level: str | int = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"invalid encoding {self.encoding!r}; valid ones: {', '.join(_ENCODINGS)}")
        if isinstance(logging.getLevelName(self.log_level), str) and isinstance(self.log_level, str):
            raise ValueError(f"invalid log_level {self.log_level!r}: use a level of the logging module")

    def apply(self) -> None:
        """Make the root logger of this process write like this to stderr."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            if isinstance(handler, _Handler):
                root.removeHandler(handler)
        handler = _Handler()
        handler.setFormatter(_Formatter(self.encoding, tuple(self.additional_log_standard_attrs)))
        root.addHandler(handler)
        root.setLevel(self.log_level)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, so that it can be found and replaced."""


class _Formatter(logging.Formatter):
    def __init__(self, encoding: str, attributes: tuple[str, ...]) -> None:
        super().__init__(_TEXT)
        self._json = encoding == "JSON"
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extra = {name: getattr(record, name, None) for name in self._attributes}
        if not self._json:
            return text + "".join(f" {name}={value}" for name, value in extra.items())
        line: dict[str, Any] = {
            "asctime": record.asctime,
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            **extra,
        }
        if record.exc_info:
            line["exc_text"] = record.exc_text
        return json.dumps(line, default=str)
