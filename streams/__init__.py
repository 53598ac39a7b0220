"""Events, windows and models: what every process shares, the scoring worker and the built-in tasks.

contract   what passes between processes: bytes, schemas, errors
kafka      the seam to Kafka
runtime    disk, keys on disk, health over HTTP, failpoints, which decisions a process accepts
segments   cutting a stream of readings into segments
drift      distances between histograms, and when they mean drift
learning   plain torch loops: fit, predict, clip; running ONNX graphs
worker     the Faust worker: windows, teacher, store, publication
batch      scoring stored files, as jobs that resume
tasks      the built-in tasks

`worker`, `batch` and `tasks` may import the others; no other one imports them. Nothing here knows
of federation, edge_client or compose.
"""

import os

# onnxruntime reads this when it is loaded. Otherwise it reports each session to its maker, with a
# thread, a database in the user's cache and 3 MB of memory.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
