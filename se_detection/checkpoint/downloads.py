"""Whether what was downloaded is what its name promises."""

import hashlib
import re
from pathlib import Path

from ..errors import UserError

# torch.hub's names end with the beginning of their SHA-256, which a date is not; Hugging Face's cache has whole ones.
PROMISED = re.compile(r"(?:.*-)?([0-9a-f]{64}|(?<=-)(?=\d*[a-f])[0-9a-f]{8,63})(?:\.\w+)?")


def check_download(path: Path) -> None:
    """Compares a file with the SHA-256 in its name, where it has one; links are followed.

    Raises:
        UserError: it is another file.
    """
    file = path.resolve()
    promised = PROMISED.fullmatch(file.name)
    if promised is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(promised[1]):
        raise UserError(
            f"{file}: its SHA-256 is {digest}, and its name says {promised[1]}; remove it, and it is downloaded again, "
            "or if the name means something else, download it yourself and give its path"
        )
