"""The learning half of Tidewheel: rounds, admission, the gate, the registry and releases."""
