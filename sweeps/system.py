"""What the system refuses a command in the middle of its work: files, room, memory."""

from __future__ import annotations

import errno

import torch

MENDS = {
    (errno.EACCES, errno.EPERM, errno.EROFS): "mend its permissions, or work in another folder",
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room, and give the same command again",
    (errno.EMFILE, errno.ENFILE): "raise the limit on open files (ulimit -n)",
}
"""By error, what to do."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""Of torch's messages: on a CPU it has no class of its own for this."""


def system_message(error: Exception) -> str:
    """One sentence, with the mend where it is known; empty for what is no answer of the system's: a defect of ours, or
    a pipe that nobody reads any more, which click ends."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in NO_MEMORY):
        return "the memory is not enough for this: take a smaller batch_size, or a smaller network."
    if not isinstance(error, OSError) or error.errno == errno.EPIPE:
        return ""
    if not error.strerror:  # of a library's own, such as an artifact store's answer by HTTP
        return f"{text or type(error).__name__}."
    mend = next((said for numbers, said in MENDS.items() if error.errno in numbers), "")
    where = f" {error.filename}" if error.filename else ""
    return f"the system refuses{where or ' that'} ({error.strerror}){f': {mend}' if mend else ''}."
