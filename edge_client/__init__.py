"""The device half of Tidewheel: inference, the spool, the uplink, local training, model slots."""
