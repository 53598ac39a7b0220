"""What devices, server and worker train and run models with: plain torch loops to fit, predict,
and load weights; factors, low-rank ones in a module; teacher, which scores whole windows.
Without torch: onnx_model, the seam to onnxruntime
and a version in it with its self-test; updates, a norm that is clipped and a point between two sets
of weights; drift of inputs and answers, drift_reference (histograms and their frozen cells, in an
artifact) and drift_detector (PSI, Hellinger, ..., thresholds and alarms for many windows at once).

The only place below `tasks` that imports torch. Knows streams.contract and streams.runtime.
"""
