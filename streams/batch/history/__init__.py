"""The fleet's own history as input: what lies on the topic `events`.

topic          the seam to Kafka: ranges of offsets, and that they are still there
inputs         what a job reads, frozen when it is submitted
cutting        ranges cut into shards
events         the messages of a shard as rows
"""
