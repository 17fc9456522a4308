"""The names in a request: of the model, the module and the evaluation key."""

import base64
import binascii
import re

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .protocol import INLINE_KEY_BYTES, KEY_HEADER


def parameter(request: Request, name: str) -> str:
    """The only value of a query parameter."""
    values = request.query_params.getlist(name)
    if len(values) != 1:
        raise HTTPException(400, f"{len(values)} query parameters {name!r} came: expected one")
    return values[0]


def key_name(text: str, where: str) -> str:
    """The name of an evaluation key, as it stands in the header or the path that `where` names."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise HTTPException(400, f"{where} names no evaluation key: expected its SHA-256 as 64 hexadecimal digits")
    return text


def inline_key(text: str) -> bytes:
    """The evaluation key in a header."""
    try:
        key = base64.b64decode(text[1:], validate=True)
    except binascii.Error:
        key = b""
    if not 0 < len(key) <= INLINE_KEY_BYTES:
        expected = f"=BASE64 of 1 to {INLINE_KEY_BYTES} bytes"
        raise HTTPException(400, f"the header {KEY_HEADER} holds no evaluation key: expected {expected}")
    return key
