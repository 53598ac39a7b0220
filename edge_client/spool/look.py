"""A look at a spool that nobody has open: it changes nothing, not even a torn end."""

from pathlib import Path

from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import list_files
from edge_client.spool.recovery import survey
from streams.contract.accounting import DeviceAccount
from streams.contract.errors import SpoolError


def account_in(folder: Path) -> tuple[str, DeviceAccount]:
    """Return the epoch and the account that the next open finds; "" and nothing without a spool."""
    try:
        files, epoch = list_files(folder), folder / "epoch"
        if not files or not epoch.exists():
            return "", DeviceAccount(0, 0, {}, 0)
        cursor = Cursor.load(folder, files[0])
        produced = survey(files, cursor, repair=False).next_seq
        pending = produced - cursor.delivered - sum(cursor.dropped.values())
        account = DeviceAccount(produced, cursor.delivered, dict(cursor.dropped), pending)
        return epoch.read_text().strip(), account
    except OSError as exc:
        raise SpoolError(f"the spool {folder} cannot be read: {exc}: check its disk") from exc
