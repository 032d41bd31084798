"""Locations in a configuration, refused if they are blank or contain credentials; no I/O."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

# A user name and password before the host (a secret key may contain slashes), and the parameters
# of signed URLs.
USERS = re.compile(r"://[^@?#]*:[^@?#]*@|https?://[^/?#]*@")
SIGNED = re.compile(
    r"[?&](x-amz-\w+|x-goog-\w+|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|signature|sig|token|key)=",
    re.IGNORECASE,
)
NO_USERS = ("github://",)  # organisation:repository@revision


def has_credentials(url: str) -> bool:
    """Whether a URL has a user's name and password in it, or is signed."""
    has_user = USERS.search(url) and not url.startswith(NO_USERS)
    return bool(has_user or SIGNED.search(url))


def _checked(url: str) -> str:
    """``url``, unless it is blank (which would be the folder of the command) or has credentials.

    Configurations are stored, copied and shown. Raises `PydanticCustomError` or `ValueError`.
    """
    if not url.strip():
        raise ValueError("is empty")
    if has_credentials(url):
        raise PydanticCustomError(
            "credentials",
            "has credentials in it; set them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://, "
            "AZURE_STORAGE_CONNECTION_STRING for az://), or give the machine a role",
        )
    return url


Location = Annotated[str, AfterValidator(_checked)]
