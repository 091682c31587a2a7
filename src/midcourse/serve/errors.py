"""What is wrong with a request, in OpenAI's form."""

from typing import Any

from midcourse.errors import MidcourseError

KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    421: "MisdirectedRequestError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class RequestError(MidcourseError):
    """A request that is not answered, and why.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, as "guidance.rewards"; None if it is no single one.
        headers: of the answer.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, headers: dict[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.headers = status, param, headers or {}


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kind = KINDS.get(status, KINDS[400 if status < 500 else 500])
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
