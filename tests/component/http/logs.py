"""A log sink that keeps its lines."""

from __future__ import annotations


class LogLines(list[str]):
    """Be a sink whose lines a test can read."""

    def write(self, record: bytes) -> None:
        self.append(record.decode().rstrip("\n"))

    def close(self) -> None:
        """Do nothing; nothing is queued."""

    def with_text(self, text: str) -> list[str]:
        return [line for line in self if text in line]
