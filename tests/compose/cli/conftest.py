"""What the tests of jobs score."""

from pathlib import Path

import pytest

from streams.runtime.trust import create_key
from tests.compose.cli.test_jobs import FILES, MANY, ROWS
from tests.rig.made_up.models import artifact, plain
from tests.streams.batch.support import good_rows, write_bedrock, write_lines, write_parquet


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, a model, four files, each with a row of another width, as Parquet and as
    Bedrock has them, many small files, and JSON Lines."""
    folder = tmp_path_factory.mktemp("lake")
    (folder / "model.twa").write_bytes(artifact(create_key(folder / "k.pem"), plain(1)))
    for n in range(FILES):
        rows = good_rows(ROWS, n)
        rows[3]["segment"] = [1.0]
        write_parquet(folder / "parquet" / f"{n}.parquet", rows)
        write_bedrock(folder / "bedrock" / f"{n}.jsonl", rows)
    for n in range(MANY):
        write_parquet(folder / "many" / f"{n:03}.parquet", good_rows(5, n))
    write_lines(folder / "lines.jsonl", good_rows(ROWS))
    return folder
