"""`keyvouch admin receipt` and `keyvouch security-info receipt`: fetching what `keyvouch verify` judges offline."""

from __future__ import annotations

import os
from pathlib import Path

from keyvouch.base64url import encode as base64url
from keyvouch.errors import UsageError
from keyvouch.v1 import oversight_pb2
from keyvouch_client.commands.invocation import Invocation

__all__ = ["deliver", "fetch"]


async def fetch(run: Invocation) -> None:
    """Fetch the receipt of a sign-in of the tenant."""
    async with run.session() as session:
        request = oversight_pb2.GetReceiptRequest(sign_in_id=run.arguments.sign_in)
        told = await session.call(session.connection.oversight.GetReceipt, request)
    deliver(run, told.receipt)


def deliver(run: Invocation, receipt: bytes) -> None:
    """Write a receipt where it is wanted: a new file, or standard output as it is; with `--json` as base64url."""
    path = run.arguments.out
    result = {"receipt": base64url(receipt), "out": path}
    if path is not None:
        _write(Path(path), receipt)
        run.output.show(result, f"The receipt is in {path}. `keyvouch verify {path} --explain` says what it proves.")
    elif run.output.as_json:
        run.output.show(result)
    elif run.output.is_screen():
        raise UsageError("A receipt is no text to be read.", fix="Write it to a file with --out FILE, or redirect it.")
    else:
        run.output.raw(receipt)


def _write(path: Path, receipt: bytes) -> None:
    """Names who signed in and where: for its owner alone, and never over another file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(receipt)
    except FileExistsError:
        raise UsageError(f"There is a file {path} already.", fix="Name another one.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", fix="Name a file you may write.") from None
