"""Which field of a row of a data set means what."""

from __future__ import annotations

from pydantic import Field, model_validator

from ingot.core.stage import Frozen


def absent(value: object) -> bool:
    """For a parameter that came later: left out where it is not given, it is in no key that was there before it."""
    return value is None


class Fields(Frozen):
    """Which field of a row means what: ``messages``, or ``text``, or a pair of two, or two answers."""

    messages: str | None = Field(default=None, description="a list of {role, content}")
    prompt: str | None = None
    completion: str | None = None
    instruction: str | None = None
    input: str | None = Field(default=None, description="more to the instruction, where a row has it")
    output: str | None = None
    text: str | None = None
    chosen: str | None = Field(
        default=None, exclude_if=absent, description="the better of two answers to prompt, or to messages"
    )
    rejected: str | None = Field(default=None, exclude_if=absent, description="the worse one")
    pattern: str | None = Field(
        default=None,
        exclude_if=absent,
        description="a regular expression that every right answer to the row matches in full",
    )

    @model_validator(mode="after")
    def _one_shape(self) -> Fields:
        given = {name for name, value in self.model_dump().items() if value is not None and name != "pattern"}
        if self.pattern is not None and self.text is not None:
            raise ValueError("text asks nothing, so it has no 'pattern'")
        pair = {"chosen", "rejected"}
        shapes = [{"messages"}, {"text"}, {"prompt", "completion"}, {"instruction", "output"}]
        shapes += [pair, {"prompt", *pair}, {"messages", *pair}]
        if given - {"input"} not in shapes or ("input" in given and "instruction" not in given):
            raise ValueError(
                "name either messages, or text, or prompt and completion, or instruction and output, or chosen and "
                "rejected (with the prompt or the messages that they answer)"
            )
        return self
