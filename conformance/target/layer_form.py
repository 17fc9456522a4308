"""The record of one part of a target's layer that is missing or has another form than the suite's own."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = ("LinearLoRA", "TritonLinearLoRA")  # the public names of layers


@dataclass(frozen=True)
class LayerForm:
    """One part of a layer that is missing or has another form.

    Attributes:
        subject: the layer's public name.   seen: what the layer has instead.
        write: the line that mends it in the target; empty where there is nothing to mend.
        fails: the beginning of the message with which clauses fail because of it; empty where none does.
    """

    subject: str
    seen: str
    write: str = ""
    fails: str = ""

    @property
    def text(self) -> str:
        """The form in a line, with the line to write."""
        return f"{self.seen}; write in the target:  {self.write}" if self.write else self.seen

    def explains(self, message: str | None) -> bool:
        """Whether a clause with this message fails because of the form."""
        return bool(self.fails) and (message or "").startswith(self.fails)
