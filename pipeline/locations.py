"""Locations that a configuration may name: any but those with credentials in them; no I/O."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

# What signed URLs of the clouds have.
SIGNED = re.compile(r"[?&](X-Amz-|AWSAccessKeyId=|X-Goog-|sig=)", re.IGNORECASE)


def _without_credentials(url: str) -> str:
    """A configuration is kept, copied and shown; what it holds is no secret."""
    host = url.partition("://")[2].partition("/")[0]
    if ":" in host.rpartition("@")[0] or SIGNED.search(url):
        raise PydanticCustomError(
            "credentials",
            "has credentials in it; set them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY for s3://), or give the machine a role",
        )
    return url


Location = Annotated[str, AfterValidator(_without_credentials)]
