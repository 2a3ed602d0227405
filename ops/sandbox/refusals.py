"""How the bank says no: its error envelope, as an exception that the HTTP edge renders."""


class Refused(Exception):
    """The bank refuses a call; nothing has changed. `field`, `reason` and `source` go into the envelope."""

    def __init__(
        self,
        description: str,
        *,
        status: int = 400,
        code: str = "BAD_REQUEST_ERROR",
        source: str | None = "business",
        reason: str | None = "input_validation_failed",
        field: str | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        self.code = code
        self.source = source
        self.reason = reason
        self.field = field

    def envelope(self) -> dict[str, object]:
        """The body of the answer, in the bank's form; with `field` only if there is one."""
        error: dict[str, object] = {
            "code": self.code,
            "description": str(self),
            "source": self.source,
            "step": None,
            "reason": self.reason,
            "metadata": {},
        }
        if self.field is not None:
            error["field"] = self.field
        return {"error": error}


def url_not_found() -> Refused:
    """Wrong path, wrong method, or a feature that is off: the bank answers 400 to all."""
    return Refused("The requested URL was not found on the server.", source=None, reason=None)


def unknown_id() -> Refused:
    """An id that this account does not have."""
    return Refused("The id provided does not exist")


def not_authenticated() -> Refused:
    """Wrong or missing key and secret."""
    return Refused("Authentication failed", status=401, source=None, reason=None)


def bad_token(description: str) -> Refused:
    """A bearer token that is missing, wrong, or has too little scope."""
    return Refused(
        description, status=401, code="BAD_REQUEST_AUTHENTICATION_ERROR", reason="authentication_failed"
    )


def trouble() -> Refused:
    """The bank's own failure, in JSON."""
    return Refused(
        "We are facing some trouble completing your request at the moment. Please try again shortly.",
        status=500,
        code="SERVER_ERROR",
        source="internal",
        reason="server_error",
    )


def throttled() -> Refused:
    """Too many requests. The body of the real 429 is not published: this shape is a guess."""
    return Refused("Throttling Error", status=429, source=None, reason=None)
