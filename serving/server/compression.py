"""Request bodies that a client has compressed.

aiohttp would inflate them in the event loop as they arrive, even if nobody reads them: a megabyte may expand to a
thousand, and every other request would wait. So they are inflated here, once complete, and only up to a limit.
"""

from __future__ import annotations

import gzip
import io
import zlib

from serving.server.errors import Code, RequestError, invalid

_TOO_LARGE, _UNSUPPORTED = 413, 415
_ZLIB = 8
"""Low four bits of the first byte of a zlib stream, but not of the raw deflate data that some clients send."""


def inflated(content: bytes, coding: str, most: int) -> bytes:
    """Undoes the Content-Encoding of a body.

    Raises:
        RequestError: INVALID_ARGUMENT if it is not one complete body of that coding, or (415) if the coding is neither
            gzip nor deflate; RESOURCE_EXHAUSTED (413) if it has more than `most` bytes.
    """
    coding = coding.lower()
    try:
        if coding == "identity":
            found = content
        elif coding in ("gzip", "x-gzip"):
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                found = file.read(most + 1)
        elif coding == "deflate":
            found = _deflated(content, most)
        else:
            message = f"Content-Encoding {coding!r} is not supported: send gzip, deflate or plain JSON"
            raise RequestError(Code.INVALID_ARGUMENT, message, _UNSUPPORTED)
    except (OSError, EOFError, zlib.error) as error:
        raise invalid(f"the body cannot be read: it is not one complete {coding} body ({error})") from None
    if len(found) > most:
        message = f"the inflated body exceeds {most} bytes. Set server.max_request_bytes to allow more"
        raise RequestError(Code.RESOURCE_EXHAUSTED, message, _TOO_LARGE)
    return found


def _deflated(content: bytes, most: int) -> bytes:
    """Inflates to at most one byte more than `most`."""
    stream = zlib.decompressobj(zlib.MAX_WBITS if content[:1] and content[0] & 0xF == _ZLIB else -zlib.MAX_WBITS)
    found = stream.decompress(content, most + 1)
    if len(found) <= most and (not stream.eof or stream.unused_data):
        raise EOFError("the stream is cut off, or other data follows it")
    return found
