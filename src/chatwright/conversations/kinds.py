"""Settings that are told apart by `kind`: what filters and transforms have in common."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from chatwright.settings import Settings


class KindSettings(Settings):
    """One member of a union of settings; each has a field `kind` with its own name as the only value.

    Args:
        name: what ledgers and records call it; the kind where not given.
    """

    name: str | None = None

    @property
    def label(self) -> str:
        """What ledgers and records call it."""
        return self.name or str(getattr(self, "kind", ""))

    def identity(self) -> str:
        """What decides its answers beside the settings: a hash of a user's code, a library's version; else nothing.

        Raises:
            UserError: what it needs is missing.
        """
        return ""

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The kind is always written, also where defaults are left out: without it nothing can be read back."""
        return {"kind": getattr(self, "kind", None), **handler(self)}
