"""What passes between processes, defined once: bytes and schemas, no behaviour.

task (what users write), events (Arrow on `events` and `scores`), documents (JSON on `fleet`,
`windows`, `rounds`), decisions (signed, on `releases`), artifact and delta (model versions as
bytes), payload and work (what Flower carries), topics, accounting, signing, errors.

Imports nothing else of Tidewheel, and no torch, faust, flwr or Kafka client.
"""
