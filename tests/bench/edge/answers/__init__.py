"""How long an answer takes: the real agent, with a clock in it (`driver`), beside bare calls of
onnxruntime (`bare`) and with torch in its place (`eager`, `torch_engine`).

`latency` drives it through its states, and `quantiles` says how sure the figures are."""
