"""What a check found: the counts, and one message a finding, of a number that stays bounded."""

from __future__ import annotations

from typing import Final

import attrs

from tapcore import CheckResult

MOST_MESSAGES: Final = 100


@attrs.define
class Report:
    """Findings as they are made.

    Attributes:
        result: the counts so far.
        messages: of the first findings.
        left_out: findings without a message.
    """

    result: CheckResult = attrs.field(factory=CheckResult)
    messages: list[str] = attrs.field(factory=list)
    left_out: int = 0

    def corrupt(self, message: str, count: int = 1) -> None:
        """Something is wrong, `count` times."""
        self.result.corruptions += count
        self.say(message)

    def leaked(self, message: str, count: int = 1) -> None:
        """Clusters are counted more often than they are referred to."""
        self.result.leaks += count
        self.say(message)

    def failed(self, message: str) -> None:
        """A part could not be checked."""
        self.result.check_errors += 1
        self.say(message)

    def say(self, message: str) -> None:
        """A message that counts nothing."""
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(message)
        else:
            self.left_out += 1

    def all_messages(self) -> list[str]:
        """The messages, and how many there would have been besides."""
        if not self.left_out:
            return self.messages
        return [*self.messages, f"... and {self.left_out} more"]
