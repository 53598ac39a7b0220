"""A batch job without a job: `python -m benchmarks.contenders.score_loop INPUT OUTPUT MODEL N`.

Row groups in turn over N processes, pyarrow to read and write, onnxruntime: no ledger, no checks.
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 256
SHAPE = (6, 128)


def score(source: str, output: str, model: str, number: int, processes: int) -> None:
    """Score every `processes`th row group from `number` on into a file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    writer = None
    with pq.ParquetFile(source) as file:
        for group in range(number, file.num_row_groups, processes):
            for rows in file.iter_batches(8192, [group], columns=["event", "segment"]):
                flat = rows.column("segment").flatten().to_numpy().reshape(-1, *SHAPE)
                parts = [flat[i : i + BATCH] for i in range(0, len(flat), BATCH)]
                outputs = np.concatenate([session.run(None, {name: x})[0] for x in parts])
                table = pa.table({
                    "id": rows.column("event"),
                    "outputs": pa.FixedSizeListArray.from_arrays(outputs.ravel(), 6),
                    "class": outputs.argmax(axis=1),
                })  # fmt: skip
                if writer is None:
                    place = str(Path(output) / f"part-{number}.parquet")
                    writer = pq.ParquetWriter(place, table.schema, compression="zstd")
                writer.write_table(table)
    if writer is not None:
        writer.close()


def main() -> None:
    source, output, model, processes = *sys.argv[1:4], int(sys.argv[4])
    Path(output).mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=score, args=(source, output, model, n, processes))
        for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    main()
