"""The seam to Kafka: the only place that imports kafka-python.

settings (where Kafka is), producer (`Producer`, and `Sender` for fakes), reader (`Reader` follows
whole topics without a group), admin (create and check topics, probe, offsets of a group), election
(one leader among several processes), artifact_download (a version's bytes from `artifacts` or a
URL), refusals (the library's errors as BrokerUnavailable), patches (what is mended in the library).

Knows streams.contract alone.
"""
