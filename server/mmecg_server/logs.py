"""The log: one JSON object a line, with an event's name that an operator can alert on, and nothing of a request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("mmecg_server")
OWN = ("mmecg", "mmecg_index", "mmecg_server")
"""Packages whose records are shown; of others only where they come from."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields given as ``extra={"fields": {...}}``.

    A record of another of our packages carries its ``extra={"event": ...}``, and its message as it stands in the code:
    what would be put into it is shown only where it is numbers. A record of a foreign library carries its logger's
    name and nothing of its text: that may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.name == LOGGER.name:
            line |= {"event": record.getMessage()} | fields
        elif record.name.partition(".")[0] in OWN:
            line |= {"event": getattr(record, "event", "message"), "logger": record.name, "message": _text_of(record)}
            line |= fields
        else:
            line |= {"event": "library", "logger": record.name, "line": f"{record.module}:{record.lineno}"}
        return json.dumps(line)


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one structured log line. Callers pass no clinical content and no identifiers of studies or subjects."""
    LOGGER.log(level, event, extra={"fields": fields})


def set_up_logging(level: int = logging.INFO) -> None:
    """Send all logs of the process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OWN:
        logging.getLogger(name).setLevel(level)


def _text_of(record: logging.LogRecord) -> str:
    """Return the message; without what would be put into it, unless that is numbers."""
    args = record.args if isinstance(record.args, tuple) else ("not numbers",)
    return record.getMessage() if all(isinstance(each, int | float) for each in args) else str(record.msg)
